"""Supervised ends of the road: one task, one file."""
