"""Sources of targets: a store, a teacher server, a teacher in this process."""
