"""Exports of trained models: merged, in transformers' layout, quantised, or as an adapter."""
