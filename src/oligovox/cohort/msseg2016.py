"""The lesion segmentation challenge MSSEG of MICCAI 2016: seven experts and their consensus.

    Training/Center_01/Patient_01/Preprocessed_Data/{FLAIR,T1,GADO,T2,DP}_preprocessed.nii.gz     taken where it is there
    Training/Center_01/Patient_01/Raw_Data/{3DFLAIR,3DT1,3DT1GADO,T2,DP}.nii.gz                   else these: on grids of their own
    Training/Center_01/Patient_01/Masks/{Consensus,ManualSegmentation_1…7,Brain_Mask}.nii.gz

The preprocessed images lie on the grid of the FLAIR, as the masks do. A centre numbers its patients from 1, so a person is called by both, and
those of Testing have test- before that, as the same centres and numbers come back there.

Source: Commowick et al., Scientific Reports 2018, 8:13650; Commowick et al., NeuroImage 2021, 244:118589 (the data).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from oligovox.cohort.manifest import Case, Cohort
from oligovox.cohort.reading import AS_IT_IS, OWN, Asked, Look, folders, niftis, several
from oligovox.errors import CohortError

LAYOUT = "msseg2016"

_IMAGES = ("Preprocessed_Data", "Raw_Data")
_MASKS = "Masks"
_PERSON = re.compile(r"Patient_?(\d+)", re.IGNORECASE)
_CENTRE = re.compile(r"Center_?(\d+)", re.IGNORECASE)
_LABELS = {"consensus": "Consensus", **{f"rater{n}": f"ManualSegmentation_{n}" for n in range(1, 8)}}
"""Mask → file; the consensus is the layout's own."""


def look(root: Path) -> Look:
    """Folders Center_*/Patient_* with images and masks."""
    people = list(_people(root))
    if not people:
        return Look(LAYOUT)
    found = (f"{several(len(people), 'folder')} Center_…/Patient_…, such as {people[0].relative_to(root)}",)
    images = any((person / part).is_dir() for person in people for part in _IMAGES)
    return Look(LAYOUT, found, () if images else (f"a folder {_IMAGES[0]} or {_IMAGES[1]} in them",))


def read(root: Path, asked: Asked = AS_IT_IS) -> Cohort:
    """Read the challenge's folder, or one part of it (Training, Testing, one centre).

    Args:
        root: the folder.
        asked: mask: 'lesion' or consensus, rater1 … rater7.

    Raises:
        CohortError: nobody has an image, or there is no such mask.
    """
    name = asked.rater(_LABELS, root)
    cases = []
    for person in _people(root):
        part = next((person / part for part in _IMAGES if niftis(person / part)), None)
        if part is None:
            raise CohortError(f"{person}: no image in {' or '.join(_IMAGES)}; bring them back, or take the folder out")
        images = {
            asked.sequence(sequence, path): path
            for title, path in niftis(part).items()
            if asked.is_sequence(sequence := title.removesuffix("_preprocessed"))
        }
        masks = niftis(person / _MASKS)
        centre = _number(_CENTRE, person.parent.name)
        parts = [p.name.lower() for p in person.parents if p.name.lower() in ("training", "testing")]
        tested = parts[:1] == ["testing"]
        cases.append(
            Case(
                subject=f"{'test-' if tested else ''}{centre}-{_number(_PERSON, person.name)}",
                images=images,
                label=masks.get(name) if name else None,
                brain=masks.get("Brain_Mask"),
                info={"centre": centre} | ({"part": "test"} if tested else {}),
            )
        )
    if name and asked.mask != OWN and not any(case.label for case in cases):
        raise CohortError(f"{root}: nobody has a {_MASKS}/{name}.nii.gz; choose another mask")
    return Cohort(cases=tuple(cases), labels=asked.labels or {"lesion": 1}, name=root.resolve().name)


def _people(root: Path) -> Iterator[Path]:
    for folder in folders(root, 3):
        if _PERSON.fullmatch(folder.name) and _CENTRE.fullmatch(folder.parent.name):
            yield folder


def _number(pattern: re.Pattern[str], name: str) -> str:
    match = pattern.fullmatch(name)
    return match[1] if match else name
