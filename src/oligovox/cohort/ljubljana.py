"""3D-MR-MS, the databases of the University of Ljubljana: 30 people with a consensus of three raters, and 20 people seen twice.

    patient01/patient01_{FLAIR,T1W,T1WKS,T2W,consensus_gt,brainmask}.nii.gz     cross-sectional; the name in front may be left out
    patient01/study1_{FLAIR,T1W,T2W}.nii.gz, study2_…, gt.nii.gz                longitudinal: gt is what changed, which is no lesion mask

The folders raw/ and coregistered/ hold the same people twice, so give one of them. In raw/ each sequence has a grid of its own, and the masks lie
on that of the FLAIR.

Source: Lesjak et al., Neuroinformatics 2018, 16:51-63, and 2016, 14:403-420.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from oligovox.cohort.manifest import Case, Cohort
from oligovox.cohort.reading import AS_IT_IS, Asked, Look, entries, niftis, several
from oligovox.errors import CohortError

LAYOUT = "ljubljana"

_PERSON = re.compile(r"patient_?\d+", re.IGNORECASE)
_STUDY = re.compile(r"study(?P<visit>\d)_(?P<what>.+)", re.IGNORECASE)
_LABELS = {"consensus": "consensus_gt"}
_BRAIN = ("brainmask", "brain_mask")
_TELLING = ("consensus_gt", "t1wks")
"""What no other folder calls its files; study1_… is the other sign."""


def look(root: Path) -> Look:
    """Folders patient01, patient02, … with a FLAIR in them, and a name that is these databases' own."""
    people = list(_people(root))
    if not people:
        return Look(LAYOUT)
    found = (f"{several(len(people), 'folder')} such as {people[0].name}",)
    files = [(visit, what.lower(), path) for person in people for visit, what, path in _files(person)]
    if not any(what == "flair" for _, what, _ in files):
        return Look(LAYOUT, found, ("images in them, such as patient01_FLAIR.nii.gz",))
    if not (own := next((path for visit, what, path in files if visit or what in _TELLING), None)):
        return Look(
            LAYOUT, (*found, "a FLAIR in them"), ("a name of its own, such as consensus_gt, T1WKS or study1_FLAIR",)
        )
    return Look(LAYOUT, (*found, f"a FLAIR in them, and {own.name}"))


def read(root: Path, asked: Asked = AS_IT_IS) -> Cohort:
    """Read one folder of people.

    Args:
        root: the folder that holds patient01, patient02, …
        asked: mask: 'lesion' or consensus.

    Raises:
        CohortError: nobody has an image, or two images of one sequence.
    """
    end = asked.rater(_LABELS, root)
    cases = []
    for person in _people(root):
        visits: dict[str, dict[str, Path]] = defaultdict(dict)
        others: dict[str, Path] = {}
        for visit, what, path in _files(person):
            if not asked.is_sequence(what):
                others[what.lower()] = path
            elif visits[visit].setdefault(sequence := asked.sequence(what, path), path) != path:
                raise CohortError(
                    f"{person}: {path.name} and {visits[visit][sequence].name} are both {sequence}; keep one"
                )
        brain = next((others[name] for name in _BRAIN if name in others), None)
        cases += [
            Case(
                subject=person.name,
                session=visit,
                images=images,
                label=others.get(end or "") if not visit else None,
                brain=brain,
            )
            for visit, images in sorted(visits.items())
        ]
    return Cohort(cases=tuple(cases), labels=asked.labels or {"lesion": 1}, name=root.resolve().name)


def _people(root: Path) -> Iterator[Path]:
    return (path for path in entries(root) if _PERSON.fullmatch(path.name) and path.is_dir())


def _files(person: Path) -> Iterator[tuple[str, str, Path]]:
    """(visit, what, file); the visit is '' where there is only one."""
    for name, path in niftis(person).items():
        what = re.sub(f"^{re.escape(person.name)}_", "", name, flags=re.IGNORECASE)
        study = _STUDY.fullmatch(what)
        yield (study["visit"], study["what"], path) if study else ("", what, path)
