"""The checks of voxels, one case at a time: each image is read once, and what cannot be read is left to the checks of headers.

| check | severity | what was found |
| --- | --- | --- |
| empty_slices | error | slices of one value between others that show something |
| repeated_slices | warning | slices that are copies of the one before |
| clipped | note, warning | foreground cut off at one value |
| noisy | warning | little signal over the noise |
| ghosts | warning | copies of the head in the air along one axis, as from motion; heads only |
| uneven | warning | an extreme bias field across the brain |
| stripped_differs | warning | sequences of a case with and without skull |
| stripped_in_cohort | note | a case that differs in this from the others |
| not_aligned | warning | sequences of a case that do not lie on each other |
| contrast | warning | fluid that is bright where the sequence's name says dark, or dark where it says bright; T1w and FLAIR swapped |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from oligovox.cohort.manifest import Case, Cohort
from oligovox.doctor.alignment import check_alignment
from oligovox.doctor.contrast import check_contrast
from oligovox.doctor.finding import Finding
from oligovox.doctor.intensity import check_intensity
from oligovox.doctor.seen import Seen
from oligovox.doctor.stripped import Covering, check_cohort, check_stripped, outline
from oligovox.doctor.swapped import check_swapped
from oligovox.errors import ImageError
from oligovox.prepare.geometry import read_volume


@dataclass(frozen=True)
class Looked:
    """What was seen in a case.

    Attributes:
        case: name of the case.
        findings: in the order of the checks.
        covering: whether it shows heads or brains; None where its sequences disagree or none can be read.
    """

    case: str
    findings: tuple[Finding, ...]
    covering: Covering | None


def look(case: Case) -> list[Finding]:
    """What is odd in the voxels of a case; its masks are not read, and a file that cannot be read gives no finding here."""
    return list(look_closely(case).findings)


def look_closely(case: Case) -> Looked:
    """`look`, with what `compare_cases` needs besides."""
    return look_at(case.name, [one for name, path in case.images.items() if (one := _seen(name, path)) is not None])


def look_at(name: str, seen: Sequence[Seen]) -> Looked:
    """`look_closely` at images that were read already."""
    outlines = [outline(one) for one in seen]
    findings = [found for one, line in zip(seen, outlines, strict=True) for found in _alone(name, one, line.covering)]
    torn = {found.sequence for found in findings if found.check == "empty_slices"}  # what lies beyond looks like a neck
    whole = [(one, line) for one, line in zip(seen, outlines, strict=True) if one.sequence not in torn]
    findings += check_stripped(name, [one for one, _ in whole], [line for _, line in whole])
    findings += check_alignment(name, seen)
    findings += check_swapped(name, seen, [line.covering for line in outlines], findings)
    coverings = {line.covering for _, line in whole}
    return Looked(name, tuple(findings), coverings.pop() if len(coverings) == 1 else None)


def compare_cases(cohort: Cohort, looked: Sequence[Looked]) -> list[Finding]:
    """What only all cases together show: a case that is stripped where the others are not, or the other way round."""
    files = {case.name: tuple(case.images.values()) for case in cohort.cases}
    return check_cohort({one.case: one.covering for one in looked if one.covering}, files)


def look_at_cohort(cohort: Cohort, progress: Callable[[int, int, str], None] | None = None) -> list[Finding]:
    """`look` at every case, and `compare_cases`.

    Args:
        cohort: whose images.
        progress: called with (cases done, cases, name) after each.
    """
    looked = []
    for done, case in enumerate(cohort.cases, start=1):
        looked.append(look_closely(case))
        if progress:
            progress(done, len(cohort), case.name)
    return [*(found for one in looked for found in one.findings), *compare_cases(cohort, looked)]


def _alone(case: str, seen: Seen, covering: Covering) -> list[Finding]:
    found = check_intensity(case, seen, covering)
    torn = any(one.check == "empty_slices" for one in found)  # neither half says where the middle of the brain is
    return found if torn else [*found, *check_contrast(case, seen, covering)]


def _seen(name: str, path: Path) -> Seen | None:
    try:
        return Seen.of(name, path, read_volume(path))
    except ImageError:  # the checks of headers say it
        return None
