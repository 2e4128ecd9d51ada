"""Networks as they are deployed: written to files, run by other backends, timed."""
