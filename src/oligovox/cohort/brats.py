"""Folders of the brain tumour challenges BraTS, 2018 to 2024: one folder a case, one file a sequence.

    BraTS20_Training_001/BraTS20_Training_001_{t1,t1ce,t2,flair,seg}.nii.gz        to 2021; below HGG/ and LGG/ in 2018 and 2019
    BraTS-GLI-00005-100/BraTS-GLI-00005-100-{t1n,t1c,t2w,t2f,seg}.nii.gz           from 2023; the last number is the visit
    BraTS-MEN-RT-0000-1/BraTS-MEN-RT-0000-1_{t1c,gtv}.nii.gz                       meningioma before radiotherapy: one class

What the values of a segmentation mean is read from all of them together, and from the names: 1 and 2 are necrotic core and oedema. In names of 2023
and later enhancing tumour is 3, and a 4 the resection cavity. In older ones 4 is enhancing tumour, 3 being the non-enhancing core of 2013, or
enhancing tumour where no file has a 4. Children (BraTS-PED) have classes of their own since 2024: where there is a 4, `labels` must name them.
`labels` overrules it. Files that are called otherwise (-seg4) are chosen by the name of the mask.

Folders of other origin that are named like this are read as well, where some file is called as BraTS alone does: t1ce, t1n, t1c, t2f.

Source: Menze et al. 2015, IEEE TMI 34:1993; Baid et al. 2021, arXiv 2107.02314; LaBella et al. 2023, arXiv 2305.07642; de Verdier et al. 2024, arXiv 2405.18368;
LaBella et al. 2024, arXiv 2405.18383.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from oligovox.cohort.manifest import Case, Cohort
from oligovox.cohort.reading import AS_IT_IS, OWN, Asked, Look, folders, niftis, plain_names, several, stem, who
from oligovox.errors import CohortError

LAYOUT = "brats"

CORE, OEDEMA, ENHANCING, CAVITY, SOLID = (
    "necrotic core",
    "oedema",
    "enhancing tumour",
    "resection cavity",
    "non-enhancing core",
)

VOLUME = "gross tumour volume"

_CHILDREN, _RADIOTHERAPY = "BraTS-PED-", "BraTS-MEN-RT-"
_OWN_ENDS = {"t1ce", "t1n", "t1c", "t2f"}
_ENDS = {"t1", "t2", "flair", "t2w", *_OWN_ENDS}
_SEGMENTATION, _GTV = "seg", "gtv"


@dataclass(frozen=True)
class _Folder:
    """One case by the names of its files."""

    path: Path
    mark: str  # between case and sequence: '_' to 2021, '-' from 2023
    files: Mapping[str, Path]  # what comes after the mark → file

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def newer(self) -> bool:
        """Whether it is named as from 2023."""
        return self.mark == "-"


def look(root: Path) -> Look:
    """Folders whose files are called as the folder, with a sequence after it."""
    cases = list(_cases(root))
    if not any(case.name.lower().startswith("brats") or _OWN_ENDS & set(case.files) for case in cases):
        return Look(LAYOUT)
    files = ", ".join(path.name for path in list(cases[0].files.values())[:2])
    return Look(LAYOUT, (f"{several(len(cases), 'folder')} with files called as the folder, such as {files}",))


def read(root: Path, asked: Asked = AS_IT_IS) -> Cohort:
    """Read folders of cases; every segmentation is opened once, to see which values there are, unless labels are given.

    Args:
        root: the folder that holds the cases, HGG and LGG in it where there are such.
        asked: mask: 'lesion' for …seg or …gtv, or another ending, such as seg4.

    Raises:
        CohortError: no case, no segmentation of this name, children whose classes nobody names, or segmentations whose values mean
            different things.
    """
    found = list(_cases(root))
    if not found:
        raise CohortError(
            f"{root}: no folder whose files are called as itself, expected CASE/CASE_t1ce.nii.gz or CASE/CASE-t1c.nii.gz"
        )
    endings = (_SEGMENTATION, _GTV) if asked.mask in (None, OWN) else (str(asked.mask),)
    names = plain_names((case.name for case in found), root)
    cases = []
    for case in found:
        _, subject, session = who(names[case.name])
        images = {asked.sequence(name, case.path): path for name, path in case.files.items() if asked.is_sequence(name)}
        grade = case.path.parent.name if case.path.parent.name in ("HGG", "LGG") else ""
        label = next((case.files[end] for end in endings if end in case.files), None) if asked.mask else None
        cases.append(
            Case(subject=subject, session=session, images=images, label=label, info={"grade": grade} if grade else {})
        )
    if asked.mask not in (None, OWN) and not any(case.label for case in cases):
        raise CohortError(f"{root}: no segmentation is called …{endings[0]}; name one that is there")
    drawn = [(folder, case.label) for folder, case in zip(found, cases, strict=True) if case.label]
    return Cohort(cases=tuple(cases), labels=asked.labels or _classes(root, found, drawn), name=root.resolve().name)


def _cases(root: Path) -> Iterator[_Folder]:
    """Folders at most two levels down with at least one file CASE_t1ce, CASE-t1c or the like."""
    for folder in folders(root, 2):
        for mark in "-_":
            start = f"{folder.name}{mark}"
            files = {name.removeprefix(start): path for name, path in niftis(folder).items() if name.startswith(start)}
            if _ENDS & set(files):
                yield _Folder(folder, mark, files)
                break


def _classes(root: Path, found: Sequence[_Folder], drawn: Sequence[tuple[_Folder, Path]]) -> dict[str, int]:
    """Class → value. Names of both times, and volumes beside parts, go together only where their values mean the same."""
    kinds: dict[tuple[bool, bool], list[Path]] = {}
    for folder, path in drawn:
        kinds.setdefault((folder.name.startswith(_RADIOTHERAPY) or stem(path).endswith(_GTV), folder.newer), []).append(
            path
        )
    values = {kind: _values(paths) for kind, paths in kinds.items()}
    child = next((folder.name for folder, _ in drawn if folder.name.startswith(_CHILDREN)), None)
    if child and any(4 in some for (volume, _), some in values.items() if not volume):
        raise CohortError(
            f"{root}: {child} is a child's, and there is the value 4: children have classes of their own since 2024; name them, as "
            "--labels 'enhancing tumour=1' --labels 'non-enhancing tumour=2' --labels 'cyst=3' --labels 'oedema=4'"
        )
    values = values or {(found[0].name.startswith(_RADIOTHERAPY), found[0].newer): set()}
    first, *others = ({VOLUME: 1} if v else _scheme(some, newer=newer) for (v, newer), some in values.items())
    if other := next((scheme for scheme in others if scheme != first), None):
        raise CohortError(
            f"{root}: by the names of the files, labels mean {_shown(first)} in some and {_shown(other)} in others; "
            "give folders of one kind, or say what the values are (--labels 'enhancing tumour=3')"
        )
    return first


def _scheme(values: set[int], *, newer: bool) -> dict[str, int]:
    """Class → value, from the values that occur."""
    both = {CORE: 1, OEDEMA: 2}
    if newer:
        return both | ({ENHANCING: 3, CAVITY: 4} if 4 in values else {ENHANCING: 3})
    if 3 in values:
        return both | ({SOLID: 3, ENHANCING: 4} if 4 in values else {ENHANCING: 3})
    return both | {ENHANCING: 4}


def _shown(scheme: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={value}" for name, value in scheme.items())


def _values(paths: Iterable[Path]) -> set[int]:
    """Whole numbers that occur in any of the files; one that cannot be read is said when it is prepared."""
    found: set[int] = set()
    for path in paths:
        try:
            array = np.asanyarray(nib.load(path).dataobj)
            counts = np.bincount(array.ravel(), minlength=5) if array.dtype == np.uint8 else None
            found |= set((np.unique(array) if counts is None else np.flatnonzero(counts)).astype(int).tolist())
        except Exception:  # whatever a damaged file does to nibabel
            continue
    return found
