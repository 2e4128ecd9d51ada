"""What the kernels answer to: the same definitions, written plainly."""
