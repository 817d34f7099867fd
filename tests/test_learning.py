"""Long trainings, run by `make bench`: a short demo must really find lesions in people it has not seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oligovox import experiment


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_both_arms_of_a_short_demo_find_lesions(tmp_path: Path) -> None:
    fewer = ["cohorts.simulated.simulate.subjects=16", "split.test=6", "pretrain.training.steps=150"]
    experiment.demo(tmp_path / "run", fewer)
    report = json.loads((tmp_path / "run" / "report.json").read_text())["report"]
    for arm in report["arms"]:
        assert arm["means"]["dice"]["n"] == 6
        assert arm["means"]["dice"]["mean"] > 0.5, arm["name"]  # the full demo reaches about 0.78 in either arm
        for case in arm["cases"]:
            assert case["volume_predicted_ml"] < 3 * case["volume_true_ml"] + 1.0
