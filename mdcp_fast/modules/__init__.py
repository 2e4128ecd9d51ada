"""What holds for any nn.Module: calling it, taking channels out of it, comparing the two."""
