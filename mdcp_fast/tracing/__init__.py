"""Which channels of a network hang together, and what they cost."""
