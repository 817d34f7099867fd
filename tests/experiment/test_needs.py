"""What a method needs of exams, patches and batches is honoured or refused before anything is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from oligovox import experiment
from oligovox.engine.fit import Training
from oligovox.errors import SettingsError
from oligovox.experiment.needs import augmentation_of
from oligovox.experiment.recipe import NetworkChoice, Pretrain
from oligovox.experiment.shrinking import Size, smaller
from oligovox.experiment.training import build_encoder, build_method, check, size_limits
from oligovox.prepare.store import Plan
from oligovox.pretext.swin_three_task import turned
from oligovox.sample.augment import FLIPS_AND_ROTATIONS, Augmentation, augment
from oligovox.sample.batch import Batch

SEQUENCES = ("T1w", "T2w", "FLAIR")
NANO = NetworkChoice(settings={"preset": "nano"})


def _exam() -> Batch:
    """Of which no turn and no mirror image is like another."""
    rng = torch.Generator().manual_seed(0)
    return Batch(
        image=torch.randn(1, 3, 8, 8, 8, generator=rng),
        present=torch.ones(1, 3, dtype=torch.bool),
        foreground=torch.ones(1, 1, 8, 8, 8, dtype=torch.bool),
        spacing=torch.ones(1, 3),
        modalities=SEQUENCES,
        cases=("a",),
    )


def _classes_that_look_alike(augmentation: Augmentation, classes: int) -> set[tuple[int, int]]:
    """Pairs of classes that show the same to the network, over many draws of what is done to the exam before."""
    seen: dict[bytes, int] = {}
    alike = set()
    for seed in range(60):
        image = augment(_exam(), augmentation, torch.Generator().manual_seed(seed)).image[0]
        for number in range(classes):
            key = turned(image, number).contiguous().numpy().tobytes()
            if (other := seen.setdefault(key, number)) != number:
                alike.add((min(other, number), max(other, number)))
    return alike


def _built(method: str, **settings: object) -> object:
    return build_method(method, settings, build_encoder(NANO, SEQUENCES))


@pytest.mark.parametrize(("rotations", "classes"), [("one_axis", 4), ("three_axes", 10)])
def test_no_class_of_an_exam_looks_like_another_as_training_turns_it(rotations: str, classes: int) -> None:
    method = _built("swin_three_task", rotations=rotations)
    applied = augmentation_of("swin_three_task", method, Pretrain())
    assert _classes_that_look_alike(applied, classes) == set()
    assert applied == FLIPS_AND_ROTATIONS.model_copy(update={"flip": 0.0})
    assert len(_classes_that_look_alike(FLIPS_AND_ROTATIONS, classes)) >= 2, "flips would make some alike"


def test_flips_are_left_to_those_who_can_bear_them() -> None:
    stage = Pretrain()
    for method in (_built("swin_three_task", rotation_weight=0.0), _built("generative")):
        assert augmentation_of("method", method, stage) is stage.augmentation


def test_flips_that_were_asked_for_are_refused_where_turns_are_told() -> None:
    plan, stage = Plan(modalities=SEQUENCES), Pretrain(patch=(16, 16, 16), augmentation=Augmentation.only(flip=0.25))
    with pytest.raises(
        SettingsError, match=r"a half turn: augmentation.flip is 0.25, expected 0; set it to 0, or give"
    ):
        check("swin_three_task", {}, NANO, stage, plan)
    check("swin_three_task", {"rotation_weight": 0.0}, NANO, stage, plan)
    check("swin_three_task", {}, NANO, stage.model_copy(update={"augmentation": Augmentation.only(noise=1.0)}), plan)


SWIN = NetworkChoice(name="swin", settings={"feature_size": 12, "window": 4})


@pytest.mark.parametrize(
    ("method", "settings", "changes", "network", "line"),
    [
        ("swin_three_task", {}, {"batch": 1}, NANO, "tells patches of a batch apart: batch is 1, expected 2 or more"),
        ("swin_three_task", {}, {"patch": (16, 16, 24)}, NANO, "expected equal sides where it is turned; use a cube"),
        ("swin_three_task", {"rotations": "three_axes"}, {"patch": (24, 16, 16)}, NANO, "use a cube"),
        ("swin_three_task", {}, {"patch": (32, 32, 32)}, SWIN, "the next size that fits is 64 × 64 × 64"),
        ("simclr", {}, {"batch": 1}, NANO, "batch is 1, expected 2 or more"),
        ("slem", {}, {"patch": (8, 8, 8)}, NANO, "strips take up to 4 of it; use larger patches"),
        ("jigen", {"grid": (9, 9, 1)}, {}, NANO, "a piece needs at least 2 voxels"),
        ("jigsaw3d", {"grid": (1, 1, 9)}, {}, NANO, "a piece needs at least 2 voxels"),
        ("multimodal_puzzle", {"grid": (9, 9, 9)}, {}, NANO, "a piece needs at least 2 voxels"),
        ("voco", {"grid": (8, 8, 8)}, {"patch": (8, 8, 8)}, NANO, "a piece needs at least 2 voxels"),
        ("spark", {}, {}, NANO, "0 of 1 block of a patch would be hidden"),
        ("spark", {"block": 4, "ratio": 0.005}, {}, NANO, "0 of 64 blocks of a patch would be hidden"),
        ("masked_reconstruction", {"block": 32}, {}, NANO, "of 1 block of a patch would be hidden"),
        ("masked_reconstruction", {"ratio": 0.01}, {}, NANO, "0 of 8 blocks of a patch would be hidden"),
        ("generative", {"policy": "masked", "ratio_alone": 0.01}, {}, NANO, "0 of 8 blocks"),
        ("brain_mvp", {"ratio": 0.001}, {}, NANO, "0 of 27 blocks"),
        ("m3ae", {"ratio": 0.1}, {}, NANO, "0 of 3 blocks"),
        ("bm_mae", {"token": 16, "ratio": 0.1}, {}, NANO, "0 of 3 blocks"),
    ],
)
def test_what_a_method_can_make_nothing_of_is_refused_before_anything_is_written(
    method: str, settings: dict[str, object], changes: dict[str, object], network: NetworkChoice, line: str
) -> None:
    stage = Pretrain(method=method, settings=settings, **{"patch": (16, 16, 16), "batch": 2} | changes)
    with pytest.raises(SettingsError, match=line) as refusal:
        check(method, settings, network, stage, Plan(modalities=SEQUENCES))
    assert "\n" not in str(refusal.value)


def test_patches_are_told_apart_from_those_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One patch in each of two processes is enough for a loss that looks at both, and no help for a norm that does not."""
    plan, stage = Plan(modalities=SEQUENCES), Pretrain(patch=(16, 16, 16), batch=1)
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("LOCAL_WORLD_SIZE", "2"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    for method in ("simclr", "swin_three_task"):
        check(method, {}, NANO, stage, plan)
    with pytest.raises(SettingsError, match="batch is 1, expected 2 or more"):
        check("byol", {"norm": "batch"}, NANO, stage, plan)


@pytest.mark.parametrize(
    ("method", "asked", "tried"),
    [
        (
            "swin_three_task",
            Size(counts=(4,), patch=(16, 16, 16)),
            [((2,), (16, 16, 16)), ((2,), (12, 16, 16)), ((2,), (12, 12, 12))],
        ),
        (
            "slem",
            Size(counts=(1,), patch=(16, 16, 16)),
            [((1,), (12, 16, 16)), ((1,), (12, 12, 16)), ((1,), (12, 12, 12)), ((1,), (12, 12, 8))],
        ),
    ],
)
def test_out_of_memory_leads_to_sizes_that_the_method_takes(method: str, asked: Size, tried: list[object]) -> None:
    limits, found = size_limits(method, {}, NANO, Plan(modalities=SEQUENCES)), []
    size: Size | None = asked
    while size := smaller(size, limits):
        found.append((size.counts, size.patch))
        stage = Pretrain(method=method, batch=size.counts[0], patch=size.patch)
        check(method, {}, NANO, stage, Plan(modalities=SEQUENCES))
    assert found[: len(tried)] == tried


@pytest.mark.parametrize(("method", "flip"), [("swin_three_task", 0.0), ("masked_reconstruction", 0.5)])
def test_a_run_says_what_is_done_to_its_exams(
    method: str, flip: float, make_phantom: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_phantom(tmp_path / "phantom", subjects=2, labelled=2, side=20)
    experiment.prepare(tmp_path / "phantom", tmp_path / "store", workers=1)
    training = Training(steps=1, device="cpu", threads=1, prefetch=1, workers=1, tensorboard="off")
    stage = Pretrain(method=method, patch=(16, 16, 16), training=training)
    experiment.pretrain(tmp_path / "store", tmp_path / "run", stage=stage, network=NANO)
    (file,) = (tmp_path / "run" / "checkpoints").glob("*/state.json")
    described = json.loads(file.read_text())
    assert described["identity"]["describe"]["augmentation"] == {
        **FLIPS_AND_ROTATIONS.model_dump(mode="json"),
        "flip": flip,
    }
    said = f"{tmp_path / 'run'}: exams are not flipped, because {method} tells how they were turned"
    assert (said in capsys.readouterr().err) == (flip == 0)
