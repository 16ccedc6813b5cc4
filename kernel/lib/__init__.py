"""What any room may use: checks, fault points, locks, the machine, timers, units. It knows nothing of the kernel."""
