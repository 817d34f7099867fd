"""A model folder and prepared cases → masks on the images' own grids."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from oligovox.cohort.modalities import sequence_of
from oligovox.cohort.reading import several
from oligovox.engine.log import say
from oligovox.engine.model import ModelDescription, load_model
from oligovox.engine.runtime import Hardware, Runtime
from oligovox.errors import CheckpointError, SettingsError
from oligovox.experiment.recipe import Predict
from oligovox.experiment.sequence_price import MEASURED, NOT_MEASURED, expected_loss, loss_in_words, read_losses
from oligovox.experiment.training import load_network, model_folder
from oligovox.files import hash_json, read_json, write_json
from oligovox.infer.native import already_written, prediction_paths, write_prediction
from oligovox.infer.window import Network, predict_case
from oligovox.prepare.store import Plan, StoredCase
from oligovox.settings import parse
from oligovox.tasks import segmentation


def load_segmentation(model: Path) -> tuple[nn.Module, ModelDescription]:
    """The segmentation network of a model folder.

    Raises:
        CheckpointError: the folder holds something else, a pre-trained encoder for example.
    """
    network, description = load_network(model)
    if description.kind != "segmentation":
        raise CheckpointError(
            f"{model}: trained by {description.method}, which gives a start for fine-tuning ({description.kind}), not a "
            "segmentation model; fine-tune it first (oligovox finetune --from)"
        )
    return network, description


def predict_cases(
    model: Path,
    cases: Sequence[StoredCase],
    out: Path,
    options: Predict,
    progress: Callable[[int, int, str], None],
    hardware: Hardware | None = None,
    *,
    hidden: Collection[str] = (),
    measure: Callable[[StoredCase, NDArray[np.float32]], Mapping[str, Any]] | None = None,
    losses: Path | None = None,
) -> dict[str, Path]:
    """Predict these cases into `out`; those that stand there already, by the same model and options, are kept.

    Of each combination of sequences that is not all the model knows, one line says what it got, what it knows, and how much it expects to
    lose; the sidecars say the same. With `hidden` nothing is said: whoever hides knows.

    Args:
        model: folder of a segmentation model.
        cases: prepared by the model's own plan.
        out: folder for BIDS derivatives.
        options: sliding window.
        progress: called with (cases done, cases in all, name of the case) after each case.
        hardware: device, precision, threads; None: what there is.
        hidden: sequences that are not shown to the network, as if nobody had acquired them.
        measure: what else the sidecar of a prediction says, from the case and its lesion probability (x, y, z) on the prepared grid.
        losses: subsets.json of `evaluate --subsets` about this model; None: the one in the model folder, if there is one.

    Returns:
        Case name → label map.

    Raises:
        CheckpointError: not a segmentation model, or the losses are those of another.
    """
    network, description = load_segmentation(model)
    plan, runtime = parse(Plan, description.plan, "plan of the model"), Runtime(hardware)
    regions = region_outputs(description.settings)
    runtime.place(network)
    seen = (
        _hiding(network, [sequence_of(name) not in hidden for name in plan.modalities], runtime.device)
        if hidden
        else network
    )
    asked = [sorted(hidden)] if hidden else []
    model_hash = hash_json([description.identity, options.model_dump(mode="json"), runtime.precision, *asked])
    expected = {} if hidden else _expected(cases, plan, description, losses or _beside(model))
    written = {}
    for done, case in enumerate(cases, start=1):
        paths, told = prediction_paths(case, out, description.labels), expected.get(case.present, {})
        if already_written(case, out, model_hash):
            _tell(paths["sidecar"], told)
        else:
            probabilities = predict_case(
                seen, case, plan,
                patch=description.patch, overlap=options.overlap, mirror=options.mirror,
                activation="sigmoid" if regions else "softmax", device=runtime.device, precision=runtime.precision,
            )  # fmt: skip
            found = measure(case, _of_lesion(probabilities, bool(regions))) if measure else {}
            write_prediction(
                probabilities, case, description.labels, out,
                plan=plan, model_hash=model_hash, regions=regions, save_probabilities=options.save_probabilities,
                details={**found, **told, **({"SequencesHidden": sorted(hidden)} if hidden else {})},
            )  # fmt: skip
        written[case.name] = paths["label"]
        progress(done, len(cases), case.name)
    return written


def task_of(settings: Mapping[str, Any]) -> segmentation.Settings:
    """The settings of the segmentation in those of a method: its own, or those that a semi-supervised strategy holds as `task`."""
    return parse(segmentation.Settings, settings.get("task", settings), "method segmentation")


def check_head(start: Path, settings: Mapping[str, Any]) -> None:
    """Whether the head of a start says what this method's outputs stand for.

    Args:
        start: run or model folder.
        settings: of the method that takes it over.

    Raises:
        SettingsError: there is none, or its outputs are others.
    """
    weights, description = load_model(folder := model_folder(start))
    asked, advice = task_of(settings), "leave head out of finetune.parts"
    wanted = f"{asked.mode} {', '.join(asked.labels)}"
    if "head.weight" not in weights:
        raise SettingsError(f"{folder}: trained by {description.method}, without a head to take over; {advice}")
    if description.kind == "segmentation":
        own = task_of(description.settings)
        if (own.mode, [*own.labels.items()]) != (asked.mode, [*asked.labels.items()]):
            found = f"{own.mode} {', '.join(own.labels)}"
            raise SettingsError(f"{folder}: its head tells {found}, and this training {wanted}; {advice}")
    elif asked.mode != "classes" or len(asked.labels) != 1:
        raise SettingsError(f"{folder}: its head tells lesion from background, and this training {wanted}; {advice}")


def region_outputs(settings: Mapping[str, Any]) -> Mapping[str, Sequence[int]] | None:
    """Region name → class numbers, in channel order, of a segmentation trained in mode 'regions'; None for exclusive classes."""
    chosen = task_of(settings)
    return chosen.labels if chosen.mode == "regions" else None


def _beside(model: Path) -> Path | None:
    """The table of losses in a model folder."""
    path = model_folder(model) / MEASURED
    return path if path.is_file() else None


def _expected(
    cases: Sequence[StoredCase], plan: Plan, description: ModelDescription, losses: Path | None
) -> dict[tuple[bool, ...], dict[str, Any]]:
    """Sequences that are there → what a sidecar says of the loss; each combination that lacks some is said once."""
    had = {case.present: plan.held(case.present) for case in cases}
    lacking = any(got != plan.sequences for got in had.values())
    rows = read_losses(losses, description.identity) if losses and lacking else []
    found: dict[tuple[bool, ...], dict[str, Any]] = {}
    for present, got in had.items():
        if got == plan.sequences:
            found[present] = {"ExpectedLoss": []}
            continue
        names = [case.name for case in cases if case.present == present]
        lost = expected_loss(rows, got, plan.sequences)
        found[present] = {"ExpectedLoss": lost or NOT_MEASURED}
        absent = [name for name in plan.sequences if name not in got]
        say(
            f"{several(len(names), 'case')}, first {names[0]}: predicted without {', '.join(absent)}, from {', '.join(got)}; {loss_in_words(lost)}; "
            "look at them before you use them"
        )
    return found


def _tell(sidecar: Path, told: Mapping[str, Any]) -> None:
    """Bring the sidecar of a prediction that is kept up to date: its loss may have been measured since."""
    content = read_json(sidecar)
    if any(content.get(key) != value for key, value in told.items()):
        write_json(sidecar, {**content, **told})


def _hiding(network: nn.Module, shown: Sequence[bool], device: torch.device) -> Network:
    """The network, shown only these channels."""
    kept = torch.tensor(shown, device=device)

    def answer(image: Tensor, present: Tensor) -> Tensor:
        logits: Tensor = network(image * kept[:, None, None, None], present & kept)
        return logits

    return answer


def _of_lesion(probabilities: NDArray[np.float32], regions: bool) -> NDArray[np.float32]:
    """(C, x, y, z) → (x, y, z): any class at all, in [0, 1]. Of regions that hold each other, the likeliest."""
    lesion: NDArray[np.float32] = probabilities.max(axis=0) if regions else 1 - probabilities[0]
    return lesion.clip(0, 1)
