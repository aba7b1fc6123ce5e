"""Instructions: where they come from, which are good, and which one a request gets."""
