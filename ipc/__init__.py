"""The wire: system calls, errors, messages and events as Structs; the codec, frames and transports that carry them.

Used by the kernel, the daemon, the drivers and every client. It imports nothing above it and knows no policy.
"""
