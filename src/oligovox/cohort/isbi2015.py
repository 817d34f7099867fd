"""The longitudinal lesion challenge of ISBI 2015: four to six visits of a person, each labelled by two raters.

    training/training01/preprocessed/training01_01_{mprage,flair,t2,pd}_pp.nii      taken where it is there: registered, without skull
    training/training01/orig/training01_01_{mprage,flair,t2,pd}.nii.gz              else these: on grids of their own
    training/training01/masks/training01_01_{mask1,mask2}.nii
    testdata_website/test01/…                                                       the same without masks

Everyone's visits are sessions of one subject, so they stay on one side of a split.

Source: Carass et al., NeuroImage 2017, 148:77-102; Carass et al., Data in Brief 2017, 12:346-350 (the data).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from oligovox.cohort.manifest import Case, Cohort
from oligovox.cohort.reading import AS_IT_IS, Asked, Look, folders, niftis, several
from oligovox.errors import CohortError

LAYOUT = "isbi2015"

_IMAGES = ("preprocessed", "orig")
_MASKS = "masks"
_PERSON = re.compile(r"(?:training|test)\d+", re.IGNORECASE)
_FILE = re.compile(r"(?P<person>[a-z]+\d+)_(?P<visit>\d+)_(?P<what>[a-z0-9]+)(?:_pp)?", re.IGNORECASE)
_LABELS = {"rater1": "mask1", "rater2": "mask2"}
"""Mask → end of the file name; rater 1 is the layout's own, as nobody made a consensus."""


def look(root: Path) -> Look:
    """Folders training01, test01, … with preprocessed or original images."""
    people = [folder for folder in folders(root, 3) if _PERSON.fullmatch(folder.name)]
    if not people:
        return Look(LAYOUT)
    found = (f"{several(len(people), 'folder')} such as {people[0].relative_to(root)}",)
    for person in people:
        if files := [path for _, _, path in _files(person)]:
            return Look(LAYOUT, (*found, f"names of person, visit and sequence, such as {files[0].name}"))
    return Look(LAYOUT, found, ("images in preprocessed or orig, such as training01_01_flair_pp.nii",))


def read(root: Path, asked: Asked = AS_IT_IS) -> Cohort:
    """Read the challenge's folder, or its training or test part.

    Args:
        root: the folder.
        asked: mask: 'lesion' or rater1, rater2.

    Raises:
        CohortError: nobody has an image, there is no such mask, or a file lies in somebody else's folder.
    """
    end = asked.rater(_LABELS, root)
    cases = []
    for person in (folder for folder in folders(root, 3) if _PERSON.fullmatch(folder.name)):
        visits: dict[str, dict[str, Path]] = defaultdict(dict)
        for visit, what, path in _files(person):
            if asked.is_sequence(what):
                visits[visit][asked.sequence(what, path)] = path
        masks = {visit: path for visit, what, path in _files(person, (_MASKS,)) if what == end}
        if lost := sorted(set(masks) - set(visits)):
            raise CohortError(
                f"{masks[lost[0]]}: a mask of a visit without an image; bring the images back, or take it out"
            )
        cases += [
            Case(subject=person.name, session=visit, images=images, label=masks.get(visit))
            for visit, images in sorted(visits.items())
        ]
    if end and asked.mask in _LABELS and not any(case.label for case in cases):
        raise CohortError(f"{root}: nobody has a mask …_{end}; choose another mask")
    return Cohort(cases=tuple(cases), labels=asked.labels or {"lesion": 1}, name=root.resolve().name)


def _files(person: Path, parts: tuple[str, ...] = _IMAGES) -> Iterator[tuple[str, str, Path]]:
    """(visit, what, file) of the first of these folders that holds any."""
    for part in parts:
        found = [(match, path) for name, path in niftis(person / part).items() if (match := _FILE.fullmatch(name))]
        for match, path in found:
            if match["person"].lower() != person.name.lower():
                raise CohortError(
                    f"{path}: lies in the folder of {person.name} but is named {match['person']}; move or rename it"
                )
            yield match["visit"], match["what"].lower(), path
        if found:
            return
