"""One model with sequences hidden: as if they had never been acquired, every combination, one page."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from oligovox import experiment
from oligovox.cohort.manifest import Case
from oligovox.engine.fit import Training
from oligovox.errors import CohortError
from oligovox.experiment import subsets
from oligovox.experiment.cohorts import read_cohort
from oligovox.experiment.prediction import predict_cases
from oligovox.experiment.recipe import Finetune, NetworkChoice, Predict
from oligovox.experiment.sequence_price import read_losses
from oligovox.files import read_json, read_tsv
from oligovox.prepare.store import Store

STEPS = {"patch": (16, 16, 16), "training": Training(steps=3, threads=1, tensorboard="off")}


@pytest.fixture(scope="module")
def made(make_phantom: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bids (five people, the third unlabelled), store (of the first three), run (a few steps on T1w and FLAIR of the last two). Not to be changed."""
    root = tmp_path_factory.mktemp("made")
    make_phantom(root / "bids", subjects=5, labelled=5)
    next((root / "bids").glob("derivatives/*/sub-03/anat/*_label-lesion_mask.nii.gz")).unlink()
    cohort = read_cohort(root / "bids")
    for name, cases in (("store", cohort.cases[:3]), ("taught", cohort.cases[3:])):
        replace(cohort, cases=cases).save(root / f"{name}.tsv")
        experiment.prepare(root / f"{name}.tsv", root / name, modalities=("T1w", "FLAIR"), workers=1)
    network = NetworkChoice.named("resenc", "nano")
    experiment.finetune(root / "taught", root / "run", stage=Finetune(**STEPS), network=network)
    return root


def test_hidden_is_as_if_it_had_never_been_acquired(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "bids", tmp_path / "bids")
    for path in (tmp_path / "bids").glob("sub-*/anat/*_T1w.nii.gz"):
        path.unlink()
    options, model = Predict(save_probabilities=True), made / "run" / "model"
    experiment.predict(made / "run", tmp_path / "bids", tmp_path / "absent", options=options, workers=1)
    cases, quiet = Store.open(made / "store").cases, lambda done, total, name: None
    predict_cases(model, cases, tmp_path / "hidden", options, quiet, hidden=["T1w"])
    predict_cases(model, cases, tmp_path / "shown", options, quiet)

    def probability(side: str, subject: str) -> np.ndarray:
        return nib.load(next((tmp_path / side).glob(f"sub-{subject}/**/*probseg.nii.gz"))).get_fdata()

    for subject in ("01", "02", "03"):
        np.testing.assert_array_equal(probability("hidden", subject), probability("absent", subject))
        assert np.abs(probability("hidden", subject) - probability("shown", subject)).max() > 1e-3
    sidecar = read_json(next((tmp_path / "hidden").glob("sub-01/**/*_mask.json")))
    assert sidecar["SequencesHidden"] == ["T1w"]
    assert "SequencesHidden" not in read_json(next((tmp_path / "shown").glob("sub-01/**/*_mask.json")))


def test_every_combination_is_scored_and_priced(made: Path, tmp_path: Path) -> None:
    (tmp_path / "bids").symlink_to(made / "bids")
    found = experiment.evaluate_subsets(made / "run", tmp_path / "bids", tmp_path / "out", workers=1)
    out = tmp_path / "out"
    rows = {(row["subset"], row["region"], row["metric"]): row for row in found["subsets"]}
    assert list(dict.fromkeys(row["subset"] for row in found["subsets"])) == ["T1w+FLAIR", "T1w", "FLAIR"]
    for name in ("T1w+FLAIR", "T1w", "FLAIR"):
        summary = read_json(out / "subsets" / name / "summary.json")
        assert rows[name, "lesion", "dice"]["mean"] == summary["mean"]["lesion"]["dice"]["mean"]
        assert summary["cases"] == rows[name, "foreground", "ece"]["n"] == 2
        assert 0 < rows[name, "foreground", "brier"]["mean"] < 1
    price = next(r for r in found["prices"] if (r["sequence"], r["metric"]) == ("FLAIR", "brier"))
    whole, without = (rows[name, "foreground", "brier"]["mean"] for name in ("T1w+FLAIR", "T1w"))
    assert price["mean"] == pytest.approx(whole - without)
    assert (price["best"], price["hidden_from"]) == ("low", "the whole exam")
    assert [row["subset"] for row in read_tsv(out / "subsets.tsv")] == [row["subset"] for row in found["subsets"]]
    assert read_json(out / "subsets.json")["prices"] == found["prices"]
    assert read_json(out / "subsets.json")["scored_and_trained_on"] == []
    loss = next(r for r in found["losses"] if (r["subset"], r["metric"]) == ("T1w", "brier"))
    assert all(loss[key] == price[key] for key in ("mean", "low", "high", "n")), (
        "without FLAIR the whole loss is its price"
    )
    assert {row["subset"] for row in read_tsv(out / "losses.tsv")} == {"T1w", "FLAIR"}
    page = Path(found["page"]).read_text()
    assert "<svg" in page
    assert f"{rows['FLAIR', 'foreground', 'ece']['mean']:.3f}" in page
    written = {path: path.stat().st_mtime_ns for path in out.glob("subsets/*/predictions/sub-*/**/*.nii.gz")}
    assert len(written) == 6
    again = experiment.evaluate_subsets(made / "run", tmp_path / "bids", out, workers=1)
    assert again == found
    assert written == {path: path.stat().st_mtime_ns for path in written}, "a prediction that stands there is kept"

    for part in ("bids", "run"):  # a model that was measured says what it expects to lose
        shutil.copytree(made / part, tmp_path / "copy" / part)
    shutil.copy(out / "subsets.json", tmp_path / "copy" / "run" / "model")
    (tmp_path / "copy" / "bids" / "sub-01" / "anat" / "sub-01_T1w.nii.gz").unlink()
    experiment.predict(
        tmp_path / "copy" / "run", tmp_path / "copy" / "bids", tmp_path / "told", people=["01"], workers=1
    )
    told = read_json(next((tmp_path / "told").glob("sub-01/**/*_mask.json")))["ExpectedLoss"][0]
    expected = next(row for row in found["losses"] if row["subset"] == "FLAIR")
    assert told == {key: expected[key] for key in told}
    assert told["metric"] == "dice"


