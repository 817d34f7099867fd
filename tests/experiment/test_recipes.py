"""Every recipe and study that we hand out passes the check that its command makes before anything is written; nobody is simulated."""

from __future__ import annotations

from pathlib import Path

import pytest

from oligovox.experiment.budget_ground import check_arms, check_study
from oligovox.experiment.budget_plan import read_study
from oligovox.experiment.recipe import read_content, read_recipe
from oligovox.experiment.study import check_stages
from oligovox.prepare.store import Plan

ROOT = Path(__file__).parents[2]
FILES = {
    str(path.relative_to(ROOT)): path
    for folder in ("recipes", "recipes/studies", "benchmarks/studies", "src/oligovox/recipes")
    for path in sorted((ROOT / folder).glob("*.yaml"))
}
STORE = Plan(modalities=("T1w", "T2w", "FLAIR"))
"""Stands for the plan of a store that a study was made on and that is not here."""


@pytest.mark.parametrize("name", FILES)
def test_what_we_hand_out_fits_together(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where people are real and not here, what is asked of them is left out."""
    for folder in ("OLIGOVOX_DATA", "OLIGOVOX_READY"):
        monkeypatch.setenv(folder, str(tmp_path))
    if "finetune" in read_content(FILES[name]) and "counts" not in read_content(FILES[name]):
        check_stages(read_recipe(FILES[name]))
        return
    study = read_study(FILES[name])
    if study.cohorts and all(choice.simulate for choice in study.cohorts.values()):
        check_study(study)
    else:
        check_arms(study, study.prepare or STORE)


def test_few_and_sparse_labels_are_both_the_study_of_ssl2() -> None:
    for size in ("ssl2", "ssl2_cpu"):
        check_study(read_study(FILES[f"recipes/{size}.yaml"], ("cohorts.clinic.mask=sparse",)))
