"""Editors: one module a method, which turns edit requests into edits; :mod:`.registry` finds them by name."""
