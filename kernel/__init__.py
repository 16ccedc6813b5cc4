"""The microkernel: processes, threads, mailboxes, model slots. One event loop holds every table and decides; it
never computes. Started by the daemon in `llmosd`; it imports neither that nor torch.
"""
