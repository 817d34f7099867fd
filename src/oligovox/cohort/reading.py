"""What every reader shares: what is asked of it, what it says about a folder, and how foreign names become ours.

A reader is a module with three names: `LAYOUT`, what it is called; `look(root)`, which reads names and at most one small file and says what
speaks for this layout and what is missing; and `read(root, asked)`, which gives the cohort. No reader writes into the folder it reads.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oligovox.cohort.modalities import ALIASES, canonical
from oligovox.errors import CohortError, SettingsError, nearest

OWN = "lesion"
"""The mask that is meant where nobody names one: the layout's own."""

_NIFTI = (".nii.gz", ".nii")
_OURS = re.compile(r"(?:(?P<dataset>.+?)_)?sub-(?P<subject>.+?)(?:_ses-(?P<session>.+))?", re.DOTALL)
_VISIT = re.compile(
    r"(?P<subject>.*\d{4,}(?=-\d{3}$)|BraTS-MEN-RT-\d{4,})-(?P<session>\d+)"
)  # BraTS-GLI-00005-100 and its kin


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How a folder is to be read.

    Attributes:
        mask: which label, in the words of the layout (a rater, a sequence it was drawn on); 'lesion': the layout's own; None: labels are
            not looked at.
        labels: class → value in the label files; None: as the folder says, or as the layout is known to be.
        sequences: name used in the folder → sequence, where the folder's name says nothing (`{"MRI": "FLAIR"}`).
        work: folder for images that must become 3-D NIfTI files first (DICOM, 4-D files); None: such a layout is refused, with what to do.
    """

    mask: str | None = OWN
    labels: Mapping[str, int] | None = None
    sequences: Mapping[str, str] = field(default_factory=dict)
    work: Path | None = None

    def sequence(self, name: str, where: object) -> str:
        """The sequence that a folder calls `name`.

        Raises:
            CohortError: not known; says how to name it.
        """
        given = {key.lower(): value for key, value in self.sequences.items()}.get(name.lower(), name)
        try:
            return canonical(given)
        except SettingsError:
            raise CohortError(
                f"{where}: '{given}' is no sequence that is known, {nearest(given, ALIASES)}; say which it is, as --sequence '{name}=FLAIR'"
            ) from None

    def is_sequence(self, name: str) -> bool:
        """Whether `name` is known, by itself or because it was asked."""
        return name.lower() in {key.lower() for key in self.sequences} or is_sequence(name)

    def rater(self, known: Mapping[str, str], where: object) -> str | None:
        """The file or column that holds the label that is asked for; `known` has the layout's own first.

        Raises:
            CohortError: the layout has no such label.
        """
        if self.mask is None:
            return None
        if self.mask == OWN:
            return next(iter(known.values()))
        if self.mask not in known:
            raise CohortError(f"{where}: no label is called '{self.mask}' here; {nearest(self.mask, known)}")
        return known[self.mask]


AS_IT_IS = Asked()
"""Nothing in particular."""


@dataclass(frozen=True)
class Look:
    """What speaks for a layout, and what would have to be there as well.

    Attributes:
        layout: its name.
        found: what was seen, in words; empty where nothing speaks for it.
        missing: what was not; empty where the folder is of this layout.
    """

    layout: str
    found: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the folder is of this layout."""
        return bool(self.found) and not self.missing


def is_sequence(name: str) -> bool:
    """Whether a name is a sequence's."""
    try:
        return bool(canonical(name))
    except SettingsError:
        return False


def is_nifti(path: Path) -> bool:
    """By its name; files that a Mac leaves behind (._name) are none."""
    return path.name.endswith(_NIFTI) and not path.name.startswith(".")


