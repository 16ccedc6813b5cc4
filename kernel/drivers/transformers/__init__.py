"""The transformers driver: one local model in a process of its own, run with packed continuous batching.

Started by the kernel as `python -P -m kernel.drivers.transformers FD PARENT_PID`. `engine` is the step loop; README.md
walks a prompt through the files. It decides no policy: leases come from the kernel.
"""
