"""Rows: files to examples, examples to ids and labels, ids to batches."""
