"""Makes what the bundled model `glm-tiny` is trained on: a corpus and a tokenizer."""
