"""Reading and writing of files: JSON, YAML, tensors and checkpoints."""
