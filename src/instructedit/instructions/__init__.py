"""Instruction templates, the search for better ones with a trial editor, and routing of requests to tasks."""
