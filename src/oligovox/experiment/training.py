"""From a store and a choice of method to a model folder: the one road that pre-training and fine-tuning share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from oligovox import catalogue
from oligovox.engine.fit import Augment, Training, Validate, fit
from oligovox.engine.log import say
from oligovox.engine.model import ModelDescription, load_model, read_description, save_model
from oligovox.engine.runtime import Runtime
from oligovox.errors import CheckpointError, GeometryError, LabelError, SettingsError
from oligovox.experiment.needs import augmentation_of, check_built, fewest
from oligovox.experiment.recipe import Finetune, NetworkChoice, Patch, Semi, Stage
from oligovox.experiment.shrinking import Limits, Size, until_it_fits
from oligovox.files import sweep
from oligovox.method import Method, Needs
from oligovox.networks.encoder import Encoder
from oligovox.networks.transfer import TransferReport, transfer
from oligovox.prepare.store import Plan, Store
from oligovox.sample.augment import augment
from oligovox.sample.batch import Batch
from oligovox.sample.patches import PatchSource, Stream
from oligovox.settings import parse


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training: who is seen, by which method, from where.

    Attributes:
        method: name in the catalogue.
        settings: of the method's file.
        network: the encoder.
        stage: patch, batch, training, augmentation.
        streams: what a micro-batch is made of.
        start: model folder whose weights are the start; None: from scratch.
        parts: which parts are taken from it.
        norm_reset: see `networks.transfer`.
        shuffled: see `networks.transfer`.
        transductive: images of test people are seen.
        tensors: say what became of each tensor of the start, not only how many were loaded.
        watched: names of the cases that the best checkpoint is chosen on.
    """

    method: str
    settings: Mapping[str, Any]
    network: NetworkChoice
    stage: Stage
    streams: tuple[Stream, ...]
    start: Path | None = None
    parts: tuple[str, ...] = ("encoder", "decoder")
    norm_reset: bool = False
    shuffled: bool = False
    transductive: bool = False
    tensors: bool = False
    watched: tuple[str, ...] = ()


def build_encoder(network: NetworkChoice, modalities: tuple[str, ...]) -> Encoder:
    """The encoder of `networks/<name>.py` for these sequences."""
    module = catalogue.load("NETWORK", network.name)
    settings = parse(module.Settings, network.settings, f"network {network.name}")
    encoder: Encoder = module.NETWORK(modalities, settings)
    return encoder


def build_method(name: str, settings: Mapping[str, Any], encoder: Encoder) -> Method[Any]:
    """The method `<name>` around an encoder."""
    module = catalogue.load("METHOD", name)
    method: Method[Any] = module.METHOD(encoder, parse(module.Settings, settings, f"method {name}"))
    return method


def of_finetuning(stage: Finetune, labels: Mapping[str, int] | None = None) -> tuple[str, dict[str, Any]]:
    """The method that fine-tunes, and its settings: the task, or the strategy around it.

    Args:
        stage: as chosen.
        labels: class → value, as the store has them; the stage's own say what they mean for training.
    """
    task = ({"labels": {name: index for index, name in enumerate(labels, start=1)}} if labels else {}) | stage.settings
    return (stage.semi.name, {"task": task, **stage.semi.settings}) if stage.semi else ("segmentation", task)


def learns_alone(semi: Semi) -> bool:
    """Whether a strategy can do without exams without a label; where cohorts of them are named, they are wanted."""
    return not (semi.cohorts or needs_of(semi).unlabelled)


def needs_of(semi: Semi) -> Needs:
    """What a strategy asks of the data."""
    needs: Needs = catalogue.load("METHOD", semi.name).METHOD.needs
    return needs


def check(method: str, settings: Mapping[str, Any], network: NetworkChoice, stage: Stage, plan: Plan) -> Method[Any]:
    """Say before anything is written whether method, network, patch and plan fit; costs no memory, whatever the network's size.

    Returns:
        The method, without numbers in its weights.

    Raises:
        SettingsError: they do not, or a name or setting is unknown.
    """
    with torch.device("meta"):
        encoder = build_encoder(network, plan.modalities)
        built = build_method(method, settings, encoder)
    check_built(method, built, network, stage, encoder, plan)
    return built


