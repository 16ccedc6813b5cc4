"""The transformers driver: one local model in a process of its own, run with packed continuous batching.

Started by the kernel as `python -P -m kernel.drivers.transformers FD PARENT_PID`. The life of a call: `engine` admits
it (`tokenizer`, `sequence`), reserves its keys and values (`kv`), runs it in packed steps (`chunks`, `forward`,
`attention`), chooses tokens (`sampler`), releases text (`detokenizer`, `stops`) and tells the kernel (`report`).
It decides no policy: leases come from the kernel.
"""
