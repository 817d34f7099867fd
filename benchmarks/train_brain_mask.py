"""Train the network of `infer/brain.py`: heads made by the simulator, shown in contrasts that no scanner needs to have.

    OMP_NUM_THREADS=1 python benchmarks/train_brain_mask.py --out RUN --steps 900
    OMP_NUM_THREADS=1 python benchmarks/train_brain_mask.py --out RUN --steps 1500 --go-on --seed 1 --lr 2e-3

It is the project's own loop and its own task (`tasks/segmentation.py`); only the batches are made here, each a pure function of the step.
So it needs neither a Store (nothing is read from files) nor a Method of its own (the loss is the ordinary one). No image of a person is used.

A head is kept as its two foremost tissues in each 3 mm voxel and their shares. A batch gives every tissue a brightness, drawn blindly or
from the signal equations, and then does to the image whatever may happen to one.

Source: Billot et al. 2023, "SynthSeg", Med Image Anal 86:102789 (a random Gaussian for each label; bias field, blur, thickness of slices, noise, gamma);
Hoopes et al. 2022, "SynthStrip", NeuroImage 260:119474 (the same for the brain mask, with cut fields of view).
Deviates: labels are of simulated, not of real people; some contrasts are those of the signal equations; some images are stripped already.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from scipy import ndimage

from common import machine, versions
from oligovox.engine.checkpoint import read_tensors, write_tensors
from oligovox.engine.fit import Training, fit
from oligovox.files import atomic_file, hash_file, write_json
from oligovox.infer.brain import CHANNELS, DESCRIPTION, GRID, NETWORK, SPACING_MM, WEIGHTS, scaled
from oligovox.networks.resenc import ResEnc
from oligovox.sample.batch import Batch
from oligovox.simulate.anatomy.brain import draw_anatomy, template
from oligovox.simulate.anatomy.head import Head, draw_head
from oligovox.simulate.fields import smooth_field
from oligovox.simulate.physics.sequences import protocol, signal
from oligovox.simulate.physics.tissues import FIELDS, draw_palette
from oligovox.tasks.segmentation import Segmentation
from oligovox.tasks.segmentation import Settings as SegmentationSettings

HEADS, HELD_OUT = 40, 8  # the last ones are for choosing the step
HEAD_MM = 3.0  # grid of the heads
MARGIN = (25.0, 25.0, 30.0, 40.0, 100.0, 25.0)  # mm around the average brain: left, right, back, front, below, above
PEOPLE = {"csf_mm": (0.3, 5.0), "skull_mm": (4.0, 9.0), "marrow": (0.1, 1.0), "fat_mm": (1.0, 9.0), "uneven": 0.3}
SEQUENCES = ("T1w", "T1wGd", "T2w", "PDw", "FLAIR", "QSM")  # of QSM the magnitude
ARRAYS = ("first", "second", "share", "brain")
TISSUES = (
    "air", "grey_matter", "limbic_grey_matter", "white_matter", "csf", "choroid_plexus", "caudate", "putamen", "pallidum",
    "thalamus", "red_nucleus", "substantia_nigra", "dentate", "venous_blood", "arterial_blood", "bone", "marrow", "fat",
    "muscle", "skin", "mucosa", "vitreous", "lens", "spinal_disc",
)  # fmt: skip
BRAIN = slice(1, 13)  # of TISSUES


@dataclass(frozen=True)
class HeadMap:
    """One head on a 3 mm grid, (x, y, z): numbers of two tissues, the first one's share of both, and the brain, 0 or 1."""

    first: np.ndarray
    second: np.ndarray
    share: np.ndarray
    brain: np.ndarray
    age: float


def draw_map(seed):
    rng = np.random.default_rng([seed, 0])
    age = float(rng.uniform(20, 85))
    anatomy = draw_anatomy(rng, template(HEAD_MM, MARGIN), age=age, atrophy=float(rng.uniform(0, 1)))
    parts = (*anatomy.parts(), *draw_head(rng, anatomy, Head(**PEOPLE)))
    shares = np.zeros((len(TISSUES), *anatomy.brain.shape), np.float32)
    for part in parts:
        shares[TISSUES.index(part.tissue)] += part.fraction
    shares[0] += np.maximum(1 - shares.sum(0), 0)
    first, second = (np.argsort(-shares, axis=0, kind="stable")[k] for k in (0, 1))
    a, b = (np.take_along_axis(shares, which[None], 0)[0] for which in (first, second))
    arrays = (first.astype(np.uint8), second.astype(np.uint8), a / (a + b), anatomy.brain.astype(np.float32))
    return HeadMap(*arrays, age)


