"""Answers to test rows, and their scores."""
