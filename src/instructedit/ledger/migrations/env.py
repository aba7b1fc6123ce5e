"""Run by Alembic: brings the tables up to date on the connection that it is given."""

from __future__ import annotations

from alembic import context

from instructedit.ledger.tables import Table

context.configure(connection=context.config.attributes["connection"], target_metadata=Table.metadata)
context.run_migrations()
