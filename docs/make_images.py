"""Draw the pictures of the pages: `python docs/make_images.py [simulated presets views labels rims]`.

simulated.png: one patient with labels. presets.png: one subject of each preset. views_<pretext>.png: what each pretext shows its network,
on a simulated patient at 2 mm. labels.png: one patient labelled in part, in four ways. rims.png: benchmarks/study_rims_shape.json and study_rims_longer.json.
"""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from oligovox import catalogue
from oligovox.cohort.annotate import NOBODY_LOOKED, NOT_LOOKED
from oligovox.cohort.bids import read_bids
from oligovox.experiment import views
from oligovox.files import read_json
from oligovox.prepare.pipeline import prepare
from oligovox.prepare.store import Plan
from oligovox.report.labels import LabelView, labels_png
from oligovox.simulate.recipe import make_recipe, presets
from oligovox.simulate.subject import SimulatedSubject, simulate_subject
from oligovox.simulate.write import simulate_cohort

HOME = Path(__file__).parent / "images"
SEED = 7
COLOURS = ("#ff6a3d", "#39c0c8", "#f2c14e", "#b28dff")
QSM = (-100.0, 150.0)  # ppb, black to white
FOREST, PEOPLE, EVERYONE = "radiomics + forest", (5, 10, 20, 40), 70  # of study_rims.py; of 88 people a fold tests 18


def draw(people: dict[str, SimulatedSubject], path: Path, width: int, dpi: int) -> None:
    """A row a subject, a column a sequence, in the axial slice with the most labelled voxels; the patient's right is on the left."""
    figure = Figure(figsize=(2.6 * width, 2.9 * len(people)), dpi=dpi, facecolor="black")
    for row, (title, person) in enumerate(people.items()):
        labels = person.truth.labels
        level = int((labels > 0).sum((0, 1)).argmax())
        inside = person.brain[:, :, level]
        rows, columns = np.where(inside.any(1))[0], np.where(inside.any(0))[0]
        box = (slice(max(rows[0] - 3, 0), rows[-1] + 4), slice(max(columns[0] - 3, 0), columns[-1] + 4))
        spacing = np.abs(np.diag(person.affine))[:3]
        for column, (name, image) in enumerate(person.images.items()):
            axes = figure.add_axes((column / width, 1 - (row + 1) / len(people), 1 / width, 0.92 / len(people)))
            shown = image[..., level][box].T
            low, high = QSM if name == "QSM" else np.percentile(shown[shown > 0], (1, 99.8))
            axes.imshow(
                shown,
                cmap="gray",
                vmin=low,
                vmax=high,
                origin="lower",
                interpolation="bilinear",
                aspect=spacing[1] / spacing[0],
            )
            if column == len(person.images) - 1:
                for value, colour in zip(person.truth.classes.values(), COLOURS, strict=False):
                    if (labels[..., level] == value).any():
                        axes.contour((labels[..., level][box] == value).T, levels=[0.5], colors=colour, linewidths=0.9)
            axes.invert_xaxis()
            axes.set_axis_off()
            axes.set_title(f"{title}  {name}" if not column else name, color="white", fontsize=9, pad=3)
    FigureCanvasAgg(figure).print_png(str(path))


def draw_simulated() -> None:
    """One patient with labels."""
    patient = simulate_subject(make_recipe("ms-3t", {"lesions": {"load_ml": (8.0, 20.0)}}), SEED)
    draw({"": patient}, HOME / "simulated.png", 3, 90)


def draw_presets() -> None:
    """One subject of each preset."""
    draw({name: simulate_subject(make_recipe(name), SEED) for name in presets()}, HOME / "presets.png", 4, 42)


def draw_views() -> None:
    """What each pretext shows its network, in 48 shades."""
    with TemporaryDirectory() as folder:
        home = Path(folder)
        stores = {preset: _store(home / preset, preset) for preset in ("ms-3t", "rim")}
        for name, entry in catalogue.entries("METHOD").items():
            if entry.room == "pretext":
                network = "vit" if name == "bm_mae" else "resenc"
                store = stores["rim" if name == "frodo" else "ms-3t"]  # one of them reads QSM
                views(name, store, home / "views.png", network=network, patch=64, seed=SEED)
                with Image.open(home / "views.png") as picture:
                    picture.convert("RGB").quantize(48).save(HOME / f"views_{name}.png", optimize=True)


