"""What `oligovox plan` chooses for made-up cohorts and machines, what it refuses, and that its recipe is one."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oligovox.cohort.bids import read
from oligovox.errors import CohortError, ImageError, OutputError, RunError, SettingsError
from oligovox.experiment import planning, planning_probe
from oligovox.experiment import planning_choice as choose
from oligovox.experiment.planning_facts import Exam, Facts, Grid, facts_of_cohort, grid_of
from oligovox.experiment.planning_forecast import WORKER, Measured, forecast, refuse
from oligovox.experiment.planning_machine import GIB, Machine, cores, free_memory, in_words
from oligovox.experiment.planning_probe import OutOfMemory, probe
from oligovox.experiment.recipe import Recipe, read_recipe
from oligovox.prepare.store import Plan, Store
from oligovox.settings import parse

LAPTOP = Machine(cores=2, memory=8 * GIB, disk=100 * GIB)
FINE = Grid((180, 220, 180), (1.0, 1.0, 1.0))
SIDES = st.integers(9, 400)


def cohort(people: int, labelled: int, grid: Grid = FINE, names: tuple[str, ...] = ("T1w", "FLAIR")) -> Facts:
    return Facts(
        tuple(
            Exam(
                name=f"sub-{n}", person=str(n), grids=dict.fromkeys(names, grid), labelled=n < labelled, drawn_on=names
            )
            for n in range(people)
        )
    )


def test_spacing_is_the_median_and_finer_along_thick_slices() -> None:
    plane = [Grid((200, 200, 200), (side, 1.0, 1.0)) for side in (0.8, 1.0, 1.4)]
    assert choose.chosen_spacing(plane)[0] == (1.0, 1.0, 1.0)
    thick = [Grid((256, 256, 30), (0.9, 0.9, height)) for height in (3.0, 4.0, 5.0, 5.0, 6.0)]
    spacing, reason = choose.chosen_spacing(thick)
    assert spacing == (0.9, 0.9, pytest.approx(3.4)), "the 10th percentile of 3, 4, 5, 5, 6"
    assert "along S" in reason
    few = [Grid((256, 256, 200), (0.9, 0.9, 3.0))] * 3
    assert choose.chosen_spacing(few)[0] == (0.9, 0.9, 3.0), "thick, but not few: a long field of view"


@given(st.lists(st.tuples(*[st.floats(0.3, 8)] * 3), min_size=1, max_size=9))
def test_spacing_lies_within_what_was_measured(sizes: list[tuple[float, float, float]]) -> None:
    spacing, _ = choose.chosen_spacing([Grid((256, 256, 20), size) for size in sizes])
    finest, coarsest = min(map(min, sizes)), max(map(max, sizes))
    assert all(finest - 1e-3 <= side <= coarsest + 1e-3 for side in spacing)


def test_rare_sequences_are_left_out_and_masks_choose_the_reference() -> None:
    exams = [replace(exam, drawn_on=("T1w",)) for exam in cohort(5, 3).exams]
    exams[0] = replace(exams[0], grids={**exams[0].grids, "QSM": FINE})
    plan, why = choose.chosen_plan(Facts(tuple(exams)))
    assert plan.modalities == ("FLAIR", "T1w")
    assert "left out QSM (1 of 5)" in why[0]
    assert plan.reference == ("T1w", "FLAIR")
    assert "3 of 3 masks" in why[1]
    unlabelled = Facts(tuple(replace(exam, labelled=False) for exam in exams))
    assert choose.chosen_plan(unlabelled)[0].reference[0] == "FLAIR"


@given(
    st.tuples(SIDES, SIDES, SIDES), st.sampled_from([4, 8, 16, 32]), st.integers(4096, 128**3), st.integers(4096, 10**7)
)
def test_a_patch_is_a_multiple_within_the_image_the_limit_and_the_memory(
    shape: tuple[int, int, int], multiple: int, most: int, memory: int
) -> None:
    try:
        patch = choose.chosen_patch(shape, multiple, most, lambda sides: prod(sides) <= memory)
    except SettingsError:
        assert min(shape) < multiple or max(shape) < 2 * multiple or min(most, memory) < 8 * multiple**3
        return
    assert all(side % multiple == 0 and multiple <= side <= full for side, full in zip(patch, shape, strict=True))
    assert multiple**3 < prod(patch) <= min(most, memory), "and more than one voxel is left at the deepest stride"


def test_the_network_follows_the_machine_and_gets_shallower_for_thin_volumes() -> None:
    stride = {"nano": 4, "tiny": 8, "S": 16, "M": 32, "L": 32}
    large = replace(LAPTOP, gpu="GPU", gpu_memory=24 * GIB)
    shape = (160, 200, 160)
    assert choose.chosen_size(LAPTOP, 3, shape, stride.__getitem__)[0] == choose.Chosen("tiny", (48, 48, 48), 2)
    chosen, why = choose.chosen_size(large, 3, shape, stride.__getitem__)
    assert chosen.preset == "M"
    assert chosen.batch == 2
    assert "smaller than the median image of 160 x 200 x 160" in why
    thin = choose.chosen_size(large, 3, (160, 200, 20), stride.__getitem__)[0]
    assert (thin.preset, thin.patch[2]) == ("S", 16), "20 slices cannot be halved five times"
    with pytest.raises(
        SettingsError, match=r"the median image has 160 x 200 x 3 voxels, the smallest patch .* is 8 x 4 x 4"
    ):
        choose.chosen_size(LAPTOP, 3, (160, 200, 3), stride.__getitem__)
    with pytest.raises(SettingsError, match=r"not even 8 x 8 x 8 voxels fit into the free memory"):
        choose.chosen_size(replace(LAPTOP, memory=1000), 3, shape, stride.__getitem__)


@given(st.integers(2, 200), st.integers(0, 200))
def test_a_split_uses_everybody_and_leaves_somebody_to_learn_from(labelled: int, partly: int) -> None:
    partly = min(partly, labelled - 1)
    exams = [replace(exam, sparse=n < partly) for n, exam in enumerate(cohort(labelled, labelled).exams)]
    split, _ = choose.chosen_split(Facts(tuple(exams)))
    assert isinstance(split.test, int)
    assert isinstance(split.validation, int)
    assert isinstance(split.labels, int)
    assert split.test + split.validation + split.labels == labelled
    assert split.test >= 1
    assert split.labels >= 1
    assert split.test + split.validation <= labelled - partly


@pytest.mark.parametrize(("people", "labelled"), [(9, 0), (9, 1)])
def test_without_labels_fine_tuning_is_refused(people: int, labelled: int) -> None:
    with pytest.raises(SettingsError, match=rf"{labelled} of 9 people have a label, {labelled} of them a full one"):
        choose.chosen_split(cohort(people, labelled))


@given(st.floats(0.01, 300), st.lists(st.floats(0.01, 50), min_size=1, max_size=4), st.floats(0, 1e4))
def test_steps_end_in_time(hours: float, each: list[float], fixed: float) -> None:
    if 0.95 * 3600 * hours < (fixed + choose.FEWEST_STEPS * sum(each)) * 1.001:
        return
    steps = choose.affordable_steps(hours, each, fixed)
    assert steps >= choose.FEWEST_STEPS
    assert fixed + steps * sum(each) <= 3600 * hours


def test_too_few_hours_say_how_many_are_needed() -> None:
    assert choose.affordable_steps(1, [1.0, 1.0], 100) == 1600, "1660, to two digits"
    with pytest.raises(SettingsError, match=r"0\.1 h allow 48 steps .* at least 100; give 0\.18 h or more"):
        choose.affordable_steps(0.1, [5.0], 100)


def test_workers_share_the_memory() -> None:
    assert choose.chosen_workers(LAPTOP, GIB)[0] == 2
    assert choose.chosen_workers(replace(LAPTOP, cores=64), 2 * GIB)[0] == 3
    with pytest.raises(SettingsError, match=r"preparing one case takes 9.00 GiB, of 8.00 GiB free"):
        choose.chosen_workers(LAPTOP, 9 * GIB)


RECIPE = {
    "name": "a", "cohorts": {"a": {"bids": "a"}}, "prepare": {"modalities": ["T1w"]}, "workers": 2,
    "split": {"test": 3, "validation": 1, "labels": 2}, "pretrain": {"training": {"steps": 100}},
    "finetune": {"training": {"steps": 200, "validate_every": 50}},
}  # fmt: skip
STEP = {"seconds": 2.0, "cpu": 3.0, "begin_seconds": 5.0, "begin_cpu": 6.0, "checkpoint": 10}
TRAINING = {
    "pretrain": STEP, "finetune": STEP, "memory": 3 * GIB, "gpu_memory": 0, "start_memory": GIB // 2,
    "start": {"seconds": 1.0, "cpu": 2.0}, "score": {"seconds": 2.0, "cpu": 3.0},
    "predict": {"seconds": 10.0, "cpu": 20.0, "validation_seconds": 5.0, "validation_cpu": 8.0, "disk": 7},
}  # fmt: skip
POOL = {"seconds": 1.0, "cpu": 0.5}
PREPARING = {"seconds": 4.0, "cpu": 6.0, "memory": 2 * GIB, "disk": 100, "cases": 2, "pool": POOL}


def test_a_forecast_adds_up() -> None:
    measured = Measured(preparing=PREPARING, training=TRAINING, typical=1.5, workers=2)
    found = forecast(measured, parse(Recipe, RECIPE, "test"), cohort(10, 6))
    assert found.seconds == {
        "start": 1.0,
        "prepare": 10 * 6 / 2 + 2,
        "pretrain": 5 + 200,
        "finetune": 2 * (5 + 400 + 4 * 7.5),
        "predict": 2 * 3 * 15,
        "score": 2 * (3 * 3 / 2 + 1),
    }, "two workers begin twice to prepare, to check and to write, and once an arm to score"
    assert found.cpu["start"] == 2
    assert found.cpu["prepare"] == 10 * 9 + 2 * 2 * 0.5
    assert found.cpu["finetune"] == 2 * (6 + 600 + 4 * 12)
    assert found.cpu["score"] == 2 * (3 * 4.5 + 2 * 0.5)
    assert found.memory == 2 * (2 * GIB + WORKER) + GIB // 2, "two workers beside a process that has not trained yet"
    assert found.disk == {"store": 10 * 75, "checkpoints": 3 * 3 * 10, "predictions": 63}
    assert found.as_json()["hours"]["total"] == pytest.approx((1.0 + 32 + 205 + 870 + 90 + 11) / 3600, abs=1e-4)
    assert not any("busy" in line for line in found.lines())
    slowly = replace(found, cpu={"start": 60.0})
    assert "alone it takes 1.0 min or less" in slowly.lines()[1], "1209 s by the clock"
    assert found.lines()[-1].endswith("of disk (store 1 KiB, checkpoints 0 KiB, predictions 0 KiB)")
    alone = forecast(replace(measured, workers=1), parse(Recipe, RECIPE, "test"), cohort(10, 6))
    assert alone.seconds["prepare"] == 10 * 6, "no other process has to begin"
    final = forecast(measured, parse(Recipe, RECIPE | {"final": "all"}, "test"), cohort(10, 6))
    assert final.seconds == found.seconds | {"finetune": 2 * (5 + 400 + 4 * 7.5) + 5 + 400}, (
        "nobody is left to validate on"
    )
    assert final.disk["checkpoints"] == found.disk["checkpoints"] + 3 * 10


def test_what_does_not_fit_is_refused_with_numbers() -> None:
    measured = Measured(preparing=None, training=TRAINING, typical=1.0, workers=1)
    expected = forecast(measured, parse(Recipe, RECIPE, "test"), cohort(10, 6))
    refuse(expected, LAPTOP)
    with pytest.raises(SettingsError, match=r"memory: the run needs 3.00 GiB, 2.00 GiB are free"):
        refuse(expected, replace(LAPTOP, memory=2 * GIB))
    with pytest.raises(SettingsError, match=r"disk: the run needs 0.00 GiB"):
        refuse(expected, replace(LAPTOP, disk=3))
    with pytest.raises(SettingsError, match=r"memory of the GPU: the run needs 5.00 GiB, 4.00"):
        refuse(replace(expected, gpu_memory=5 * GIB), replace(LAPTOP, gpu="GPU", gpu_memory=4 * GIB))


@dataclass
class Ended:
    """A process that ended before it answered."""

    exitcode: int

    def start(self) -> None: ...

    join = kill = start


@pytest.mark.parametrize(
    ("exitcode", "kind", "said"),
    [(-9, OutOfMemory, "killed"), (1, RunError, "exit code 1 before"), (-7, RunError, "exit code -7 before")],
)
def test_a_probe_that_dies_is_said(
    exitcode: int, kind: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = SimpleNamespace(Pipe=multiprocessing.Pipe, Process=lambda **_: Ended(exitcode))
    monkeypatch.setattr(planning_probe, "get_context", lambda method: context)
    with pytest.raises(kind, match=said):
        probe("train", {})


def test_an_error_of_ours_ends_the_probe_with_its_own_words(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunError, match=r"exit code 1 before it had measured"):
        probe("prepare", {"no": "table"})
    assert "KeyError: 'table'" in capfd.readouterr().err


@pytest.mark.parametrize("ours", [False, True])
def test_a_full_disk_is_one_line(ours: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(asked: dict[str, Any]) -> None:
        error = OSError(errno.ENOSPC, "No space left on device")
        if ours:
            raise OutputError("cannot be written") from error
        raise error

    monkeypatch.setattr(planning_probe, "probe_training", full)
    monkeypatch.setattr(planning_probe, "end_with_parent", lambda: None)
    received, sent = multiprocessing.Pipe(duplex=False)
    planning_probe._answer("train", {}, sent, time.time())
    answer = received.recv()["refused"]
    assert answer.startswith(tempfile.gettempdir())
    assert "is full; free some space, or set TMPDIR" in answer


def test_no_folder_for_the_probe_is_one_line(phantom: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(prefix: str) -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(planning, "TemporaryDirectory", full)
    with pytest.raises(OutputError, match=r"No usable temporary directory .*; free some space, or set TMPDIR"):
        planning.plan(phantom)


def test_a_cohort_that_cannot_be_planned_is_one_line(make_phantom: Callable[..., Path], tmp_path: Path) -> None:
    one = make_phantom(tmp_path / "one", subjects=3, labelled=1)
    with pytest.raises(SettingsError, match=r"^1 of 3 people have a label, 1 of them a full one; fine-tuning needs 2"):
        planning.plan(one)
    with pytest.raises(CohortError, match=r"no-such"):
        planning.plan(tmp_path / "no-such")
    for path in (one / "sub-02" / "anat").glob("*_T1w.nii.gz"):
        path.write_bytes(b"")
    with pytest.raises(ImageError, match=r"sub-02_T1w\.nii\.gz"):
        planning.plan(one)


def test_an_unreadable_folder_is_one_line(phantom: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != phantom)  # root may read whatever its mode says
    with pytest.raises(CohortError, match=r"phantom: may not be read; ask its owner"):
        planning.plan(phantom)


def test_exams_with_rare_sequences_alone_are_left_out_and_named() -> None:
    whole = cohort(4, 4)
    odd = [replace(e, name=f"odd-{e.name}", grids={"PDw": FINE}) for e in cohort(2, 2).exams]
    facts, said = choose.usable(Facts((*whole.exams, *odd)))
    assert facts == whole
    assert (
        "2 of 6 exams, which have none of the sequences that most have (FLAIR, T1w): odd-sub-0 with PDw, odd-" in said
    )
    assert choose.usable(whole) == (whole, "")
    names = ("T1w", "T1w", "FLAIR", "PDw")
    each = Facts(tuple(replace(e, grids={name: FINE}) for e, name in zip(whole.exams, names, strict=True)))
    assert [exam.name for exam in choose.usable(each)[0].exams] == ["sub-0", "sub-1"], "half of them have T1w"


def test_masks_on_no_grid_are_refused() -> None:
    elsewhere = Facts(tuple(replace(exam, drawn_on=()) for exam in cohort(4, 3).exams))
    with pytest.raises(SettingsError, match=r"none of 3 masks lies on the grid of FLAIR or T1w"):
        choose.chosen_plan(elsewhere)
    partly = Facts((replace(elsewhere.exams[0], drawn_on=("FLAIR",)), *elsewhere.exams[1:]))
    assert "1 of 3 masks lie; a run refuses to test on the others" in choose.chosen_plan(partly)[1][1]


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 KiB"), (7900, "8 KiB"), (41e6, "39 MiB"), (0.754 * GIB, "0.75 GiB"), (123.4 * GIB, "123 GiB")],
)
def test_sizes_are_said_in_a_fitting_unit(size: float, words: str) -> None:
    assert in_words(size) == words


def test_a_probe_out_of_memory_is_tried_smaller_and_then_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[tuple[int, list[int]]] = []
    fits = 3

    def probe(kind: str, asked: dict[str, Any]) -> dict[str, Any]:
        tried.append((asked["finetune"]["batch"], asked["finetune"]["patch"]))
        if len(tried) < fits:
            raise OutOfMemory
        return TRAINING

    monkeypatch.setattr(planning, "probe", probe)
    store = Store(root=tmp_path, plan=Plan(modalities=("T1w", "FLAIR")), labels={"lesion": 1}, cases=())
    content = {key: value for key, value in RECIPE.items() if key not in ("pretrain", "finetune")}

    def fitting() -> tuple[dict[str, Any], list[str]]:
        size = choose.Chosen("tiny", (32, 24, 24), 4)
        return planning._fitting(size, "generative", store.plan, store, LAPTOP, content, tmp_path, 1)

    found, said = fitting()
    assert found == TRAINING
    assert tried == [(4, [32, 24, 24]), (2, [32, 24, 24]), (2, [24, 24, 24])], "the batch stays at 2 or above"
    assert content["finetune"]["patch"] == [24, 24, 24]
    assert said[0] == "memory: preset tiny, patch 32 x 24 x 24, batch 4 takes more than the 8.00 GiB that are free"
    tried.clear()
    fits = 99
    with pytest.raises(SettingsError, match=r"batch 2 takes more than the 8.00 GiB .* nothing smaller was found"):
        fitting()
    assert len(tried) == planning.TRIES


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n", encoding="utf-8")


def test_memory_and_cores_are_what_a_container_allows(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    write(proc / "meminfo", f"MemTotal: {16 * 2**20} kB\nMemAvailable: {8 * 2**20} kB")
    assert free_memory(proc, groups) == 8 * GIB
    write(proc / "self" / "cgroup", "0::/job/step")
    write(groups / "job" / "memory.max", 4 * GIB)
    write(groups / "job" / "memory.current", 3 * GIB)
    write(groups / "job" / "memory.stat", f"anon 1\ninactive_file {GIB}")
    write(groups / "job" / "step" / "memory.max", "max")
    write(groups / "job" / "step" / "memory.current", 3 * GIB)
    assert free_memory(proc, groups) == 2 * GIB, "the parent's limit, and files in the cache do not count"
    write(proc / "self" / "cgroup", "4:memory:/docker/1\n1:cpu:/docker/1")
    write(groups / "memory" / "memory.limit_in_bytes", 3 * GIB)
    write(groups / "memory" / "memory.usage_in_bytes", 2 * GIB)
    assert free_memory(proc, groups) == GIB, "version 1; in the container its group is the root"
    write(groups / "cpu.max", "50000 100000")
    assert cores(groups) == 1


def test_headers_are_read_in_any_orientation(tmp_path: Path) -> None:
    affine = np.array([[0, 0, -2.0, 0], [0.5, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(np.zeros((30, 20, 10), np.int16), affine), tmp_path / "a.nii.gz")
    assert grid_of(tmp_path / "a.nii.gz")[0] == Grid((10, 30, 20), (2.0, 0.5, 1.0))
    (tmp_path / "b.nii.gz").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"b\.nii\.gz: its header cannot be read"):
        grid_of(tmp_path / "b.nii.gz")


def test_a_cohort_in_numbers(phantom: Path) -> None:
    facts = facts_of_cohort(read(phantom))
    assert facts.summary(("FLAIR",)) == {
        "people": 6, "cases": 6, "labelled_people": 6, "sequences": {"FLAIR": 6, "T1w": 6, "T2w": 6},
        "median_shape": [24, 24, 24], "median_spacing_mm": [1.0, 1.0, 1.0], "anisotropy": 1.0,
    }  # fmt: skip
    assert set(facts.exams[0].drawn_on) == {"T1w", "T2w", "FLAIR"}


def without(exam: Exam, *names: str) -> Exam:
    return replace(exam, grids={name: grid for name, grid in exam.grids.items() if name not in names})


def test_missing_sequences_are_trained_for_only_where_some_are_missing() -> None:
    plan, whole = Plan(modalities=("FLAIR", "T1w")), cohort(4, 4)
    assert planning._against_missing(whole, plan) == ({}, [])
    some = Facts((*(without(exam, "FLAIR") for exam in whole.exams[:2]), *whole.exams[2:]))
    strategy, (said,) = planning._against_missing(some, plan)
    assert strategy == {"name": "hidden_sequences"}
    assert "2 of 4 exams lack some (FLAIR in 2)" in said
    assert "1.7 times" in said
    assert "--set finetune.semi=null" in said
    assert planning._against_missing(some, Plan(modalities=("T1w",))) == ({}, []), "the plan does not use it"
    strategy, (said,) = planning._against_missing(replace(some, exams=(*some.exams, cohort(9, 0).exams[8])), plan)
    assert strategy == {"name": "hidden_sequences", "batch": 1}
    assert "exams without a label take part" in said


@pytest.mark.parametrize(
    ("strategy", "probed"), [({}, 2), ({"name": "hidden_sequences"}, 2), ({"name": "hidden_sequences", "batch": 1}, 3)]
)
def test_what_is_done_about_missing_sequences_is_measured(
    strategy: dict[str, Any], probed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def probe(kind: str, asked: dict[str, Any]) -> dict[str, Any]:
        assert asked["finetune"]["batch"] == probed, "patches without a label cost as much"
        assert (asked["finetune"]["semi"] or {}).get("name") == strategy.get("name")
        assert asked["pretrain"]["batch"] == 2
        return TRAINING

    monkeypatch.setattr(planning, "probe", probe)
    store = Store(root=tmp_path, plan=Plan(modalities=("T1w", "FLAIR")), labels={"lesion": 1}, cases=())
    content = {key: value for key, value in RECIPE.items() if key not in ("pretrain", "finetune")}
    content |= {"finetune": {"semi": strategy}} if strategy else {}
    size = choose.Chosen("tiny", (24, 24, 24), 2)
    planning._fitting(size, "generative", store.plan, store, LAPTOP, content, tmp_path, 1)
    assert content["finetune"]["batch"] == 2


def test_the_recipe_of_a_cohort_that_lacks_sequences_hides_them(
    make_phantom: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def probed(ground: planning.Ground, prepared: Plan, machine: Machine, content: dict[str, Any], *_: Any) -> Any:
        content |= {"workers": 1, "network": {"name": "resenc", "settings": {"preset": "nano"}}}
        for stage in ("pretrain", "finetune"):
            content[stage] = content.get(stage, {}) | {"patch": [16, 16, 16], "batch": 2, "training": {}}
        return Measured(preparing=PREPARING, training=TRAINING, typical=1.0, workers=1), []

    monkeypatch.setattr(planning, "_probed", probed)
    data = make_phantom(tmp_path / "data", subjects=4, labelled=4)
    for path in data.glob("sub-0[12]/anat/*_FLAIR.nii.gz"):
        path.unlink()
    found = planning.plan(data, out=tmp_path / "plan")
    file = tmp_path / "plan" / "plan.yaml"
    recipe = read_recipe(file)
    assert recipe.finetune.semi is not None
    assert (recipe.finetune.semi.name, recipe.finetune.semi.settings) == ("hidden_sequences", {})
    assert f"# {found['lines'][-1]}\n" in file.read_text()
    assert found["lines"][-1].startswith("missing sequences: 2 of 4 exams lack some (FLAIR in 2)")
    assert read_recipe(file, ("finetune.semi=null",)).finetune.semi is None


def test_the_recipe_holds_no_exam_that_was_left_out(make_phantom: Callable[..., Path], tmp_path: Path) -> None:
    data = make_phantom(tmp_path / "data", subjects=5, labelled=4)
    anat = data / "sub-05" / "anat"
    (anat / "sub-05_T1w.nii.gz").rename(anat / "sub-05_PDw.nii.gz")
    for name in ("T2w", "FLAIR"):
        (anat / f"sub-05_{name}.nii.gz").unlink()
    found = planning.plan(data, minutes=0, out=tmp_path / "plan")
    assert found["facts"]["cases"] == 4
    assert any("sub-05 with PDw" in line for line in found["lines"])
    (choice,) = read_recipe(tmp_path / "plan" / "plan.yaml").cohorts.values()
    assert choice.read().people == ("01", "02", "03", "04")


CALL = "import typer; from oligovox.cli.planning import plan; typer.run(plan)"


def test_the_command_writes_a_recipe(phantom: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", CALL, str(phantom), "--out", str(tmp_path / "plan"), "--minutes", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "plan" / "plan.json").read_text())
    recipe = read_recipe(tmp_path / "plan" / "plan.yaml")
    assert recipe.cohorts["phantom"].folder == str(phantom)
    assert recipe.workers == found["choice"]["workers"]
    assert recipe.prepare.modalities == ("FLAIR", "T1w", "T2w")
    assert recipe.split.test == 2
    assert list(recipe.finetune.patch) == found["choice"]["finetune"]["patch"]
    assert max(recipe.finetune.patch) <= 24
    assert recipe.finetune.semi is None, "nobody lacks a sequence"
    hours = found["forecast"]["hours"]
    assert hours["total"] == pytest.approx(sum(value for stage, value in hours.items() if stage != "total"), abs=1e-3)
    assert 0.1 < found["forecast"]["memory_gib"] < 8
    assert found["forecast"]["disk_gib"]["total"] > 0
    assert "forecast: " in (tmp_path / "plan" / "plan.yaml").read_text()
    assert "recipe: " in done.stdout
