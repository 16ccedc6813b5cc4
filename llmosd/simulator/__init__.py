"""The simulator: the daemon's own slots and policies, over a modelled device and a clock that jumps.

Used by the commands `simulate`, `calibrate` and `record` and by the benches; nothing else imports it, since it needs
the kernel. It talks to no daemon and starts no process.
"""
