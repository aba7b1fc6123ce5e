"""The base model: loading, structure, tokenization and the split forward pass."""
