"""What a network knows, measured on patches of one person after the other. Used by study_learning.py, whose page says what each number means.

Everything random is fixed here once, so that a network after training meets what the same network met before.
"""

import zlib
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor

from oligovox.method import Clock
from oligovox.sample.crops import cut, overlapping_starts
from oligovox.sample.disturb import disturb
from oligovox.sample.masks import spread
from oligovox.sample.patches import PatchSource, Stream

SIDE, WIDE, OVERLAP = 32, 48, 0.3  # patches as in training; those that two crops of this side are cut from
BATCHES, PAIRS, PROBED = 8, 4, 4  # of two patches a person: own objective, pairs of crops, probes
VOXELS = 64  # to be found again in a pair of crops
OF_TISSUE, OF_LESION = 24, 32  # voxels of each class in a patch: three tissues, lesion and not
RIDGE = 1e-3
LOWER_IS_BETTER = ("own objective", "variance left")
CHANCE = " by chance"  # after a reading's name: what ignorance reaches


@dataclass(frozen=True)
class Pairs:
    """Two crops of each of two patches: images (2, m, x, y, z), and the same K voxels in both (2, K, 3)."""

    images: tuple[Tensor, Tensor]
    voxels: tuple[Tensor, Tensor]
    present: Tensor


@dataclass(frozen=True)
class Probe:
    """Two patches, voxels in them (2, n, 3), what they are: tissue 0 … 2 and lesion 0 or 1; -1: not asked."""

    image: Tensor
    present: Tensor
    voxels: Tensor
    tissue: Tensor
    lesion: Tensor


@dataclass(frozen=True)
class Person:
    """All that is asked about one person; of training people probes only."""

    batches: tuple
    pairs: tuple
    probes: tuple


def person(case, plan, tissue, device, *, seed, unseen):
    """Cut the patches of a person. `tissue`: 0 not asked, 1 … 3 on the case's grid."""
    lesions = {"policy": "lesion", "lesion_share": 0.5} if case.lesion_voxels else {}
    source = PatchSource(plan, (Stream((case,), 2, **lesions),), (SIDE,) * 3, seed)
    probes = []
    for step in range(PROBED):
        corners = [source.draw(step, 0, slot).corner for slot in range(2)]
        known = torch.from_numpy(np.stack([placed(tissue, corner, SIDE) for corner in corners]))
        probes.append(probe(source.batch(step, 0).to(device), known.to(device).long() - 1, _rng(device, seed, step)))
    if not unseen:
        return Person((), (), tuple(probes))
    images = (Stream((case,), 2, use_labels=False),)
    own, wide = (PatchSource(plan, images, (side,) * 3, seed + 1) for side in (SIDE, WIDE))
    pairs = [pair(wide.batch(step, 0).to(device), _rng(device, seed + 1, step)) for step in range(PAIRS)]
    batches = tuple(own.batch(step, 0).to(device) for step in range(BATCHES))
    return Person(batches, tuple(found for found in pairs if found), tuple(probes))


def placed(volume, corner, side):
    """The patch of a volume at a corner, which may lie beyond the border; 0 there."""
    return np.pad(volume, side)[tuple(slice(first + side, first + 2 * side) for first in corner)]


def probe(batch, tissue, rng):
    """As many voxels of each class as there are, up to the limit; lists of one length, filled up with what is not asked."""
    lesion = batch.label > 0
    healthy = (batch.label == 0) & batch.foreground[:, 0]
    tissue = tissue.where(healthy, -1)
    kinds = [(tissue == k, k, -1, OF_TISSUE) for k in range(3)]
    kinds += [(healthy, -1, 0, OF_LESION), (lesion, -1, 1, OF_LESION)]
    rows = []
    for sample in range(len(batch)):
        drawn = [(some(mask[sample], most, rng), t, le) for mask, t, le, most in kinds]
        voxels = torch.cat([v for v, _, _ in drawn])
        asked = torch.cat([torch.tensor([t, le], device=v.device).expand(len(v), 2) for v, t, le in drawn])
        short = 3 * OF_TISSUE + 2 * OF_LESION - len(voxels)
        rows.append((F.pad(voxels, (0, 0, 0, short)), F.pad(asked, (0, 0, 0, short), value=-1)))
    voxels, asked = (torch.stack(column) for column in zip(*rows, strict=True))
    return Probe(batch.image, batch.present, voxels, asked[..., 0], asked[..., 1])


