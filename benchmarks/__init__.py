"""Measurements: ours beside named peers, in turns; see README.md here."""
