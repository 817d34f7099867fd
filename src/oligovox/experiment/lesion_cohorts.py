"""From a folder of exams to a lesion store: whose masks, whose grades."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from oligovox.cohort.manifest import Case
from oligovox.engine.log import say
from oligovox.errors import CohortError
from oligovox.experiment.cohorts import Show, quiet, read_cohort
from oligovox.experiment.recipe import changed
from oligovox.files import check_writable, read_json
from oligovox.prepare.lesion_grades import unclaimed
from oligovox.prepare.lesion_store import SEQUENCES, LesionPlan, LesionStore
from oligovox.prepare.lesions import Exam, extract_lesions
from oligovox.prepare.susceptibility import sidecar_of

AUTO, NONE = "auto", "none"
RIM = "rim"
"""A class that is a part of lesions."""
_TABLES = ("desc-instances_dseg.tsv", "desc-rims_dseg.nii.gz", "desc-rims_dseg.nii")


def classify_extract(
    data: Path | str,
    out: Path | str,
    *,
    masks: Path | str | None = None,
    mask: str = "lesion",
    grades: Path | str = AUTO,
    people: Sequence[str] = (),
    changes: Sequence[str] = (),
    workers: int = 2,
    show: Show = quiet,
) -> dict[str, Any]:
    """Cut a patch of QSM and FLAIR around every lesion.

    Args:
        data: BIDS folder or cohort table with QSM and FLAIR.
        out: lesion store to write; a killed run resumes there.
        masks: folder of predicted masks (of `predict`); None: the masks of `data`.
        mask: name of the lesion masks in the derivatives of `data`.
        grades: table of grades of the whole cohort; "auto": what each exam has in derivatives, `desc-instances_dseg.tsv` or
            `desc-rims_dseg`; "none": nobody graded.
        people: only these; empty: everyone.
        changes: settings of `LesionPlan`, as key=value.
        workers: processes; each holds one exam in memory.
        show: progress.

    Returns:
        "lesions" (the folder), "exams", "kept" lesions, and how many are "rim_plus", "rim_minus", "ungraded".

    Raises:
        CohortError: no exam has QSM, FLAIR and a mask, or nobody has a lesion that is large enough.
        InputError: one line for the first thing that is wrong with the data.
    """
    data, out = Path(data), Path(out)
    plan = changed(LesionPlan, changes, "extract")
    exams = read_exams(data, masks=Path(masks) if masks else None, mask=mask, grades=grades, people=people)
    check_writable(out)
    store = extract_lesions(exams, plan, out, workers=workers, progress=show("extract"))
    say_guessed_units(store)
    grade = [lesion.grade for lesion in store.lesions]
    counts = {"rim_plus": grade.count(1), "rim_minus": grade.count(0), "ungraded": grade.count(-1)}
    return {"lesions": str(out), "exams": len(store.exams), "kept": len(store), **counts}


def read_exams(
    data: Path,
    *,
    masks: Path | dict[str, Path] | None = None,
    mask: str = "lesion",
    grades: Path | str = AUTO,
    people: Sequence[str] = (),
) -> list[Exam]:
    """Exams that have QSM, FLAIR and a mask; those that lack one are named and left out.

    Args:
        data: BIDS folder or cohort table.
        masks: folder of predicted masks, or exam → mask; None: those of `data`.
        mask: name of the lesion masks in derivatives.
        grades: see `classify_extract`.
        people: only these; empty: everyone.

    Raises:
        CohortError: no exam is left, or a table or mask is missing.
    """
    cohort = read_cohort(data, mask=None if masks is not None else mask)
    chosen = cohort.of(people) if people else cohort.cases
    given = (
        {case.name: masks.get(case.name) if isinstance(masks, dict) else _mask_of(case, masks) for case in chosen}
        if masks
        else {}
    )
    table = _table(Path(grades), cohort.cases) if isinstance(grades, Path) or grades not in (AUTO, NONE) else None
    exams, lacking = [], {}
    for case in chosen:
        case = replace(case, label=given[case.name], sparse=False) if given else case
        missing = [name for name in SEQUENCES if name not in case.images] + ["a lesion mask"] * (case.label is None)
        if missing:
            lacking[case.name] = missing
            continue
        beside = _beside(data, case) if grades == AUTO else None
        assert case.label is not None
        labels = _labels(case.label, mask) if given else cohort.labels
        exams.append(Exam(case, table or beside, labels, (mask, RIM) if mask in labels else ()))
    for name, missing in lacking.items():
        say(f"{name}: left out; it has no {', no '.join(missing)}")
    if not exams:
        name, missing = next(iter(lacking.items()))
        raise CohortError(
            f"{data}: none of {len(chosen)} exams has QSM, FLAIR and a lesion mask ({name} has no {', no '.join(missing)}); bring the files back, "
            "name them by their sequence (BIDS: QSM is a _Chimap among the derivatives), or draw or predict the masks"
        )
    return exams


def say_guessed_units(store: LesionStore) -> None:
    """One line where the units of any exam's QSM were guessed from its values; none where all were told."""
    found: dict[str, list[tuple[str, float]]] = {}
    for exam in store.exams:
        about = read_json(store.root / "cases" / exam / "case.json")
        if (reach := about.get("qsm_units_guessed_from")) is not None:
            found.setdefault(about["qsm_units"], []).append((exam, reach))
    if found:
        words = [
            f"{units} in {len(exams)} exams, first {exams[0][0]}, whose magnitudes reach {exams[0][1]:.3g} (99.5th percentile)"
            for units, exams in sorted(found.items())
        ]
        say(
            f"units of QSM guessed from the values: {'; '.join(words)}. A field in radians, Hz or rad/s can look the same: "
            'make sure, then set qsm_units=ppb or qsm_units=ppm, or write "Units" into the .json beside each file'
        )


