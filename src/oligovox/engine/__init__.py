"""The one training loop, checkpoints, logs: the only place with .backward()."""
