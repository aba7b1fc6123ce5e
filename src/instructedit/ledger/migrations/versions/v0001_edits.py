"""The first tables: deltas, edits, events and combinations."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "deltas",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("content", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "edits",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("uid", sa.String(32), nullable=False, unique=True),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("instruction", sa.Text()),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.Column("editor", sa.Text(), nullable=False),
        sa.Column("editor_digest", sa.String(64)),
        sa.Column("base", sa.String(64), nullable=False, index=True),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("delta", sa.String(64), sa.ForeignKey("deltas.digest"), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("report", sa.JSON()),
        sa.Column("health", sa.JSON()),
        sa.Column("made_from", sa.String(32)),
    )
    op.create_table(
        "events",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("edit", sa.Integer(), sa.ForeignKey("edits.id"), nullable=False, index=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reason", sa.Text()),
    )
    op.create_table(
        "combinations",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("delta", sa.String(64), sa.ForeignKey("deltas.digest"), nullable=False),
    )


def downgrade() -> None:
    """Drop the tables."""
    for name in ("combinations", "events", "edits", "deltas"):
        op.drop_table(name)
