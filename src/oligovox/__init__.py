"""oligovox."""
