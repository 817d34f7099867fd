"""Which prediction belongs to which reference: by BIDS entities, or by file name where the references are plain files.

| found | what happens |
| --- | --- |
| a reference without a prediction | refused |
| two predictions of one exam | refused |
| a prediction of somebody the references do not know | refused |
| a prediction of an exam that nobody labelled (BIDS only) | left out, and said |
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from oligovox.cohort import nnunet
from oligovox.cohort.bids import participants
from oligovox.cohort.manifest import Case
from oligovox.errors import CohortError
from oligovox.experiment.cohorts import read_cohort
from oligovox.experiment.pairs import Pair

_NAME = re.compile(r"^sub-(?P<subject>[^_]+)(?:_ses-(?P<session>[^_]+))?_(?:.+_)?(?:mask|dseg)$")
_Key = tuple[str, str, str]  # dataset, subject, session


@dataclass(frozen=True)
class Matched:
    """What can be scored.

    Attributes:
        pairs: one a reference.
        labels: class → value of the references; empty where nothing says so.
        without_reference: cases that were predicted and that nobody labelled.
    """

    pairs: tuple[Pair, ...]
    labels: Mapping[str, int] = field(default_factory=dict)
    without_reference: tuple[str, ...] = ()


def match(predictions: Path, truth: Path, *, mask: str = "lesion", people: Sequence[str] = ()) -> Matched:
    """Pair every reference with its prediction.

    Args:
        predictions: folder of label maps: BIDS derivatives as `predict` writes them, what nnU-Net predicted, or files named as the references.
        truth: a folder of any layout or a cohort table with label masks, or a folder of label maps as plain NIfTI files.
        mask: name of the label masks in derivatives.
        people: only these; empty: everyone.

    Raises:
        CohortError: any of the table above, or `truth` is none of the three.
    """
    if not predictions.is_dir():
        raise CohortError(f"{predictions}: no such folder; expected the predictions")
    if truth.is_dir() and not any(truth.glob("sub-*/")) and any(_volumes(truth, "*")):
        return _by_file_name(predictions, truth, people)
    cohort = read_cohort(truth, mask=mask)
    chosen = cohort.of(people) if people else cohort.cases
    files = _by_entities(predictions)
    known = {_key(case) for case in cohort.cases}
    if strays := sorted(path for key, paths in files.items() if key not in known for path in paths):
        raise CohortError(_stray(strays, truth))
    pairs = [
        Pair.of(case, _the_prediction(case, files.get(_key(case), []), predictions)) for case in chosen if case.label
    ]
    _refuse_missing(pairs)
    unlabelled = (case.name for case in chosen if not case.label and _key(case) in files)
    return Matched(tuple(pairs), cohort.labels, tuple(unlabelled))


def _by_file_name(predictions: Path, truth: Path, people: Sequence[str]) -> Matched:
    """Predictions may lie in folders below, as long as their names are those of the references."""
    references, found = (_by_stem(_volumes(*place)) for place in ((truth, "*"), (predictions, "**/*")))
    if strays := sorted(path for stem, paths in found.items() if stem not in references for path in paths):
        raise CohortError(_stray(strays, truth))
    known = sorted({_person(stem) for stem in references})
    if unknown := sorted(set(people) - set(known)):
        raise CohortError(f"{truth}: no reference of '{unknown[0]}'; there are {', '.join(known[:8])} …")
    info, pairs = participants(truth), []
    for stem, files in sorted(references.items()):
        person, reference = _person(stem), _only(stem, files, truth, "references")
        columns = info.get(f"sub-{stem.removeprefix('sub-')}") or info.get(f"sub-{person}", {})
        prediction = _only(stem, found.get(stem, []), predictions) or predictions / files[0].name
        if reference and (not people or person in people):
            pairs.append(Pair(stem, person, prediction, reference, columns))
    _refuse_missing(pairs)
    return Matched(tuple(pairs))


def _by_stem(paths: Iterable[Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        found[_stem(path)].append(path)
    return dict(found)


def _by_entities(folder: Path) -> dict[_Key, list[Path]]:
    """Label maps below sub-*/ and <dataset>/sub-*/ by what their names say, else as nnU-Net calls them; brain masks are none."""
    found: dict[_Key, list[Path]] = defaultdict(list)
    for path in _volumes(folder, "sub-*/**/*", "*/sub-*/**/*"):
        name = _NAME.match(_stem(path))
        first = path.relative_to(folder).parts[0]
        if name and "brain" not in path.name:
            found["" if first.startswith("sub-") else first, name["subject"], name["session"] or ""].append(path)
    return found or {key: [path] for key, path in nnunet.predictions(folder).items()}


def _volumes(folder: Path, *patterns: str) -> Iterator[Path]:
    """NIfTI files of a folder that may be label maps; what `predict` prepared lies in its sourcedata."""
    for path in (path for pattern in patterns for path in folder.glob(pattern)):
        volume = path.name.endswith((".nii", ".nii.gz")) and not path.name.startswith(".")
        if volume and "sourcedata" not in path.relative_to(folder).parts and not _stem(path).endswith("_probseg"):
            yield path


def _the_prediction(case: Case, found: Sequence[Path], folder: Path) -> Path:
    """The one label map of a case; where there is none, the name it should have."""
    home = folder / case.dataset if case.dataset else folder
    name = case.name.removeprefix(f"{case.dataset}_") if case.dataset else case.name
    return _only(case.name, found, home) or home / f"sub-{case.subject}" / f"{name}_label-lesion_mask.nii.gz"


def _only(name: str, found: Sequence[Path], folder: Path, what: str = "predictions") -> Path | None:
    if len(found) > 1:
        raise CohortError(f"{name}: {len(found)} {what} in {folder} ({found[0].name}, {found[1].name} …); keep one")
    return found[0] if found else None


def _refuse_missing(pairs: Sequence[Pair]) -> None:
    missing = [pair for pair in pairs if not pair.prediction.is_file()]
    if missing:
        raise CohortError(
            f"{len(missing)} of {len(pairs)} predictions are missing, first {missing[0].case} ({missing[0].prediction}); "
            "predict these cases first, or name the people to score"
        )


def _stray(paths: Sequence[Path], truth: Path) -> str:
    return (
        f"{len(paths)} predictions belong to nobody in {truth}, first {paths[0]}; give the right folder of references, or "
        "move them out"
    )


def _key(case: Case) -> _Key:
    return case.dataset, case.subject, case.session


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _person(stem: str) -> str:
    """The subject of a BIDS name, else the whole name."""
    subject = re.match(r"sub-([^_]+)", stem)
    return subject[1] if subject else stem
