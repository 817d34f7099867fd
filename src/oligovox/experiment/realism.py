"""Simulated beside real: measure both cohorts the same way, write the numbers (realism.json) and the page (realism.html)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oligovox.cohort.manifest import Case, Cohort
from oligovox.errors import CohortError
from oligovox.experiment.cohorts import Show, quiet, read_cohort
from oligovox.files import check_writable, write_json
from oligovox.prepare.geometry import Volume, read_volume, resample_to, same_grid, spacing_of, to_ras
from oligovox.report.realism import Realism, Source, write_realism
from oligovox.report.realism_figures import Shown, View
from oligovox.simulate.anatomy.template import template
from oligovox.simulate.comparison import (
    Compared,
    Histograms,
    LesionFacts,
    compare,
    distances,
    histogram_distances,
    lesion_facts,
)
from oligovox.simulate.realism import WHITE, Mask, Row, contrast, histograms, tissue_classes

_FORMAT = 1
_AVERAGE_MM = 1.0  # voxels of the average brain in which places are read
_SEED = 0  # of the random groups behind a distance
_AXIAL = {"axial": 0.30, "axial, lower": 0.40}  # below the top of the brain, in lengths of the brain (front to back)
_SAGITTAL = 0.54  # share of the width
_BRIGHTEST = 99.8  # percentile of the brain shown as white
_PAIRS, _ALONE, _GALLERY = 2, 4, 15  # people side by side; where nobody is real; in one slice
_REST = "rest"  # the reference where no tissue classes can be found (no T1w): all that is not labelled


@dataclass(frozen=True)
class Measured:
    """All that is kept of one person.

    Attributes:
        case: name.
        rows: contrast, noise, sharpness of each sequence.
        lesions: what is labelled, as lesions; None without a label file, and for label maps of several classes.
        labelled_ml: volume of all that is labelled, mL.
        histograms: of each tissue in each sequence.
        shown: slices.
    """

    case: str
    rows: tuple[Row, ...]
    lesions: LesionFacts | None
    labelled_ml: float
    histograms: Histograms
    shown: Shown


def realism_page(
    simulated: Path | str | Cohort,
    out: Path | str,
    *,
    real: Path | str | Cohort | None = None,
    masks: Path | str | None = None,
    mask: str = "lesion",
    subjects: int = 8,
    title: str = "",
    show: Show = quiet,
) -> Path:
    """Compare a simulated cohort with a real one, and write realism.json and realism.html.

    Args:
        simulated: BIDS folder, cohort table, or cohort.
        out: folder to write.
        real: the same for real images; None: only the simulated side.
        masks: folder of real lesion masks; see `compare_cohorts`.
        mask: what label masks are called in a BIDS folder.
        subjects: so many people of each side are measured at most.
        title: of the page; empty: a plain one.
        show: progress.

    Returns:
        The page.

    Raises:
        InputError: a cohort or image cannot be used.
        OutputError: the folder cannot be written.
    """
    out = Path(out)
    ours = simulated if isinstance(simulated, Cohort) else read_cohort(simulated, mask=mask)
    theirs = real if real is None or isinstance(real, Cohort) else read_cohort(real, mask=mask)
    check_writable(out)
    folder = Path(masks) if masks else None
    content, numbers = compare_cohorts(ours, theirs, masks=folder, subjects=subjects, title=title, show=show)
    write_json(out / "realism.json", numbers)
    return write_realism(content, out / "realism.html")


def compare_cohorts(
    ours: Cohort,
    theirs: Cohort | None = None,
    *,
    masks: Path | None = None,
    subjects: int = 8,
    title: str = "",
    show: Show = quiet,
) -> tuple[Realism, dict[str, Any]]:
    """Measure simulated and real people in the same way; one person is in memory at a time.

    Args:
        ours: the simulated cohort. Where a cohort has labels, only people with one are measured.
        theirs: the real one, or None.
        masks: folder of real lesion masks, `*-lesion_mask.nii.gz`, with `*-brain_mask.nii.gz` beside them where there are any. Their
            lesions are compared instead of those of `theirs`, and with those of every labelled simulated person.
        subjects: so many people of each side are measured at most.
        title: of the page; empty: a plain one.
        show: progress.

    Returns:
        What is on the page, and all its numbers as plain values.

    Raises:
        InputError: an image cannot be used, or `masks` holds none.
    """
    listed = _mask_files(masks) if masks else []
    left = _measured(ours, subjects, True, show("measure simulated"))
    right = _measured(theirs, subjects, False, show("measure real")) if theirs else []
    lesions = _lesions(ours, left, bool(listed) or theirs is None, show("count simulated lesions"))
    known = _read_masks(listed, show("count real lesions")) if listed else [p.lesions for p in right if p.lesions]
    counted = [p.histograms for p in left], [p.histograms for p in right]
    content = Realism(
        title=title or ("Simulated beside real" if theirs else "Simulated images"),
        created=datetime.now(UTC).isoformat(timespec="minutes"),
        simulated=_source(ours, left),
        real=_source(theirs, right) if theirs else None,
        masks=Source(masks.name, tuple(path.name.split("_")[0] for path in listed)) if masks else None,
        labels=tuple(ours.labels),
        compared=tuple(compare([p.rows for p in left], [p.rows for p in right])),
        distances=tuple(distances(np.random.default_rng(_SEED), lesions, known)),
        apart=tuple(histogram_distances(*counted)),
        lesions=(lesions, known),
        histograms=counted,
        shown=_side_by_side(left, right),
        gallery=tuple(p.shown for p in (*left, *right))[:_GALLERY],
        notes=_notes(left, right),
    )
    return content, _numbers(content, left, right)


def _measured(cohort: Cohort, most: int, simulated: bool, step: Any) -> list[Measured]:
    cases = (cohort.labelled or cohort.cases)[:most]
    people = []
    for done, case in enumerate(cases, start=1):
        people.append(measure(case, cohort.labels, simulated=simulated))
        step(done, len(cases), case.name)
    return people


def measure(case: Case, labels: Mapping[str, int], *, simulated: bool) -> Measured:
    """Read one person and measure all that the page needs.

    Raises:
        ImageError: a file cannot be used.
    """
    images, label, brain, spacing = _read(case)
    targets = {name: np.asarray(label == value) for name, value in labels.items()} if label is not None else {}
    union = np.logical_or.reduce([np.zeros(brain.shape, bool), *targets.values()])
    t1w = images.get("T1w", images.get("T1wGd"))
    if t1w is None:
        classes, reference = {_REST: brain & ~union}, _REST
    else:
        classes, reference = tissue_classes(t1w, images.get("T2w"), brain, union, spacing), WHITE
    rows = contrast(images, classes, targets, brain, spacing, reference=reference)
    counted = histograms(images, {**classes, **targets}, classes[reference])
    several = len(labels) > 1
    facts = lesion_facts(union, brain, spacing, template(_AVERAGE_MM)) if label is not None and not several else None
    views = {name: _views(image, targets, brain, spacing, follow=several) for name, image in images.items()}
    volume = float(np.count_nonzero(union) * np.prod(spacing)) / 1000
    return Measured(case.name, tuple(rows), facts, volume, counted, Shown(case.name, simulated, views))


def _read(
    case: Case,
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.int_] | None, Mask, tuple[float, float, float]]:
    """Images, label map and brain mask on the grid of the first image in RAS, cut to the brain with a margin of two voxels."""
    first = next(name for name in ("FLAIR", "T1w", *case.images) if name in case.images)
    grid = to_ras(read_volume(case.images[first]))
    volumes = {first: grid.array} | {
        name: _on(grid, read_volume(path), linear=True) for name, path in case.images.items() if name != first
    }
    label = _on(grid, read_volume(case.label, empty_ok=True), linear=False).round().astype(int) if case.label else None
    brain = _on(grid, read_volume(case.brain), linear=False) > 0.5 if case.brain else grid.array != 0
    if not brain.any():
        raise CohortError(f"{case.name}: the brain mask is empty on the grid of {first}; expected the brain in it")
    box = tuple(slice(max(0, int(p.min()) - 2), int(p.max()) + 3) for p in np.nonzero(brain))
    images = {name: np.ascontiguousarray(volumes[name][box], np.float32) for name in case.images}
    return images, label[box] if label is not None else None, brain[box], spacing_of(grid.affine)


def _on(grid: Volume, volume: Volume, *, linear: bool) -> NDArray[Any]:
    ras = to_ras(volume)
    return ras.array if same_grid(ras, grid) else resample_to(ras, grid.affine, grid.shape, 1 if linear else 0).array


def _views(
    image: NDArray[np.float32],
    targets: Mapping[str, Mask],
    brain: Mask,
    spacing: tuple[float, float, float],
    *,
    follow: bool,
) -> dict[str, View]:
    """The planes, at a fixed share of the brain's extent; or, where one large thing is labelled, through most of it."""
    low, high = (float(np.percentile(image[brain], share)) for share in (0.5, _BRIGHTEST))
    low = min(low, 0.0)
    union = np.logical_or.reduce([np.zeros(brain.shape, bool), *targets.values()])
    views = {}
    for plane, (axis, level) in _levels(brain, union if follow else None, spacing).items():

        def cut(volume: NDArray[Any], axis: int = axis, level: int = level) -> NDArray[Any]:
            return np.asarray(np.take(volume, level, axis)[::-1, ::-1].T)

        grey = np.clip((cut(image) - low) / max(high - low, 1e-12), 0, 1)
        step = (spacing[1 if axis == 0 else 0], spacing[2 if axis < 2 else 1])
        views[plane] = View(np.round(255 * grey).astype(np.uint8), tuple(cut(m) for m in targets.values()), step)
    return views


