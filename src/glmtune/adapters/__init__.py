"""Adapters as files and on a model: saving, loading, proving, merging and serving several at once."""
