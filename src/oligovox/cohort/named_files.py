"""Folders as hospitals have them: a folder a person, or one folder for all, and files that are called by their sequence.

    Pat1/FLAIR.nii.gz, Pat1/t1_mprage_gd.nii.gz, Pat1/lesion_mask.nii.gz, Pat1/brain_mask.nii.gz      the folder is the person
    Pat1_FLAIR.nii.gz, Pat1_T1.nii.gz, Pat1_FLAIR_lesion.nii.gz                                       what stands before the sequence is

Nothing but names is read, so all of it is a guess: what was taken for what is said, with the command that writes it into a table that people
correct. Where the names could mean two things (two files of one sequence, one person in two folders) nothing is guessed. Tried last.
"""

from __future__ import annotations

import logging
import re
import shlex
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from oligovox.cohort.annotate import says_sparse
from oligovox.cohort.manifest import Case, Cohort
from oligovox.cohort.modalities import canonical
from oligovox.cohort.reading import (
    AS_IT_IS,
    OWN,
    Asked,
    Look,
    entries,
    folders,
    is_nifti,
    is_sequence,
    niftis,
    plain_names,
    several,
    stem,
    who,
)  # fmt: skip
from oligovox.cohort.series import guess
from oligovox.errors import CohortError

_log = logging.getLogger(__name__)

LAYOUT = "named"

_WORD = re.compile(r"[^_\-. ]+")
_MASKS = (
    ("brain", re.compile(r"(?:^|_)brain_?mask$")),
    ("label", re.compile(r"(?:^|_)(?:(?:lesions?_?)?(?:mask|seg|segmentation|label)|lesions?)$")),
)
_SPEAKS = re.compile(
    r"(?:[23]d)?(?:t[12]|pd|flair|dir)(?:w|wi|c|ce|gd|km|ks|post|pre|star|\*|t?se|ffe|gre|mpr(?:age)?|flair|space|cube|sag|ax|tra|cor|[23]d)*"
    r"|(?:[23]d)?(?:mp-?rage|bravo|spgr|tfe|vibe|tirm|flair|space|cube)(?:gd|ce|post|[23]d)*|swan|hemo|medic|venbold|proton|dark"
    r"|[23]d|iso|sag(?:ittal)?|ax(?:ial)?|tra(?:ns(?:versal)?)?|cor(?:onal)?|gd|gad(?:olinium)?|ce|km|pre|post|contrast|kontrast|nativ\w?"
)
"""Words that belong to the name of a sequence: where the first of them stands, the name of the person ends."""
_NO_IMAGE = re.compile(
    r"(?:t[12])?map|ratio|subtract\w*|diff|prob|warp|template|atlas|phase|(?:brain|lesions?)?mask|lesions?|seg|segmentation|labels?|roi|rater\w*"
)
_NOBODY = re.compile(
    r"(?:images?|labels?|masks?|lesions?|segs?|segmentations?)(?:t[rs])?|train(?:ing)?|test(?:ing)?|val(?:idation)?|data|raw|nifti|anat"
)
"""Folders that are called so are nobody's."""
_IN_PLACE_OF = {"T1w": {"T1wGd", "T1in", "T1out"}, "T2w": {"FLAIR", "T2starw", "T2spir"}}
_SHOWN = 4
_TODO = "list the files in a table (subject,FLAIR,T1w,label)"


@dataclass
class _Person:
    """What was found of one."""

    images: dict[str, Path] = field(default_factory=dict)
    masks: dict[str, Path] = field(default_factory=dict)  # 'label', 'brain' → file


def look(root: Path) -> Look:
    """Files in a folder, or one level below it, that are called by their sequence."""
    homes = (root, *(folder for folder in folders(root) if not _is_nobody(folder.name)))
    files = [path for home in homes for path in entries(home) if is_nifti(path) and path.is_file()]
    images = [path for path in files if _read_name(path, "", AS_IT_IS)[1] not in ("", "label", "brain")]
    if not images:
        return Look(LAYOUT)
    return Look(
        LAYOUT, (f"{several(len(images), 'file')} called by a sequence, such as {images[0].relative_to(root)}",)
    )


