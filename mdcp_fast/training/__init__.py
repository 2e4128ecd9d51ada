"""Fine-tunes and evaluates any network."""
