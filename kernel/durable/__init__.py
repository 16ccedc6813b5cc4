"""Durable processes: what they did is in the journal, and a restart of the daemon takes them to where they were."""