def heads(folder):
    """Made once, then read."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for seed in range(HEADS + HELD_OUT):
        path = folder / f"head{seed:03d}.npz"
        if not path.is_file():
            head = draw_map(seed)
            with atomic_file(path) as temporary, temporary.open("wb") as stream:
                np.savez_compressed(stream, age=head.age, **{name: getattr(head, name) for name in ARRAYS})
        with np.load(path, allow_pickle=False) as content:
            found.append(HeadMap(*(content[name] for name in ARRAYS), float(content["age"])))
    return found


def brightness(rng, age):
    """One value a tissue, air first, of the order of 1."""
    if rng.random() < 0.45:
        strength = float(rng.choice(FIELDS))
        palette = draw_palette(rng, strength, age=age)
        sequence = protocol(str(rng.choice(SEQUENCES)), strength, None)
        values = np.array(
            [0.0, *(abs(complex(np.ravel(signal(palette[t], sequence, strength))[-1])) for t in TISSUES[1:])]
        )
        values = values / values[BRAIN].max() * np.exp(rng.normal(0, 0.15, len(TISSUES)))
        return values + rng.uniform(0, 0.1)
    values = rng.uniform(0, 1, len(TISSUES))
    for name, near in (("limbic_grey_matter", "grey_matter"), ("marrow", "fat"), ("lens", "muscle")):
        if rng.random() < 0.7:
            values[TISSUES.index(name)] = values[TISSUES.index(near)]
    deep = slice(TISSUES.index("caudate"), TISSUES.index("venous_blood"))
    grey, white = (values[TISSUES.index(f"{name}_matter")] for name in ("grey", "white"))
    values[deep] = grey + (white - grey) * rng.uniform(-0.3, 1.0, deep.stop - deep.start)
    if rng.random() < 0.7:  # bone and air are dark in most of what is scanned
        values[0], values[TISSUES.index("bone")] = rng.uniform(0, 0.05), rng.uniform(0, 0.2)
    return values.clip(0)


def paint(rng, head):
    """An image on the head's grid."""
    values = brightness(rng, head.age).astype(np.float32)
    image = head.share * values[head.first] + (1 - head.share) * values[head.second]
    shape = image.shape
    unknown = rng.uniform(0, 0.5) * smooth_field(rng, shape, HEAD_MM, rng.uniform(8, 30))  # nobody's head is ours
    image *= np.exp(np.where(head.brain > 0.5, np.float32(0.15), np.float32(1)) * unknown)
    image += rng.uniform(0, 0.08) * values.max() * rng.standard_normal(shape, np.float32)
    inside = np.argwhere(head.brain > 0.5)
    for _ in range(rng.integers(0, 3)):  # a tumour, a lesion, a cavity
        image += blob(rng, head, inside[rng.integers(len(inside))]) * (rng.uniform(0, 1.2) * values.max() - image)
    return image


def blob(rng, head, centre):
    """Shares of something round with an uneven border inside the brain, 2 to 30 mm in radius."""
    radius = rng.uniform(2, 30) / HEAD_MM
    away = np.sqrt(
        sum((g - c) ** 2 for g, c in zip(np.ogrid[tuple(map(slice, head.brain.shape))], centre, strict=True))
    )
    uneven = 0.25 * smooth_field(rng, head.brain.shape, HEAD_MM, 10.0)
    return (np.clip((1.2 + uneven - away / radius) * 3, 0, 1) * head.brain).astype(np.float32)


