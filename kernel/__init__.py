"""The microkernel: processes, threads, mailboxes and the slots of models.

One event loop owns every table and makes every decision; drivers and worker threads do all slow work. The daemon in
`llmosd` starts the kernel. The kernel never imports `llmosd`, and only its transformers driver, a process of its own,
imports torch.
"""
