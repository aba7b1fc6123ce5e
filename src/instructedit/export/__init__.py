"""Edits in the formats of other programs: PEFT, GGUF, merged checkpoints."""
