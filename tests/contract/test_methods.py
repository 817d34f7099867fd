"""One list of questions for every method found in pretext/, semi/ and tasks/. A new method is asked without any edit here."""

from __future__ import annotations

import ast
import random
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from oligovox.catalogue import entries, load
from oligovox.engine.checkpoint import read_tensors
from oligovox.engine.fit import Training, fit
from oligovox.errors import SettingsError
from oligovox.method import Clock, Losses, Method
from oligovox.networks.encoder import Encoder
from oligovox.networks.teacher import Teacher
from oligovox.sample.batch import Batch
from oligovox.settings import Settings

ROOT = Path(__file__).parents[2]
METHODS = entries("METHOD")
SEQUENCES = ("T1w", "QSM", "FLAIR", "T1wGd")
CLOCK = Clock(step=3, total=10)

pytestmark = pytest.mark.parametrize("name", METHODS)


def build(name: str, sequences: tuple[str, ...] = SEQUENCES[:3], seed: int = 0, **chosen: object) -> Method:
    torch.manual_seed(seed)  # only to draw the first weights
    module, network = load("METHOD", name), load("NETWORK", "resenc")
    return module.METHOD(network.NETWORK(sequences, network.Settings(preset="nano")), module.Settings(**chosen))


def make_batch(method: Method, sequences: tuple[str, ...] = SEQUENCES[:3], samples: int = 2) -> Batch:
    """Two balls of tissue, a bright lesion in each, a slab that nobody labelled."""
    side = 32
    assert side % method.needs.patch_multiple == 0, "the patch of this test does not suit the method: make it larger"
    method.check_patch((side, side, side))
    axis = torch.linspace(-1, 1, side)
    radius = (axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2).sqrt()
    foreground = (radius < 1.1).expand(samples, 1, side, side, side).clone()
    label = torch.zeros(samples, side, side, side, dtype=torch.int64)
    label[:, 8:15, 10:20, 12:18] = 1
    rng = torch.Generator().manual_seed(7)
    noise = torch.randn(samples, len(sequences), side, side, side, generator=rng)
    waves = torch.stack([torch.sin((3 + m) * radius) for m in range(len(sequences))])
    image = (waves + 2.0 * label[:, None] + 0.1 * noise) * foreground
    label[:, -4:] = -1
    return Batch(
        image=image,
        present=torch.ones(samples, len(sequences), dtype=torch.bool),
        foreground=foreground,
        spacing=torch.ones(samples, 3),
        label=label,
        grade=torch.arange(samples) % 2,
        modalities=sequences,
        cases=tuple(f"case{i}" for i in range(samples)),
    )


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def step(method: Method, batch: Batch, seed: int = 0) -> Losses:
    return method.losses(method.views(batch, rng(seed)), CLOCK)


def tensors(value: object) -> dict[str, Tensor]:
    """Every tensor in a (nested) dataclass, mapping or sequence, by path."""
    if isinstance(value, Tensor):
        return {"": value}
    if is_dataclass(value):
        inner = {f.name: getattr(value, f.name) for f in fields(value)}
    elif isinstance(value, dict):
        inner = value
    elif isinstance(value, (list, tuple)):
        inner = dict(enumerate(value))
    else:
        return {}
    return {f"{key}.{path}": found for key, part in inner.items() for path, found in tensors(part).items()}


def copy(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {path: tensor.clone() for path, tensor in found.items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[path], right[path]) for path in left)


def test_the_same_rng_gives_the_same_views(name: str) -> None:
    method = build(name)
    batch = make_batch(method)
    first, second = method.views(batch, rng()), method.views(batch, rng())
    assert type(first).__dataclass_params__.frozen, "Views is a frozen dataclass"
    assert tensors(first)
    assert same(tensors(first), tensors(second))


def test_no_global_rng_is_touched(name: str) -> None:
    method = build(name)
    batch = make_batch(method)
    torch_state, numpy_state = torch.get_rng_state(), repr(np.random.get_state())  # noqa: NPY002
    totals = []
    for seed in range(2):  # the run-time type checker itself draws from `random`, so look at the outcome there
        random.seed(seed)
        totals.append(step(method, batch).total)
    assert torch.equal(*totals)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert repr(np.random.get_state()) == numpy_state  # noqa: NPY002


def test_the_batch_is_not_changed(name: str) -> None:
    method = build(name)
    batch = make_batch(method)
    before = copy(tensors(batch))
    step(method, batch).total.backward()
    assert same(tensors(batch), before)


def test_losses_change_nothing_on_self(name: str) -> None:
    method = build(name)
    weights, held = copy(method.state_dict()), {key: id(value) for key, value in vars(method).items()}
    step(method, make_batch(method))
    assert same(method.state_dict(), weights)
    assert {key: id(value) for key, value in vars(method).items()} == held