def stem(path: Path) -> str:
    """A file name without .nii or .nii.gz."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, in order of name; nothing where there is no folder.

    Raises:
        CohortError: it may not be read: exams in it would be missing without a word.
    """
    try:
        with os.scandir(folder) as found:
            return sorted(folder / entry.name for entry in found if not entry.name.startswith("."))
    except OSError as error:
        _closed(error, folder)
        return []


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder, links to folders not followed.

    Raises:
        CohortError: a folder in it may not be read.
    """
    for home, _, names in os.walk(folder, onerror=lambda error: _closed(error, Path(error.filename or folder))):
        yield from (Path(home, name) for name in names)


def _closed(error: OSError, folder: Path) -> None:
    if isinstance(error, PermissionError):
        raise CohortError(f"{folder}: this folder may not be read; ask for access to it, or move it away") from None


def folders(root: Path, depth: int = 1) -> Iterator[Path]:
    """Folders below `root`, at most so deep; of each level in order of name."""
    for folder in (path for path in entries(root) if path.is_dir()):
        yield folder
        if depth > 1:
            yield from folders(folder, depth - 1)


def niftis(folder: Path) -> dict[str, Path]:
    """Stem → NIfTI file directly in a folder.

    Raises:
        CohortError: the same file is there twice, as .nii and as .nii.gz.
    """
    found: dict[str, Path] = {}
    for path in entries(folder):
        if is_nifti(path) and path.is_file():
            if stem(path) in found:
                raise CohortError(f"{path}: is there as .nii and as .nii.gz; keep one of the two")
            found[stem(path)] = path
    return found


def who(name: str) -> tuple[str, str, str]:
    """(dataset, subject, session) that the name of a case stands for: `sub-01_ses-2` as it says, `BraTS-GLI-00005-100` is visit 100 of one
    person, every other name is a person of its own."""
    if ours := _OURS.fullmatch(name):
        return ours["dataset"] or "", ours["subject"], ours["session"] or ""
    if visit := _VISIT.fullmatch(name):
        return "", visit["subject"], visit["session"]
    return "", name, ""


def plain_names(names: Iterable[str], where: object) -> dict[str, str]:
    """Name as it is → name that a file, a table and a split can hold: accents go, other signs become '-', letters of other scripts a code.

    Raises:
        CohortError: two names would become one.
    """
    found: dict[str, str] = {}
    taken: dict[str, str] = {}
    for name in names:
        made = found.setdefault(name, _plain(name))
        if taken.setdefault(made, name) != name:
            raise CohortError(
                f"{where}: '{taken[made]}' and '{name}' would both be called '{made}'; rename one, so that nobody is taken for somebody else"
            )
    return found


def _plain(name: str) -> str:
    letters = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    if re.fullmatch(r"[A-Za-z0-9+_-][A-Za-z0-9+._-]*", name):
        return name
    kept = re.sub(r"[^A-Za-z0-9+._-]+", "-", letters).strip("-.")
    if kept and letters.isascii():
        return kept
    code = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{kept}-{code}" if kept else code


def several(count: int, what: str) -> str:
    """'1 case', '3 cases'."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def table_of(content: Any, where: object, what: str) -> dict[str, Any]:
    """A JSON object that came from elsewhere.

    Raises:
        CohortError: it is something else.
    """
    if not isinstance(content, dict):
        raise CohortError(f"{where}: {what} is {_shown(content)}, expected names with values ({{…}})")
    return content


def table_or_none(content: Any) -> dict[str, Any]:
    """A JSON object, empty where it is something else: for what may be missing."""
    return content if isinstance(content, dict) else {}


def list_of(content: Any, where: object, what: str) -> Sequence[Any]:
    """A JSON list that came from elsewhere.

    Raises:
        CohortError: it is something else.
    """
    if not isinstance(content, list):
        raise CohortError(f"{where}: {what} is {_shown(content)}, expected a list ([…])")
    return content


def whole_number(content: Any, where: object, what: str, least: int = 0, most: int = 65535) -> int:
    """A JSON number that came from elsewhere; text with a number in it passes as well.

    Raises:
        CohortError: it is something else, or out of range.
    """
    number = int(content) if isinstance(content, str) and re.fullmatch(r"\d{1,9}", content) else content
    if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= most:
        raise CohortError(f"{where}: {what} is {_shown(content)}, expected a whole number from {least} to {most}")
    return number


def existing(root: Path, text: Any, where: object) -> Path:
    """The file that a path from elsewhere names, relative to `root` where it is not absolute. It is only ever read.

    Raises:
        CohortError: it is no text, or there is no such file.
    """
    if not isinstance(text, str) or not text or "\0" in text:
        raise CohortError(f"{where}: {_shown(text)} is no path of a file")
    path = root / text
    try:
        there = path.is_file()
    except (OSError, ValueError):
        there = False
    if not there:
        raise CohortError(
            f"{where}: names the file {text}, but {path} is not there; mend the path or bring the file back"
        )
    return path


def outside(root: Path, paths: Iterable[Path]) -> list[Path]:
    """Those that lie outside of `root`, links followed."""
    home = root.resolve()
    return [path for path in paths if not path.resolve().is_relative_to(home)]


def _shown(content: Any) -> str:
    text = repr(content).replace("\n", " ")
    return text if len(text) <= 60 else f"{text[:57]}…"


def the_only(files: Sequence[Path], root: Path, kind: str, expected: str, *, of: str = "") -> Path:
    """The one file of a kind (list, table) in a folder.

    Raises:
        CohortError: there is none, or there are several.
    """
    if len(files) != 1:
        found = (
            f"several {kind}s{of} in it ({', '.join(path.name for path in files)})" if files else f"no {kind}{of} in it"
        )
        raise CohortError(f"{root}: {found}, expected {expected}; give the path of a {kind}")
    return files[0]
