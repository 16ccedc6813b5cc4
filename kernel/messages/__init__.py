"""Messages from mailbox to mailbox: send, call, reply, receive, publish, names, dead letters.

Its system calls come by the gate. It starts and ends no process.
"""
