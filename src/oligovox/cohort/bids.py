"""Read a BIDS folder: raw sequences below sub-*/, masks below derivatives/.

Only folder and file names are read, participants.tsv, what derivatives say they are, and what a mask says it may hold. Masks may lie in any
pipeline folder (derivatives/<pipeline>/sub-*/) or directly in derivatives/sub-*/, but not in one of our own predictions, which are no
labels; sourcedata/ and everything else at the top is not looked at.

Source: Gorgolewski et al., Scientific Data 2016; BIDS specification 1.10, "Magnetic Resonance Imaging" and "Imaging derivatives".
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from oligovox.cohort.annotate import SPARSE, says_sparse
from oligovox.cohort.manifest import Case, Cohort
from oligovox.cohort.modalities import canonical
from oligovox.cohort.reading import AS_IT_IS, OWN, Asked, Look, entries, files_below, folders, several
from oligovox.errors import CohortError, SettingsError
from oligovox.files import read_json, read_tsv

LAYOUT = "bids"

_log = logging.getLogger(__name__)

_NAME = re.compile(r"^(?P<entities>sub-[^_]+(?:_[^_]+)*)_(?P<suffix>[A-Za-z0-9]+)\.nii(?:\.gz)?$")
_ABOUT = "dataset_description.json"
PREDICTIONS = "oligovox predictions"
"""Name in the dataset_description.json of a folder of predictions: nobody looked there, so its masks are no labels."""

_ACQUISITIONS = {("inphase", "T1w"): "T1in", ("outphase", "T1w"): "T1out", ("spir", "T2w"): "T2spir"}
SUFFIXES = {
    "T1wGd": "ce-gadolinium_T1w",
    "T1in": "acq-inphase_T1w",
    "T1out": "acq-outphase_T1w",
    "T2spir": "acq-spir_T2w",
    "QSM": "Chimap",
}
"""Sequence → how its files end in BIDS, where that is not its name."""

DERIVED_SEQUENCES = ("QSM",)  # BIDS calls a susceptibility map a derivative; no scanner file of it exists
REGIONS = "Regions"
"""Key of `…_dseg.json` beside the table of classes: region → the classes it is made of."""

_INDIVIDUAL_SPACES = ("", "individual", "orig", "native")


@dataclass(frozen=True)
class _File:
    """One NIfTI file, by what its name says."""

    path: Path
    subject: str
    session: str
    entities: Mapping[str, str]  # without sub and ses
    suffix: str  # or the sequence that it was said to stand for

    @property
    def sequence(self) -> str | None:
        """Canonical sequence name, or None where it is something else (a mask, bold, a phase image, …)."""
        if self.entities.get("part", "mag") != "mag":
            return None
        try:
            name = canonical(self.suffix)
        except SettingsError:
            return None
        if name == "T1w" and "ce" in self.entities:
            return "T1wGd"
        return _ACQUISITIONS.get((self.entities.get("acq", ""), name), name)

    @property
    def space(self) -> str:
        return self.entities.get("space", "")

    @property
    def run(self) -> int:
        """Its number; 0 for none."""
        run = self.entities.get("run", "")
        return int(run) if run.isdecimal() else 0

    def repeats(self, other: _File) -> bool:
        """Whether this is another run of the same: nothing else in the name differs."""
        one, two = (({**file.entities, "run": ""}, file.suffix) for file in (self, other))
        return one == two and self.run != other.run

    @property
    def plainness(self) -> tuple[int, int, str]:
        """Sort key: the file with the fewest entities first, then the lowest run, then by name."""
        return len(self.entities), self.run, self.path.name


def look(root: Path) -> Look:
    """Folders sub-*/ with files whose names begin with sub-."""
    people = [folder for folder in entries(root) if folder.name.startswith("sub-") and folder.is_dir()]
    if not people:
        return (
            Look(LAYOUT, ("dataset_description.json",), ("folders sub-*/",))
            if (root / _ABOUT).is_file()
            else Look(LAYOUT)
        )
    found = (several(len(people), "folder") + f" sub-*/, such as {people[0].name}",)
    for folder in (below for person in people for below in (person, *folders(person, 2))):
        if example := next((path for path in entries(folder) if _NAME.match(path.name)), None):
            return Look(LAYOUT, (*found, f"names by the rules of BIDS, such as {example.name}"))
    return Look(LAYOUT, found, ("images called sub-…_<sequence>.nii.gz in them",))


def read(root: Path, asked: Asked = AS_IT_IS) -> Cohort:
    """`read_bids` as every reader is called."""
    return read_bids(root, mask=asked.mask, labels=asked.labels, sequences=asked.sequences)


def read_bids(
    root: Path,
    *,
    mask: str | None = "lesion",
    labels: Mapping[str, int] | None = None,
    sequences: Mapping[str, str] | None = None,
) -> Cohort:
    """Read a BIDS folder.

    A session becomes a case when it has at least one known sequence. `ce-…_T1w` is T1wGd. Of several images of the same
    sequence the plainest name with the lowest run is taken; files that differ from it in the run only are its repeats, and the choice is
    logged.

    Args:
        root: the folder that holds sub-*/.
        mask: what label masks are called: `desc-<mask>_mask`, `label-<mask>_mask`, the same with `_dseg`, or a plain `_dseg`
            with neither entity. None: label masks are not looked at, however many there are.
        labels: foreground class → value in the label files. When not given, what the dataset's own table `…_dseg.tsv` of that name
            says (columns index, name), and {mask: 1} where there is none ({"lesion": 1} of masks called sparse). The JSON of that name may
            say of which classes regions are made.
        sequences: suffix in file names → sequence, of those that say nothing by themselves (`{"MRI": "FLAIR"}`).

    Returns:
        The cohort, named after the folder; the further columns of participants.tsv are in `case.info`.

    Raises:
        CohortError: no such folder, no sub-*/ in it, no known sequence below them, a file in the wrong subject's folder,
            several label (or brain) masks for one session, a label mask for a session without an image, or masks under other names
            only than the one that was asked for.
    """
    subjects = _subject_folders(root)
    said = {suffix.lower(): sequence for suffix, sequence in (sequences or {}).items()}
    raw = _by_session(root, subjects, said)
    derivatives = root / "derivatives"
    pipelines = [
        folder for folder in sorted([*derivatives.glob("sub-*"), *derivatives.glob("*/sub-*")]) if folder.is_dir()
    ]
    derived = _by_session(root, [folder for folder in pipelines if not holds_predictions(folder.parent)], said)
    people = participants(root)

    cases = []
    drawn: set[str] = set()
    for (subject, session), files in sorted(raw.items()):
        beside = derived.pop((subject, session), [])
        images = _images(files, beside)
        if not images:
            _log.info("%s: sub-%s %s has no known sequence; skipped", root, subject, session)
            continue
        spaces = {first.space for first, *_ in images.values()}
        masks = [file for file in (*files, *beside) if _in_spaces(file, spaces)]
        label = _label(masks, mask) if mask else None
        drawn |= _mask_names(masks)
        cases.append(
            Case(
                subject=subject,
                session=session,
                images={name: first.path for name, (first, *_) in images.items()},
                repeats={name: tuple(file.path for file in again) for name, (_, *again) in images.items()},
                label=label,
                sparse=label is not None and says_sparse(label),
                brain=_only(
                    [m for m in masks if m.suffix == "mask" and (_called(m, "brain") or _called(m, "body"))],
                    "brain or body masks",
                ),
                info=people.get(f"sub-{subject}", {}),
            )
        )
    if not cases:
        found = sorted({file.suffix for files in raw.values() for file in files}) or ["no NIfTI file"]
        raise CohortError(
            f"{root}: no known sequence below sub-*/ (found: {', '.join(found[:8])}); expected files such as sub-01_FLAIR.nii.gz; "
            "say what others are, as --sequence 'MRI=FLAIR'"
        )
    for (subject, session), files in derived.items():
        if named := [file.path for file in files if mask and _called(file, mask)]:
            where = f"sub-{subject}" + (f" ses-{session}" if session else "")
            raise CohortError(
                f"{named[0]}: the '{mask}' mask of {where} has no image beside it; bring the image back, name the mask's "
                "session as the image's, or move the mask out of the folder"
            )
    if mask and drawn and not any(case.label for case in cases):
        _nobody_has(mask, sorted(drawn), root)
    scheme = labels or _lookup(root, mask) or {mask if mask and mask != SPARSE else "lesion": 1}
    regions = {} if labels else _regions(root, mask, scheme)
    return Cohort(cases=tuple(cases), labels=scheme, regions=regions, name=root.resolve().name)


def holds_predictions(folder: Path) -> bool:
    """Whether a folder of derivatives was written by `oligovox predict`."""
    try:
        content = read_json(folder / _ABOUT)
    except CohortError:  # none, or not ours to mend
        return False
    return isinstance(content, dict) and content.get("Name") == PREDICTIONS


def _subject_folders(root: Path) -> list[Path]:
    if not root.is_dir():
        raise CohortError(f"{root}: no such folder; expected a BIDS folder that holds sub-*/")
    subjects = [folder for folder in sorted(root.glob("sub-*")) if folder.is_dir()]
    if not subjects:
        below = sorted({folder.parent.name for folder in root.glob("*/sub-*") if folder.is_dir()})
        hint = f"did you mean {root / below[0]}?" if below else "name the folder that holds them"
        raise CohortError(f"{root}: no folder sub-*/ in it, expected one for each person; {hint}")
    return subjects


def _by_session(root: Path, subjects: Sequence[Path], said: Mapping[str, str]) -> dict[tuple[str, str], list[_File]]:
    """NIfTI files of these sub-*/ folders by (subject, session); sessions without files are kept out."""
    found = defaultdict(list)
    for folder in subjects:
        for path in sorted(p for p in files_below(folder) if p.name.startswith("sub-") and ".nii" in p.name):
            if file := _read_name(path, path.relative_to(folder.parent).parts, said):
                found[file.subject, file.session].append(file)
            else:
                _log.info("%s: not a BIDS name; skipped", path.relative_to(root))
    return dict(found)


def _read_name(path: Path, parts: Sequence[str], said: Mapping[str, str]) -> _File | None:
    """What a file name says, given its place below the dataset and what suffixes were said to be; None where it is no BIDS name."""
    if not (match := _NAME.match(path.name)):
        return None
    entities = dict(part.split("-", 1) for part in match["entities"].split("_") if "-" in part)
    folders = dict(part.split("-", 1) for part in parts[:-1] if part.startswith(("sub-", "ses-")))
    for key, value in folders.items():
        if entities.get(key, value) != value:
            raise CohortError(
                f"{path}: lies in the folder {key}-{value} but is named {key}-{entities[key]}; move or rename it"
            )
    subject, session = entities.pop("sub"), entities.pop("ses", folders.get("ses", ""))
    return _File(path, subject, session, entities, said.get(match["suffix"].lower(), match["suffix"]))


def _images(files: Iterable[_File], derived: Iterable[_File]) -> dict[str, list[_File]]:
    """Sequence → its image, and further runs of it."""
    choices = defaultdict(list)
    for file in files:
        if file.sequence:
            choices[file.sequence].append(file)
    for file in derived:
        if file.sequence in DERIVED_SEQUENCES:
            choices[file.sequence].append(file)
    images = {}
    for name, found in sorted(choices.items()):
        first, *others = sorted(found, key=lambda file: file.plainness)
        runs = {file.run: file for file in reversed(others) if file.repeats(first)}
        images[name] = [first, *(runs[number] for number in sorted(runs))]
        rest = [file for file in others if file not in images[name]]
        for some, what in (
            (images[name][1:], "averaged with it by `oligovox ready`, else used by plans that name them"),
            (rest, "not used"),
        ):
            if some:
                names = ", ".join(file.path.name for file in some)
                _log.warning("%s: taken as %s; %s: %s", first.path, name, what, names)
    return images


def _in_spaces(file: _File, spaces: Iterable[str]) -> bool:
    """Whether a mask claims to lie on one of the case's own images; masks in template space do not."""
    if file.space in _INDIVIDUAL_SPACES or file.space in spaces:
        return True
    try:
        return bool(canonical(file.space))
    except SettingsError:
        return False