def _store(home: Path, preset: str) -> Path:
    """Two simulated patients at 2 mm, prepared."""
    recipe = make_recipe(preset, {"spacing": 2.0, "lesions": {"load_ml": (15.0, 30.0)}})
    simulate_cohort(home / "cohort", recipe, subjects=2, seed=SEED)
    plan = Plan(modalities=recipe.sequences, spacing=(2.0, 2.0, 2.0))
    prepare(read_bids(home / "cohort"), plan, home / "store")
    return home / "store"


def draw_labels() -> None:
    """One patient, labelled in part in four ways."""
    rows = []
    for kind, own in {"slices": {"every": 8}, "lesions": {}, "scribbles": {}, "boxes": {}}.items():
        changes = {"spacing": 2.0, "lesions": {"load_ml": (8.0, 20.0)}, "sparse": {"kind": kind, **own}}
        person = simulate_subject(make_recipe("ms-3t", changes), SEED)
        label = person.truth.others["sparse"].astype(np.int16)
        known = np.where(label == NOBODY_LOOKED, NOT_LOOKED, label).astype(np.int8)
        rows.append(LabelView(kind, person.images["FLAIR"], known, (2.0, 2.0, 2.0)))
    with Image.open(BytesIO(labels_png(rows))) as picture:  # in all colours: few would lose the thin lines
        picture.convert("RGB").save(HOME / "labels.png", optimize=True)


def draw_rims() -> None:
    """What finds rims: PR-AUC of every classifier with its interval, after 300 steps and as a diamond after 1200, and, as the mean of the folds, over the number
    of people whose grades are used."""
    home = HOME.parents[1] / "benchmarks"
    arms, longer = (read_json(home / f"study_rims_{name}.json")["arms"] for name in ("shape", "longer"))
    scores = {name: arm["scores"]["pr_auc"] for name, arm in arms.items()}
    figure = Figure(figsize=(9.6, 3.9), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    whole = sorted((name for name in scores if not name.endswith("people")), key=lambda name: scores[name]["value"])
    for row, name in enumerate(whole):
        ours = name == "FRODO"
        _with_interval(
            left, scores[name], row, "#c8550a" if ours else "#0072b2" if name == FOREST else "#59636e", across=True
        )
        if name in longer and name != FOREST:
            left.plot([longer[name]["scores"]["pr_auc"]["value"]], [row], "D", mfc="white", mec="#59636e", ms=4.5)
    left.set_yticks(range(len(whole)), whole)
    left.set_xlabel("PR-AUC, 88 simulated people, five folds; ◇ after 1200 steps")
    for start, usual, colour, shift in (("no start", "no start", "#c8550a", 0.97), ("forest", FOREST, "#0072b2", 1.03)):
        names = {n: f"{start}, {n} people" for n in PEOPLE} | {EVERYONE: usual}
        points = {n: arms[name]["pr_auc_within_folds"] for n, name in names.items() if name in arms}
        right.plot([n * shift for n in points], [score["value"] for score in points.values()], color=colour, lw=1.4)
        for n, score in points.items():
            _with_interval(right, score, n * shift, colour, across=False)
        right.text(
            EVERYONE * 1.12,
            arms[usual]["pr_auc_within_folds"]["value"],
            "FRODO's network,\nno start" if start == usual else "radiomics\n+ forest",
            color=colour,
            va="center",
            fontsize=8,
        )
    right.set_xscale("log", base=2)
    right.set_xlim(4.2, 150)
    right.set_xticks([*PEOPLE, EVERYONE], [*map(str, PEOPLE), "all 70"])
    right.minorticks_off()
    right.set_xlabel("people a fold whose grades are used")
    right.set_ylabel("PR-AUC, mean of the folds", fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    left.set_xlim(0, 0.85)
    right.set_ylim(0, 0.85)
    FigureCanvasAgg(figure).print_png(str(HOME / "rims.png"))


def _with_interval(axes: Axes, score: dict[str, float], place: float, colour: str, *, across: bool) -> None:
    apart = [[score["value"] - score["low"]], [score["high"] - score["value"]]]
    if across:
        axes.errorbar([score["value"]], [place], xerr=apart, fmt="o", color=colour, ms=4, lw=1.2)
    else:
        axes.errorbar([place], [score["value"]], yerr=apart, fmt="o", color=colour, ms=4, lw=1.2)


DRAWN = {
    "simulated": draw_simulated,
    "presets": draw_presets,
    "views": draw_views,
    "labels": draw_labels,
    "rims": draw_rims,
}

if __name__ == "__main__":
    HOME.mkdir(exist_ok=True)
    for chosen in sys.argv[1:] or DRAWN:
        DRAWN[chosen]()
