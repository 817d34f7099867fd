"""Vox-MMSD beside its public release: the same losses from the same tensors, the same blocks and pairs, and the time of a step.

Run as `python benchmarks/release_vox_mmsd.py --release CLONE`, where CLONE is a checkout of HiLab-git/Vox-MMSD. Nothing of it is copied: its
classes are imported, and its own `training()` takes its steps. It needs one package that ours does not: `pip install --no-deps batchgenerators`,
best in an environment of its own. What else it imports is not used by this method and replaced by empty modules.

The network is the release's in both: behind the Encoder contract it stands in our method, with the same weights. Changed in the release: calls of
`.cuda()` stay on the CPU, dropout is off (our teacher has none), and crops of 96³ with 1024 pairs, written into its code, are 48³ with 128, since
the volumes have voxels of 2 mm: the same part of the head, an eighth of the voxels. A step includes its views and leaves out, in the release alone,
the reading of files.

On a CPU the release computes in float32, since its mixed precision asks for CUDA; ours takes bfloat16 where the CPU has it, and weights with
channels last. So that not only precision is compared, ours also runs in float32, and the release inside our autocast.
"""

import argparse
import contextlib
import io
import logging
import subprocess
import sys
import tempfile
import warnings
from copy import deepcopy
from functools import reduce
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from unittest.mock import MagicMock, patch

import numpy as np
import torch
from torch import nn

from common import alternate, headline, progress, ratio, table, write
from oligovox.cohort.bids import read_bids
from oligovox.engine.fit import Training, build_optimizer
from oligovox.engine.runtime import Runtime, tune_allocator
from oligovox.losses.dino import dino_loss
from oligovox.losses.masked import masked_mean
from oligovox.method import Clock
from oligovox.networks.encoder import Encoder
from oligovox.networks.teacher import Teacher
from oligovox.prepare.pipeline import prepare
from oligovox.prepare.store import Plan
from oligovox.pretext.vox_mmsd import Settings, Views, VoxMMSD
from oligovox.sample.masks import thrown_blocks
from oligovox.sample.patches import PatchSource, Stream
from oligovox.simulate.recipe import make_recipe
from oligovox.simulate.write import simulate_cohort

SEQUENCES = ("T1w", "T1wGd", "T2w", "FLAIR")
CROP, PATCH, PAIRS, BATCH, SPACING = 48, 64, 128, 2, 2.0
ROUNDS, VIEW_ROUNDS, SAMPLES, DRAWS = 3, 9, 40, 8
EPOCHS = 300  # of 200 steps in the release; of one step here, so that its schedules move
WARM = 25  # an epoch after the teacher's warm-up
TOLERANCE = 1e-4
SETTINGS = {"overlap": 0, "even_blocks": False, "input_scale": "min_max", "projection": 512, "restore_over": "all",
            "freeze_heads": True}  # fmt: skip
AGENT = Path("PyMIC-dev/pymic/net_run/self_sup/self_voxmmsd.py")
CONFIG = Path("BraTS-GLI/config/unet3d_voxmmsd.cfg")
KINDS = {"convolution": ("convolution", "conv3d"), "batch norm": ("batch_norm",), "copies": ("copy",),
         "pooling and upsampling": ("pool", "upsample")}  # fmt: skip
"""What a step spends its time on: a part of the operator's name."""
UNUSED = ("SimpleITK", "einops", "h5py", "imops", "ml_collections", "skimage", "skimage.feature", "skimage.transform",
          "tensorboardX", "timm", "timm.models", "timm.models.layers", "torchvision", "torchvision.models",
          "torchvision.transforms")  # fmt: skip