def _called(file: _File, what: str) -> bool:
    return what in (file.entities.get("desc"), file.entities.get("label"))


def _label(masks: Sequence[_File], mask: str) -> Path | None:
    named = [file for file in masks if file.suffix in ("mask", "dseg") and _called(file, mask)]
    plain = [file for file in masks if file.suffix == "dseg" and not {"desc", "label"} & set(file.entities)]
    return _only(named or plain, f"'{mask}' masks")


def _mask_names(masks: Sequence[_File]) -> set[str]:
    """What label masks are called, whether they were asked for or not."""
    named = (file.entities.get(key) for file in masks if file.suffix in ("mask", "dseg") for key in ("label", "desc"))
    return {name for name in named if name} - {"brain", "body"}


def _nobody_has(mask: str, names: Sequence[str], root: Path) -> None:
    """Masks are there, none of this name: refused where somebody asked for it, said where nobody did."""
    line = f"{root}: no mask is called '{mask}', but masks are there called {', '.join(names)}; choose one, as --mask {names[0]}"
    if mask not in (OWN, SPARSE):
        raise CohortError(line)
    _log.warning("%s", line)


def _only(files: Sequence[_File], what: str) -> Path | None:
    if len(files) > 1:
        names = " and ".join(str(file.path) for file in files[:2])
        raise CohortError(
            f"{len(files)} {what} for one session: {names}; keep one, or move the others out of the folder"
        )
    return files[0].path if files else None


