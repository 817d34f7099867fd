"""The data doctor: what is wrong with a cohort, in which file, and what would mend it. Reads only; `mend` writes copies. No torch."""
