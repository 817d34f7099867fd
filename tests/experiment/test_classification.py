"""Lesions through folds: who is where, what is said of whom, runs that stop half-way, new patients."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from oligovox import catalogue, experiment, settings
from oligovox.cli.classify import Size, train
from oligovox.cohort.folds import draw_folds
from oligovox.engine.fit import Training
from oligovox.errors import CheckpointError, CohortError, LabelError, OutputError, SettingsError
from oligovox.experiment import classification
from oligovox.experiment.classification_page import lesion_views
from oligovox.experiment.classification_recipe import Classify, PretrainLesions, cpu_size, plan_folds
from oligovox.experiment.lesion_cohorts import read_exams
from oligovox.experiment.recipe import Finetune, NetworkChoice, Predict, nested
from oligovox.experiment.recipe import changed as asked
from oligovox.files import read_json, read_tsv, write_json, write_tsv
from oligovox.method import Clock, Losses, Method, Needs
from oligovox.networks.encoder import Encoder
from oligovox.prepare.lesion_store import LesionStore
from oligovox.sample.augment import Augmentation
from oligovox.sample.batch import Batch

# --- a classifier and a pretext of a few lines -----------------------------------------------------------------------


class Stand(settings.Settings):
    width: int = 4


@dataclass(frozen=True)
class Views:
    image: Tensor
    present: Tensor
    grade: Tensor


class Answer(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.channels[-1], 1)

    def forward(self, image: Tensor, present: Tensor) -> Tensor:
        return self.head(self.encoder(image, present)[-1].mean((2, 3, 4)))[:, 0]


class Classifier(Method[Views]):
    needs = Needs(modalities=2, labels=True)

    def __init__(self, encoder: Encoder, settings: Stand) -> None:
        super().__init__()
        self.net = Answer(encoder)

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        assert batch.grade is not None
        assert set(batch.grade.tolist()) <= {0, 1}
        return Views(batch.image, batch.present, batch.grade)

    def losses(self, views: Views, clock: Clock) -> Losses:
        logit = self.net(views.image, views.present)
        return Losses({"bce": nn.functional.binary_cross_entropy_with_logits(logit, views.grade.to(logit.dtype))})

    def export(self) -> nn.Module:
        return self.net


class Pretext(Classifier):
    needs = Needs()

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        assert batch.grade is not None
        assert set(batch.grade.tolist()) == {-1}, "a start must not see grades"
        return Views(batch.image, batch.present, batch.image[:, 0].mean((1, 2, 3)))

    def export(self) -> nn.Module:
        holder = nn.Module()
        holder.encoder = self.net.encoder
        return holder


@pytest.fixture(autouse=True, scope="module")
def stand_in() -> Iterator[None]:
    """Methods 'stand_in' and 'stand_in_pretext', as if there were such files."""
    found = {
        "stand_in": types.SimpleNamespace(Settings=Stand, METHOD=Classifier),
        "stand_in_pretext": types.SimpleNamespace(Settings=Stand, METHOD=Pretext),
    }
    original = catalogue.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalogue, "load", lambda marker, name: found.get(name) or original(marker, name))
        yield


TRAINING = {
    "threads": 1,
    "tensorboard": "off",
    "device": "cpu",
    "precision": "32-true",
    "validate_every": 2,
    "workers": 1,
}
CHOSEN = Classify(
    method="stand_in",
    network=NetworkChoice.named("resenc", "nano"),
    patch=8,
    batch=4,
    folds=3,
    validation=0.4,
    training=Training(steps=4, lr=1e-3, **TRAINING),
)
PRETRAIN = PretrainLesions(method="stand_in_pretext", batch=2, training=Training(steps=2, **TRAINING))


def changed(**changes: object) -> Classify:
    return CHOSEN.model_copy(update=changes)


# --- a cohort in which a rim is a bright shell in QSM ----------------------------------------------------------------


def write(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1, 1, 1])), path)
    return path


def write_people(root: Path, rims: Sequence[Sequence[int]]) -> Path:
    """One person an entry; their lesions are Rim+ (1), Rim− (0) or ungraded (-1). 24³ voxels, at most eight lesions each."""
    for number, grades in enumerate(rims, start=1):
        rng, name = np.random.default_rng(number), f"sub-{number:02d}"
        mask, flair = np.zeros((24, 24, 24), np.uint8), rng.uniform(50, 90, (24, 24, 24)).astype(np.float32)
        qsm, rows = rng.normal(0, 25, mask.shape).astype(np.float32), []
        for place, grade in enumerate(grades):
            corner = np.array([3 + 12 * ((place >> axis) & 1) for axis in range(3)])
            box = tuple(slice(c, c + 4) for c in corner)
            mask[box], flair[box] = 1, 200
            if grade == 1:
                qsm[box] += 250
                qsm[tuple(slice(c + 1, c + 3) for c in corner)] -= 250
            x, y, z = (corner + 1.5).tolist()
            if grade >= 0:
                rows.append({"id": place + 1, "x_mm": x, "y_mm": y, "z_mm": z, "rim": grade})
        derived = root / "derivatives" / "truth" / name / "anat"
        write(root / name / "anat" / f"{name}_FLAIR.nii.gz", flair)
        write(derived / f"{name}_Chimap.nii.gz", qsm)
        write(derived / f"{name}_label-lesion_mask.nii.gz", mask)
        write_tsv(derived / f"{name}_desc-instances_dseg.tsv", rows, ("id", "x_mm", "y_mm", "z_mm", "rim"))
    return root


RIMS = [[1, 0, 0], [1, 0], [1, 1, 0], [0, 0, 1], [0, 0], [0], [0, 0, 0], [-1, -1]]
SETTINGS = ("patch=8", "lesions.min_volume_mm3=30", "lesions.around_mm=[1,2]")


@pytest.fixture(scope="module")
def bids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("people") / "bids", RIMS)


@pytest.fixture(scope="module")
def store(bids: Path) -> LesionStore:
    out = bids.parent / "lesions"
    made = experiment.classify_extract(bids, out, changes=SETTINGS, workers=1)
    assert (made["rim_plus"], made["rim_minus"], made["ungraded"]) == (5, 12, 2)
    return LesionStore.open(out)


@pytest.fixture(scope="module")
def run(store: LesionStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a start; needs the stand-in of the first test that asks."""
    out = tmp_path_factory.mktemp("run") / "run"
    experiment.classify_train(store, out, chosen=changed(pretrain=PRETRAIN))
    return out


