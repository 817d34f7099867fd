"""Simulated beside real → realism.json, docs/images/realism*.png, and the tables in docs/explanation/realism.md.

    OLIGOVOX_DATA=FOLDER OMP_NUM_THREADS=1 python benchmarks/realism.py --out FOLDER [ms] [glioma] [--subjects 8]

ms      preset ms-3t at 1 mm beside the two labelled openms patients (contrast) and the 29 expert masks (lesions)
glioma  preset glioma-2023 at 1 mm beside the two cases of brats, whose labels come from algorithms

OUT keeps the cohorts and the two pages; start it again to resume. The picture shows real patients downsampled, with their source;
both data sets may be shown so (CC BY). The images of brats13_nc are the test set of another study and are not read.
"""

import argparse
import json
import os
from datetime import UTC, datetime
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from oligovox.cohort.bids import read_bids
from oligovox.cohort.manifest import Case, Cohort
from oligovox.experiment.realism import compare_cohorts
from oligovox.files import write_json
from oligovox.report.realism import Realism, write_realism
from oligovox.report.realism_figures import View
from oligovox.simulate.recipe import make_recipe
from oligovox.simulate.write import simulate_cohort

HERE = Path(__file__).parent
RESULT = HERE / "realism.json"
DOCS = HERE.parent / "docs"
SEED = 11
SUFFIXES = ("t1n", "t1c", "t2w", "t2f")
SHOWN = {"ms": ("FLAIR", "T1w", "T2w"), "glioma": ("FLAIR", "T1wGd")}
TITLES = {
    "ms": "Multiple sclerosis, 3 T: simulated beside openms",
    "glioma": "Glioma before treatment: simulated beside BraTS",
}
CREDITS = {
    "ms": "Real: open MS data, University of Ljubljana (Lesjak et al. 2018, CC BY). Downsampled.",
    "glioma": "Real: BraTS 2021 (Baid et al. 2021, CC BY 4.0) and TCGA-LGG (Pedano et al. 2016, CC BY 3.0) on TCIA. Downsampled.",
}
IMAGES = {"ms": "realism.png", "glioma": "realism_glioma.png"}


def cohort(out: Path, preset: str, subjects: int) -> Cohort:
    """Simulate it, or go on with it."""
    recipe = make_recipe(preset, {"spacing": 1.0})
    mask = "tumour" if preset.startswith("glioma") else "lesion"
    return read_bids(simulate_cohort(out / preset, recipe, subjects=subjects, seed=SEED, workers=2), mask=mask)


def brats(folder: Path) -> Cohort:
    """The cases of a folder with BraTS' names."""
    cases = [
        Case(
            subject=home.name,
            images={suffix: home / f"{home.name}-{suffix}.nii.gz" for suffix in SUFFIXES},
            label=home / f"{home.name}-seg.nii.gz",
        )
        for home in sorted(folder.iterdir())
        if home.is_dir()
    ]
    return Cohort(cases=tuple(cases), labels={"NCR": 1, "ED": 2, "ET": 3}, name="brats")


def picture(name: str, content: Realism) -> None:
    """A row a sequence, the people of the page side by side, the first slice of each without outlines."""
    rows = SHOWN[name]
    figure = Figure(figsize=(8.4, 2.5 * len(rows) + 0.25), dpi=68, facecolor="black")
    grid = figure.subplots(len(rows), 4, squeeze=False)
    figure.subplots_adjust(0.005, 0.045, 0.995, 0.965, 0.02, 0.1)
    for line, sequence in zip(grid, rows, strict=True):
        for axes in line:
            axes.set_axis_off()
        for axes, person in zip(line, content.shown, strict=False):
            if sequence in person.views:
                view: View = next(iter(person.views[sequence].values()))
                axes.imshow(view.grey, cmap="gray", vmin=0, vmax=255, aspect=view.step[1] / view.step[0])
                colour = "#56b4e9" if person.simulated else "#ff8a4c"
                axes.set_title(f"{sequence}, {person.title}"[:40], color=colour, fontsize=8, pad=2)
    figure.text(0.01, 0.012, CREDITS[name], color="#bbbbbb", fontsize=7)
    FigureCanvasAgg(figure).print_png(str(DOCS / "images" / IMAGES[name]))


