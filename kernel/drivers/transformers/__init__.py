"""The transformers driver: one local model in a process of its own, run with packed continuous batching.

Started by the kernel as `python -P -m kernel.drivers.transformers FD PARENT_PID`. The life of a call: `engine` admits
it (`call_lifecycle`, `tokenizer`, `sequence`), gives it memory that may begin with what others computed
(`kv_allocator`, `prefix`, `kv`, `pages`), runs it in packed steps (`prefill_budget`, `forward`, `decoder`, `attention`,
`linear`), chooses tokens (`sampler`, `constraint`), releases text (`detokenizer`, `stops`), puts states on disk and
back (`swap_format`) and tells the kernel (`report`). `weights`, `model_builder` and `batch_invariance` make the model
ready at the start. It decides no policy: leases come from the kernel.
"""