def place(rng, head):
    """Where each voxel of the training grid lies in the head's grid (3, x, y, z): turned, stretched, bent, shifted, maybe mirrored."""
    a, b, c = np.radians(rng.uniform(-30, 30, 3) * rng.choice([0.3, 1.0]))
    turn = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    turn = turn @ np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    turn = turn @ np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    stretch = np.exp(rng.normal(0, 0.06, 3) + rng.normal(0, 0.06)) * [rng.choice([-1, 1]), 1, 1]
    matrix = turn * stretch[None] * (SPACING_MM / HEAD_MM)
    middle = np.argwhere(head.brain > 0.5).mean(0)
    aim = np.array(GRID) / 2 - 0.5 + (rng.uniform(-1, 1, 3) * [20, 20, 30] + [0, 0, 15]) / SPACING_MM
    axes = [np.arange(n, dtype=np.float32) - t for n, t in zip(GRID, aim, strict=True)]
    where = np.stack(np.broadcast_arrays(*(
        matrix[k, 0] * axes[0][:, None, None] + matrix[k, 1] * axes[1][:, None] + matrix[k, 2] * axes[2] + middle[k]
        for k in range(3)
    )))  # fmt: skip
    amount = rng.uniform(0, 1.2)
    bent = np.stack([smooth_field(rng, GRID, SPACING_MM, rng.uniform(18, 45)) for _ in range(3)])
    return (where + amount * bent).astype(np.float32)


def thick(rng, image):
    """Blurred by a voxel's profile, along one axis by that of a thick slice, and only that many slices."""
    for axis in range(3):
        image = ndimage.gaussian_filter1d(image, rng.uniform(0.0, 0.6) + 1e-3, axis=axis, mode="constant")
    mm = rng.uniform(1, 8)
    if mm <= SPACING_MM:
        return image
    axis, step = int(rng.integers(3)), mm / SPACING_MM
    n = image.shape[axis]
    at = np.arange(rng.uniform(0, step), n, step)
    blur = np.exp(-0.5 * ((np.arange(n) - at[:, None]) / (step / 2.355)) ** 2)
    blur /= blur.sum(1, keepdims=True)
    back = np.maximum(1 - np.abs(np.arange(n)[:, None] - at) / step, 0)
    back /= np.maximum(back.sum(1, keepdims=True), 1e-6)
    mixed = np.tensordot((back @ blur).astype(np.float32), image, axes=(1, axis))
    return np.moveaxis(mixed, 0, axis)


def example(rng, head):
    """An image as the network sees it (x, y, z), float32 in [0, 1], and its mask, bool."""
    where = place(rng, head)
    image = ndimage.map_coordinates(paint(rng, head), where, order=1, mode="constant")
    brain = ndimage.map_coordinates(head.brain, where, order=1, mode="constant")
    mask = brain > 0.5
    image = thick(rng, np.maximum(image, 0))
    image *= np.exp(rng.uniform(0, 0.5) * smooth_field(rng, GRID, SPACING_MM, rng.uniform(40, 90)))
    peak = float(np.percentile(image, 99.5))
    sigma = peak * rng.uniform(0, 0.08) ** rng.choice([1.0, 1.5])
    noise = sigma * rng.standard_normal((2, *GRID), np.float32)
    image = np.hypot(image + noise[0], noise[1])
    if rng.random() < 0.2:  # stripped before, more or less generously
        uneven = 0.5 + rng.uniform(-0.25, 0.2) + 0.1 * smooth_field(rng, GRID, SPACING_MM, 12.0)
        mask = ndimage.gaussian_filter(brain, 0.8) > uneven
        image = np.where(mask, np.maximum(image, 0.02 * peak), 0)
    elif rng.random() < 0.25:  # background set to zero
        image = np.where(image > rng.uniform(0.02, 0.1) * peak, image, 0)
    if rng.random() < 0.2:
        image = np.where(face(rng, mask), 0, image)
    seen = field_of_view(rng) if rng.random() < 0.5 else np.ones(GRID, bool)
    image = scaled(image.astype(np.float32), seen)
    return image ** np.float32(np.exp(rng.normal(0, 0.3))), mask & seen


def face(rng, mask):
    """What was taken off so that nobody is recognised: all that lies beyond an oblique plane in front of and below the brain."""
    tilt = rng.uniform(0.2, 1.3)
    axes = np.ogrid[tuple(map(slice, GRID))]
    ahead = axes[1] * np.cos(tilt) - axes[2] * np.sin(tilt) + 0 * axes[0]
    return ahead > (ahead[mask].max() if mask.any() else 1e3) + rng.uniform(0, 9)


def field_of_view(rng):
    """Which voxels were scanned: a box that may cut off the neck, the face or the top of the brain."""
    seen = np.zeros(GRID, bool)
    cut = [(rng.integers(0, 10) * (rng.random() < 0.4), rng.integers(0, 10) * (rng.random() < 0.4)) for _ in range(3)]
    cut[2] = (rng.integers(0, 16), cut[2][1])
    seen[tuple(slice(low, n - high) for (low, high), n in zip(cut, GRID, strict=True))] = True
    return seen


