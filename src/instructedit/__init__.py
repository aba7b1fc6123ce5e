"""InstructEdit: edit what a language model knows, by instruction."""
