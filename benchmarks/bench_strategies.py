"""What a step of every semi-supervised strategy costs: speed against supervised segmentation, parameters, peak memory of the process.

As bench_pretexts, whose code this is; a strategy sees two patches without a label beside two labelled ones, segmentation the two labelled ones.
"""

from bench_pretexts import main, methods

if __name__ == "__main__":
    main(__file__, methods("semi"))
