"""Adapters as files and beside a model: what saves, seals, proves and mixes them."""
