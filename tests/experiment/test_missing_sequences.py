"""What comes first in a folder, a cohort or a plan changes no prediction; a prediction says what it got and what it expects to lose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from oligovox import experiment
from oligovox.cohort.bids import read_bids
from oligovox.cohort.manifest import Case, Cohort
from oligovox.engine.model import ModelDescription, read_description, save_model
from oligovox.errors import CheckpointError
from oligovox.experiment.planning_facts import facts_of_store, sources_of_store
from oligovox.experiment.prediction import predict_cases
from oligovox.experiment.recipe import NetworkChoice, Predict
from oligovox.experiment.sequence_price import NOT_MEASURED
from oligovox.experiment.training import build_encoder, build_method
from oligovox.files import read_json, write_json
from oligovox.networks.transfer import transfer
from oligovox.prepare.pipeline import prepare
from oligovox.prepare.store import Plan, Store, StoredCase

THREE = ("T1w", "T2w", "FLAIR")
OPTIONS = Predict(save_probabilities=True, overlap=0.25)


def model_of(folder: Path, fusion: str, order: Sequence[str] = THREE) -> Path:
    """A model folder with drawn weights; in another order the same weights, moved by name."""
    choice = NetworkChoice(name="resenc", settings={"preset": "nano", "fusion": fusion})

    def drawn(modalities: tuple[str, ...]) -> torch.nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build_method("segmentation", {}, build_encoder(choice, modalities)).export()

    known, network = drawn(THREE), drawn(tuple(order))
    transfer(known.state_dict(), THREE, network)
    network.head.load_state_dict(known.head.state_dict())
    plan = Plan(modalities=tuple(order), spacing=(1.5, 1.5, 1.5))
    description = ModelDescription(
        method="segmentation", network=choice.name, network_settings=choice.settings, modalities=tuple(order),
        plan=plan.model_dump(mode="json"), labels={"lesion": 1}, patch=(16, 16, 16),
    )  # fmt: skip
    save_model(folder, network, description)
    return folder


def quiet(done: int, total: int, name: str) -> None:
    """No progress."""


def answers(model: Path, cohort: Cohort, out: Path) -> dict[str, np.ndarray]:
    """Case → probability of lesion on its own grid."""
    plan = Plan.model_validate(read_description(model).plan)
    cases = prepare(cohort, plan, out / "store", workers=1, checked=True).cases
    predict_cases(model, cases, out / "predictions", OPTIONS, quiet)
    files = {case.name: next((out / "predictions" / case.name).rglob("*_probseg.nii.gz")) for case in cases}
    return {name: nib.load(file).get_fdata() for name, file in files.items()}


@pytest.fixture(scope="module")
def cohort(make_phantom: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Three people; the second has no T1w, the third FLAIR alone."""
    root = make_phantom(tmp_path_factory.mktemp("order") / "bids", subjects=3, labelled=0, side=20)
    for path in (*root.glob("sub-0[23]/anat/*_T1w.nii.gz"), *root.glob("sub-03/anat/*_T2w.nii.gz")):
        path.unlink()
    return read_bids(root, mask=None)


@pytest.mark.parametrize("fusion", ["early", "stems"])
def test_nothing_depends_on_what_comes_first(cohort: Cohort, tmp_path: Path, fusion: str) -> None:
    def turned(case: Case) -> Case:
        return replace(case, images=dict(reversed(case.images.items())))

    expected = answers(model_of(tmp_path / "model", fusion), cohort, tmp_path / "one")
    assert len({array.tobytes() for array in expected.values()}) == 3
    assert max(np.ptp(array) for array in expected.values()) > 0.01
    files = Cohort(cases=tuple(turned(case) for case in reversed(cohort.cases)), name="turned")
    found = answers(tmp_path / "model", files, tmp_path / "files")
    assert all(np.array_equal(found[name], expected[name]) for name in expected), "order of cases and files"
    other = answers(model_of(tmp_path / "turned", fusion, ("FLAIR", "T1w", "T2w")), cohort, tmp_path / "plan")
    for name, array in expected.items():
        np.testing.assert_allclose(other[name], array, rtol=0, atol=0 if fusion == "stems" else 1e-6)


@pytest.fixture
def prepared(cohort: Cohort, tmp_path: Path) -> tuple[Path, tuple[StoredCase, ...]]:
    """A model folder, and the three people as it wants them."""
    model = model_of(tmp_path / "model", "stems")
    plan = Plan.model_validate(read_description(model).plan)
    return model, prepare(cohort, plan, tmp_path / "store", workers=1, checked=True).cases


def sidecar(out: Path, name: str) -> dict[str, Any]:
    return read_json(next((out / name).rglob("*_mask.json")))


def table(model: Path, /, **more: Any) -> dict[str, Any]:
    """What `evaluate --subsets` would write about this model."""
    row = {
        "region": "lesion",
        "metric": "dice",
        "best": "high",
        "mean": 0.12,
        "low": 0.05,
        "high": 0.2,
        "n": 9,
        "skipped": 0,
    }
    losses = [{"subset": "FLAIR", **row}, {"subset": "T2w", **row, "mean": 0.4}]
    return {"model": read_description(model).identity, "losses": losses} | more