def test_an_exam_counts_for_the_combinations_it_has(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made / "bids", tmp_path / "bids")
    (tmp_path / "bids" / "sub-01" / "anat" / "sub-01_T1w.nii.gz").unlink()
    found = experiment.evaluate_subsets(made / "run", tmp_path / "bids", tmp_path / "out", workers=1)
    people = {row["subset"]: row["n"] + row["skipped"] for row in found["subsets"] if row["metric"] == "dice"}
    assert people == {"T1w+FLAIR": 1, "T1w": 1, "FLAIR": 2}
    assert "predicted without" not in capsys.readouterr().err
    only = experiment.evaluate_subsets(made / "run", tmp_path / "bids", tmp_path / "one", people=["01"], workers=1)
    assert {row["subset"] for row in only["subsets"]} == {"FLAIR"}
    assert "T1w+FLAIR: no labelled exam has all of these" in capsys.readouterr().err


def test_people_that_training_has_seen_are_scored_only_where_they_are_named(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def evaluated(name: str, **more: Any) -> dict[str, Any]:
        experiment.evaluate_subsets(made / "run", made / "bids", tmp_path / name, workers=1, **more)
        return read_json(tmp_path / name / "subsets.json")

    found = evaluated("unnamed")
    assert {row["n"] + row["skipped"] for row in found["subsets"]} == {2}
    assert "left out, since by their names the model was trained on them: 04, 05;" in capsys.readouterr().err
    assert found["scored_and_trained_on"] == []
    named = evaluated("named", people=["01", "05"])
    assert named["scored_and_trained_on"] == ["05"]
    assert "the model was trained on 05, who are scored here" in capsys.readouterr().err
    read_losses(tmp_path / "unnamed" / "subsets.json", found["model"])
    assert capsys.readouterr().err == ""
    read_losses(tmp_path / "named" / "subsets.json", named["model"])
    assert "they promise too much" in capsys.readouterr().err

    with pytest.raises(CohortError, match=r"trained on everybody with a label mask \(04, 05\); .*name with --people"):
        experiment.evaluate_subsets(made / "run", made / "taught.tsv", tmp_path / "none", workers=1)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("person", "dataset", "known"),
    [("05", "", True), ("01", "", False), ("05", "b", False), ("05", "a", True)],
)
def test_a_model_of_several_cohorts_knows_people_by_both_names(person: str, dataset: str, known: bool) -> None:
    case = Case(subject=person, dataset=dataset, images={"FLAIR": Path("f.nii")})
    assert subsets._is_of(case, ["a_05", "a_11"]) is known


def test_nobody_with_a_label_is_refused(made: Path, tmp_path: Path) -> None:
    cohort = read_cohort(made / "bids")
    replace(cohort, cases=tuple(replace(case, label=None) for case in cohort.cases)).save(tmp_path / "bare.tsv")
    with pytest.raises(CohortError, match="nobody with a label mask has a sequence that the model knows"):
        experiment.evaluate_subsets(made / "run", tmp_path / "bare.tsv", tmp_path / "out")
    assert not (tmp_path / "out").exists()
