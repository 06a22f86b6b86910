"""Draws the pictures of the guides."""
