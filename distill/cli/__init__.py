"""The command line. Nothing imports it; each command imports what it needs when it runs."""
