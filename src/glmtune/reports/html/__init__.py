"""Runs as one web page that needs nothing outside itself."""
