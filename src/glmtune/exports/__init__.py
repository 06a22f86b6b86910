"""Trained models as others take them: merged, in transformers' layout, quantised, or as an adapter."""
