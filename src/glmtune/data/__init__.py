"""Training data: read files as examples, encode examples as ids and labels, batch the rows."""
