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
from oligovox.experiment.recipe import NetworkChoice, Pretrain
from oligovox.experiment.training import augmentation_of, build_encoder, build_method, check
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
