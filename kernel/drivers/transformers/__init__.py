"""The transformers driver: one local model in a process of its own, run with packed continuous batching.

The kernel starts it as `python -P -m kernel.drivers.transformers FD PARENT_PID`. `engine` is the step loop; README.md
walks a prompt through the files. The driver never decides policy: leases come from the kernel.
"""
