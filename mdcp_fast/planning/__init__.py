"""What to keep: describes channels, scores what they are worth, searches widths under budgets."""
