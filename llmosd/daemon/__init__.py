"""The daemon: settings, log, socket, systemd, and one kernel. The `llmosd` command starts it."""
