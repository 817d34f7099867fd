"""Self-supervised pre-training: one paper, one file."""
