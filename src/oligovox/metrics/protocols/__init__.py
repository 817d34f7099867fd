"""One challenge, one file: its rules on top of the one matching core of `metrics.lesions`. Numpy, mm and mm³."""