def size_limits(method: str, settings: Mapping[str, Any], network: NetworkChoice, plan: Plan) -> Limits:
    """What a micro-batch must be for network and method; costs no memory."""
    with torch.device("meta"):
        encoder = build_encoder(network, plan.modalities)
        built = build_method(method, settings, encoder)

    def takes(patch: Patch) -> bool:
        try:
            encoder.check_sides(patch)
            built.check_patch(patch)
        except GeometryError:
            return False
        return True

    return Limits(math.lcm(encoder.strides[-1], built.needs.patch_multiple), fewest(built), takes)


def train(
    job: Job, store: Store, out: Path, *, validate: Callable[[nn.Module], Mapping[str, float]] | None = None
) -> Path:
    """Train and export; a killed run resumes, a finished one returns at once, one out of memory goes on smaller (`experiment.shrinking`).

    Args:
        job: what to train.
        store: prepared volumes.
        out: run folder: checkpoints/, log.jsonl, model/.
        validate: exported network → metrics; the best by 'dice' is exported, without it the last.

    Returns:
        The model folder.

    Raises:
        SettingsError: method, network, patch and data do not fit; said before step 0.
        CheckpointError: the start belongs to another architecture.
        RunError: out of memory at every size.
    """
    asked = Size(counts=tuple(stream.count for stream in job.streams), patch=job.stage.patch)
    return until_it_fits(
        lambda size: _train(_sized(job, size), job, store, out, validate),
        asked,
        lambda: size_limits(job.method, job.settings, job.network, store.plan),
        out,
    )


def _train(
    job: Job, asked: Job, store: Store, out: Path, validate: Callable[[nn.Module], Mapping[str, float]] | None
) -> Path:
    """`train`, of one size; the run stays the one that was asked for, so that it goes on from a checkpoint of another size."""
    stage, plan = job.stage, store.plan
    runtime = Runtime(stage.training)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stage.training.seed)
        encoder = build_encoder(job.network, plan.modalities)
        method = build_method(job.method, job.settings, encoder)
    check_built(job.method, method, job.network, stage, encoder, plan)
    _check_streams(job, method)
    augmentation = augmentation_of(job.method, method, stage)
    if augmentation != stage.augmentation:
        say(f"{out}: exams are not flipped, because {job.method} tells how they were turned")
    start = load_start(method, job.start, job.parts, job.norm_reset, job.shuffled, job.tensors) if job.start else None
    source = PatchSource(plan, job.streams, stage.patch, stage.training.seed, apart=method.needs.apart)
    description = describe(job, store, start)
    if catalogue.entries("METHOD")[job.method].room == "pretext" and hasattr(method.export(), "head"):
        description = description.model_copy(update={"kind": "encoder-decoder"})  # a start, whatever its head says
    return fit_and_export(
        method,
        source.batch,
        stage.training,
        out,
        description,
        runtime=runtime,
        augment=lambda batch, rng: augment(batch, augmentation, rng),
        validate=(lambda m: validate(m.export())) if validate else None,
        data=_data_of(asked) | {"patch": asked.stage.patch, "augmentation": augmentation.model_dump(mode="json")},
    )


def _sized(job: Job, size: Size) -> Job:
    """The same training with micro-batches of this size."""
    streams = tuple(replace(stream, count=count) for stream, count in zip(job.streams, size.counts, strict=True))
    stage = job.stage.model_copy(update={"batch": size.counts[0], "patch": size.patch})
    return replace(job, streams=streams, stage=stage)


def fit_and_export(
    method: Method[Any],
    batches: Callable[[int, int], Batch],
    training: Training,
    out: Path,
    description: ModelDescription,
    *,
    runtime: Runtime,
    augment: Augment,
    data: dict[str, Any],
    validate: Validate | None = None,
    best_by: str = "dice",
) -> Path:
    """Train a method that is ready, and write its best state as a model folder: out/model. See `fit`.

    Args:
        description: what the model folder says about itself.
        data: what else a run must keep to go on.
    """
    describe = description.model_dump(mode="json") | data
    result = fit(method, batches, training, out,
                 runtime=runtime, augment=augment, validate=validate, best_by=best_by, describe=describe)  # fmt: skip
    if runtime.is_main:
        sweep(out)
        save_model(out / "model", result.best_method().export(), description)
    runtime.barrier()
    return out / "model"


