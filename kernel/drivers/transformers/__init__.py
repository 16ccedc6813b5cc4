"""The transformers driver: one local model in a process of its own, run with packed continuous batching.

Started by the kernel as `python -P -m kernel.drivers.transformers FD PARENT_PID`. The life of a call: `engine` admits
it (`admission`, `tokenizer`, `sequence`), gives it memory that may begin with what others computed (`placement`,
`prefix`, `kv`, `pages`), runs it in packed steps (`pace`, `forward`, `decoder`, `attention`, `linear`), chooses tokens
(`sampler`, `constraint`), releases text (`detokenizer`, `stops`), puts states on disk and back (`swap`) and tells the
kernel (`report`). `weights`, `assembly` and `invariance` make the model ready at the start.
It decides no policy: leases come from the kernel.
"""
