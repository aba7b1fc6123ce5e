"""A ledger of edits: every edit with its request, its delta and what it did, in a database.

The request is the asset, the delta is what one editor made of it for one base model. An edit is enabled, disabled or
reverted; the edited model follows from the enabled edits alone, whatever was toggled before.
"""
