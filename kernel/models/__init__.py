"""Models: the sequences of each model, its slots and leases, its driver, and the memory that all models share."""
