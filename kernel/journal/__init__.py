"""The journal: what has to survive the daemon, in SQLite, written by one thread that commits for many at once."""
