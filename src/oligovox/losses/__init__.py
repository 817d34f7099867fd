"""Only what two methods share."""
