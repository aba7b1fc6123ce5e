"""Many edits as one: the change that does what each edit does alone, and as little as possible to everything else."""
