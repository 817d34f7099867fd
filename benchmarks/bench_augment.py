"""What augmentation costs: `sample.augment` against MONAI's dictionary transforms that do the same work.

One sample of 96³ with four sequences and a label map, one thread, every transform applied every time in both. MONAI chooses one strength for
all sequences where ours draws one for each; ours also moves the foreground mask and keeps the background at 0, MONAI does not have to.
"""

from statistics import median

import torch
from monai import transforms as monai

from common import QUICK, alternate, headline, progress, ratio, table, write
from oligovox.engine.runtime import tune_allocator
from oligovox.sample.augment import Augmentation, augment
from oligovox.sample.batch import Batch

SIDE, MODALITIES, ROUNDS = 96, ("T1w", "T1wGd", "T2w", "FLAIR"), 9
DEFAULT_SAMPLES = 2 if QUICK else 20
KEYS, MODES = ("image", "label"), ("bilinear", "nearest")
TURN = {"prob": 1.0, "rotate_range": (0.5,) * 3, "scale_range": (0.3,) * 3, "mode": MODES, "padding_mode": "zeros"}
ELASTIC = {"sigma_range": (5, 8), "magnitude_range": (50, 150)}

ARMS = {
    "flip": ({"flip": 1}, [monai.RandFlipd(KEYS, prob=1, spatial_axis=(0, 1, 2))]),
    "rotate + scale": ({"rotate": 1, "scale": 1}, [monai.RandAffined(KEYS, **TURN)]),
    "rotate + scale + elastic": (
        {"rotate": 1, "scale": 1, "elastic": 1},
        [monai.Rand3DElasticd(KEYS, **ELASTIC, **TURN)],
    ),
    "gamma": ({"gamma": 1}, [monai.RandAdjustContrastd("image", prob=1, gamma=(0.7, 1.5), retain_stats=True)]),
    "bias field": ({"bias": 1}, [monai.RandBiasFieldd("image", prob=1, coeff_range=(0.0, 0.1))]),
    "blur": (
        {"blur": 1},
        [monai.RandGaussianSmoothd("image", prob=1, sigma_x=(0.5, 1.0), sigma_y=(0.5, 1.0), sigma_z=(0.5, 1.0))],
    ),
    "low resolution": (
        {"low_resolution": 1, "low_resolution_factor": (0.5, 0.9)},
        [monai.RandSimulateLowResolutiond("image", prob=1, zoom_range=(0.5, 0.9))],
    ),
    "noise": ({"noise": 1, "noise_sd": (0.1, 0.3)}, [monai.RandGaussianNoised("image", prob=1, std=0.3)]),
}


def ours(chosen, batch):
    settings, rng = Augmentation.only(**chosen), torch.Generator().manual_seed(1)
    return lambda: augment(batch, settings, rng)


def theirs(steps, batch):
    pipeline = monai.Compose(steps).set_random_state(seed=1)
    return lambda: pipeline({"image": batch.image[0].clone(), "label": batch.label.clone()})


def everything():
    """Flip, then all movements at once, then every change of intensity."""
    names = ("flip", "rotate + scale + elastic", "gamma", "bias field", "blur", "low resolution", "noise")
    chosen = {key: value for name in names for key, value in ARMS[name][0].items()}
    return chosen, [step for name in names for step in ARMS[name][1]]


def make_batch():
    foreground = torch.zeros(1, 1, SIDE, SIDE, SIDE, dtype=torch.bool)
    foreground[..., 8:-8, 8:-8, 8:-8] = True
    image = torch.randn(1, len(MODALITIES), SIDE, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * foreground
    return Batch(
        image=image,
        present=torch.ones(1, len(MODALITIES), dtype=torch.bool),
        foreground=foreground,
        spacing=torch.ones(1, 3),
        modalities=MODALITIES,
        cases=("a",),
        label=(image[:, 0] > 2).long(),
    )


def main():
    torch.set_num_threads(1)
    tune_allocator()  # as in training
    batch, raw, results, rows, lines = make_batch(), {}, {}, [], []
    for name, (chosen, steps) in {**ARMS, "all together": everything()}.items():
        times = alternate({"ours": ours(chosen, batch), "monai": theirs(steps, batch)}, ROUNDS)
        progress(name)
        mine, other = (1e3 * median(times[arm]["cpu"]) for arm in ("ours", "monai"))
        gain = ratio(times["monai"]["cpu"], times["ours"]["cpu"])
        raw[name], results[name] = (
            times,
            {"ours_ms": round(mine, 1), "monai_ms": round(other, 1), "monai_over_ours": gain},
        )
        shown = f"{gain['ratio']:.2f} ({gain['low']:.2f} … {gain['high']:.2f})"
        rows.append([name, f"{mine:.1f}", f"{other:.1f}", shown])
        aim, met = ("≥ 2 ×", gain["ratio"] >= 2) if name == "all together" else ("", None)
        lines.append(headline(f"augmentation, {name}", f"{shown} × MONAI's speed, {mine:.0f} ms a sample", aim, met))
    times = alternate({"ours": ours_by_default(batch)}, 3)
    mean = 1e3 * median(times["ours"]["cpu"]) / DEFAULT_SAMPLES
    raw[f"defaults, {DEFAULT_SAMPLES} samples"], results["defaults"] = times, {"ours_ms": round(mean, 1)}
    rows.append([f"defaults, mean of {DEFAULT_SAMPLES}", f"{mean:.1f}", "", ""])
    lines.append(headline("augmentation, our default probabilities", f"{mean:.0f} ms a sample"))
    table(["transform", "ours ms", "MONAI ms", "MONAI / ours"], rows)
    settings = {"patch": SIDE, "modalities": len(MODALITIES), "batch": 1, "threads": 1, "rounds": ROUNDS,
                "monai_elastic": ELASTIC}  # fmt: skip
    clock = "cpu of one thread; ratio of the medians over rounds, lowest and highest round"
    write(__file__, clock=clock, settings=settings, raw=raw, results=results, headlines=lines)


def ours_by_default(batch):
    rng = torch.Generator().manual_seed(1)
    return lambda: [augment(batch, Augmentation(), rng) for _ in range(DEFAULT_SAMPLES)]


if __name__ == "__main__":
    main()
