"""Analysis of what an instruction changes inside an editor."""