def read(root: Path, asked: Asked = AS_IT_IS) -> Cohort:
    """Read files by their names, and say what was taken for what.

    Args:
        root: the folder that holds a folder for each person, or the files of all.
        asked: mask: 'lesion' for lesion, lesion_mask, mask, seg, …, or the end of another name, such as lesion_rater2.

    Raises:
        CohortError: nothing is called by a sequence, or the names could mean two things.
    """
    found, unused = _people(root, asked)
    if not found:
        raise CohortError(f"{root}: no file is called by its sequence, such as PERSON/FLAIR.nii.gz; {_TODO}")
    _no_file_twice(found)
    if asked.mask not in (None, OWN) and not any("label" in person.masks for person in found.values()):
        raise CohortError(f"{root}: no mask has a name that ends in '{asked.mask}'; name one that is there")
    names = plain_names(found, root)
    cases = []
    for name, person in sorted(found.items()):
        dataset, subject, session = who(names[name])
        label = person.masks.get("label")
        cases.append(
            Case(
                subject=subject, session=session, dataset=dataset, images=person.images, label=label,
                sparse=label is not None and says_sparse(label), brain=person.masks.get("brain"),
            )
        )  # fmt: skip
    cohort = Cohort(cases=tuple(cases), labels=asked.labels or {"lesion": 1}, name=root.resolve().name)
    _log.warning("%s: %s", root, _said(root, found, unused))
    return cohort


def _people(root: Path, asked: Asked) -> tuple[dict[str, _Person], list[Path]]:
    """(name → person, files that nothing was made of)."""
    flat, unused = _in_one_folder(root, asked)
    found: dict[str, _Person] = {}
    before: dict[str, Path] = {}  # what stands before the sequence in a folder → the folder
    for home in folders(root):
        person, front, rest = _in_own_folder(home, asked)
        unused += [*rest, *(path for below in folders(home) for path in niftis(below).values())]
        if not person.images:
            unused += person.masks.values()
            continue
        if _is_nobody(home.name):
            raise CohortError(f"{home}: a folder '{home.name}' is no person's, and holds images; {_TODO}")
        if front and (other := before.setdefault(front.casefold(), home)) != home:
            raise CohortError(f"{home}: has files called '{front}…' as {other} has; if that is one person, {_TODO}")
        found[unicodedata.normalize("NFC", home.name)] = person
    if flat and found:
        raise CohortError(
            f"{root}: has images and folders with images, so that nobody can tell whose they are; {_TODO}"
        )
    return flat or found, unused


def _in_own_folder(home: Path, asked: Asked) -> tuple[_Person, str, list[Path]]:
    """(the person of a folder, what stands before the sequences, files that nothing was made of)."""
    person, unused = _Person(), []
    read_names = [(path, *_read_name(path, home.name, asked)) for path in _files(home)]
    fronts = {front for _, front, what in read_names if front and what not in ("", "label", "brain")}
    if len(fronts) > 1:
        one, two, *_ = sorted(fronts)
        raise CohortError(f"{home}: has images of '{one}' and of '{two}', expected those of one exam; {_TODO}")
    for path, front, what in read_names:
        if not what or (front and front not in fronts):
            unused.append(path)
        else:
            _add(person, what, path)
    return person, next(iter(fronts), ""), unused


def _in_one_folder(root: Path, asked: Asked) -> tuple[dict[str, _Person], list[Path]]:
    """(name → person by what stands before the sequence, files that nothing was made of); no name: the folder's."""
    found: dict[str, _Person] = defaultdict(_Person)
    unused = []
    for path in _files(root):
        front, what = _read_name(path, "", asked)
        if what:
            _add(found[front], what, path)
        else:
            unused.append(path)
    masks = {name: list(person.masks.values()) for name, person in found.items() if not person.images}
    if masks and len(masks) < len(found):
        name, (path, *_) = next(iter(masks.items()))
        raise CohortError(f"{path}: a mask without an image of '{name}'; {_TODO}")
    if masks:
        return {}, [*unused, *(path for paths in masks.values() for path in paths)]
    words = sorted((_words(name), name) for name in found)
    for (first, one), (second, two) in pairwise(words):
        if second[: len(first)] == first:
            whose = (
                f"'{one}' and '{two}' may be"
                if one
                else f"files with and without a name before the sequence ('{two}') may be of"
            )
            raise CohortError(f"{root}: {whose} one person; {_TODO}")
    return {name or root.resolve().name: person for name, person in found.items()}, unused


def _files(home: Path) -> list[Path]:
    """NIfTI files in a folder; a link to nowhere is refused: what it led to would be missing without a word."""
    for path in entries(home):
        if is_nifti(path) and path.is_symlink() and not path.exists():
            raise CohortError(f"{path}: is a link to nowhere; bring the file back, or take the link away")
    return list(niftis(home).values())