def test_a_changed_step_count_leaves_the_papers_rate_and_decay() -> None:
    """--steps had brought back the rate and decay of any training."""
    chosen = settings.parse(
        Classify, {"training": {"steps": 7}, "pretrain": {"method": "frodo", "training": {"lr": 1e-3}}}, "test"
    )
    assert chosen.training == Classify().training.model_copy(update={"steps": 7})
    assert (chosen.training.lr, chosen.training.weight_decay) == (1e-4, 0.05)
    assert chosen.pretrain is not None
    assert (chosen.pretrain.training.steps, chosen.pretrain.training.lr, chosen.pretrain.training.weight_decay) == (
        2000,
        1e-3,
        0.05,
    )


@pytest.mark.parametrize(
    ("asked", "preset", "started"),
    [
        ({}, "cpu", False),
        ({"network": {"name": "resnet18"}}, "cpu", False),
        ({"network": {"name": "resenc"}, "pretrain": {"method": "frodo"}}, None, True),
    ],
)
def test_what_two_cores_can_train(asked: dict[str, Any], preset: str | None, started: bool) -> None:
    said = cpu_size(settings.parse(Classify, asked, "test"))
    chosen = settings.parse(Classify, merged(nested(said), asked), "test")
    assert (chosen.patch, chosen.training.steps, chosen.training.lr) == (32, 1200, 1e-3)
    assert chosen.network.settings.get("preset") == preset
    assert (chosen.pretrain is not None) == started
    assert chosen.pretrain is None or (chosen.pretrain.training.steps, chosen.pretrain.batch) == (300, 16)


