"""Every number of the judge against code that others wrote: packages, and the challenges' own programs.

    python benchmarks/metrics_agreement.py --sources FOLDER [--data FOLDER] [part …]

runs the named parts (default: all), replaces them in metrics_agreement.json and writes the tables of docs/reference/metrics.md. It ends with 1 if a
number differs by more than 1e-6 (of the number, or of 1 where that is larger) and agreement_page.py does not say why.

It needs an environment of its own, because the packages pin old libraries; FOLDER holds clones, and no line of them is copied here:

    pip install -c constraints.txt -e . panoptica surface-distance scikit-learn monai SimpleITK medpy statsmodels
    git clone https://github.com/rachitsaluja/BraTS-2023-Metrics     (commit 43c9052)
    git clone https://github.com/rachitsaluja/BraTS-2024-Metrics     (commit f1131e3)
    git clone https://github.com/emrekavur/CHAOS-evaluation          (commit 1db9484)
    git clone https://github.com/jcreinhold/lesion-metrics           (commit f259cad)
    git clone https://github.com/Inria-Empenn/Anima-Public           (commit d9fb323; two functions are compiled with g++)
"""

import argparse
import json
import math
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path

import numpy as np

import agreement_others as others
from agreement_cases import Case, random_masks, random_tissues, real_masks, real_tumours
from agreement_numbers import rims, statistics
from agreement_page import RESULT, Row, Table, unexplained, write_page
from oligovox.metrics import lesions, overlap, surface
from oligovox.metrics.protocols import brats2023, brats2024, chaos, counts, isbi2015, msseg2016

HERE = Path(__file__).parent
TOLERANCE_MM = 1.0
PACKAGES = (
    "panoptica",
    "surface-distance",
    "monai",
    "scikit-learn",
    "SimpleITK",
    "statsmodels",
    "numpy",
    "scipy",
    "pandas",
)
OF_MASKS = "brats2024, its functions given masks:"
OF_BRATS = {
    "lesionwise_dice": "LesionWise_Score_Dice",
    "lesionwise_hd95_mm": "LesionWise_Score_HD95",
    "lesions_found": "Num_TP",
    "lesions_missed": "Num_FN",
    "lesions_false": "Num_FP",
    "dice": "Legacy_Dice",
    "hd95_mm": "Legacy_HD95",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "reference_ml": "GT_Complete_Volume",
}
OF_BRATS_2024 = OF_BRATS | {
    "lesionwise_nsd_0.5mm": "LesionWise_Score_NSD @ 0.5",
    "lesionwise_nsd_1mm": "LesionWise_Score_NSD @ 1.0",
    "nsd_0.5mm": "Legacy NSD @ 0.5",
    "nsd_1mm": "Legacy NSD @ 1.0",
}


def masks(table: Table, cases: Iterable[Case], options: argparse.Namespace) -> None:
    """Overlap, surfaces and components of two masks."""
    from sklearn import metrics as sklearn

    for case in cases:
        prediction, truth = case.prediction, case.truth
        voxels = counts.count_voxels(prediction, truth)
        flat = (truth.ravel(), prediction.ravel())
        theirs = {
            "dice": sklearn.f1_score(*flat, zero_division=np.nan),
            "jaccard": sklearn.jaccard_score(*flat, zero_division=0) if truth.any() or prediction.any() else math.nan,
            "ppv": sklearn.precision_score(*flat, zero_division=np.nan),
            "tpr": sklearn.recall_score(*flat, zero_division=np.nan),
        }
        table.compare("overlap", "scikit-learn", {name: getattr(voxels, name) for name in theirs}, theirs, case.name)
        ours = our_surfaces(case) | {"dice": overlap.dice(prediction, truth)} | our_components(case)
        table.compare("surface", "MONAI", ours, others.monai_scores(case, TOLERANCE_MM), case.name)
        found = others.panoptica_scores(case, TOLERANCE_MM)
        table.compare("surface", "panoptica", ours, found, case.name)
        table.compare("its rule on our distances:", "panoptica", as_panoptica(case), found, case.name)
        found = others.surface_distance_scores(case, TOLERANCE_MM)
        table.compare("surface", "surface-distance", ours, found, case.name)
        if truth.any() and prediction.any():
            whole = brats2023.score(prediction.astype(np.int16), truth.astype(np.int16), case.spacing).regions["WT"]
            table.add(
                "brats2023 hd95_mm of a region, any spacing",
                "surface-distance",
                whole["hd95_mm"],
                found["hd95_mm"],
                case.name,
            )


