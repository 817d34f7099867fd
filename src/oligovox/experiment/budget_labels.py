"""What is labelled of the people whose labels a study may draw: in full, or which part of them, as the store and the study know it.

| how a part was chosen is known from | where |
| --- | --- |
| the recipe of its simulation | the study |
| `Kind` and `Settings` that `cohort annotate` wrote | the JSON beside the mask, if it is still there |
| nothing | the label is of a part, and how much of it is counted all the same |
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from oligovox.cohort.annotate import SPARSE, Sparse
from oligovox.errors import CohortError, InputError
from oligovox.experiment.budget_ground import Ground
from oligovox.experiment.budget_plan import Study
from oligovox.files import read_json
from oligovox.prepare.store import Plan, Store, StoredCase
from oligovox.report.budget_content import Labelling, Range
from oligovox.report.labels import LabelView
from oligovox.settings import parse

_SHOWN = 4  # people in the picture
_NEIGHBOURS = np.ones((3, 3, 3), bool)


@dataclass(frozen=True)
class _Known:
    """Of one exam: what is known of its label.

    Attributes:
        case: the exam.
        how: which part it is, in words; '' where it is all, or nobody says.
        share: of the brain, that somebody looked at.
        slices: whole slices that somebody looked at; None where the label is not made of slices.
        lesions: connected ones that are drawn.
    """

    case: StoredCase
    how: str
    share: float
    slices: int | None
    lesions: int


def labelling_of(study: Study, ground: Ground) -> tuple[Labelling, ...]:
    """How those whose labels may be drawn are labelled, one entry a kind; an exam that cannot be read any more is left out."""
    groups: dict[tuple[bool, str], list[_Known]] = {}
    for case in _labelled(ground.store, ground.split.train):
        with suppress(CohortError):
            known = _known(case, study)
            groups.setdefault((case.sparse, known.how), []).append(known)
    return tuple(_summary(exams) for exams in groups.values())


def label_views(study: Study, ground: Ground) -> list[LabelView]:
    """What is labelled of the people of the first draw, to be drawn; nothing where all of them are labelled in full."""
    cases = _labelled(ground.store, ground.labels(study, max(study.counts), 0))
    views: list[LabelView] = []
    if any(case.sparse for case in cases):
        with suppress(CohortError):
            views += [_view(case, ground.store.plan) for case in cases[:_SHOWN]]
    return views


def _labelled(store: Store, people: tuple[str, ...]) -> list[StoredCase]:
    place = {person: number for number, person in enumerate(people)}
    return sorted((case for case in store.of(people) if case.labelled), key=lambda case: place[case.person])


def _known(case: StoredCase, study: Study) -> _Known:
    label, brain = case.known_label(), case.foreground()
    assert label is not None, "labelled"
    looked = np.asarray(label) >= 0
    share = float((looked & brain).sum() / max(int(brain.sum()), 1))
    lesions = int(ndimage.label(np.asarray(label) > 0, _NEIGHBOURS)[1])
    return _Known(case, _how(case, study), share, _slices(looked) if case.sparse else None, lesions)


def _how(case: StoredCase, study: Study) -> str:
    part = (_simulated(case, study) or _annotated(case)) if case.sparse else None
    return part.words if part else ""


def _simulated(case: StoredCase, study: Study) -> Sparse | None:
    """What the recipe of its cohort says; a study with one cohort does not name it in its cases."""
    choice = study.cohorts.get(case.dataset or next(iter(study.cohorts), ""))
    return choice.simulate.recipe.sparse if choice and choice.simulate and choice.mask == SPARSE else None


def _annotated(case: StoredCase) -> Sparse | None:
    """What the JSON beside its mask says."""
    mask = Path(case.sources.get("label", ""))
    sidecar = mask.with_name(f"{mask.name.removesuffix('.gz').removesuffix('.nii')}.json")
    with suppress(InputError, AttributeError, TypeError):  # any file may lie there
        content = read_json(sidecar) if sidecar.is_file() else {}
        if "Settings" in content:
            return parse(Sparse, content["Settings"], str(sidecar))
    return None


def _slices(looked: NDArray[np.bool_]) -> int | None:
    """How many slices were looked at, where it is whole ones across some axis."""
    for axis in (2, 1, 0):
        along = looked.any(tuple(a for a in range(3) if a != axis))
        if (looked == along.reshape([-1 if a == axis else 1 for a in range(3)])).all():
            return int(along.sum())
    return None


def _summary(exams: list[_Known]) -> Labelling:
    slices = [known.slices for known in exams if known.slices is not None]
    return Labelling(
        in_part=exams[0].case.sparse,
        how=exams[0].how,
        people=len({known.case.person for known in exams}),
        looked_at=_range(known.share for known in exams),
        slices=_range(map(float, slices)) if len(slices) == len(exams) else None,
        lesions=_range(float(known.lesions) for known in exams),
    )


def _range(values: Iterator[float]) -> Range:
    found = list(values)
    return Range(least=min(found), mean=sum(found) / len(found), most=max(found))


def _view(case: StoredCase, plan: Plan) -> LabelView:
    """Its FLAIR, or whatever its grid is that of, with black around the brain."""
    names = [name for name, there in zip(plan.modalities, case.present, strict=True) if there]
    channel = next((names.index(name) for name in ("FLAIR", case.reference) if name in names), 0)
    label, brain = case.known_label(), np.asarray(case.foreground())
    image = np.asarray(case.image()[channel], dtype=np.float32)
    assert label is not None, "labelled"
    grey = np.where(brain, image - image[brain].min() + 0.01, 0.0) if brain.any() else image
    return LabelView(case.name, grey, np.asarray(label), case.spacing)
