"""What the past left behind, as something that works here."""
