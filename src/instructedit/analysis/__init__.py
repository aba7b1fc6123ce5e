"""Analysis: what an instruction changes inside an editor."""