def _levels(brain: Mask, target: Mask | None, spacing: tuple[float, float, float]) -> dict[str, tuple[int, int]]:
    """Plane → axis and slice. Counted from the top of the brain, because scans end at different heights below it."""
    if target is not None and target.any():
        most = [int(target.sum(tuple(a for a in range(3) if a != axis)).argmax()) for axis in range(3)]
        return {"axial": (2, most[2]), "coronal": (1, most[1]), "sagittal": (0, most[0])}
    ends = []
    for axis in range(3):
        area = brain.sum(tuple(a for a in range(3) if a != axis))
        ends.append(np.flatnonzero(area > 0.02 * area.max())[[0, -1]])
    length = (ends[1][1] - ends[1][0]) * spacing[1] / spacing[2]
    levels = {plane: (2, max(0, round(ends[2][1] - share * length))) for plane, share in _AXIAL.items()}
    return levels | {"sagittal": (0, round(ends[0][0] + _SAGITTAL * (ends[0][1] - ends[0][0])))}


def _lesions(cohort: Cohort, people: Sequence[Measured], all_of_them: bool, step: Any) -> list[LesionFacts]:
    """Of the measured people; where their lesions are compared with many masks, of every labelled person."""
    found = {p.case: p.lesions for p in people if p.lesions}
    more = [case for case in cohort.labelled if case.name not in found] if found and all_of_them else []
    for done, case in enumerate(more, start=1):
        found[case.name] = _facts(case.label, case.brain)
        step(done, len(more), case.name)
    return list(found.values())


