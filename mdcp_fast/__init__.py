"""Structured pruning of convolutional networks by multidimensional channel clustering."""
