"""A ground lies under a study, and a frozen one does not change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from oligovox.errors import SettingsError
from oligovox.experiment.budget_plan import Study, parse_study, read_study, write_study
from oligovox.experiment.ground_file import GroundFile, read_ground

GROUNDS = Path(__file__).parents[2] / "benchmarks" / "grounds"
FILES = sorted(GROUNDS.glob("*.yaml")) + sorted(GROUNDS.glob("retired/*.yaml"))
FROZEN = json.loads((GROUNDS / "frozen.json").read_text())
ARMS = {"scratch": {"start": "scratch"}}
SMALL = {
    "name": "hill",
    "version": 3,
    "why": "steep",
    "common": {"store": "/nowhere", "counts": [1, 4], "split": {"test": 5, "validation": 2}},
    "cpu": {"network": {"settings": {"preset": "nano"}}, "finetune": {"training": {"steps": 7, "threads": 1}}},
    "gpu": {"network": {"settings": {"preset": "M"}}},
}


def on(folder: Path, size: str = "cpu", **more: object) -> Study:
    (folder / "hill.yaml").write_text(yaml.safe_dump(SMALL))
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump({"name": "s", "ground": {"file": "hill.yaml", "size": size}, "arms": ARMS, **more}))
    return read_study(file)


def test_a_study_has_what_its_ground_says_unless_it_says_otherwise(tmp_path: Path) -> None:
    study = on(tmp_path, finetune={"training": {"steps": 9}}, split={"test": 3})
    assert (study.finetune.training.steps, study.finetune.training.threads) == (9, 1)
    assert (study.split.test, study.split.validation, study.counts) == (3, 2, (1, 4))
    assert study.network.settings == {"preset": "nano"}
    assert on(tmp_path, "gpu").network.settings == {"preset": "M"}


def test_a_resolved_study_needs_its_ground_no_more(tmp_path: Path) -> None:
    study = on(tmp_path)
    assert study.ground.startswith("hill 3 (cpu), SHA-256 ")
    (tmp_path / "hill.yaml").unlink()
    assert parse_study(write_study(study), "again") == study


def test_the_digest_knows_what_is_said_not_how_it_is_ordered() -> None:
    ground = GroundFile(**SMALL)
    turned = GroundFile(**{**SMALL, "common": dict(reversed(SMALL["common"].items())), "why": "other words"})
    assert turned.sha256("cpu") == ground.sha256("cpu") != ground.sha256("gpu")
    assert GroundFile(**{**SMALL, "common": {"counts": [1]}}).sha256("cpu") != ground.sha256("cpu")


@pytest.mark.parametrize(
    ("ground", "message"),
    [
        ({"file": "none.yaml"}, r"none\.yaml: cannot be read as YAML"),
        ({"file": "hill.yaml", "size": "tpu"}, "size = 'tpu'"),
        ({"file": "hill.yaml", "sizes": "cpu"}, "unknown key 'sizes'"),
    ],
)
def test_a_ground_that_cannot_be_read_is_named(tmp_path: Path, ground: dict[str, str], message: str) -> None:
    (tmp_path / "hill.yaml").write_text(yaml.safe_dump(SMALL))
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({"name": "s", "ground": ground, "arms": ARMS}))
    with pytest.raises(SettingsError, match=message):
        read_study(file)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_frozen_ground_is_as_it_was(file: Path, tmp_path: Path) -> None:
    """Whoever changes a ground gives it another version, and its digests a line of their own in frozen.json."""
    ground = read_ground(file)
    assert (
        f"{ground.name}_v{ground.version}" == file.stem if file.parent.name == "retired" else ground.name == file.stem
    )
    assert FROZEN[f"{ground.name} {ground.version}"] == {size: ground.sha256(size) for size in ("cpu", "gpu")}
    shutil.copy(file, tmp_path)
    for size in ("cpu", "gpu"):
        (tmp_path / "study.yaml").write_text(
            yaml.safe_dump({"name": "s", "ground": {"file": file.name, "size": size}, "arms": ARMS})
        )
        study = read_study(tmp_path / "study.yaml")
        seeds = [cohort.simulate.seed for cohort in study.cohorts.values() if cohort.simulate]
        assert len(seeds) == len(study.cohorts)
        assert all(seed >= 1000 for seed in seeds), "people of grounds are others than those of development"
