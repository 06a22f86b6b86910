"""The training loop, its optimizer, the guard against bad figures, and the state for an exact resume."""
