"""Messages between processes: send, call, reply, receive, publish, names, dead letters.

The gate calls its handlers. This room never starts or ends a process.
"""