def our_surfaces(case: Case) -> dict[str, float]:
    found = surface.surface_scores(case.prediction, case.truth, case.spacing, (TOLERANCE_MM,))
    return {
        "hd95_mm": found.hd95_mm,
        "mssd_mm": found.mssd_mm,
        "assd_mm": found.assd_mm,
        "nsd": found.nsd[TOLERANCE_MM],
    }


def our_components(case: Case) -> dict[str, float]:
    """Matched one to one at IoU above 0.5, which can be at most one partner each."""
    reference, predicted = lesions.find_lesions(case.truth), lesions.find_lesions(case.prediction)
    common = lesions.overlap_table(reference, predicted)[1:, 1:].tocoo()
    sizes = reference.voxels[common.coords[0]] + predicted.voxels[common.coords[1]]
    matched = int(np.sum(common.data / (sizes - common.data) > 0.5))
    return {
        "components matched": matched,
        "components missed": len(reference.voxels) - matched,
        "components false": len(predicted.voxels) - matched,
    }


def as_panoptica(case: Case) -> dict[str, float]:
    """Its reductions of the two lists of distances, applied to ours."""
    if not case.prediction.any() or not case.truth.any():
        return {"hd95_mm": math.nan, "assd_mm": math.nan, "nsd": math.nan}
    lists = surface.surface_distances(case.prediction, case.truth, case.spacing)
    return {
        "hd95_mm": float(np.percentile(np.concatenate(lists), 95)),
        "assd_mm": float(np.mean([part.mean() for part in lists])),
        "nsd": float(np.mean([(part <= TOLERANCE_MM).mean() for part in lists])),
    }


def ms(table: Table, cases: Iterable[Case], options: argparse.Namespace) -> None:
    """MSSEG 2016 and ISBI 2015."""
    anima, isbi = others.Anima(options.sources, options.scratch), others.Isbi2015(options.sources)
    of_26 = isbi2015.Settings(connectivity=26)
    volumes = []
    for case in cases:
        masks = (case.prediction, case.truth, case.spacing)
        ours = msseg2016.score(*masks).regions["lesion"]
        theirs = anima(case)
        theirs["lesions_reference"] = theirs.pop("lesions")
        table.compare("msseg2016", "Anima", ours, theirs, case.name)
        ours = isbi2015.score(*masks, of_26).regions["lesion"]
        table.compare("isbi2015", "lesion-metrics", ours, isbi(case), case.name)
        volumes.append((ours["volume_ml"], ours["reference_ml"]))
    for start in range(0, len(volumes) - 6, 6):
        predicted, reference = np.array(volumes[start : start + 6]).T
        if np.ptp(predicted) and np.ptp(reference):
            found = isbi2015.volume_correlation(predicted, reference)
            table.add(
                "isbi2015 volume_correlation",
                "lesion-metrics",
                found,
                isbi.code.corr(predicted, reference),
                f"six cases from {start}",
            )


def organs(table: Table, cases: Iterable[Case], options: argparse.Namespace) -> None:
    """CHAOS; its Python program has the four metrics, its document the scores."""
    code, liver = others.Chaos(options.sources), chaos.Settings(organs={"liver": 1})
    for case in cases:
        arrays = (case.prediction.astype(np.int16), case.truth.astype(np.int16), case.spacing)
        ours = chaos.score(*arrays, liver).regions["liver"]
        table.compare("chaos", "CHAOS-evaluation", ours, code(case), case.name)


def tumours_2023(table: Table, cases: Iterable[Case], options: argparse.Namespace) -> None:
    code = others.Brats2023(options.sources, options.scratch)
    for number, case in enumerate(cases):
        case = without_cavity(case)
        for track in ("GLI", "MET", "MEN") if number % 3 == 0 else ("GLI",):
            theirs = code(case, track)
            ours = brats2023.score(case.prediction, case.truth, case.spacing, brats2023.Settings(track=track)).regions
            for region in ours:
                table.compare(
                    f"brats2023 {track}",
                    "BraTS-2023-Metrics",
                    ours[region],
                    renamed(theirs[region], OF_BRATS),
                    f"{case.name} {region}",
                )


