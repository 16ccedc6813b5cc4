"""The microkernel: processes, threads, mailboxes, model slots.

One event loop holds every table and makes every decision; it never computes. The daemon in `llmosd` starts the kernel,
which imports neither `llmosd` nor torch.
"""
