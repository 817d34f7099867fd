"""What both comparisons of `early, both` with zero filling say together → study_missing_together.json.

    python benchmarks/study_missing_together.py

From study_missing_longer.json (seeds 6 and 7, the people on whom it was found) and study_missing_held.json (seeds 10 and 11, new people), each with
two trainings and sixteen tested people. The difference is the mean of both studies'; its 95 % interval is of a bootstrap over the trainings and the
people of each study. Written after both had been seen: it adds no people, and half of them are those it was found on.
"""

import json
from pathlib import Path

import numpy as np

from oligovox.files import write_json

HERE = Path(__file__).parent
STUDIES = {"longer": ("6", "7"), "held": ("10", "11")}
DRAWS = 10_000


def differences(study, seeds, subset):
    """(training, person): Dice of `early, both` minus that of zero filling."""
    rows = json.loads((HERE / f"study_missing_{study}.json").read_text())["rows"]
    ours, theirs = (rows[arm][subset]["people"] for arm in ("early, both", "zero filling"))
    return np.array([[ours[seed][person] - theirs[seed][person] for person in sorted(ours[seed])] for seed in seeds])


def drawn(found, rng):
    """The mean of trainings and people drawn anew."""
    trainings, people = (rng.integers(size, size=size) for size in found.shape)
    return found[np.ix_(trainings, people)].mean()


if __name__ == "__main__":
    rng, result = np.random.default_rng(0), {}
    for subset in json.loads((HERE / "study_missing_held.json").read_text())["rows"]["zero filling"]:
        studies = [differences(study, seeds, subset) for study, seeds in STUDIES.items()]
        means = [np.mean([drawn(found, rng) for found in studies]) for _ in range(DRAWS)]
        low, high = np.percentile(means, [2.5, 97.5])
        mean = float(np.mean([found.mean() for found in studies]))
        result[subset] = {"mean": mean, "low": float(low), "high": float(high), "n": sum(x.shape[1] for x in studies)}
        print(f"| {subset} | {mean:+.3f} [{low:+.3f}, {high:+.3f}] |")
    write_json(HERE / "study_missing_together.json", result)
