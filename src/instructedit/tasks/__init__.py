"""Tasks: what an edit must change and keep, declared in one YAML file each."""
