"""Sliding window, and back onto the native grid."""
