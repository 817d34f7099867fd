"""What the data doctor finds of what was planted, and what it says where nothing was → check_defects.json.

    OMP_NUM_THREADS=1 python benchmarks/check_defects.py --out FOLDER [--data ../shared/data] [--subjects 5]

Each defect is planted in one sequence (or pair, or mask) of every simulated case of the grounds it fits, those of voxels also in one real head
and one real brain; the whole of `oligovox check` is asked, and `found` counts the cases in which the check of that name speaks. `clean` has all that is
said about the cohorts as they are, where errors and warnings are false alarms unless they are true. Thresholds were set on simulated seeds 0, 911 to
919 and 951 to 953, which are not those below, and on openms and brats; that of `contrast` also on brats13_nc. So real folders are a test only in
that nothing may be said. OUT keeps the cohorts and what was looked at: start it again to resume. To add a check: its defect in `OF_VOXELS` or
`OF_FILES`, a line each.
"""

import argparse
import json
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from defects_files import OF_FILES
from defects_voxels import OF_VOXELS, Defect
from oligovox.cohort.bids import read_bids
from oligovox.cohort.manifest import Case, Cohort
from oligovox.doctor.finding import Finding
from oligovox.experiment.checking import look
from oligovox.files import hash_file, write_json
from oligovox.simulate.recipe import make_recipe
from oligovox.simulate.write import simulate_cohort

HERE = Path(__file__).parent
RESULT = HERE / "check_defects.json"
GROUNDS = {
    "ms-3t": ("ms-3t", 961, {}),
    "ms-7t": ("ms-7t", 962, {}),
    "glioma-2023": ("glioma-2023", 963, {}),
    "heads": ("ms-3t", 964, {"head": {}}),
}
SPACING = 2.0
PLANTED_IN_REAL = {"openms raw": 1, "brats": 1}  # the first exam: one head, one brain
LEFT_OUT = ("cs26", "lo04", "BRATS13-0002", "TCGA-FG-6692")
CODE = [*sorted((HERE.parent / "src" / "oligovox" / "doctor").glob("*.py")), *HERE.glob("defects_*.py")]
DEFECTS: tuple[Defect, ...] = (*OF_VOXELS, *OF_FILES)

Known = dict[str, list[str]]
"""'ground|case|defect', or 'ground||clean' → what was found, a line each."""


def simulated(out: Path, subjects: int) -> dict[str, Cohort]:
    cohorts = {}
    for ground, (preset, seed, changes) in GROUNDS.items():
        recipe = make_recipe(preset, {"spacing": SPACING, **changes})
        simulate_cohort(out / ground, recipe, subjects=subjects, seed=seed, workers=1)
        cohorts[ground] = read_bids(out / ground, mask="tumour" if preset.startswith("glioma") else "lesion")
    return cohorts


def real(data: Path) -> dict[str, Cohort]:
    """Cohorts of what there is; of the exams before they were prepared three sequences."""
    cases: dict[str, list[Case]] = {}
    if (data / "openms").is_dir():
        cases["openms"] = list(read_bids(data / "openms").cases)
    raw = {"T1w": "T1W", "T2w": "T2W", "FLAIR": "FLAIR"}
    for home in sorted((data / "openms" / "sourcedata").glob("sub-*/ses-*")):
        files = {name: next(home.glob(f"*_{suffix}.nii.gz"), None) for name, suffix in raw.items()}
        if all(files.values()):
            cases.setdefault("openms raw", []).append(
                Case(subject=home.parent.name[4:], session=home.name[4:], images=files)
            )
    for ground in ("brats", "brats13_nc"):
        for home in sorted((data / ground).glob("*-000")):
            files = {suffix: home / f"{home.name}-{suffix}.nii.gz" for suffix in ("t1n", "t1c", "t2w", "t2f")}
            images = {name: path for name, path in files.items() if path.is_file()}
            cases.setdefault(ground, []).append(Case(subject=home.name, images=images))
    stroke = data / "other" / "stroke" / "sub-stroke01_T2w.nii.gz"
    if stroke.is_file():
        cases["stroke"] = [Case(subject="stroke01", images={"T2w": stroke})]
    kept = {
        g: tuple(case for case in all_ if not any(out in case.name for out in LEFT_OUT)) for g, all_ in cases.items()
    }
    return {ground: Cohort(cases=some) for ground, some in kept.items() if some}


