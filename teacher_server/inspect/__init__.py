"""Statistics and findings read off a store; needs no teacher."""
