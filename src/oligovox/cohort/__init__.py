"""WHO: cases, cohorts, splits, readers (one layout a file). No torch."""