def describe(job: Job, store: Store, start: ModelDescription | None) -> ModelDescription:
    """What a model folder says about itself; whose images its start has seen, it has seen as well."""
    seen = {case.person for stream in job.streams for case in stream.cases} | set(start.trained_on if start else ())
    return ModelDescription(
        method=job.method,
        settings=resolved("METHOD", job.method, job.settings),
        network=job.network.name,
        network_settings=resolved("NETWORK", job.network.name, job.network.settings),
        modalities=store.plan.modalities,
        plan=store.plan.model_dump(mode="json"),
        labels=dict(store.labels),
        patch=job.stage.patch,
        trained_on=tuple(sorted(seen)),
        transductive=job.transductive or (start is not None and start.transductive),
        parent=start.identity if start else None,
    )


def _data_of(job: Job) -> dict[str, Any]:
    """What else a run must keep to go on: whose patches, cut and watched how. `trained_on` cannot say; it has the start's people as well."""
    streams = {
        str(number): {"cases": [case.name for case in stream.cases]}
        | {key: getattr(stream, key) for key in ("count", "policy", "lesion_share", "use_labels")}
        for number, stream in enumerate(job.streams)
    }
    start = {"parts": job.parts, "norm_reset": job.norm_reset, "shuffled": job.shuffled} if job.start else {}
    return {"batch": job.stage.batch} | start | {"streams": streams, "watched": job.watched}


def resolved(marker: catalogue.Marker, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with every default spelled out, as plain values."""
    settings: dict[str, Any] = parse(catalogue.load(marker, name).Settings, given, name).model_dump(mode="json")
    return settings


def load_network(folder: Path) -> tuple[nn.Module, ModelDescription]:
    """The network of a model folder, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: not a model folder, or its weights do not fit the network it names.
    """
    folder = model_folder(folder)
    weights, description = load_model(folder)
    network = NetworkChoice(name=description.network, settings=description.network_settings)
    try:
        encoder = build_encoder(network, description.modalities)
        module = build_method(description.method, description.settings, encoder).export()
    except SettingsError as error:
        raise CheckpointError(f"{folder / 'model.json'}: {error}; restore the folder from a copy") from error
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            raise CheckpointError(f"{folder}: tensor '{name}' has the shape {found.get(name)}, expected {expected.get(name)}; the "
                                  f"weights are not those of a {description.network} trained by {description.method}")  # fmt: skip
    module.load_state_dict(weights)
    return module.eval(), description


def model_folder(path: Path) -> Path:
    """A model folder, given itself or the run folder around it.

    Raises:
        CheckpointError: neither.
    """
    for candidate in (path, path / "model"):
        if (candidate / "model.json").is_file():
            return candidate
    raise CheckpointError(f"{path}: no model.json in it; expected a run folder (with model/) or a model folder")


def start_network(folder: Path) -> NetworkChoice:
    """The network a pre-trained start was trained with."""
    description = read_description(model_folder(folder))
    return NetworkChoice(name=description.network, settings=description.network_settings)


def _check_streams(job: Job, method: Method[Any]) -> None:
    labelled = any(stream.use_labels and case.labelled for stream in job.streams for case in stream.cases)
    unlabelled = any(not (stream.use_labels and case.labelled) for stream in job.streams for case in stream.cases)
    if method.needs.labels and not labelled:
        raise LabelError(f"method {job.method} needs labelled cases, and none of those it is given has a label")
    if method.needs.unlabelled and not unlabelled:
        raise LabelError(f"method {job.method} needs unlabelled cases beside the labelled ones, and there are none")


def load_start(
    method: Method[Any],
    start: Path,
    parts: tuple[str, ...] = ("encoder", "decoder"),
    norm_reset: bool = False,
    shuffled: bool = False,
    tensors: bool = False,
) -> ModelDescription:
    """Let a method take over the weights of a run or model folder; see `networks.transfer`. Says what became of them.

    Raises:
        CheckpointError: they belong to another architecture.
    """
    folder = model_folder(start)
    weights, description = load_model(folder)
    reports: list[TransferReport] = []

    def load(module: nn.Module) -> None:
        reports.append(
            transfer(
                weights,
                description.modalities,
                module,
                parts=parts,
                norm_reset=norm_reset,
                shuffled=shuffled,
            )
        )

    try:
        method.begin(load)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    for report in reports:
        say(f"start from {folder}: {report.summary()}")
        for line in report.table() if tensors else ():
            say(f"  {line}")
    return description