def fits(defect: Defect, ground: str) -> bool:
    return not defect.grounds or ground in defect.grounds or (ground == "openms raw" and "heads" in defect.grounds)


def told(findings: list[Finding]) -> list[str]:
    return [f"{f.check} ({f.severity}) {f.case} {f.sequence}: {f.found}" for f in findings]


def ask(ground: str, cohort: Cohort, planted_in: int, folder: Path, known: Known, keep: Callable[[], None]) -> None:
    """The cohort as it is, then its first cases with each defect that fits; `known` gets what was found."""
    folder.mkdir(parents=True, exist_ok=True)
    if f"{ground}||clean" not in known:
        known[f"{ground}||clean"] = told(look(cohort))
        keep()
    for case in cohort.cases[:planted_in]:
        for defect in DEFECTS:
            key = f"{ground}|{case.name}|{defect.name}"
            if key in known or not fits(defect, ground):
                continue
            damaged = defect.plant(case, folder, np.random.default_rng(zlib.crc32(key.encode())))
            if damaged is not None:
                known[key] = told(look(damaged))
                keep()
        print(f"{time.process_time():.0f} s: {ground} {case.name}", flush=True)


def table(known: Mapping[str, list[str]], cohorts: Mapping[str, Cohort]) -> dict[str, object]:
    """Found and planted for each defect and ground, with what was missed; what was said of cohorts as they are."""
    defects: dict[str, object] = {}
    for defect in DEFECTS:
        grounds: dict[str, Counter[str]] = {}
        missed = []
        for key, found in known.items():
            ground, case, kind = key.split("|")
            if kind == defect.name:
                hit = any(text.startswith(f"{defect.check} ") for text in found)
                grounds.setdefault(ground, Counter(found=0, planted=0)).update(planted=1, found=int(hit))
                missed += [] if hit else [f"{ground} {case}: said instead: {'; '.join(found) or 'nothing'}"]
        defects[defect.name] = {
            "check": defect.check,
            "found": sum(counts["found"] for counts in grounds.values()),
            "planted": sum(counts["planted"] for counts in grounds.values()),
            "grounds": {ground: dict(counts) for ground, counts in grounds.items()},
            "missed": missed,
        }
    clean = {}
    for ground, cohort in cohorts.items():
        said = known[f"{ground}||clean"]
        clean[ground] = {
            "cases": len(cohort),
            "images": sum(len(case.images) for case in cohort.cases),
            **{
                f"{severity}s": sum(f" ({severity}) " in text for text in said)
                for severity in ("error", "warning", "note")
            },
            "said": [text for text in said if " (note) " not in text],
            "notes_by_check": dict(Counter(text.split()[0] for text in said if " (note) " in text)),
        }
    return {"defects": defects, "clean": clean}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--subjects", type=int, default=5)
    args = parser.parse_args()
    notes = args.out / "notes.json"
    code = [hash_file(path) for path in CODE]
    before = json.loads(notes.read_text()) if notes.is_file() else {}
    known: Known = before.get("known", {}) if before.get("code") == code else {}
    made, given = simulated(args.out, args.subjects), real(args.data)
    cohorts = {**made, **given}
    wanted = {
        f"{ground}|{name}" for ground, cohort in cohorts.items() for name in ("", *(c.name for c in cohort.cases))
    }
    for ground, cohort in cohorts.items():
        planted_in = len(cohort) if ground in made else PLANTED_IN_REAL.get(ground, 0)
        keep = lambda: write_json(notes, {"code": code, "known": known})  # noqa: E731
        ask(ground, cohort, planted_in, args.out / "changed", known, keep)
    known = {key: found for key, found in known.items() if key.rsplit("|", 1)[0] in wanted}
    result = {
        "spacing_mm": SPACING,
        "subjects": args.subjects,
        "seeds": {ground: seed for ground, (_, seed, _) in GROUNDS.items()},
        **table(known, cohorts),
    }
    write_json(RESULT, result)


if __name__ == "__main__":
    main()
