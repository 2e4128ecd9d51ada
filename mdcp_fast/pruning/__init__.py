"""Carries a plan out: removes channels, fits what is left to the dense network, saves and loads."""
