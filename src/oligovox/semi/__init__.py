"""Semi-supervised strategies: the supervised task and one more term for what nobody looked at. One strategy, one file."""