class Release:
    """The release on the CPU.

    Attributes:
        agent: its trainer, with networks, heads, losses and optimiser.
        volumes: (4, x, y, z) each, 0 outside the head; what its views are cut from.
    """

    def __init__(self, clone):
        self.module, views, self.transforms, parser = imported(clone)
        self.views_of, self.volumes = shrunk(views.ContrastiveLearningViewGeneratorVoxMMSD), []
        config = parser.synchronize_config(parser.parse_config(clone / CONFIG))
        config["network"]["dropout"] = [0.0] * 5
        config["training"] |= {"iter_max": EPOCHS, "iter_valid": 1, "warmup_iter": 0}  # its file lacks the last
        self.config = config["dataset"] | {"task": config["dataset"]["task_type"]}
        with patch.multiple(nn.Module, cuda=lambda part, *_: part, to=lambda part, *_: part):
            self.agent = self.module.SelfSupVoxMMSD(config)
            self.agent.create_network()
        self.agent.create_loss_calculator()
        self.agent.create_optimizer(self.agent.get_parameters_to_update())
        self.rate, self.decay = self.agent.scheduler[0], self.agent.wd_schedule[0]
        for group, decay in zip(self.agent.optimizer.param_groups, (self.decay, 0.0), strict=True):
            group |= {"lr": self.rate, "weight_decay": decay}  # as before its first epoch
        self.agent.device = torch.device("cpu")

    def mask(self, block):
        return self.module.VoxMMSDMaskedImage(self.config | {"masked_size": block})

    def views(self, volume, disturbed=True):
        """Of one sample: two images, two targets, two tables of voxels (sequence, x, y, z)."""
        names = self.config["train_transform"] if disturbed else ()
        steps = [self.transforms.TransformDict[name](self.config) for name in names]
        norm = self.module.NormalizeWithMinMax(self.config)
        views = self.views_of(lambda x: reduce(lambda y, step: step(y), steps, x), self.mask(CROP // 6), norm, PAIRS)
        return views({"image": volume, "names": SEQUENCES})

    def batch(self):
        chosen = torch.randint(len(self.volumes), (BATCH,)).tolist()
        return torch.utils.data.default_collate([self.views(self.volumes[number]) for number in chosen])

    def step(self, batch):
        """Its own step; its two losses."""
        self.agent.trainIter = iter([batch])
        scalars, _ = self.agent.training()
        return {"distil": scalars["con_loss"], "restore": scalars["rec_loss"]}


def imported(clone):
    """Its trainer, views, transforms and the reader of its configuration."""
    for path in (AGENT, CONFIG):
        if not (clone / path).is_file():
            sys.exit(f"--release {clone}: has no {path}; expected a checkout of HiLab-git/Vox-MMSD")
    if find_spec("batchgenerators") is None:
        sys.exit("the release needs batchgenerators: pip install --no-deps batchgenerators")
    empty = {name: MagicMock() for name in UNUSED if name not in sys.modules}
    sys.modules.update(empty)
    sys.path.insert(0, str(clone / "PyMIC-dev"))
    names = ("net_run.self_sup.self_voxmmsd", "transform.view_generator", "transform.trans_dict", "util.parse_config")
    modules = [import_module(f"pymic.{name}") for name in names]
    for name in empty:
        del sys.modules[name]
    return modules


def shrunk(views):
    """Its class of views with smaller crops; their size is a constant in its code."""
    code = views.__call__.__code__
    if (len(SEQUENCES), 96, 96, 96) not in code.co_consts:
        sys.exit("--release: crops of its views are not 96³; expected commit 79f7bc6 or one like it")
    sides = {(len(SEQUENCES), 96, 96, 96): (len(SEQUENCES), CROP, CROP, CROP)}
    views.__call__.__code__ = code.replace(co_consts=tuple(sides.get(value, value) for value in code.co_consts))
    return views


class TheirEncoder(Encoder):
    """The release's encoder behind our contract."""

    def __init__(self, network):
        super().__init__()
        self.modalities, self.modality_weights = SEQUENCES, {}
        self.channels, self.strides = tuple(network.encoder.ft_chns), (1, 2, 4, 8, 16)
        self.body = in_training(network.encoder)

    def forward(self, image, present):
        return tuple(self.body(image))


class TheirDecoder(nn.Module):
    """The release's decoder, called as ours is."""

    def __init__(self, network):
        super().__init__()
        self.channels, self.strides = tuple(network.decoder.ft_chns[:-1]), (1, 2, 4, 8)
        self.body = in_training(network.decoder)

    def forward(self, features):
        return tuple(self.body(features))


def in_training(body):
    """A copy whose batch norm looks at the batch at hand in our teacher, too, which is in evaluation mode; in the release it never is."""
    body = deepcopy(body)
    for layer in body.modules():
        if isinstance(layer, nn.BatchNorm3d):
            layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None
    return body


def ours_with(agent):
    """Our method with the release's network, heads and centre."""
    method = VoxMMSD(TheirEncoder(agent.net), Settings(**SETTINGS, pairs=PAIRS))
    method.student.network.decoder = TheirDecoder(agent.net)
    for mine, theirs in zip(method.student.projector, agent.proj_head, strict=False):  # theirs has one layer more,
        weights = theirs.state_dict()  # the unit length, and a bias in front of each batch norm, which has no effect
        mine.load_state_dict({name: weights[name] for name in mine.state_dict()})
    method.restore.load_state_dict(agent.out_conv.state_dict())
    method.teacher = Teacher(method.student)
    method.centre.copy_(agent.dino_loss.center[0])
    method.centred.fill_(1.0)  # the release begins at 0, not at the first mean
    return method.train()


def compare_losses(release):
    """Both losses fed with the same random tensors, at six temperatures; largest differences."""
    agent, method, rng = release.agent, ours_with(release.agent), torch.Generator().manual_seed(0)
    dino, found = deepcopy(agent.dino_loss), {"projection": 0.0, "distillation": 0.0, "centre": 0.0}
    for epoch in (0, 1, 10, 19, 20, EPOCHS - 1):
        described = torch.randn(2, 4 * PAIRS, method.student.projector[0].in_features, generator=rng)
        theirs = [agent.proj_head(rows) for rows in described]
        ours = [nn.functional.normalize(method.student.projector(rows), dim=1) for rows in described]
        heats = (method.settings.student_temperature, dino.teacher_temp_schedule[epoch])
        (one, other), (first, second) = (rows.chunk(2) for rows in ours)
        centre = dino.center[0].clone()
        mine = 0.5 * (dino_loss(other, first, centre, *heats) + dino_loss(one, second, centre, *heats))
        found["distillation"] = max(found["distillation"], abs(mine - dino(*theirs, epoch)).item())
        found["projection"] = max(found["projection"], *(largest(a, b) for a, b in zip(ours, theirs, strict=True)))
        found["centre"] = max(found["centre"], largest(centre.lerp(ours[1].mean(0), 0.1), dino.center[0]))
    feature = torch.randn(2 * BATCH, agent.out_conv.in_channels, *[CROP] * 3, generator=rng)
    target = torch.rand(2 * BATCH, len(SEQUENCES), *[CROP] * 3, generator=rng)
    mine = masked_mean((method.restore(feature).tanh() - target).abs(), torch.ones_like(target))
    theirs = agent.get_loss_value({}, agent.out_conv(feature), target)
    schedule = [abs(method._teacher_temperature(Clock(step, 200 * EPOCHS)) - dino.teacher_temp_schedule[step // 200 + 1])
                for step in range(200 * (EPOCHS - 1))]  # fmt: skip
    return found | {"restoration": largest(mine, theirs), "temperature_schedule": max(schedule)}


def compare_steps(release):
    """Two steps in a row on views of the release, each by its own training() and by ours; largest differences."""
    agent, method, batch = release.agent, ours_with(release.agent), release.batch()
    image, target, voxels = (torch.cat(batch[name]) for name in ("image", "label", "voxel"))
    views = Views(
        visible=image.float(),
        shown=torch.ones(2 * BATCH, len(SEQUENCES), dtype=torch.bool),
        target=target.float(),
        counted=torch.ones_like(image, dtype=torch.bool),
        starts=torch.zeros(2 * BATCH, 3, dtype=torch.int64),
        voxels=voxels[..., 1:].long(),
        paired=torch.ones(BATCH, dtype=torch.bool),
    )
    networks = (method.student.network, method.teacher.module.network)
    wide, narrow = ([p for p in networks[0].parameters() if (p.ndim > 1) == wide] for wide in (True, False))
    groups = [{"params": wide, "weight_decay": release.decay}, {"params": narrow}]
    optimizer = torch.optim.SGD(groups, lr=release.rate, momentum=0.9)
    begin = [p.detach().clone() for p in agent.net.parameters()]
    described = {"theirs": [], "ours": []}
    hooks = [
        projector.register_forward_pre_hook(lambda _, rows, name=name: described[name].append(rows[0].detach()))
        for name, projector in (("theirs", agent.proj_head), ("ours", method.student.projector))
    ]
    found = {"distil": 0.0, "restore": 0.0}
    for step in (WARM, WARM + 1):
        agent.glob_it, clock = step, Clock(step, EPOCHS)
        theirs = release.step(batch)
        losses = method.losses(views, clock)
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            method.after_step(losses, clock)
        found |= {name: max(found[name], abs(losses.terms[name].item() - theirs[name])) for name in found}
        progress(f"step {step}: {theirs}")
    for hook in hooks:
        hook.remove()
    moved = torch.cat([(p - start).flatten() for p, start in zip(agent.net.parameters(), begin, strict=True)])
    student, teacher = (
        torch.cat([(p - q).flatten() for p, q in zip(mine.parameters(), net.parameters(), strict=True)])
        for mine, net in zip(networks, (agent.net, agent.net_ema), strict=True)
    )
    return found | {
        "descriptor_first_step": largest(described["ours"][0], described["theirs"][0]),
        "centre": largest(method.centre, agent.dino_loss.center[0]),
        "student_over_its_movement": (student.norm() / moved.norm()).item(),
        "teacher": teacher.abs().max().item(),
    }


def compare_blocks(release):
    """Voxels of 96³ that one of us hides and the other shows, given the same throws; lengths of the blocks along a side."""
    channels = len(SEQUENCES)
    throws = torch.rand(channels, 6, 6, 6, generator=torch.Generator().manual_seed(0)).double().numpy()
    with patch("numpy.random.rand", lambda *_: 1 - throws):  # it hides above a threshold, we hide below one
        shown = release.mask(16)({"image": np.ones((channels, 96, 96, 96), np.float32)})["image"] > 0
    hidden = thrown_blocks((1, channels, 96, 96, 96), 6, 0.875, torch.Generator().manual_seed(0), even=False)
    differ = int((hidden[0].numpy() == shown).sum())
    borders = sorted({int(place) + 1 for place in np.argwhere(np.diff(shown.astype(int), axis=1))[:, 1]})
    return {"voxels_that_differ": differ, "lengths": np.diff([0, *borders, 96]).tolist()}


def compare_pairs(release):
    """Shares of pairs by how many drawings of two sequences would admit them, of 16: by the odds, in the release, in ours."""
    method, rng, volume = ours_with(release.agent), torch.Generator().manual_seed(0), release.volumes[0]
    middle = tuple(slice((side - CROP) // 2, (side + CROP) // 2) for side in volume.shape[1:])
    counts = {name: np.zeros(17) for name in ("odds", "release", "ours")}
    for _ in range(SAMPLES):
        sample = release.views(volume[(slice(None), *middle)], disturbed=False)  # both crops are the whole
        seen = torch.from_numpy(np.stack(sample["image"])) > 0
        odds = seen.sum(1).prod(0)
        drawn = {
            "release": torch.from_numpy(sample["voxel"][0])[:, 1:],
            "ours": torch.cat(
                [method._pair(seen, torch.zeros(1, 3, dtype=torch.int64), rng)[0][0] for _ in range(DRAWS)]
            ),
        }
        number = np.bincount(odds.flatten(), minlength=17) * np.arange(17)
        counts["odds"] += number / number.sum()
        for name, voxels in drawn.items():
            counts[name] += np.bincount(odds[tuple(voxels.T)], minlength=17)
    shares = {name: count / count.sum() for name, count in counts.items()}
    deviation = np.sqrt(2 * shares["odds"] * (1 - shares["odds"]) / np.pi)
    apart = {
        name: {
            "pairs": int(counts[name].sum()),
            "apart": round(0.5 * abs(shares[name] - shares["odds"]).sum(), 4),
            "by_chance": round(
                0.5 * (deviation / np.sqrt(counts[name].sum())).sum(), 4
            ),  # expected of independent draws
        }
        for name in ("release", "ours")
    }
    return {"shares": {name: share.round(4).tolist() for name, share in shares.items()}, "total_variation": apart}


class Ours:
    """Our step, as `engine.fit` takes it, with the release's network and settings."""

    def __init__(self, release, store, **hardware):
        training = Training(steps=EPOCHS, optimizer="sgd", lr=release.rate, weight_decay=release.decay, threads=1,
                            device="cpu", **hardware)  # fmt: skip
        self.runtime, self.clip = Runtime(training), training.clip
        self.method = ours_with(release.agent)
        self.runtime.place(self.method)
        self.optimizer = build_optimizer(self.method, training)
        cases = store.of(store.people)
        self.source = PatchSource(store.plan, [Stream(cases, BATCH)], (PATCH,) * 3, seed=0)
        self.number = 0

    @torch.no_grad()
    def views(self):
        self.number += 1
        return self.method.views(self.source.batch(self.number, 0), self.runtime.seeded(0, self.number, 0))

    def step(self):
        views, clock = self.views(), Clock(WARM, EPOCHS)
        with self.runtime.autocast():
            losses = self.method.losses(views, clock)
        self.runtime.backward(losses.total)
        nn.utils.clip_grad_norm_(self.method.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            self.method.after_step(losses, clock)


def largest(one, other):
    return (one - other).abs().max().item()


def cases_of(folder):
    """Two simulated gliomas, prepared; and for the release their volumes as whole numbers from 1 to 255 in the head, as its own preparation has them."""
    simulate_cohort(folder / "bids", make_recipe("glioma-2023", {"spacing": SPACING}), subjects=2, seed=0, workers=1)
    plan = Plan(modalities=SEQUENCES, spacing=(SPACING,) * 3)
    store = prepare(read_bids(folder / "bids"), plan, folder / "store", workers=1)
    volumes = []
    for case in store.of(store.people):
        image, head = np.asarray(case.image(), np.float32), np.asarray(case.foreground())
        inside = image[:, head]
        low, high = (end(1)[:, None, None, None] for end in (inside.min, inside.max))
        volumes.append(np.where(head, 1 + np.round(254 * (image - low) / (high - low)), 0).astype(np.float32))
    return store, volumes


def commit(clone):
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=clone, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def timed_arms(release, store):
    """Seconds of steps and of views, release and ours in turn; what steps spend them on."""
    plain = Ours(release, store, precision="32-true", channels_last=False)
    last, usual = Ours(release, store, precision="32-true"), Ours(release, store)

    def theirs(runtime):
        with runtime.autocast():
            release.step(release.batch())

    release.agent.glob_it = WARM
    arms = {
        "release": lambda: theirs(plain.runtime),
        "ours, float32, channels first": plain.step,
        "ours, float32": last.step,
    }
    if usual.runtime.precision == "bf16-mixed":
        arms |= {"release, bfloat16": lambda: theirs(usual.runtime), "ours, bfloat16": usual.step}
    views = alternate({"release": release.batch, "ours": plain.views}, VIEW_ROUNDS)
    progress("views timed")
    spent = {arm: shares(step) for arm, step in arms.items()}
    progress("steps profiled")  # which warms them up
    return alternate(arms, ROUNDS, warm=0), views, spent


def shares(step):
    """Of the time of PyTorch's operators in one step, by kind."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    spent = dict.fromkeys([*KINDS, "the rest"], 0.0)
    for operator in profile.key_averages():
        kinds = (kind for kind, parts in KINDS.items() if any(part in operator.key for part in parts))
        spent[next(kinds, "the rest")] += operator.self_cpu_time_total
    return {kind: round(time / sum(spent.values()), 3) for kind, time in spent.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--release", type=Path, help="a checkout of HiLab-git/Vox-MMSD")
    parser.add_argument("--quick", action="store_true", help="one round, nothing is written")
    clone = parser.parse_args().release
    if clone is None:
        sys.exit("--release is missing: give the folder of a checkout of HiLab-git/Vox-MMSD")
    logging.disable(logging.INFO)
    warnings.filterwarnings("ignore", category=FutureWarning)  # of torch, about the release
    warnings.filterwarnings("ignore", message=".*CUDA is not available")
    torch.set_num_threads(1)
    tune_allocator()  # as in training; for both
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):  # it prints its settings
        release = Release(clone)
        store, release.volumes = cases_of(Path(folder))
        progress("two patients simulated and prepared")
        functions, blocks, pairs = compare_losses(release), compare_blocks(release), compare_pairs(release)
        progress("losses, blocks and pairs compared")
        steps = compare_steps(release)
        times, views, spent = timed_arms(release, store)
    report(commit(clone), functions, blocks, pairs, steps, times, views, spent)


def report(release, functions, blocks, pairs, steps, times, views, spent):
    lines = []
    for what, found, names in (
        ("losses from the same random tensors", functions, ("distillation", "restoration")),
        ("losses of two whole steps in a row", steps, ("distil", "restore")),
    ):
        value = ", ".join(f"{name} {found[name]:.1e}" for name in names) + " apart"
        lines.append(headline(what, value, f"≤ {TOLERANCE:g}", max(found[name] for name in names) <= TOLERANCE))
    differ, same = blocks["voxels_that_differ"], steps["descriptor_first_step"]
    value = f"{differ} of {len(SEQUENCES) * 96**3} voxels differ; lengths {blocks['lengths']}"
    lines.append(headline("hidden blocks from the same throws", value, "0", differ == 0))
    lines.append(headline("descriptors of the same voxels", f"{same:.1e} apart", f"≤ {TOLERANCE:g}", same <= TOLERANCE))
    apart = pairs["total_variation"]
    value = "; ".join(
        f"{name} {v['apart']:.3f} with {v['pairs']}, by chance {v['by_chance']:.3f}" for name, v in apart.items()
    )
    lines.append(headline("pairs from their odds, total variation", value))
    rows, gains = [], {}
    speeds = {
        "a step, both float32, channels first": ("release", "ours, float32, channels first", times),
        "a step, both float32, ours channels last": ("release", "ours, float32", times),
        "a step, both bfloat16, ours channels last": ("release, bfloat16", "ours, bfloat16", times),
        "a step, each as it comes on this CPU": ("release", "ours, bfloat16", times),
        "the views of a step": ("release", "ours", views),
    }
    for what, (other, mine, clocks) in speeds.items():
        if mine not in clocks:
            continue
        gain = gains[what] = ratio(clocks[other]["cpu"], clocks[mine]["cpu"])
        seconds = [median(clocks[arm]["cpu"]) for arm in (other, mine)]
        shown = f"{gain['ratio']:.2f} ({gain['low']:.2f} … {gain['high']:.2f})"
        rows.append([what, *(f"{value:.3f}" for value in seconds), shown])
        aim, met = ("", None) if clocks is views else ("≥ 1.5 ×", gain["ratio"] >= 1.5)
        lines.append(
            headline(what, f"{shown} × the release's speed; {seconds[1]:.2f} s, release {seconds[0]:.2f} s", aim, met)
        )
    value = ", ".join(f"{arm} {100 * kinds['convolution']:.0f} %" for arm, kinds in spent.items())
    lines.append(headline("convolutions' share of a step", value))
    table(["what", "release, s", "ours, s", "release / ours"], rows)
    rates = {arm: round(1 / median(clocks["cpu"]), 4) for arm, clocks in times.items()}
    settings = {"release": "HiLab-git/Vox-MMSD", "commit": release, "arguments": "--release CLONE", "settings": SETTINGS,
                "network": "the release's UNet3D_voxmmsd in both, 32 to 512 channels, dropout 0", "crop": CROP,
                "patch": PATCH, "pairs": PAIRS, "batch": BATCH, "cases": "two of glioma-2023, simulated, 2 mm",
                "threads": 1, "rounds": ROUNDS}  # fmt: skip
    results = {"losses": functions, "steps": steps, "blocks": blocks, "pairs": pairs, "steps_per_second": rates,
               "release_over_ours": gains, "shares_of_a_step": spent}  # fmt: skip
    clock = "cpu of one thread; ratio of the medians over rounds, lowest and highest round"
    write(
        __file__, clock=clock, settings=settings, raw={"steps": times, "views": views}, results=results, headlines=lines
    )


if __name__ == "__main__":
    main()