def test_terms_are_finite_scalars_and_weights_name_terms(name: str) -> None:
    method = build(name)
    for seed in range(3):
        losses = step(method, make_batch(method), seed)
        assert losses.terms
        assert set(losses.weights) <= set(losses.terms)
        assert all(term.shape == () and term.isfinite() for term in losses.terms.values())
        assert losses.total.item() > 0


def test_terms_are_float32_and_finite_in_mixed_precision(name: str) -> None:
    method = build(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = step(method, make_batch(method))
    assert all(term.dtype == torch.float32 and term.isfinite() for term in losses.terms.values())


def test_every_trainable_parameter_receives_a_gradient(name: str) -> None:
    method = build(name)
    for seed in range(3):  # of three samples, because a contrast of grades needs two of one and another
        step(method, make_batch(method, samples=3), seed).total.backward()
    dead = [key for key, p in method.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert dead == []


@pytest.mark.slow
@pytest.mark.parametrize("network", entries("NETWORK"))
def test_every_parameter_of_every_network_receives_a_gradient(name: str, network: str) -> None:
    """The networks at their default size, which takes a while; 64³, so that the deepest grid is no single voxel."""
    torch.manual_seed(0)
    chosen, module = load("NETWORK", network), load("METHOD", name)
    try:
        method = module.METHOD(chosen.NETWORK(SEQUENCES[:3], chosen.Settings()), module.Settings())
    except SettingsError as refusal:
        pytest.skip(str(refusal))
    small = make_batch(method, samples=3)
    doubled = {f: getattr(small, f) for f in ("image", "foreground", "label")}
    doubled = {
        f: v.repeat_interleave(2, -1).repeat_interleave(2, -2).repeat_interleave(2, -3) for f, v in doubled.items()
    }
    for seed in range(3):
        step(method, replace(small, **doubled), seed).total.backward()
    missing = {n: p for n, p in method.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
    beside = set()
    if not hasattr(method.export(), "decoder"):  # it may read the deepest feature only
        beside = beside_the_deepest(method.export().encoder, doubled["image"])
    assert [name for name, parameter in missing.items() if id(parameter) not in beside] == []


def beside_the_deepest(encoder: Encoder, image: Tensor) -> set[int]:
    """Identity of each parameter that the deepest feature does not depend on, such as what only a decoder's skips read."""
    encoder.zero_grad()
    encoder(image, torch.ones(image.shape[:2], dtype=torch.bool))[-1].sum().backward()
    return {id(parameter) for parameter in encoder.parameters() if parameter.grad is None}


def test_every_setting_is_read(name: str) -> None:
    """In the method's own file, or in that of settings it shares with another."""
    settings = load("METHOD", name).Settings
    shared = [kind for kind in settings.__mro__ if issubclass(kind, Settings) and kind is not Settings]
    read = set()
    for kind in shared:
        tree = ast.parse(Path(sys.modules[kind.__module__].__file__).read_text(encoding="utf-8"))
        outside = [node for node in tree.body if not (isinstance(node, ast.ClassDef) and node.name == kind.__name__)]
        read |= {node.attr for part in outside for node in ast.walk(part) if isinstance(node, ast.Attribute)}
    assert set(settings.model_fields) <= read
    assert all(field.description for field in settings.model_fields.values())


def test_state_dict_round_trip(name: str) -> None:
    one, other = build(name, seed=0), build(name, seed=1)
    batch = make_batch(one)
    assert not torch.equal(step(one, batch).total, step(other, batch).total)
    other.load_state_dict(one.state_dict())
    assert torch.equal(step(one, batch).total, step(other, batch).total)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_any_number_of_modalities_or_said_before_the_first_step(name: str, count: int) -> None:
    sequences = SEQUENCES[:count]
    try:
        method, refusal = build(name, sequences), ""
    except SettingsError as error:  # a method of named sequences says which one the plan lacks
        method, refusal = None, str(error)
    if method is None:
        assert count < 3
        assert any(missing in refusal for missing in SEQUENCES[count:3])
    elif method.needs.modalities <= count:
        assert step(method, make_batch(method, sequences)).total.isfinite()
    else:
        assert count < len(SEQUENCES), "a method must run on four modalities"


def test_absent_modalities(name: str) -> None:
    method = build(name)
    batch = make_batch(method, samples=3)
    present = torch.tensor([[True, False, True], [False, False, True], [True, True, False]])
    batch = replace(batch, present=present, image=batch.image * present[:, :, None, None, None])
    for seed in range(3):
        losses = step(method, batch, seed)
        losses.total.backward()
        assert losses.total.isfinite()
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


def test_a_batch_without_labels_or_without_foreground(name: str) -> None:
    """Nothing to learn from is no reason to stop: a loss of 0 or more, and gradients that are finite."""
    method = build(name)
    batch = make_batch(method)
    unlabelled = replace(batch, label=torch.full_like(batch.label, -1), grade=torch.full_like(batch.grade, -1))
    empty = replace(unlabelled, image=torch.zeros_like(batch.image), foreground=torch.zeros_like(batch.foreground))
    for case in (unlabelled, empty):
        losses = step(method, case)
        losses.total.backward()
        assert losses.total.item() >= 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters() if p.requires_grad)


def test_thirty_steps_lower_the_loss(name: str) -> None:
    """By a tenth, on the same three views; often sooner."""
    method = build(name)
    batch = make_batch(method)
    optimiser = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=5e-3)
    totals: list[float] = []
    for number in range(30):
        losses = method.losses(method.views(batch, rng(number % 3)), Clock(number, 30))
        optimiser.zero_grad()
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), 1.0)  # as the loop does by default
        optimiser.step()
        method.after_step(losses, Clock(number, 30))
        totals.append(losses.total.item())
        if number % 3 == 2 and np.mean(totals[-3:]) < 0.9 * np.mean(totals[:3]):
            return
    pytest.fail(f"from {np.mean(totals[:3]):.3f} to {np.mean(totals[-3:]):.3f}")