def _table(grades: Path, cases: Sequence[Case]) -> Path:
    """A table or map of grades; says which rows of a table are of nobody."""
    if not grades.is_file():
        raise CohortError(f"{grades}: no such table of grades; give a .tsv, '{AUTO}' or '{NONE}'")
    if not grades.name.endswith((".tsv", ".nii", ".nii.gz")):
        raise CohortError(
            f"{grades}: neither a table of grades (.tsv, tab-separated) nor a label map (.nii, .nii.gz); save it as one of them"
        )
    if grades.suffix == ".tsv" and (alone := unclaimed(grades, {(case.subject, case.session) for case in cases})):
        say(f"{grades}: {len(alone)} rows are of nobody here, first '{alone[0]}'; they grade nothing")
    return grades


def _labels(mask: Path, name: str) -> Mapping[str, int]:
    """Class → value of a predicted mask, as the sidecar says; without it 1 is lesion."""
    sidecar = sidecar_of(mask)
    labels: Mapping[str, int] = read_json(sidecar).get("Labels") if sidecar.is_file() else {}
    return labels or {name: 1}


def _mask_of(case: Case, folder: Path) -> Path | None:
    """The mask of one exam in a folder of predictions; None where there is none."""
    found = [
        path
        for path in sorted(folder.rglob(f"{case.name}_*.nii*"))
        if path.name.split(".")[0].endswith(("_mask", "_dseg"))
    ]
    if len(found) > 1:
        raise CohortError(f"{folder}: {len(found)} masks of {case.name}, {found[0].name} and {found[1].name}; keep one")
    return found[0] if found else None


def _beside(data: Path, case: Case) -> Path | None:
    """Grades among the derivatives of a BIDS folder."""
    below = data.parent if data.is_file() else data
    for ending in _TABLES:
        if found := sorted((below / "derivatives").rglob(f"{case.name}_{ending}")):
            if len(found) > 1:
                raise CohortError(
                    f"{case.name}: is graded twice, in {found[0]} and {found[1]}; keep one, or choose with --grades"
                )
            return found[0]
    return None
