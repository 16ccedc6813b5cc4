"""Durable processes: the journal records their calls, so that they continue after a restart of the daemon."""
