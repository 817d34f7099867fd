"""A head that comes along with a start: from a pretext that finds lesions, from a model that was trained on labels, and where it cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from oligovox import experiment
from oligovox.engine.model import load_model, read_description
from oligovox.errors import CheckpointError, SettingsError
from oligovox.experiment.recipe import Finetune, NetworkChoice, Pretrain

NANO, PATCH = NetworkChoice.named("resenc", "nano"), (16, 16, 16)
EVERYTHING = ("encoder", "decoder", "head")
STILL = {"steps": 1, "lr": 1e-12, "threads": 1, "tensorboard": "off", "precision": "32-true"}


@pytest.fixture(scope="module")
def made(make_phantom: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, and starts that had one step each: of ours, and of a pretext without a head."""
    root = tmp_path_factory.mktemp("head")
    make_phantom(root / "phantom", subjects=3, labelled=2, side=20)
    experiment.prepare(root / "phantom", root / "store", workers=1)
    for name in ("implanted_lesions", "generative"):
        stage = Pretrain(method=name, patch=PATCH, training=STILL | {"lr": 1e-3})
        experiment.pretrain(root / "store", root / name, stage=stage, network=NANO)
    return root


def finetuned(made: Path, out: Path, start: Path, **stage: object) -> dict[str, torch.Tensor]:
    chosen = Finetune(patch=PATCH, training=STILL, parts=EVERYTHING, **stage)
    return load_model(experiment.finetune(made / "store", out, stage=chosen, start=start))[0]


def test_what_says_lesion_goes_on_learning(made: Path, tmp_path: Path) -> None:
    start = made / "implanted_lesions"
    old, new = load_model(start / "model")[0], finetuned(made, tmp_path / "first", start)
    for name in ("head.weight", "head.bias"):
        torch.testing.assert_close(new[name], old[name], rtol=0, atol=1e-6)
    again = finetuned(made, tmp_path / "second", tmp_path / "first", norm_reset=True)  # of a model trained on labels
    torch.testing.assert_close(again["head.weight"], old["head.weight"], rtol=0, atol=1e-6)


def test_a_pretext_with_a_head_is_still_a_start_and_no_model(made: Path, tmp_path: Path) -> None:
    assert read_description(made / "implanted_lesions" / "model").kind == "encoder-decoder"
    with pytest.raises(CheckpointError, match="which gives a start for fine-tuning"):
        experiment.predict(made / "implanted_lesions", made / "store", tmp_path / "predictions")


def test_a_head_that_is_none_or_tells_something_else_is_refused(made: Path, tmp_path: Path) -> None:
    regions = {"mode": "regions", "labels": {"any": [1], "all": [1]}}
    with pytest.raises(SettingsError, match=r"trained by generative, without a head to take over; leave head out"):
        finetuned(made, tmp_path / "none", made / "generative")
    with pytest.raises(SettingsError, match=r"tells lesion from background, and this training regions any, all"):
        finetuned(made, tmp_path / "other", made / "implanted_lesions", settings=regions)
    finetuned(made, tmp_path / "model", made / "implanted_lesions")
    with pytest.raises(SettingsError, match=r"its head tells classes lesion, and this training regions any, all"):
        finetuned(made, tmp_path / "other", tmp_path / "model", settings=regions)
    assert not (tmp_path / "none").exists()
    assert not (tmp_path / "other").exists()