class Killed(Exception):
    """Stands for a process that ends without a word."""


def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(name: str, tmp_path: Path) -> None:
    batch = make_batch(build(name))
    training = Training(
        steps=6, device="cpu", precision="32-true", threads=1, checkpoint_every=2, prefetch=1, workers=1, tensorboard="off"
    )  # fmt: skip

    def train(folder: str, seed: int = 0, dies_at: int | None = None) -> Path:
        def batches(number: int, micro: int) -> Batch:
            if number == dies_at:
                raise Killed
            return replace(batch, image=batch.image * (1 + 0.1 * number))

        return fit(build(name, seed=seed), batches, training, tmp_path / folder, progress=False).last

    whole = train("whole")
    for seed, dies_at in enumerate((3, 5)):
        with pytest.raises(Killed):
            train("parts", seed, dies_at)
    parts = train("parts", seed=2)  # other first weights: all that matters must come out of the checkpoint
    for file in ("weights.safetensors", "optimizer.safetensors"):
        assert same(read_tensors(whole / file), read_tensors(parts / file))


def test_export(name: str) -> None:
    method = build(name)
    batch = make_batch(method)
    exported = method.export()
    assert isinstance(exported.encoder, Encoder)
    assert {key.split(".")[0] for key in exported.state_dict()} <= {"encoder", "decoder", "head"}
    trained = {id(p) for p in method.parameters()}
    assert all(id(p) in trained for p in exported.parameters()), "what leaves is what was trained, not a copy"
    if METHODS[name].room != "pretext":
        assert hasattr(exported, "head")
        lesion = (batch.label == 1,) if getattr(exported, "reads_lesion", False) else ()
        logits = exported(batch.image, batch.present, *lesion)
        assert logits.shape[0] == len(batch)
        if hasattr(exported, "decoder"):
            assert logits.shape[2:] == batch.image.shape[2:]
        else:  # of the sample as a whole
            assert logits.ndim == 1


def test_a_teacher_takes_over_a_start_as_its_student_does(name: str) -> None:
    """Every weight that a teacher begins with is that of the network which trains, whatever was loaded into it."""
    chosen = {"distil_weight": 1.0} if name == "implanted_lesions" else {}  # its teacher is off by default
    method = build(name, **chosen)
    teachers = [part for part in method.modules() if isinstance(part, Teacher)]
    if not teachers:
        pytest.skip("no teacher")

    @torch.no_grad()
    def load_start(module: torch.nn.Module) -> None:
        for parameter in module.parameters():
            parameter.add_(1.0)

    method.begin(load_start)
    followed = {id(p) for teacher in teachers for p in teacher.parameters()}
    trained = {key: p for key, p in method.named_parameters() if id(p) not in followed}
    for teacher in teachers:
        for key, kept in teacher.module.named_parameters():
            ends = [p for own, p in trained.items() if f".{own}".endswith(f".{key}")]
            assert any(torch.equal(kept, p) for p in ends), f"the teacher's {key} is no weight of its student"


def test_source_page_and_test_stand_beside_it(name: str) -> None:
    entry = METHODS[name]
    assert entry.summary.endswith(".")
    assert entry.source
    assert entry.deviates
    assert (ROOT / "docs" / "methods" / f"{name}.md").is_file()
    assert (ROOT / "tests" / entry.room / f"test_{name}.py").is_file()