def tables(result: dict) -> str:
    """The numbers as Markdown."""
    lines = []
    for name, content in result["studies"].items():
        sources = content["sources"]
        people = {side: len(source["cases"]) for side, source in sources.items()}
        verdicts = [row["verdict"] for row in content["compared"]]
        lines += [
            f"### {TITLES[name]}",
            "",
            f"![{TITLES[name]}](../images/{IMAGES[name]})",
            "",
            f"{people['simulated']} simulated, {people['real']} real people"
            + (f", {people['masks']} real masks" if "masks" in people else "")
            + f". Of {len(verdicts)} numbers, the simulated median lies in the real range for {verdicts.count('inside')}; outside, but "
            f"the ranges meet: {verdicts.count('overlap')}; apart: {verdicts.count('apart')}.",
            "",
            "| sequence | quantity | real | simulated median | simulated range | |",
            "| --- | --- | --- | --- | --- | --- |",
            *(_line(row) for row in content["compared"]),
            "",
        ]
        if content["distances"]:
            lines += [
                "| distribution | simulated to real | real to real | real to real, 95 % |",
                "| --- | --- | --- | --- |",
                *(
                    f"| {d['quantity']} | {d['simulated']:.2f} | {d['real']:.2f} | {d['real_high']:.2f} |"
                    for d in content["distances"]
                ),
                "",
            ]
    return "\n".join(lines)


def _line(row: dict) -> str:
    values = sorted(row["simulated"])
    middle = (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2
    real = " … ".join(dict.fromkeys(f"{v:.2f}" for v in (min(row["real"]), max(row["real"]))))
    return f"| {row['sequence']} | {row['quantity']} | {real} | {middle:.2f} | {values[0]:.2f} … {values[-1]:.2f} | {row['verdict']} |"


def put(page: Path, text: str) -> None:
    """Replace what stands between the markers of a page."""
    begin, end = "<!-- realism: begin -->", "<!-- realism: end -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    page.write_text(f"{before}{begin}\n\n{text}\n{end}{rest.partition(end)[2]}", encoding="utf-8")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("studies", nargs="*", help="ms, glioma; nothing: both")
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--subjects", type=int, default=8)
    given = options.parse_args()
    data = Path(os.environ["OLIGOVOX_DATA"])
    sides = {
        "ms": ("ms-3t", lambda: read_bids(data / "openms"), data / "openms" / "lesion_masks_mni"),
        "glioma": ("glioma-2023", lambda: brats(data / "brats"), None),
    }
    before = json.loads(RESULT.read_text(encoding="utf-8"))["studies"] if RESULT.is_file() else {}
    studies = {}
    for name, (preset, real, masks) in sides.items():
        if given.studies and name not in given.studies:
            studies |= {name: before[name]} if name in before else {}
            continue
        ours = cohort(given.out, preset, given.subjects)
        content, numbers = compare_cohorts(ours, real(), masks=masks, subjects=given.subjects, title=TITLES[name])
        write_json(given.out / f"page-{name}" / "realism.json", numbers)
        print(write_realism(content, given.out / f"page-{name}" / "realism.html"))
        picture(name, content)
        studies[name] = {k: v for k, v in numbers.items() if k not in ("histograms", "people", "lesions")}
    result = {
        "command": "OMP_NUM_THREADS=1 python benchmarks/realism.py --out OUT",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": SEED,
        "subjects": given.subjects,
        "studies": studies,
    }
    RESULT.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    put(DOCS / "explanation" / "realism.md", tables(result))
