"""Experiments: many editors, several seeds, the same edits; from one YAML file to JSON, tables and a picture."""
