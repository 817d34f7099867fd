"""What tissues are like, and what signal they give."""
