"""The journal: all that has to survive the daemon, in SQLite. One thread commits many requests together."""
