"""The loop of the daemon, which no agent can stop, and what the processes of agents have opened on it.

The rooms above use this room. It never decides how a process ends.
"""
