"""The simulator: runs the daemon's own lease table and policies on a simulated clock and a simulated device.

Used by the commands `simulate`, `calibrate` and `record` and by the benches. Nothing else imports it, because it needs
the kernel. It never starts a process; only calibration and recording talk to a daemon.
"""
