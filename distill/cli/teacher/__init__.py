"""Commands that run a teacher."""