def batch(people, size, seed, step, micro):
    images, labels, names = [], [], []
    for slot in range(size):
        rng = np.random.default_rng([seed, step, micro, slot])
        number = int(rng.integers(len(people)))
        image, mask = example(rng, people[number])
        images.append(image)
        labels.append(mask)
        names.append(f"head{number:03d}")
    image = torch.from_numpy(np.stack(images)[:, None].astype(np.float32))
    return Batch(
        image=image,
        present=torch.ones(size, 1, dtype=torch.bool),
        foreground=torch.ones_like(image, dtype=torch.bool),
        spacing=torch.full((size, 3), SPACING_MM),
        label=torch.from_numpy(np.stack(labels)).long(),
        modalities=CHANNELS,
        cases=tuple(names),
    )


def dice(one, other):
    both = one.sum() + other.sum()
    return float(2 * (one & other).sum() / both) if both else 1.0


def validate(batches, method):
    found = []
    for each in batches:
        logits = method.network(each.image, each.present)[:, 0].float()
        found += [dice(a > 0, b > 0) for a, b in zip(logits, each.label, strict=True)]
    return {"dice": float(np.mean(found)), "dice_p10": float(np.percentile(found, 10)), "dice_min": min(found)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="run folder; heads are kept in it")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--go-on", action="store_true", help="start from the weights in the package")
    parser.add_argument("--heads-only", action="store_true")
    given = parser.parse_args()
    begun = perf_counter()
    people = heads(given.out / "heads")
    print(f"{len(people)} heads, {perf_counter() - begun:.0f} s", flush=True)
    if given.heads_only:
        return
    training = Training(
        steps=given.steps, lr=given.lr, seed=given.seed, device="cpu", threads=1, workers=1,
        validate_every=100, checkpoint_every=100, tensorboard="off",
    )  # fmt: skip
    torch.manual_seed(given.seed)
    settings = SegmentationSettings(mode="regions", labels={"brain": (1,)}, deep_supervision=1)
    method = Segmentation(ResEnc(CHANNELS, NETWORK), settings)
    parent = None
    if given.go_on:
        parent = json.loads(DESCRIPTION.read_text(encoding="utf-8"))
        method.network.load_state_dict(read_tensors(WEIGHTS))
    held_out = [batch(people[HEADS:], 2, 1000, k, 0) for k in range(16)]
    result = fit(
        method, partial(batch, people[:HEADS], given.batch, given.seed), training, given.out / f"run{given.seed}",
        validate=partial(validate, held_out), describe={"batch": given.batch, "heads": HEADS, "parent": parent and parent["sha256"]},
    )  # fmt: skip
    best = result.best_method().eval()
    with torch.no_grad():
        scores = validate(held_out, best)
    WEIGHTS.parent.mkdir(exist_ok=True)
    with atomic_file(WEIGHTS) as temporary:
        write_tensors(temporary, best.export().state_dict())
    WEIGHTS.chmod(0o644)
    said = ["RUN" if word == str(given.out) else word for word in sys.argv[1:]]
    content = {
        "format": "oligovox-brain-mask/1",
        "sha256": hash_file(WEIGHTS),
        "network": "resenc",
        "network_settings": NETWORK.model_dump(mode="json"),
        "spacing_mm": SPACING_MM,
        "command": f"OMP_NUM_THREADS=1 python benchmarks/train_brain_mask.py {' '.join(said)}",
        "trained_on": f"{HEADS} simulated heads; no image of a person",
        "seed": given.seed,
        "batch": given.batch,
        "training": training.model_dump(mode="json"),
        "steps_of_these_weights": result.best_step,
        "held_out": {"heads": HELD_OUT, "examples": 32, **{name: round(v, 4) for name, v in scores.items()}},
        "seconds": round(result.seconds),
        "parent": parent and {key: parent[key] for key in ("sha256", "command", "seed", "held_out")},
        "versions": versions(),
        "machine": machine(),
    }
    write_json(DESCRIPTION, content)
    print(json.dumps(content["held_out"]), flush=True)


if __name__ == "__main__":
    main()