def pair(batch, rng):
    """Two crops, each with its own disturbance of intensity, and voxels of the foreground that both show; None where they are too few."""
    crop, (low, high) = (SIDE,) * 3, limits(batch)
    starts = overlapping_starts(len(batch), batch.image.shape[2:], crop, OVERLAP, rng)
    unit = (batch.image - low) / (high - low)
    images = []
    for start in starts:
        changed = low + disturb(cut(unit, start, crop), rng) * (high - low)
        seen = cut(batch.foreground, start, crop) & spread(batch.present)
        images.append(changed.where(seen, 0.0))
    shift, first = starts[0] - starts[1], cut(batch.foreground, starts[0], crop)[:, 0]
    voxels = []
    for inside, moved in zip(first, shift, strict=True):
        place = inside.nonzero()
        both = place[((place + moved >= 0) & (place + moved < SIDE)).all(1)]
        if len(both) < VOXELS:
            return None
        voxels.append(both[torch.randperm(len(both), generator=rng, device=both.device)[:VOXELS]])
    one = torch.stack(voxels)
    return Pairs(tuple(images), (one, one + shift[:, None]), batch.present)


def limits(batch):
    """Smallest and largest intensity of the foreground, (2, m, 1, 1, 1) each; 0 and 1 without one."""
    inside, axes = batch.foreground, (2, 3, 4)
    low = batch.image.where(inside, torch.inf).amin(axes, keepdim=True)
    high = batch.image.where(inside, -torch.inf).amax(axes, keepdim=True)
    return low.where(high > low, 0.0), high.where(high > low, 1.0)


def some(mask, most, rng):
    """At most so many voxels of a mask, at random: (n, 3)."""
    place = mask.nonzero()
    return place[torch.randperm(len(place), generator=rng, device=place.device)[:most]]


def _rng(device, *seeds):
    words = np.random.SeedSequence(seeds).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(words[0]))


# Own objective


def objective(name, method, person, runtime, clock):
    """Mean total loss, and what can be read beside it: reading → value, and what ignorance reaches (`CHANCE`)."""
    seen, sums, totals = {}, defaultdict(float), []
    hooks = [
        child.register_forward_hook(lambda _, __, out, key=key: seen.__setitem__(key, out))
        for key, child in method.named_children()
    ]
    try:
        for step, batch in enumerate(person.batches):
            views = method.views(batch, _rng(runtime.device, zlib.crc32(batch.cases[0].encode()), step))
            with runtime.autocast():
                losses = method.losses(views, clock)
            totals.append(float(losses.total))
            for reading, *parts in readings(name, method, views, losses.notes, seen):
                for part, value in zip(("above", "below", "chance"), parts, strict=True):
                    sums[reading, part] += float(value)
    finally:
        for hook in hooks:
            hook.remove()
    found = {"own objective": float(np.mean(totals))}
    for reading in dict.fromkeys(key for key, _ in sums):
        below = sums[reading, "below"] or np.nan
        found |= {reading: sums[reading, "above"] / below, f"{reading}{CHANCE}": sums[reading, "chance"] / below}
    return found


RESTORED = {
    "bm_mae": lambda v, made: (made, v.target, v.counted),
    "brain_mvp": lambda v, made: (torch.cat(made.chunk(2), 1), v.target.expand_as(v.hidden), v.counted & v.hidden),
    "context_restoration": lambda v, made: (made, v.target, v.moved),
    "generative": lambda v, made: (made, v.image, (spread(v.targets) & (v.weight > 0)) | v.hidden),
    "m3ae": lambda v, made: (made, v.image, v.counted & v.hidden),
    "masked_reconstruction": lambda v, made: (made, v.target, v.counted),
    "models_genesis": lambda v, made: (made, v.target, v.counted & v.painted),
    "spark": lambda v, made: (made, v.target, v.counted),
    "supervoxel": lambda v, made: (made, v.target, v.hidden),
    "swin_three_task": lambda v, made: (made, v.target, v.counted & (v.shown != v.target)),
    "vox_mmsd": lambda v, made: (made.tanh(), v.target, v.counted),
}
"""Method → what it made, what is true, which voxels it had to make."""


