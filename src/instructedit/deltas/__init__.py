"""Weight deltas: what an edit is, and their files."""