def _mask_files(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.rglob("*-lesion_mask.nii*"))
    if not files:
        raise CohortError(f"{folder}: no lesion mask in it; expected files named *-lesion_mask.nii.gz")
    return files


def _read_masks(files: Sequence[Path], step: Any) -> list[LesionFacts]:
    found = []
    for done, path in enumerate(files, start=1):
        brain = next(
            (b for key in ("desc", "label") if (b := path.with_name(_brain_name(path.name, key))).is_file()), None
        )
        found.append(_facts(path, brain))
        step(done, len(files), path.name)
    return found


def _brain_name(name: str, key: str) -> str:
    stem, _, end = name.rpartition("-lesion_mask")
    return f"{stem.rpartition('_')[0]}_{key}-brain_mask{end}"


def _facts(lesion: Path | None, brain: Path | None) -> LesionFacts:
    assert lesion is not None
    mask = to_ras(read_volume(lesion, empty_ok=True))
    inside = _on(mask, read_volume(brain), linear=False) > 0.5 if brain else None
    return lesion_facts(mask.array > 0.5, inside, spacing_of(mask.affine), template(_AVERAGE_MM))


def _side_by_side(left: Sequence[Measured], right: Sequence[Measured]) -> tuple[Shown, ...]:
    """Each real person with the simulated one of the nearest labelled volume; the real ones of least and of most."""
    if not right:
        return tuple(p.shown for p in left[:_ALONE])
    ends = sorted(right, key=_load)
    chosen = [ends[0], ends[-1]][: min(_PAIRS, len(ends))]
    free = list(left)
    pairs: list[Shown] = []
    for person in chosen:
        if free:
            nearest = min(free, key=lambda p: abs(_load(p) - _load(person)))
            free.remove(nearest)
            pairs.append(nearest.shown)
        pairs.append(person.shown)
    return tuple(pairs)