def _read_name(path: Path, home: str, asked: Asked) -> tuple[str, str]:
    """(what stands before the sequence, sequence or 'label' or 'brain'; '' where the name says nothing). The name of the folder in front is left out."""
    text = unicodedata.normalize("NFC", stem(path))
    words, own = list(_WORD.finditer(text)), _words(home)
    said = [word[0].casefold() for word in words]
    skip = len(own) if own and said[: len(own)] == list(own) else 0
    words, said = words[skip:], said[skip:]
    what, until = _mask(said, asked)
    begin = next((n for n, word in enumerate(said[:until]) if _SPEAKS.fullmatch(word) or is_sequence(word)), until)
    if not what:
        named = next((name for name in asked.sequences if said[-len(_words(name)) :] == list(_words(name))), None)
        begin = len(said) - len(_words(named)) if named else begin
        image = not any(_NO_IMAGE.fullmatch(word) for word in said)
        what = asked.sequence(named, path) if named else _sequence(said[begin:]) if image else ""
    front = text[words[0].start() : words[begin].start()].rstrip("_-. ") if words[:begin] and begin < len(words) else ""
    return front, what


def _mask(said: Sequence[str], asked: Asked) -> tuple[str, int]:
    """('label', 'brain' or '' where it is no mask, where the words of the mask begin)."""
    wanted = _words(asked.mask) if asked.mask and asked.mask != OWN else ()
    chosen = bool(wanted) and tuple(said[-len(wanted) :]) == wanted
    joined = "_".join(said[: -len(wanted)] if chosen else said)
    found = next(((what, match.start()) for what, ends in _MASKS if (match := ends.search(joined))), ("", len(joined)))
    what, end = ("label", found[1]) if chosen else found
    return ("" if what == "label" and not chosen and asked.mask != OWN else what), len(_words(joined[:end]))


def _sequence(said: Sequence[str]) -> str:
    """The sequence that words stand for; '' where they stand for none, or for two."""
    if not said:
        return ""
    if is_sequence("_".join(said)):
        return canonical("_".join(said))
    guessed = guess({"SeriesDescription": " ".join(said)}).sequence
    known = {canonical(word) for word in said if is_sequence(word)} | {guessed}
    known -= {name for name, others in _IN_PLACE_OF.items() if others & known}
    return known.pop() if guessed and len(known) == 1 else ""


def _add(person: _Person, what: str, path: Path) -> None:
    """One more file of a person; a second one of the same is refused."""
    place = person.masks if what in ("label", "brain") else person.images
    if (first := place.setdefault(what, path)) != path:
        kind = {"label": "masks of lesions (--mask chooses one by the end of its name)", "brain": "brain masks"}.get(
            what, what
        )
        raise CohortError(f"{path}: {first.name} and {path.name} are both {kind}; keep one, or {_TODO}")


def _no_file_twice(found: dict[str, _Person]) -> None:
    """Refuse a file that two people have, by a link."""
    whose: dict[Path, str] = {}
    for name, person in found.items():
        for path in (*person.images.values(), *person.masks.values()):
            if (other := whose.setdefault(path.resolve(), name)) != name:
                raise CohortError(
                    f"{path}: '{other}' and '{name}' have the same file; take one of them away, or {_TODO}"
                )


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.casefold() for word in _WORD.findall(unicodedata.normalize("NFC", text)))


def _is_nobody(name: str) -> bool:
    return all(_NOBODY.fullmatch(word) or _SPEAKS.fullmatch(word) or is_sequence(word) for word in _words(name))


def _said(root: Path, found: dict[str, _Person], unused: Sequence[Path]) -> str:
    """What was taken for what, in one line."""
    taken: dict[str, set[str]] = defaultdict(set)
    for person in found.values():
        for what, path in (person.images | person.masks).items():
            taken[what].add(path.name)
    parts = [f"{len(found)} {'person' if len(found) == 1 else 'people'} ({_some(found)})"]
    parts += [f"{what} from {_some(names)}" for what, names in sorted(taken.items())]
    parts += [f"not used: {_some(str(path.relative_to(root)) for path in unused)}"] if unused else []
    todo = f"to correct it, write a table: oligovox cohort write {shlex.quote(str(root))} exams.tsv --to table --layout {LAYOUT}"
    return f"taken by the names of its files, which is a guess: {'; '.join(parts)}; {todo}"


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:_SHOWN]) + (f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else "")
