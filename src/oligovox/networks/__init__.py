"""Encoder contract, one architecture a file, heads, EMA teacher, weight transfer. No method knowledge."""