def readings(name, method, views, notes, seen):
    """(reading, above, below, chance) of one batch: sums whose ratios are the reading and what ignorance reaches."""
    if name in RESTORED:
        made, true, asked = RESTORED[name](views, seen.get("restore", seen.get("generate")).float())
        weight = asked.float()
        mean = (true * weight).sum((0, 2, 3, 4), keepdim=True) / weight.sum((0, 2, 3, 4), keepdim=True).clamp(min=1)
        error, variance = ((true - guess).square().where(asked, 0.0).sum() for guess in (made, mean))
        unit = name == "vox_mmsd"  # its targets lie in [0, 1]; elsewhere 0 is an exam's usual intensity
        yield "variance left", error, variance, variance if unit else true.square().where(asked, 0.0).sum()
    match name:
        case "jigen" | "jigsaw3d":
            yield share("order", notes["accuracy"], views.counted.sum(), 1 / len(method.orders))
        case "multimodal_puzzle":
            yield share("place", notes["placed"], 1, 1 / views.place.shape[1])
        case "slem":
            blocks, m = views.composition.shape[1], method.maps.max() + 1
            likely = (method.uses.sum(1) == min(blocks, m)).sum()
            yield share("composition", notes["composition accuracy"], views.asked.all(1).sum(), 1 / likely)
        case "swin_three_task":
            right = seen["rotation"].argmax(1) == views.turn
            yield share("rotation", right[views.known].float().mean(), views.known.sum(), 1 / seen["rotation"].shape[1])
        case "volume_fusion":
            right, step = seen["classify"].argmax(1) == views.step, views.step[views.counted]
            yield "coefficient", right[views.counted].sum(), step.numel(), step.bincount().max()
        case "implanted_lesions":
            called, true = (seen["find"].argmax(1) > 0) & views.counted, views.lesion & views.counted
            both, everything = (
                called.sum() + true.sum(),
                2 * true.sum() / (views.counted.sum() + true.sum()).clamp(min=1),
            )
            yield share("lesion Dice", 2 * (called & true).sum() / both.clamp(min=1), both, everything)
        case "simclr":
            rows = F.normalize(seen["project"].float(), dim=1)
            alike = (rows @ rows.T).fill_diagonal_(-2)
            right = alike.argmax(1) == torch.arange(len(rows), device=rows.device).roll(len(rows) // 2)
            yield share("own other view", right.float().mean(), len(rows), 1 / (len(rows) - 1))
        case "byol":
            told, other = (F.normalize(seen[key].float(), dim=1).chunk(2) for key in ("predict", "target"))
            right = torch.cat([nearest(told[0], other[1]), nearest(told[1], other[0])])
            yield share("own other view", right.float().mean(), len(right), 1 / len(told[0]))
        case "vox2vec":
            right = nearest(*(F.normalize(half.float(), dim=1) for half in seen["project"].chunk(2)))
            yield share("voxel", right.float().mean(), len(right), 1 / len(right))
        case "voco":
            bases = views.overlap.shape[2]
            rows = F.normalize(seen["student"].float(), dim=2)
            base, asked = views.counted[:, None, :bases], views.counted[:, bases:]
            alike = (rows[:, bases:] @ rows[:, :bases].mT).masked_fill(~base, -2)
            right = (alike.argmax(2) == views.overlap.masked_fill(~base, -1).argmax(2)) & asked
            chance = (asked / base.sum(2).clamp(min=1)).sum()
            yield "most overlap", right.sum(), asked.sum(), chance


def share(reading, mean, number, chance):
    """Of a mean over so many questions."""
    return reading, mean * number, number, chance * number


def nearest(first, second):
    """Whether row i of the second is the one most like row i of the first."""
    return (first @ second.T).argmax(1) == torch.arange(len(first), device=first.device)


# Features


def described(network, image, present, voxels, runtime):
    """Descriptors of voxels, (b, n, c) each: of the encoder's levels one after the other, of the decoder's full resolution where there is one."""
    with runtime.autocast():
        features = network.encoder(image, present)
        decoded = network.decoder(features)[:1] if hasattr(network, "decoder") else ()
    found = {"encoder": features} | ({"decoder": decoded} if decoded else {})
    return {part: [at(level.float(), voxels, image.shape[2:]) for level in levels] for part, levels in found.items()}


def at(level, voxels, sides):
    """Trilinear values (b, n, c) of a feature of any stride at voxels of the image."""
    place = ((voxels + 0.5) / torch.tensor(sides, device=voxels.device) * 2 - 1).flip(-1)[:, :, None, None].float()
    return F.grid_sample(level, place, padding_mode="border", align_corners=False)[..., 0, 0].mT


def found_again(network, person, runtime):
    """Part of the network → share of voxels whose nearest of the other crop's 64 is the same voxel; both directions."""
    hits = defaultdict(list)
    for pair in person.pairs:
        views = [
            described(network, im, pair.present, v, runtime) for im, v in zip(pair.images, pair.voxels, strict=True)
        ]
        for part in views[0]:
            one, other = (torch.cat([F.normalize(level, dim=2) for level in view[part]], 2) for view in views)
            for a, b in zip(one, other, strict=True):
                hits[part] += [nearest(a, b).float().mean().item(), nearest(b, a).float().mean().item()]
    return {f"found again, {part}": float(np.mean(values)) for part, values in hits.items()}


def gathered(network, person, runtime):
    """Part → (features (n, c) float64, tissue, lesion) of a person's probed voxels."""
    found = defaultdict(list)
    for probe in person.probes:
        for part, levels in described(network, probe.image, probe.present, probe.voxels, runtime).items():
            found[part].append(torch.cat(levels, 2).flatten(0, 1).double())
    asked = [torch.cat([getattr(p, name).flatten() for p in person.probes]) for name in ("tissue", "lesion")]
    return {part: (torch.cat(rows), *asked) for part, rows in found.items()}


def probed(network, training, unseen, runtime):
    """Person → linear probes fitted on training people: balanced accuracy of the tissue, area under the ROC curve of lesions."""
    fitted, result = [gathered(network, person, runtime) for person in training], {name: {} for name in unseen}
    tested = {name: gathered(network, person, runtime) for name, person in unseen.items()}
    for part in fitted[0]:
        rows, tissue, lesion = (torch.cat(column) for column in zip(*(found[part] for found in fitted), strict=True))
        tell, find = ridge(rows, tissue, 3), ridge(rows, lesion, 2)
        for name, found in tested.items():
            features, tissue, lesion = found[part]
            called = tell(features).argmax(1)
            recalls = [(called[tissue == k] == k).double().mean().item() for k in range(3) if (tissue == k).any()]
            result[name][f"tissue, {part}"] = float(np.mean(recalls))
            score = find(features)[lesion >= 0]
            result[name][f"lesion, {part}"] = auc((score[:, 1] - score[:, 0]).cpu(), lesion[lesion >= 0].cpu())
    return result


def ridge(features, classes, number):
    """Least squares on classes as 0 and 1, each class with the same weight; → scores of other features. Class -1 is left out."""
    x, y = features[classes >= 0], F.one_hot(classes[classes >= 0], number).double()
    mean, width = x.mean(0), x.std(0).clamp(min=1e-6)

    def design(rows):
        return F.pad((rows - mean) / width, (0, 1), value=1.0)

    weight = (y / y.sum(0).clamp(min=1)).sum(1, keepdim=True) / number
    a = design(x)
    penalty = RIDGE * torch.eye(a.shape[1], dtype=a.dtype, device=a.device)
    solution = torch.linalg.solve((weight * a).T @ a + penalty, (weight * a).T @ y)
    return lambda rows: design(rows) @ solution


def auc(score, truth):
    """Probability that a lesion's voxel has the higher score; None without both kinds."""
    positive = truth.numpy() == 1
    p, n = positive.sum(), (~positive).sum()
    return float((rankdata(score.numpy())[positive].sum() - p * (p + 1) / 2) / (p * n)) if p and n else None


class Intensities(torch.nn.Module):
    """No network: the image itself, as a reference for the features."""

    def encoder(self, image, present):
        return (image,)


def features(network, training, unseen, runtime):
    """Person → measures of the features."""
    probes = probed(network, training, unseen, runtime)
    return {name: found_again(network, person, runtime) | probes[name] for name, person in unseen.items()}


def measured(name, method, training, unseen, runtime, steps):
    """Person → measure → value, of a method as it is; loss weights and temperatures are those of the end of training."""
    method.eval()
    with torch.no_grad():
        found = features(method.export(), training, unseen, runtime)
        clock = Clock(steps, steps)
        return {key: objective(name, method, person, runtime, clock) | found[key] for key, person in unseen.items()}
