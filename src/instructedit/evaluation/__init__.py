"""Evaluation of edits: registered metrics, protocols, and the batched runner."""
