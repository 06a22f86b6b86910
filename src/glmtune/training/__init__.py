"""The loop, its optimizer, and what an exact continuation needs."""
