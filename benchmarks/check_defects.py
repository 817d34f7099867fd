"""What the data doctor finds of what was planted, and what it finds where nothing was → check_defects.json.

    OMP_NUM_THREADS=1 python benchmarks/check_defects.py --out FOLDER [--data ../shared/data] [--subjects 10]

Each defect is planted in one sequence (or pair) of every simulated case of the grounds it fits, and in the real exams; `found` counts cases in which
the check of that name speaks. False alarms are all findings on the cases as they are. Thresholds were set on simulated seeds 911 to 919 and on
openms and brats, so that false alarms there are no test; brats13_nc and the simulated seeds below are. OUT keeps the cohorts, and what was
looked at already: start it again to resume. To add a check: its function in CHECKS, its defect in DEFECTS, a line each.
"""

import argparse
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import fft, ndimage

from oligovox.cohort.bids import read_bids
from oligovox.cohort.manifest import Case
from oligovox.doctor.finding import Finding
from oligovox.doctor.images import look
from oligovox.files import hash_file, write_json
from oligovox.simulate.recipe import make_recipe
from oligovox.simulate.scanner.kspace import ghost_lines, rotation
from oligovox.simulate.write import simulate_cohort

HERE = Path(__file__).parent
RESULT = HERE / "check_defects.json"
GROUNDS = {
    "ms-3t": ("ms-3t", 951, {}),
    "ms-7t": ("ms-7t", 952, {}),
    "glioma-2023": ("glioma-2023", 953, {}),
    "heads": ("ms-3t", 954, {"head": {}}),
}
SPACING = 2.0
LEFT_OUT = ("cs26", "lo04", "BRATS13-0002", "TCGA-FG-6692")
CODE = sorted((HERE.parent / "src" / "oligovox" / "doctor").glob("*.py"))

Rng = np.random.Generator
Plant = Callable[[Case, Path, Rng], Case | None]
"""A case, a folder for what is written, chance → the damaged case with the images that matter; None where it does not fit."""

CHECKS: tuple[Callable[[Case], list[Finding]], ...] = (look,)
"""What is asked about a case; its findings are joined."""


@dataclass(frozen=True)
class Defect:
    """One kind: its name, the check that should find it, how it is planted, and the grounds it fits (all where empty)."""

    name: str
    check: str
    plant: Plant
    grounds: tuple[str, ...] = ()


def of_voxels(change: Callable[[np.ndarray, np.ndarray, Rng], np.ndarray]) -> Plant:
    """Change the voxels of one sequence, drawn by chance: (array, affine, chance) → array."""

    def plant(case: Case, folder: Path, rng: Rng) -> Case | None:
        name = sorted(case.images)[int(rng.integers(len(case.images)))]
        return replace(case, images={name: changed(case.images[name], folder, rng, change)})

    return plant


def of_pair(change: Callable[[np.ndarray, np.ndarray, Rng], np.ndarray]) -> Plant:
    """The same in one of two sequences; the other stays as it is."""

    def plant(case: Case, folder: Path, rng: Rng) -> Case | None:
        if len(case.images) < 2:
            return None
        one, other = rng.permutation(sorted(case.images))[:2].tolist()
        return replace(case, images={one: changed(case.images[one], folder, rng, change), other: case.images[other]})

    return plant


def swapped(one: str, other: str) -> Plant:
    """Two sequences under each other's name."""

    def plant(case: Case, folder: Path, rng: Rng) -> Case | None:
        if not {one, other} <= set(case.images):
            return None
        return replace(case, images={one: case.images[other], other: case.images[one]})

    return plant


def one_stripped(case: Case, folder: Path, rng: Rng) -> Case | None:
    """One of two sequences without the skull."""
    if case.brain is None:
        return None
    brain = np.asarray(nib.load(case.brain).dataobj) > 0
    return of_pair(lambda array, affine, _: array * brain)(case, folder, rng)


def changed(path: Path, folder: Path, rng: Rng, change: Callable[[np.ndarray, np.ndarray, Rng], np.ndarray]) -> Path:
    image = nib.load(path)
    array = np.squeeze(np.asarray(image.dataobj, dtype=np.float32))
    out = folder / f"changed_{path.name.removesuffix('.gz')}"
    nib.save(nib.Nifti1Image(np.rint(change(array, image.affine, rng)).astype(np.int16), image.affine), out)
    return out


def slice_axis(affine: np.ndarray) -> int:
    """The axis that runs head-foot."""
    return int(np.abs(affine[2, :3]).argmax())


