"""Numpy in, numbers out, in mm and mm³. No torch."""