def _lookup(root: Path, mask: str | None) -> dict[str, int]:
    """Class → value by the table that goes with label maps of this name; empty where there is none."""
    for table in _beside(root, (f"desc-{mask}_dseg.tsv", f"label-{mask}_dseg.tsv")):
        rows = read_tsv(table)
        try:
            return {row["name"]: int(row["index"]) for row in rows if int(row["index"]) != 0}
        except (KeyError, ValueError):
            raise CohortError(f"{table}: expected the columns index (a whole number) and name in every row") from None
    return {}


def _regions(root: Path, mask: str | None, labels: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """Region → classes, by the sidecar that goes with label maps of this name; empty where none speaks of regions."""
    endings = (f"{mask}_dseg.json", f"{mask}_mask.json")
    for sidecar in _beside(root, [f"{key}-{ending}" for key in ("desc", "label") for ending in endings]):
        content = read_json(sidecar)
        if not isinstance(content, dict) or REGIONS not in content:
            continue
        given = content[REGIONS]
        parts = list(given.values()) if isinstance(given, dict) else [None]
        if not all(isinstance(part, list) and part and all(name in list(labels) for name in part) for part in parts):
            raise CohortError(
                f"{sidecar}: {REGIONS} is {given!r}, expected region: [classes], of the classes {', '.join(labels)}; "
                "mend it, or take the key out"
            )
        return {name: tuple(part) for name, part in given.items()}
    return {}


def _beside(root: Path, names: Iterable[str]) -> list[Path]:
    """Files of these names at the top of a dataset or of its derivatives."""
    found = [path for name in names for path in (root / name, *sorted(root.glob(f"derivatives/*/{name}")))]
    return [path for path in found if path.is_file()]


def participants(root: Path) -> dict[str, dict[str, str]]:
    """participants.tsv: participant_id → its other columns that are filled in; empty without the table."""
    table = root / "participants.tsv"
    if not table.is_file():
        return {}
    people = {}
    for row in read_tsv(table):
        if "participant_id" not in row:
            raise CohortError(f"{table}: no column participant_id; BIDS asks for it")
        person = row.pop("participant_id")
        people[f"sub-{person.removeprefix('sub-')}"] = {key: value for key, value in row.items() if value}
    return people