def lost(array: np.ndarray, affine: np.ndarray, rng: Rng) -> np.ndarray:
    moved = np.moveaxis(array.copy(), slice_axis(affine), 0)
    first = int(rng.integers(len(moved) // 3, 2 * len(moved) // 3))
    moved[first : first + int(rng.integers(1, 4))] = 0
    return np.moveaxis(moved, 0, slice_axis(affine))


def repeated(array: np.ndarray, affine: np.ndarray, rng: Rng) -> np.ndarray:
    moved = np.moveaxis(array.copy(), slice_axis(affine), 0)
    first = int(rng.integers(len(moved) // 3, 2 * len(moved) // 3))
    moved[first + 1] = moved[first]
    return np.moveaxis(moved, 0, slice_axis(affine))


def clipped(array: np.ndarray, affine: np.ndarray, rng: Rng) -> np.ndarray:
    return array.clip(None, np.percentile(array[array > 0], rng.uniform(95, 99.8)))


def noisy(array: np.ndarray, affine: np.ndarray, rng: Rng) -> np.ndarray:
    inside = array != 0
    sigma = np.median(array[array > 0.3 * np.percentile(array, 99)]) * rng.uniform(0.3, 0.5)
    return np.abs(array + inside * rng.normal(0, sigma, array.shape))


def ghosted(array: np.ndarray, affine: np.ndarray, rng: Rng) -> np.ndarray:
    axis, count = int(rng.integers(2)), 0
    count = array.shape[axis]
    lines = ghost_lines(count, rng.uniform(0.2, 0.5) * count, rng.uniform(0.12, 0.3))
    space = fft.fft(array, axis=axis) * lines.reshape([-1 if a == axis else 1 for a in range(3)])
    return np.abs(fft.ifft(space, axis=axis))


def uneven(array: np.ndarray, affine: np.ndarray, rng: Rng) -> np.ndarray:
    axis = int(rng.integers(3))
    shown = np.flatnonzero((array > 0.2 * np.percentile(array, 99)).any(axis=tuple(a for a in range(3) if a != axis)))
    ramp = np.interp(np.arange(array.shape[axis]), [shown[0], shown[-1]], [-1, 1]) * rng.uniform(1.2, 1.8)
    return array * np.exp(ramp).reshape([-1 if a == axis else 1 for a in range(3)])


def moved(array: np.ndarray, affine: np.ndarray, mm: np.ndarray, degrees: np.ndarray) -> np.ndarray:
    middle = affine[:3, :3] @ ((np.array(array.shape) - 1) / 2) + affine[:3, 3]
    world = np.eye(4)
    world[:3, :3] = rotation(tuple(degrees))
    world[:3, 3] = middle + mm - world[:3, :3] @ middle
    matrix = np.linalg.inv(affine) @ world @ affine
    return ndimage.affine_transform(array, matrix[:3, :3], matrix[:3, 3], order=1)


def shifted(array: np.ndarray, affine: np.ndarray, rng: Rng) -> np.ndarray:
    way = rng.normal(size=3)
    return moved(array, affine, way / np.linalg.norm(way) * rng.uniform(3, 8), np.zeros(3))


def turned(array: np.ndarray, affine: np.ndarray, rng: Rng) -> np.ndarray:
    degrees = np.zeros(3)
    degrees[int(rng.integers(3))] = rng.choice([-1, 1]) * rng.uniform(4, 9)
    return moved(array, affine, np.zeros(3), degrees)


DEFECTS = (
    Defect("slices lost (1 to 3)", "empty_slices", of_voxels(lost)),
    Defect("a slice repeated", "repeated_slices", of_voxels(repeated)),
    Defect("cut off at percentile 95 to 99.8", "clipped", of_voxels(clipped)),
    Defect("noise of 30 to 50 % of the signal", "noisy", of_voxels(noisy)),
    Defect("motion ghosts of 12 to 30 %", "ghosts", of_voxels(ghosted), ("heads",)),
    Defect("field of a factor 11 to 37", "uneven", of_voxels(uneven)),
    Defect("one of two sequences stripped", "stripped_differs", one_stripped, ("heads",)),
    Defect("one of two shifted by 3 to 8 mm", "not_aligned", of_pair(shifted)),
    Defect("one of two turned by 4 to 9 degrees", "not_aligned", of_pair(turned)),
    Defect("FLAIR and T2w swapped", "contrast", swapped("FLAIR", "T2w")),
    Defect("T1w and T2w swapped", "contrast", swapped("T1w", "T2w")),
    Defect("T1w and FLAIR swapped", "contrast", swapped("T1w", "FLAIR")),
)


def simulated(out: Path, subjects: int) -> Iterator[tuple[str, Case]]:
    for ground, (preset, seed, changes) in GROUNDS.items():
        recipe = make_recipe(preset, {"spacing": SPACING, **changes})
        mask = "tumour" if preset.startswith("glioma") else "lesion"
        simulate_cohort(out / ground, recipe, subjects=subjects, seed=seed, workers=1)
        yield from ((ground, case) for case in read_bids(out / ground, mask=mask).cases)


def real(data: Path) -> Iterator[tuple[str, Case]]:
    if (data / "openms").is_dir():
        yield from (("openms", case) for case in read_bids(data / "openms").cases)
    raw = {"T1w": "T1W", "T2w": "T2W", "FLAIR": "FLAIR"}
    for home in sorted((data / "openms" / "sourcedata").glob("sub-*/ses-*")):
        files = {name: next(home.glob(f"*_{suffix}.nii.gz"), None) for name, suffix in raw.items()}
        if all(files.values()):
            yield "openms raw", Case(subject=home.parent.name[4:], session=home.name[4:], images=files)
    for ground in ("brats", "brats13_nc"):
        for home in sorted((data / ground).glob("*-000")):
            files = {suffix: home / f"{home.name}-{suffix}.nii.gz" for suffix in ("t1n", "t1c", "t2w", "t2f")}
            yield ground, Case(subject=home.name, images={k: path for k, path in files.items() if path.is_file()})
    stroke = data / "other" / "stroke" / "sub-stroke01_T2w.nii.gz"
    if stroke.is_file():
        yield "stroke", Case(subject="stroke01", images={"T2w": stroke})


def asked(case: Case) -> list[Finding]:
    return [finding for check in CHECKS for finding in check(case)]


def looked(ground: str, case: Case, folder: Path, known: dict[str, list[str]], keep: Callable[[], None]) -> None:
    """Ask about the case as it is, and with each defect that fits; `known` gets what was found."""
    folder.mkdir(parents=True, exist_ok=True)
    for defect in (None, *DEFECTS):
        key = f"{ground}|{case.name}|{defect.name if defect else 'clean'}"
        if key in known or (
            defect
            and defect.grounds
            and ground not in (*defect.grounds, *(("openms raw",) if "heads" in defect.grounds else ()))
        ):
            continue
        rng = np.random.default_rng(zlib.crc32(key.encode()))
        damaged = defect.plant(case, folder, rng) if defect else case
        if damaged is not None:
            known[key] = [
                f"{finding.check} ({finding.severity}) {finding.sequence}: {finding.found}"
                for finding in asked(damaged)
            ]
            keep()


def table(known: Mapping[str, list[str]]) -> dict[str, object]:
    """Found and planted for each defect and ground; findings on clean cases."""
    defects: dict[str, dict[str, object]] = {}
    for defect in DEFECTS:
        grounds: dict[str, Counter[str]] = {}
        for key, found in known.items():
            ground, _, kind = key.split("|")
            if kind == defect.name:
                counts = grounds.setdefault(ground, Counter(found=0, planted=0))
                counts["planted"] += 1
                counts["found"] += any(text.startswith(f"{defect.check} ") for text in found)
        defects[defect.name] = {"check": defect.check, "grounds": {ground: dict(c) for ground, c in grounds.items()}}
    clean: dict[str, dict[str, object]] = {}
    for key, found in known.items():
        ground, case, kind = key.split("|")
        if kind == "clean":
            row = clean.setdefault(ground, {"cases": 0, "cases_with_findings": 0, "findings": []})
            row["cases"] += 1  # type: ignore[operator]
            row["cases_with_findings"] += bool(found)  # type: ignore[operator]
            row["findings"] += [f"{case}: {text}" for text in found]  # type: ignore[operator]
    return {"defects": defects, "clean": clean}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--subjects", type=int, default=10)
    args = parser.parse_args()
    notes = args.out / "notes.json"
    code = [hash_file(path) for path in CODE]
    before = json.loads(notes.read_text()) if notes.is_file() else {}
    known: dict[str, list[str]] = before.get("known", {}) if before.get("code") == code else {}
    cases = [*simulated(args.out, args.subjects), *real(args.data)]
    for number, (ground, case) in enumerate(cases, start=1):
        if not any(name in case.name for name in LEFT_OUT):
            looked(ground, case, args.out / "changed", known, lambda: write_json(notes, {"code": code, "known": known}))
        print(f"{number}/{len(cases)} {ground} {case.name}", flush=True)
    result = {
        "spacing_mm": SPACING,
        "subjects": args.subjects,
        "seeds": {g: s for g, (_, s, _) in GROUNDS.items()},
        **table(known),
    }
    write_json(RESULT, result)


if __name__ == "__main__":
    main()
