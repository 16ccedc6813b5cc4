"""Tasks, which clients submit: accepted when the journal has them, run, found again, and restarted with the daemon.

The gate calls its handlers, for clients only.
"""
