"""Edit data: record schemas and their readers, data files, the facts table, and edits made from it."""