def test_a_prediction_says_what_it_got_and_what_it_expects_to_lose(
    prepared: tuple[Path, tuple[StoredCase, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, cases = prepared
    twins = (*cases, replace(cases[2], name="sub-04", person="04"))
    out = tmp_path / "out"
    predict_cases(model, twins, out, OPTIONS, quiet)
    said = capsys.readouterr().err
    assert said.count("predicted without") == 2, "once for each combination that lacks something"
    assert (
        "1 case, first sub-02: predicted without T1w, from T2w, FLAIR; expected loss not measured: run oligovox" in said
    )
    assert "2 cases, first sub-03: predicted without T1w, T2w, from FLAIR" in said
    whole, alone = sidecar(out, "sub-01"), sidecar(out, "sub-03")
    assert (whole["SequencesMissing"], whole["ExpectedLoss"]) == ([], [])
    assert (alone["SequencesKnown"], alone["SequencesPresent"]) == (list(THREE), ["FLAIR"])
    assert (alone["SequencesMissing"], alone["ExpectedLoss"]) == (["T1w", "T2w"], NOT_MEASURED)

    image = next((out / "sub-03").rglob("*_mask.nii.gz"))
    before = image.stat().st_mtime_ns
    write_json(model / "subsets.json", table(model))
    predict_cases(model, twins, out, OPTIONS, quiet)
    assert "from FLAIR; expected loss of lesion dice 0.120 [0.050, 0.200], 9 people;" in capsys.readouterr().err
    told = {"region": "lesion", "metric": "dice", "mean": 0.12, "low": 0.05, "high": 0.2, "n": 9}
    assert sidecar(out, "sub-03")["ExpectedLoss"] == [told], "a prediction that is kept is told as well"
    assert image.stat().st_mtime_ns == before
    assert sidecar(out, "sub-02")["ExpectedLoss"] == NOT_MEASURED, "this combination was not among them"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"model": "segmentation-resenc-000000000000"}, "is about the model segmentation-resenc-0"),
        ({"losses": None}, "has no table of losses"),
        ({"losses": [{"subset": "FLAIR"}]}, "has no table of losses"),
        ({"losses": [dict.fromkeys(("subset", "region", "metric", "mean", "low", "high", "n"), "1")]}, "is damaged"),
    ],
)
def test_a_table_of_another_model_is_refused(
    prepared: tuple[Path, tuple[StoredCase, ...]], tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    model, cases = prepared
    write_json(tmp_path / "given.json", table(model, **more))
    with pytest.raises(CheckpointError, match=message):
        predict_cases(model, cases, tmp_path / "out", OPTIONS, quiet, losses=tmp_path / "given.json")
    assert not (tmp_path / "out").exists()


def test_of_repeated_acquisitions_the_first_run_is_predicted_from(
    make_phantom: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_phantom(tmp_path / "bids", subjects=1, labelled=0, side=20)
    flair = root / "sub-01" / "anat" / "sub-01_FLAIR.nii.gz"
    for run in ("2", "1"):
        flair.with_name(f"sub-01_run-{run}_FLAIR.nii.gz").write_bytes(flair.read_bytes())
    flair.unlink()
    found = experiment.predict(model_of(tmp_path / "model", "stems"), root, tmp_path / "out", workers=1)
    assert sidecar(tmp_path / "out", "sub-01")["Sources"][-1].endswith("sub-01_run-1_FLAIR.nii.gz")
    assert found["cases"] == 1


@pytest.mark.parametrize("fusion", ["early", "stems"])
def test_a_plan_that_names_acquisitions_reads_those_that_are_there(
    make_phantom: Callable[..., Path], tmp_path: Path, fusion: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two people, one with two FLAIRs: nobody lacks a sequence, and of stems the same image twice is that image."""
    root = make_phantom(tmp_path / "bids", subjects=2, labelled=2, side=20)
    flair = root / "sub-01" / "anat" / "sub-01_FLAIR.nii.gz"
    again = flair.with_name("sub-01_run-2_FLAIR.nii.gz")
    again.write_bytes(flair.read_bytes())
    model = model_of(tmp_path / "model", fusion, (*THREE, "FLAIR_run-2"))
    experiment.predict(model, root, tmp_path / "out", workers=1)
    for person, files in {"sub-01": 4, "sub-02": 3}.items():
        said = sidecar(tmp_path / "out", person)
        assert said["SequencesKnown"] == list(THREE)
        assert said["SequencesMissing"] == said["ExpectedLoss"] == []
        assert len(said["Sources"]) == files
    assert "predicted without" not in capsys.readouterr().err
    both = answers(model, read_bids(root, mask=None), tmp_path / "both")
    once = answers(model_of(tmp_path / "once", fusion), read_bids(root, mask=None), tmp_path / "first")
    if fusion == "stems":
        np.testing.assert_allclose(both["sub-01"], once["sub-01"], atol=1e-5)
    volume = nib.load(again)
    nib.save(nib.Nifti1Image(volume.get_fdata()[::-1].astype(np.int16), volume.affine), again)
    other = answers(model, read_bids(root, mask=None), tmp_path / "other")
    assert np.abs(other["sub-01"] - both["sub-01"]).max() > 1e-3
    np.testing.assert_array_equal(other["sub-02"], both["sub-02"])
    store = Store.open(tmp_path / "both" / "store")
    assert sources_of_store(store).cases[0].acquisitions["FLAIR_run-2"] == again
    assert facts_of_store(store).exams[0].grids.keys() == set(THREE)
    found = experiment.evaluate_subsets(model, root, tmp_path / "subsets", people=("01",), workers=1)
    assert len({row["subset"] for row in found["subsets"]}) == 7, "combinations of sequences, not of files"