def test_a_size_for_two_cores_is_no_matter_to_a_forest(store: LesionStore, tmp_path: Path) -> None:
    """It had been refused for a network that nobody named."""
    change = ["validation=0.4", "settings.trees=5"]
    train(store.root, tmp_path / "run", method="radiomics_forest", size=Size.CPU, folds=2, change=change)
    assert len(read_tsv(tmp_path / "run" / "predictions.tsv")) == 17
    train(store.root, tmp_path / "set", size=Size.CPU, folds=2, change=["method=radiomics_forest", *change])
    with pytest.raises(SettingsError, match="network means nothing to it"):
        train(
            store.root,
            tmp_path / "no",
            method="radiomics_forest",
            encoder="frodo",
            size=Size.CPU,
            folds=2,
            change=change,
        )


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Nested settings, the second over the first."""
    both = {key: merged(below[key], above[key]) for key in below.keys() & above.keys()}
    return below | above | both


# --- folds -----------------------------------------------------------------------------------------------------------

People = st.dictionaries(st.text("abcdefgh", min_size=1, max_size=6), st.integers(0, 4), min_size=6, max_size=40)


@given(People, st.integers(2, 5), st.integers(0, 1000))
def test_nobody_is_in_two_folds_and_everybody_is_tested_once(people: dict[str, int], folds: int, seed: int) -> None:
    try:
        drawn = draw_folds(people, folds=folds, validation=0.2, seed=seed)
    except CohortError:
        rare = sum(count > 0 for count in people.values())
        assert (
            rare - -(-rare // folds) < 2
        )  # refused only where a fold would have fewer than two Rim+ people to learn from
        return
    assert sorted(person for fold in drawn for person in fold.test) == sorted(people)
    sizes, rims = [len(fold.test) for fold in drawn], [sum(people[p] > 0 for p in fold.test) for fold in drawn]
    assert max(sizes) - min(sizes) <= 1
    assert max(rims) - min(rims) <= 1
    for fold in drawn:
        assert sorted([*fold.train, *fold.validation, *fold.test]) == sorted(people)
        assert all(any(people[person] for person in part) for part in (fold.train, fold.validation))
    shuffled = dict(reversed(people.items()))
    assert drawn == draw_folds(shuffled, folds=folds, validation=0.2, seed=seed)


@pytest.mark.parametrize("seed", range(5))
def test_validation_people_have_their_share_of_the_rims(seed: int) -> None:
    """A threshold and a calibration from one rim would be worth nothing: some have five rims, most none."""
    people = {f"p{n:02d}": (5 if n % 12 == 0 else 2) if n % 3 == 0 else 0 for n in range(48)}
    for fold in draw_folds(people, folds=3, validation=0.2, seed=seed):
        others, held_out = [*fold.train, *fold.validation], fold.validation
        share = sum(people[p] for p in held_out) / sum(people[p] for p in others)
        rare = sum(people[p] > 0 for p in held_out) / sum(people[p] > 0 for p in others)
        assert (share, rare) == pytest.approx((0.2, 0.2), abs=0.07)


def test_label_budgets_of_a_fold_are_nested() -> None:
    people = {f"p{n:02d}": int(n % 4 == 0) for n in range(30)}
    parts = [draw_folds(people, folds=3, validation=0.3, seed=1, labels=n) for n in (5, 10, None)]
    for few, more, most in zip(*parts, strict=True):
        assert few.test == more.test == most.test
        known = [{*fold.train, *fold.validation} for fold in (few, more, most)]
        assert [len(part) for part in known] == [5, 10, 20]
        assert known[0] < known[1] < known[2]


def test_folds_of_the_papers_cohort_have_the_papers_sizes() -> None:
    people = {f"p{n:02d}": max(0, n % 5 - 2) for n in range(88)}
    assert sorted(len(fold.test) for fold in draw_folds(people, folds=5, validation=0.2, seed=42)) == [
        17,
        17,
        18,
        18,
        18,
    ]


# --- training --------------------------------------------------------------------------------------------------------


def test_every_lesion_is_predicted_once_by_a_classifier_that_never_saw_its_person(
    run: Path, store: LesionStore
) -> None:
    rows = read_tsv(run / "predictions.tsv")
    graded_people = {lesion.person for lesion in store.graded}
    assert sorted(row["lesion"] for row in rows) == sorted(s.name for s in store.lesions if s.person in graded_people)
    for row in rows:
        fold = run / f"fold-{row['fold']}"
        model = read_json(fold / "train" / "model" / "model.json")
        start = read_json(fold / "pretrain" / "model" / "model.json")
        about = read_json(fold / "fold.json")["people"]
        assert row["person"] in about["test"]
        assert row["person"] not in {*model["trained_on"], *start["trained_on"]}
        assert not {*about["validation"]} & {*model["trained_on"], *start["trained_on"]}
        assert "08" in start["trained_on"]  # who has no grade can still be looked at
        assert model["kind"] == "classification"
        assert model["parent"].startswith("stand_in_pretext-resenc-")
        assert float(row["threshold"]) == read_json(fold / "fold.json")["threshold"]
        assert int(row["called"]) == (float(row["probability"]) > float(row["threshold"]))


def test_scores_and_page_of_a_run(run: Path) -> None:
    content = read_json(run / "scores.json")
    assert content["lesions"] == 17
    assert content["people"] == 7
    assert content["missed_rims"] == 0
    assert set(content["scores"]) == {"lesion", "patient_1", "patient_4", "count"}
    assert set(content["folds"]["each"]) == {"1", "2", "3"}
    assert len(content["curves"]["decision"]["threshold"]) == len(content["curves"]["decision"]["classifier"])
    page = (run / "classify.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") == 1
    assert "<svg" in page
    assert "transductive" not in page


def test_maps_are_out_of_fold(run: Path, store: LesionStore) -> None:
    rows = read_tsv(run / "predictions.tsv")
    maps = sorted((run / "maps").rglob("*_desc-rim_probseg.nii.gz"))
    assert [path.name.split("_")[0] for path in maps] == sorted({row["exam"] for row in rows})
    for path, exam in zip(maps, sorted({row["exam"] for row in rows}), strict=True):
        values = np.asarray(nib.load(path).dataobj)
        numbers = np.asarray(nib.load(store.root / "cases" / exam / "lesions.nii.gz").dataobj)
        for row in rows:
            if row["exam"] == exam:
                assert set(values[numbers == int(row["number"])].tolist()) == {np.float32(row["probability"])}
        assert not values[numbers == 0].any()


def test_a_threshold_that_is_asked_for_is_every_lesions(run: Path, store: LesionStore, tmp_path: Path) -> None:
    """It had been written into scores.json and had not been used."""
    for limit, sensitivity in ((0.0, 1.0), (1.0, 0.0)):
        out = tmp_path / str(limit)
        found = experiment.classify_evaluate(run, out, lesions=store.root, changes={"threshold": limit})
        assert found["lesion"]["sensitivity"]["value"] == sensitivity
        assert read_json(out / "scores.json")["settings"]["threshold"] == limit
    assert "threshold" not in read_json(run / "scores.json")["settings"], "each fold has its own"


def test_networks_are_not_asked_about_patches_of_another_kind(
    run: Path, store: LesionStore, bids: Path, tmp_path: Path
) -> None:
    narrow, old = tmp_path / "narrow", tmp_path / "old"
    experiment.classify_extract(bids, narrow, changes=(*SETTINGS, "qsm_ppb=100"), workers=1)
    shutil.copytree(run, old)
    write_json(old / "classify.json", read_json(run / "classify.json") | {"format": 3})
    for predictions, lesions, why in (
        (run, narrow, "cut with other qsm_ppb than the run"),
        (old, store.root, "the run is of format 3"),
    ):
        out = tmp_path / lesions.name
        experiment.classify_evaluate(predictions, out, lesions=lesions)
        page = (out / "classify.html").read_text(encoding="utf-8")
        assert why in page
        assert "is hidden cube by cube" not in page
    assert "is hidden cube by cube" in (run / "classify.html").read_text(encoding="utf-8")


def test_a_transductive_start_is_one_and_is_said(store: LesionStore, tmp_path: Path) -> None:
    transductive = PRETRAIN.model_copy(update={"transductive": True})
    experiment.classify_train(store, tmp_path / "run", chosen=changed(pretrain=transductive))
    start = read_json(tmp_path / "run" / "pretrain" / "model" / "model.json")
    assert tuple(start["trained_on"]) == store.people
    assert read_json(tmp_path / "run" / "fold-1" / "train" / "model" / "model.json")["transductive"]
    assert "transductive" in (tmp_path / "run" / "classify.html").read_text(encoding="utf-8")


def test_only_what_is_learned_from_is_augmented(
    store: LesionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "augmentation" not in CHOSEN.model_dump(mode="json"), "runs begun before it go on"
    chosen = settings.parse(Classify, {"augmentation": {"noise": 1.0}}, "test").augmentation
    assert chosen == Augmentation.only(noise=1.0), "what is not named does not happen"
    original, seen = classification.augment, []

    def spy(batch: Batch, asked: Augmentation, rng: torch.Generator) -> Batch:
        changed = original(batch, asked, rng)
        assert asked == chosen
        assert not changed.image[~batch.foreground.expand_as(batch.image)].any(), "what is not shown stays 0"
        seen.append((changed.image - batch.image).abs().amax((1, 2, 3, 4)))
        return changed

    monkeypatch.setattr(classification, "augment", spy)
    experiment.classify_train(store, tmp_path / "run", chosen=changed(augmentation=chosen, pretrain=PRETRAIN))
    assert len(seen) == 3 * 4, "each step of each fold; no start, no validation, no test"
    assert all((moved > 0).all() for moved in seen)
    with pytest.raises(CheckpointError, match="has other settings"):
        experiment.classify_train(store, tmp_path / "run", chosen=changed(pretrain=PRETRAIN))


def test_a_start_that_tells_turns_is_refused_where_lesions_are_turned_before(
    store: LesionStore, tmp_path: Path
) -> None:
    start = PRETRAIN.model_copy(update={"method": "swin_three_task"})
    chosen = changed(pretrain=start)
    with pytest.raises(
        SettingsError, match=r"pretrain.turns has flip 0.5, turn 1, which turn it before; set both to 0"
    ):
        experiment.classify_train(store, tmp_path / "run", chosen=chosen)
    assert not (tmp_path / "run").exists()


def test_a_run_stopped_anywhere_goes_on_and_ends_the_same(
    store: LesionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    experiment.classify_train(store, whole, chosen=CHOSEN)
    original, calls = classification.prediction_rows, []

    def rows(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(classification, "prediction_rows", rows)
        with pytest.raises(KeyboardInterrupt):
            experiment.classify_train(store, halved, chosen=CHOSEN)
    assert not read_json(halved / "classify.json")["finished"]
    first = (halved / "fold-1" / "fold.json").stat().st_mtime_ns
    experiment.classify_train(store, halved, chosen=CHOSEN)
    assert (halved / "fold-1" / "fold.json").stat().st_mtime_ns == first
    assert (halved / "predictions.tsv").read_bytes() == (whole / "predictions.tsv").read_bytes()
    assert (halved / "scores.json").read_bytes() == (whole / "scores.json").read_bytes()
    with pytest.raises(CheckpointError, match="has other settings"):
        experiment.classify_train(store, halved, chosen=changed(batch=2))
    write_json(halved / "classify.json", read_json(halved / "classify.json") | {"format": 0})
    with pytest.raises(CheckpointError, match="has other format"):
        experiment.classify_train(store, halved, chosen=CHOSEN)


def test_a_forest_goes_through_the_folds_of_the_networks(
    run: Path, bids: Path, store: LesionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same people tested and the same lesions, thresholds of validation people, folds kept when stopped; and it can be compared."""
    chosen = Classify(method="radiomics_forest", settings={"trees": 20, "leaf": 1}, folds=3, validation=0.4)
    original, seen = classification.best_threshold, []

    def threshold(probability: np.ndarray, truth: Sequence[int]) -> float:
        if len(seen) == 1:
            seen.append(0)
            raise KeyboardInterrupt
        seen.append(len(probability))
        return original(probability, truth)

    monkeypatch.setattr(classification, "best_threshold", threshold)
    out = tmp_path / "forest"
    with pytest.raises(KeyboardInterrupt):
        experiment.classify_train(store, out, chosen=chosen)
    experiment.classify_train(store, out, chosen=chosen)
    folds = [read_json(out / f"fold-{number}" / "fold.json")["people"] for number in (1, 2, 3)]
    assert folds == [read_json(run / f"fold-{number}" / "fold.json")["people"] for number in (1, 2, 3)]
    watched = [sum(lesion.person in fold["validation"] for lesion in store.graded) for fold in folds]
    assert seen == [watched[0], 0, *watched[1:]]  # the first fold was not fitted again
    rows, others = read_tsv(out / "predictions.tsv"), read_tsv(run / "predictions.tsv")
    assert [(row["lesion"], row["fold"]) for row in rows] == [(row["lesion"], row["fold"]) for row in others]
    rim = {grade: np.mean([float(row["probability"]) for row in rows if row["grade"] == grade]) for grade in "01"}
    assert rim["1"] > rim["0"] + 0.3  # a rim of 250 ppb in noise of 25
    assert "difference" in experiment.classify_evaluate(out, tmp_path / "scores", against=run, lesions=store.root)
    said = experiment.classify_predict(out, bids, tmp_path / "patients", people=["03", "08"], workers=1)
    rows = read_tsv(tmp_path / "patients" / "predictions.tsv")
    assert len(rows) == said["lesions"] == 5
    assert {row["lesion"]: row["called"] for row in rows if row["person"].endswith("03")} == {
        lesion.name: str(lesion.grade) for lesion in store.lesions if lesion.person.endswith("03")
    }
    (out / "fold-1" / "train" / "forest" / "trees.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"trees\.safetensors"):
        experiment.classify_predict(out, bids, tmp_path / "no", workers=1)
    with pytest.raises(SettingsError, match="training means nothing to it"):
        experiment.classify_train(
            store, tmp_path / "no", chosen=Classify(method="radiomics_forest", training=Training())
        )
    with pytest.raises(SettingsError, match="did you mean 'trees'"):
        experiment.classify_train(
            store, tmp_path / "no", chosen=Classify(method="radiomics_forest", settings={"tree": 1})
        )


def test_what_cannot_be_trained(bids: Path, store: LesionStore, tmp_path: Path) -> None:
    few = write_people(tmp_path / "few", [[1, 0], [0], [1, 0], [0]])
    plus = write_people(tmp_path / "plus", [[1, 1], [1], [1], [1], [1], [1, 0]])
    for data, grades, kind, message in (
        (few, "auto", CohortError, r"fewer than 2 people with a Rim\+ lesion"),
        (plus, "auto", LabelError, r"fold \d of 3 would learn from Rim\+ lesions only"),
        (bids, "none", LabelError, "no lesion has a grade"),
    ):
        lesions = tmp_path / f"lesions-{data.name}"
        experiment.classify_extract(data, lesions, changes=SETTINGS, grades=grades, workers=1)
        with pytest.raises(kind, match=message):
            experiment.classify_train(lesions, tmp_path / "run", chosen=CHOSEN)
    with pytest.raises(SettingsError, match="at most the stored 8 voxels"):
        experiment.classify_train(store, tmp_path / "run", chosen=changed(patch=16))
    with pytest.raises(SettingsError, match=r"patch \(4, 4, 4\) is too small for network resenc"):
        experiment.classify_train(store, tmp_path / "run", chosen=changed(patch=4))
    with pytest.raises(SettingsError, match="did you mean 'segmentation'"):
        experiment.classify_train(store, tmp_path / "run", chosen=changed(method="segmentatoin"))
    idle = Augmentation.only(noise_sd=(1.0, 2.0))
    with pytest.raises(SettingsError, match=r"noise_sd means nothing where augmentation\.noise has a probability of 0"):
        experiment.classify_train(store, tmp_path / "run", chosen=changed(augmentation=idle))
    zero = tmp_path / "zero"
    experiment.classify_extract(bids, zero, changes=(*SETTINGS, "outside=zero"), workers=1)
    with pytest.raises(SettingsError, match="cut with outside=zero"):
        experiment.classify_train(zero, tmp_path / "run", chosen=changed(augmentation=Augmentation.only(noise=1.0)))
    assert not (tmp_path / "run").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    with pytest.raises(OutputError, match="choose an empty or a new folder"):
        experiment.classify_train(store, tmp_path / "full", chosen=CHOSEN)


def test_a_fold_whose_tested_people_have_one_class_only_is_scored_with_the_others(
    store: LesionStore, tmp_path: Path
) -> None:
    """Seven folds of seven people: three test nobody with a rim."""
    done = experiment.classify_train(
        store, tmp_path / "run", chosen=changed(folds=7, training=Training(steps=1, **TRAINING))
    )
    content = read_json(tmp_path / "run" / "scores.json")
    assert [fold["roc_auc"] for fold in content["folds"]["each"].values()].count(None) == 3
    assert content["folds"]["over"]["roc_auc"]["folds"] == 4
    assert done["lesion"]["roc_auc"]["value"] is not None


def test_a_rimnet_of_two_numbers_is_refused_and_the_cpu_size_gives_it_the_papers_head(store: LesionStore) -> None:
    with pytest.raises(SettingsError, match=r"two numbers to classify by; set settings.grid=2,"):
        plan_folds(
            store, asked(Classify, ["network.name=rimnet", "network.settings.preset=nano", "patch=8"], "classify")
        )
    sized = asked(Classify, cpu_size(asked(Classify, ["network.name=rimnet"], "classify")), "classify")
    assert (sized.settings["grid"], sized.settings["hidden"], sized.settings["contrast"]) == (4, [256, 128, 64], False)


# --- scoring ---------------------------------------------------------------------------------------------------------


def table(path: Path, chances: Sequence[float], grades: Sequence[int]) -> Path:
    rows = [
        {"lesion": f"l{n}", "person": f"p{n // 3}", "fold": None, "grade": g, "probability": c, "threshold": 0.5, "called": int(c > 0.5),
         "uncertain": 0, "exam": "e", "number": n, "x": 0, "y": 0, "z": 0, "volume_mm3": 100}
        for n, (c, g) in enumerate(zip(chances, grades, strict=True))
    ]  # fmt: skip
    path.parent.mkdir()
    write_tsv(path, rows, classification.PREDICTIONS)
    return path


def test_two_classifiers_on_the_same_lesions(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    grades = (rng.random(60) < 0.3).astype(int).tolist()
    good = table(tmp_path / "good" / "predictions.tsv", [0.2 + 0.6 * g for g in grades], grades)
    bad = table(tmp_path / "bad" / "predictions.tsv", rng.random(60).round(3).tolist(), grades)
    found = experiment.classify_evaluate(good, tmp_path / "scores", against=bad.parent)
    assert found["lesion"]["roc_auc"]["value"] == 1
    ours = experiment.classify_evaluate(bad, tmp_path / "other")["lesion"]["roc_auc"]["value"]
    assert found["difference"]["roc_auc"]["value"] == pytest.approx(1 - ours)
    assert 0 < found["difference"]["roc_auc"]["low"] < found["difference"]["roc_auc"]["value"]
    same = experiment.classify_evaluate(bad, tmp_path / "same", against=bad)["difference"]["pr_auc"]
    assert (same["value"], same["low"], same["high"]) == (0, 0, 0)
    fewer = table(tmp_path / "fewer" / "predictions.tsv", [0.5] * 30, grades[:30])
    with pytest.raises(CohortError, match="not tested on the same graded lesions"):
        experiment.classify_evaluate(good, tmp_path / "no", against=fewer)
    unknown = table(tmp_path / "unknown" / "predictions.tsv", [0.5] * 3, [-1] * 3)
    with pytest.raises(LabelError, match="none of 3 lesions has a grade"):
        experiment.classify_evaluate(unknown, tmp_path / "no")


def shifted(path: Path, out: Path, **changes: str) -> Path:
    """The same table with other texts in every row."""
    rows = [row | changes for row in read_tsv(path)]
    out.parent.mkdir()
    write_tsv(out, rows, list(rows[0]))
    return out


def test_grades_of_lesions_cut_from_other_masks_are_refused(run: Path, store: LesionStore, tmp_path: Path) -> None:
    """Names are numbers within a mask: the third lesion of another mask is another lesion."""
    predicted = run / "predictions.tsv"
    moved = shifted(predicted, tmp_path / "moved" / "predictions.tsv", x="99.0")
    with pytest.raises(CohortError, match=r"_lesion-001 is another lesion than in .* cut from other masks"):
        experiment.classify_evaluate(moved, tmp_path / "no", lesions=store.root)
    with pytest.raises(CohortError, match="is another lesion in the other table"):
        experiment.classify_evaluate(predicted, tmp_path / "no", against=moved)
    assert experiment.classify_evaluate(predicted, tmp_path / "yes", lesions=store.root)["lesion"]["pr_auc"]["value"]


def test_tables_of_others_are_scored_and_drawn(tmp_path: Path) -> None:
    """Neither called nor positions, grades that nobody knows, folds by letter; but no threshold outside [0, 1]."""
    rows = [
        {"lesion": f"l{n}", "person": f"p{n}", "fold": "ab"[n % 2], "grade": g, "probability": c, "threshold": 0.5}
        for n, (g, c) in enumerate([(1, 0.9), (0, 0.2), (0, 0.7), (1, 0.6), (None, 0.4)])
    ]
    write_tsv(tmp_path / "predictions.tsv", rows, list(rows[0]))
    found = experiment.classify_evaluate(tmp_path, tmp_path / "scores")
    assert found["lesion"]["roc_auc"]["value"] == 0.75
    assert list(read_json(tmp_path / "scores" / "scores.json")["folds"]["each"]) == ["a", "b"]
    assert "5 lesions" in (tmp_path / "scores" / "classify.html").read_text(encoding="utf-8")
    for threshold in ("nan", "1.5"):
        odd = shifted(tmp_path / "predictions.tsv", tmp_path / threshold / "predictions.tsv", threshold=threshold)
        with pytest.raises(CohortError, match=r"threshold \(in \[0, 1\]\)"):
            experiment.classify_evaluate(odd, tmp_path / "no")


# --- new patients ----------------------------------------------------------------------------------------------------


def test_new_patients_get_each_lesion_coloured_on_their_own_grid(run: Path, tmp_path: Path) -> None:
    data = write_people(tmp_path / "new", [[-1, -1, -1], []])
    for reader in ("one", "two"):  # grades are no matter of a new patient, not even those of two who cannot be read
        beside = data / "derivatives" / reader / "sub-01" / "anat"
        beside.mkdir(parents=True)
        (beside / "sub-01_desc-instances_dseg.tsv").write_text("id\trim\n1\tmaybe\n")
    done = experiment.classify_predict(run, data, tmp_path / "out", workers=1)
    assert (done["exams"], done["lesions"]) == (2, 3)
    image = nib.load(done["files"]["sub-01"])
    mask = nib.load(data / "derivatives" / "truth" / "sub-01" / "anat" / "sub-01_label-lesion_mask.nii.gz")
    np.testing.assert_array_equal(image.affine, mask.affine)
    values = np.asarray(image.dataobj)
    np.testing.assert_array_equal(values > 0, np.asarray(mask.dataobj) > 0)
    for row in read_tsv(Path(done["files"]["sub-01"].replace(".nii.gz", ".tsv"))):
        voxel = tuple(int(float(row[axis])) for axis in "xyz")
        assert values[voxel] == pytest.approx(float(row["probability"]), abs=1e-6)
    assert not np.asarray(nib.load(done["files"]["sub-02"]).dataobj).any()
    thresholds = [read_json(run / f"fold-{n}" / "fold.json")["threshold"] for n in (1, 2, 3)]
    assert {float(row["threshold"]) for row in read_tsv(tmp_path / "out" / "predictions.tsv")} == {np.mean(thresholds)}
    assert "data:image/png" in (tmp_path / "out" / "classify.html").read_text(encoding="utf-8")
    experiment.classify_predict(run, data, tmp_path / "out", people=["02"], page=False, workers=1)
    assert not (tmp_path / "out" / "classify.html").exists(), "a page of somebody else"
    experiment.classify_predict(run, data, tmp_path / "out", workers=1)
    for reader in ("one", "two"):
        shutil.rmtree(data / "derivatives" / reader)
    scored = experiment.classify_evaluate(tmp_path / "out", tmp_path / "scores", lesions=graded(data, tmp_path))
    assert scored["lesion"]["sensitivity"]["value"] is not None
    page = (tmp_path / "scores" / "classify.html").read_text(encoding="utf-8")
    words = re.findall(r"sub-01_lesion-00\d: [\d.]+, ([^;\"]+)", page)
    assert sorted(words) == ["Rim+", "Rim−", "grade unknown"]
    assert words[-1] == "grade unknown"  # sorted by the grades that were scored, which the table lacks


def graded(data: Path, home: Path) -> Path:
    """A lesion store of the same lesions in which an expert has graded the first and the third."""
    anat = data / "derivatives" / "truth" / "sub-01" / "anat"
    rows = [
        {"id": 1, "x_mm": 4.5, "y_mm": 4.5, "z_mm": 4.5, "rim": 1},
        {"id": 3, "x_mm": 4.5, "y_mm": 16.5, "z_mm": 4.5, "rim": 0},
    ]
    write_tsv(anat / "sub-01_desc-instances_dseg.tsv", rows, ("id", "x_mm", "y_mm", "z_mm", "rim"))
    experiment.classify_extract(data, home / "graded", changes=SETTINGS, workers=1)
    return home / "graded"


def test_masks_of_a_folder_of_predictions(run: Path, tmp_path: Path) -> None:
    data = write_people(tmp_path / "new", [[-1, -1], [-1]])
    masks = tmp_path / "masks"
    (data / "derivatives" / "truth" / "sub-01" / "anat" / "sub-01_label-lesion_mask.nii.gz").rename(
        write(masks / "sub-01" / "anat" / "sub-01_label-lesion_mask.nii.gz", np.zeros((2, 2, 2), np.uint8))
    )
    done = experiment.classify_predict(run, data, tmp_path / "out", masks=masks, page=False, workers=1)
    assert (done["exams"], done["lesions"]) == (1, 2)  # the second has no mask there, and is named and left out
    with pytest.raises(CohortError, match="none of 2 exams has QSM, FLAIR and a lesion mask"):
        experiment.classify_predict(run, data, tmp_path / "no", masks=tmp_path / "out" / "nowhere", workers=1)
    with pytest.raises(CheckpointError, match=r"no classify\.json"):
        experiment.classify_predict(tmp_path, data, tmp_path / "no", workers=1)


def test_units_of_new_patients_are_their_own(run: Path, bids: Path, tmp_path: Path) -> None:
    """A classifier of ppb, cut with qsm_units=ppb, reads a folder in ppm."""
    trained = shutil.copytree(run, tmp_path / "run")
    about = read_json(trained / "classify.json")
    write_json(trained / "classify.json", about | {"extraction": about["extraction"] | {"qsm_units": "ppb"}})
    data = write_people(tmp_path / "new", RIMS[:1])
    path = next(data.rglob("*_Chimap.nii.gz"))
    write(path, nib.load(path).get_fdata(dtype=np.float32) / 1000)
    ppm = experiment.classify_predict(trained, data, tmp_path / "out", page=False, workers=1)
    ppb = experiment.classify_predict(run, bids, tmp_path / "ppb", people=["01"], page=False, workers=1)
    one, other = (np.asarray(nib.load(found["files"]["sub-01"]).dataobj) for found in (ppm, ppb))
    np.testing.assert_allclose(one, other, atol=1e-3)
    with pytest.raises(SettingsError, match="qsm_units"):
        experiment.classify_predict(run, data, tmp_path / "no", qsm_units="ppt", workers=1)


def test_guessed_units_are_said_once_and_told_ones_are_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_people(tmp_path / "new", [[1], [0], [0]])
    first, second, third = sorted(data.rglob("*_Chimap.nii.gz"))
    write(second, nib.load(second).get_fdata(dtype=np.float32) / 1000)
    write_json(third.with_name(third.name.replace(".nii.gz", ".json")), {"Units": "ppb"})
    for _ in range(2):  # also where everything is there already
        experiment.classify_extract(data, tmp_path / "guessed", changes=SETTINGS, workers=1)
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "guessed" in line]
        assert "ppb in 1 exams, first sub-01, whose magnitudes reach" in line
        assert "ppm in 1 exams, first sub-02, whose magnitudes reach 0.0" in line
        assert "sub-03" not in line
        assert 'set qsm_units=ppb or qsm_units=ppm, or write "Units"' in line
    write(second, nib.load(first).get_fdata(dtype=np.float32))
    experiment.classify_extract(data, tmp_path / "told", changes=(*SETTINGS, "qsm_units=ppb"), workers=1)
    assert "guessed" not in capsys.readouterr().err


def test_what_is_wrong_with_the_classifiers_is_on_the_page_and_beside_the_map(
    run: Path, bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real patient's page had said nothing of classifiers that had seen simulated people only."""
    simulated, transductive = "trained on simulated people only: they are not tested on patients", "(transductive)"
    trained = shutil.copytree(run, tmp_path / "run")
    about = read_json(trained / "classify.json")
    start = about["settings"]["pretrain"] | {"transductive": True}
    about |= {"simulated": True, "settings": about["settings"] | {"pretrain": start}}
    write_json(trained / "classify.json", about)
    for model, there in ((trained, True), (run, False)):
        out = tmp_path / f"out-{there}"
        done = experiment.classify_predict(model, bids, out, people=["01"], workers=1)
        page, said = (out / "classify.html").read_text(encoding="utf-8"), capsys.readouterr().err
        sidecar = read_json(Path(done["files"]["sub-01"].replace(".nii.gz", ".json")))
        for text in (page, said, " ".join(sidecar.get("Warnings", []))):
            assert (simulated in text, transductive in text) == (there, there)
        assert "Numbers on simulated subjects" not in page  # the patient is not simulated
        same = "have seen people of the same name as 1 of these, first 01"
        for text in (
            page,
            said,
            " ".join(sidecar["Warnings"]),
            " ".join(read_json(out / "predictions.json")["Warnings"]),
        ):
            assert same in text


def test_a_page_explains_by_both_sequences(run: Path, store: LesionStore) -> None:
    row = store.lesions[0].row() | {"fold": None, "probability": 0.5}
    (view,) = lesion_views([row], store, {"1": run / "fold-1" / "train" / "model"}, 8)
    assert view.saliency is not None
    assert view.saliency.shape == (2, *view.qsm.shape)
    assert np.abs(view.saliency).max(axis=(1, 2)).min() > 0
    assert not view.saliency[:, view.seen == 0].any()


def test_an_exam_without_a_predicted_mask_is_named_and_left_out(bids: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = bids / "derivatives" / "truth" / "sub-01" / "anat" / "sub-01_label-lesion_mask.nii.gz"
    exams = read_exams(bids, masks={"sub-01": mask}, people=["01", "02"])
    assert [exam.case.name for exam in exams] == ["sub-01"]
    assert "sub-02: left out; it has no a lesion mask" in capsys.readouterr().err


def test_grades_are_tables_or_maps_and_given_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_people(tmp_path / "bids", [[1], [0]])
    (tmp_path / "grades.csv").write_text("participant_id,id,rim\n")
    with pytest.raises(CohortError, match=r"grades\.csv: neither a table of grades \(\.tsv"):
        read_exams(data, grades=tmp_path / "grades.csv")
    rows = [{"participant_id": name, "id": 1, "rim": 1} for name in ("sub-01", "2")]
    write_tsv(tmp_path / "grades.tsv", rows, list(rows[0]))
    assert len(read_exams(data, grades=tmp_path / "grades.tsv")) == 2
    assert "1 rows are of nobody here, first '2'" in capsys.readouterr().err
    first = data / "derivatives" / "truth" / "sub-01" / "anat" / "sub-01_desc-instances_dseg.tsv"
    second = data / "derivatives" / "other" / first.name
    second.parent.mkdir()
    shutil.copy(first, second)
    with pytest.raises(CohortError, match="sub-01: is graded twice"):
        read_exams(data)


def test_the_class_of_a_masks_name_is_lesion_and_its_rim_with_it(tmp_path: Path) -> None:
    data = write_people(tmp_path / "bids", [[1]])
    table = data / "derivatives" / "truth" / "label-lesion_dseg.tsv"
    rows = [{"index": 1, "name": "lesion"}, {"index": 2, "name": "rim"}, {"index": 3, "name": "hole"}]
    write_tsv(table, rows, ["index", "name"])
    (exam,) = read_exams(data)
    assert (exam.labels, exam.classes) == ({"lesion": 1, "rim": 2, "hole": 3}, ("lesion", "rim"))
    predicted = write(tmp_path / "masks" / "sub-01_dseg.nii.gz", np.zeros((24, 24, 24), np.uint8))
    write_json(predicted.with_name("sub-01_dseg.json"), {"Labels": {"core": 2}})
    (exam,) = read_exams(data, masks=tmp_path / "masks")
    assert (exam.labels, exam.classes) == ({"core": 2}, ())


def test_tables_hold_plain_numbers(run: Path) -> None:
    assert json.loads((run / "scores.json").read_text(encoding="utf-8"))["simulated"] is False


def test_from_images_alone(run: Path, bids: Path, tmp_path: Path) -> None:
    """Segment, cut and classify in one call."""
    fast = Training(steps=1, **TRAINING)
    experiment.prepare(bids, tmp_path / "store", modalities=("FLAIR",), workers=1)
    experiment.finetune(
        tmp_path / "store",
        tmp_path / "seg",
        stage=Finetune(patch=(8, 8, 8), training=fast),
        network=NetworkChoice.named("resenc", "nano"),
    )
    done = experiment.classify_predict(
        run, bids, tmp_path / "out", segmenter=tmp_path / "seg", people=["01", "02"], page=False, workers=1
    )
    assert done["exams"] == 2
    source = read_json(tmp_path / "out" / "lesions" / "cases" / "sub-01" / "case.json")["sources"]["label"]
    assert Path(source).is_relative_to((tmp_path / "out" / "segmentation").absolute())
    sidecar = tmp_path / "out" / "segmentation" / "sub-01" / "anat" / "sub-01_label-lesion_mask.json"
    before = read_json(sidecar)
    experiment.classify_predict(
        run, bids, tmp_path / "out", segmenter=tmp_path / "seg", people=["01", "02"], page=False, workers=1,
        options=Predict(overlap=0.25),
    )  # fmt: skip
    assert read_json(sidecar) != before  # predicted anew, with other windows


def test_the_command_line(
    oligovox: Callable[..., subprocess.CompletedProcess[str]], bids: Path, tmp_path: Path
) -> None:
    """extract → train → predict → evaluate, with a real method, and what goes wrong."""
    larger = ("patch=16", *SETTINGS[1:])
    made = json.loads(
        oligovox("classify", "extract", bids, tmp_path / "lesions", "--workers", 1, "--json", *sets(larger)).stdout
    )
    assert made["rim_plus"] == 5
    small = sets(("patch=16", "batch=4", "validation=0.4", "training.threads=1", "training.tensorboard=off"))
    arguments = [
        "classify",
        "train",
        tmp_path / "lesions",
        "--size",
        "cpu",
        "--preset",
        "nano",
        "--folds",
        2,
        "--steps",
        1,
        *small,
    ]
    trained = json.loads(oligovox(*arguments, "--out", tmp_path / "run", "--json").stdout)
    assert trained["lesion"]["roc_auc"]["value"] is not None
    used = read_json(tmp_path / "run" / "classify.json")["settings"]
    assert (used["training"]["lr"], used["training"]["steps"], used["patch"]) == (
        1e-3,
        1,
        16,
    )  # what is said goes over the size
    assert used["network"]["settings"] == {"preset": "nano"}
    out = json.loads(
        oligovox("classify", "predict", tmp_path / "run", bids, tmp_path / "out", "--people", "08", "--json").stdout
    )
    assert (out["exams"], out["lesions"]) == (1, 2)
    scored = oligovox(
        "classify", "evaluate", tmp_path / "run", "--out", tmp_path / "scores", "--against", tmp_path / "run", "--json"
    )
    assert json.loads(scored.stdout)["difference"]["pr_auc"]["value"] == 0
    wrong = oligovox(*arguments, "--out", tmp_path / "no", "--set", "ballanced=false", check=2)
    assert wrong.stderr.strip().endswith("unknown key 'ballanced'; did you mean 'balanced'?")
    assert not (tmp_path / "no").exists()
    assert (
        "choose one of them"
        in oligovox("classify", "predict", "a", "b", "c", "--segment", "d", "--masks", "e", check=2).stderr
    )
    alone = oligovox("classify", "predict", "a", "b", "c", "--overlap", "0.25", check=2)
    assert "--overlap is of the windows of --segment" in alone.stderr


def sets(changes: Sequence[str]) -> list[str]:
    return [word for change in changes for word in ("--set", change)]
