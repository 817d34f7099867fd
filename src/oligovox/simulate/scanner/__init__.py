"""What a scanner makes of the signal."""
