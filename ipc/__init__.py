"""The wire: system calls and errors as Structs, envelopes, frames, codec and transports.

Used by the kernel, the daemon and every client. It imports nothing above it and knows no policy.
"""
