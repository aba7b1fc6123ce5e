"""Alembic's environment: how a ledger's tables came to be what they are."""