def tumours_2024(table: Table, cases: Iterable[Case], options: argparse.Namespace) -> None:
    arms: dict[str, tuple[others.Brats2024, brats2024.Settings]] = {
        track: (
            others.Brats2024(options.sources, options.scratch, track),
            brats2024.Settings(track=track, snfh_typo=True),
        )
        for track in others.TRACKS_2024
    }
    corrected = others.Brats2024(options.sources, options.scratch, "GLI", typo=False)
    arms["GLI, SNFH corrected"] = (corrected, brats2024.Settings())
    for number, case in enumerate(cases):
        for name, (code, settings) in arms.items():
            if name != "GLI" and number % 3:
                continue
            one = (
                case
                if settings.track in ("GLI", "MET", "PED")
                else without_cavity(case, only=settings.track == "MEN-RT")
            )
            theirs = code(one)
            ours = brats2024.score(one.prediction, one.truth, one.spacing, settings).regions
            for region in ours:
                place = f"{case.name} {region}"
                found = renamed(theirs[region], OF_BRATS_2024)
                table.compare(f"brats2024 {name}", "BraTS-2024-Metrics", ours[region], found, place)
                table.compare(OF_MASKS, "BraTS-2024-Metrics", ours[region], code.of_masks(region), place)


def without_cavity(case: Case, only: bool = False) -> Case:
    """Labels 1 to 3, or all of them as label 1."""
    prediction, truth = (np.where(labels == 4, 0, labels) for labels in (case.prediction, case.truth))
    if only:
        prediction, truth = (prediction > 0).astype(np.int16), (truth > 0).astype(np.int16)
    return Case(case.name, case.kind, prediction, truth, case.spacing)


def renamed(theirs: Mapping[str, float], names: Mapping[str, str]) -> dict[str, float]:
    found = {ours: float(theirs[name]) for ours, name in names.items()}
    return found | {"reference_ml": found["reference_ml"] / 1000}


@dataclass(frozen=True)
class Part:
    run: Callable[[Table, Iterable, argparse.Namespace], None]
    cases: Callable[[argparse.Namespace], Iterator]


def all_masks(options: argparse.Namespace) -> Iterator[Case]:
    return chain(random_masks(), real_masks(options.data))


PARTS = {
    "masks": Part(masks, all_masks),
    "ms": Part(ms, all_masks),
    "organs": Part(organs, all_masks),
    "tumours_2023": Part(tumours_2023, lambda o: chain(random_tissues(45), real_tumours(o.data))),
    "tumours_2024": Part(tumours_2024, lambda o: chain(random_tissues(24), islice(real_tumours(o.data), 1, 2))),
    "rims": Part(rims, lambda o: iter(range(300))),
    "statistics": Part(statistics, lambda o: iter(range(200))),
}


def counted(cases: Iterable, seen: list[int]) -> Iterator:
    for case in cases:
        seen[0] += 1
        if seen[0] % 20 == 0:
            print(f"  … {seen[0]}", file=sys.stderr, flush=True)
        yield case


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sources", type=Path, required=True, help="folder with the clones")
    parser.add_argument(
        "--data", type=Path, default=HERE.parents[1] / "shared" / "data", help="folder with openms/ and brats/"
    )
    parser.add_argument("--first", type=int, default=None, help="try this many cases of each part; nothing is written")
    parser.add_argument("parts", nargs="*", default=[], choices=[*PARTS, []])
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of the other programs
    others.old_names()
    for name in options.parts or PARTS:
        print(name, file=sys.stderr, flush=True)
        rows, seen = run(name, options)
        if options.first is None:
            save(name, rows, seen)
        else:
            print(*rows, sep="\n")
    if options.first is not None:
        return 0
    write_page()
    left = unexplained(json.loads(RESULT.read_text(encoding="utf-8")))
    for row in left:
        print(f"not explained: {row}")
    return 1 if left else 0


def run(name: str, options: argparse.Namespace) -> tuple[list[Row], int]:
    table, seen = Table(), [0]
    with tempfile.TemporaryDirectory() as folder:
        options.scratch = Path(folder)
        cases = islice(PARTS[name].cases(options), options.first)
        PARTS[name].run(table, counted(cases, seen), options)
    return list(table.rows.values()), seen[0]


def save(name: str, rows: list[Row], seen: int) -> None:
    result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {"parts": {}}
    date = datetime.now(UTC).isoformat(timespec="seconds")
    result["parts"][name] = {"cases": seen, "date": date, "rows": [asdict(row) for row in rows]}
    result["versions"] = {package: version(package) for package in PACKAGES}
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