def _load(person: Measured) -> float:
    """ln of the labelled volume in mL."""
    return float(np.log(max(person.labelled_ml, 0.01)))


def _source(cohort: Cohort, people: Sequence[Measured]) -> Source:
    note = f"{len(cohort)} in the cohort, {len(cohort.labelled)} with a label." if len(cohort) > len(people) else ""
    return Source(cohort.name, tuple(p.case for p in people), note)


def _notes(left: Sequence[Measured], right: Sequence[Measured]) -> tuple[str, ...]:
    notes = []
    have = [{s for p in side for s in p.shown.views} for side in (left, right)]
    if right and (only := sorted(have[0] ^ have[1])):
        notes.append(f"On one side only, so not compared: {', '.join(only)}.")
    lost = [p.case for p in (*left, *right) if not any(WHITE in tissues for tissues in p.histograms.values())]
    if lost:
        notes.append(
            f"No tissue classes were found in {', '.join(lost[:8])} (no T1w, or too few voxels): intensities are relative to all "
            "that is not labelled, or missing."
        )
    return tuple(notes)


def _numbers(content: Realism, left: Sequence[Measured], right: Sequence[Measured]) -> dict[str, Any]:
    """All numbers of the page as plain values."""
    sides = {"simulated": left, "real": right}
    return {
        "format": _FORMAT,
        "title": content.title,
        "created": content.created,
        "sources": {
            name: asdict(source)
            for name, source in (("simulated", content.simulated), ("real", content.real), ("masks", content.masks))
            if source
        },
        "notes": list(content.notes),
        "compared": [_compared(row) for row in content.compared],
        "distances": [_rounded(row) for row in content.distances],
        "histogram_distances": [_rounded(row) for row in content.apart],
        "people": {
            side: {p.case: [[r.sequence, r.quantity, _digits(r.value)] for r in p.rows] for p in people}
            for side, people in sides.items()
        },
        "lesions": {
            side: [_plain(f) for f in group]
            for side, group in zip(sides, content.lesions, strict=True)
        },
        "histograms": {
            side: {p.case: {s: {t: [_digits(v) for v in h] for t, h in by.items()} for s, by in p.histograms.items()} for p in people}
            for side, people in sides.items()
        },
    }  # fmt: skip


def _compared(row: Compared) -> dict[str, Any]:
    return {
        "sequence": row.sequence,
        "quantity": row.quantity,
        "verdict": row.verdict,
        "real": [_digits(v) for v in row.real],
        "simulated": [_digits(v) for v in row.simulated],
    }


def _rounded(row: Any) -> dict[str, Any]:
    return {key: _digits(value) if isinstance(value, float) else value for key, value in row._asdict().items()}


def _plain(facts: LesionFacts) -> dict[str, Any]:
    lists = {key: [_digits(v) for v in value] for key, value in asdict(facts).items() if isinstance(value, tuple)}
    return {"count": facts.count, "load_mL": _digits(facts.load_ml), "infratentorial": facts.infratentorial, **lists}


def _digits(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")
