"""Datalists of the Medical Segmentation Decathlon and MONAI: one JSON file that names the files of each case; read and written.

    {"training":   [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz", "fold": 0}, …],
     "validation": […], "test": […],
     "modality":   {"0": "FLAIR", "1": "T1w"},  "labels": {"0": "background", "1": "edema"}}

`image` is a file, a list of files in the order of `modality`, or there is a key for each sequence (`"t1c": "a_t1c.nii.gz"`). Where nothing names
the sequences, the file names do. Paths are relative to the JSON file; those that lead elsewhere are read, and said. Images of several sequences
in one 4-D file, as in the brain tumour task of the Decathlon, are split into a work folder.

An entry may also say `subject`, `session`, `dataset`, `brain`, `modality` and `info`: what is written here does, so that nothing is lost.

Source: Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 2022; documentation of MONAI's `load_decathlon_datalist`.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from oligovox.cohort.annotate import NOBODY_LOOKED, says_sparse
from oligovox.cohort.manifest import Case, Cohort
from oligovox.cohort.reading import (
    AS_IT_IS,
    Asked,
    Look,
    entries,
    existing,
    is_sequence,
    list_of,
    outside,
    plain_names,
    several,
    stem,
    table_of,
    table_or_none,
    the_only,
    who,
    whole_number,
)  # fmt: skip
from oligovox.errors import CohortError, ImageError, OutputError
from oligovox.files import atomic_file, check_writable, read_json, write_json

_log = logging.getLogger(__name__)

LAYOUT = "datalist"
_LISTS = {"training": "", "validation": "validation", "val": "validation", "test": "test", "testing": "test"}
"""Key → what `case.info` says as its part; nothing for training."""

_FILES = ("image", "label", "brain")


def look(root: Path) -> Look:
    """A JSON file with a list of cases: the one that is given, or the only one in the folder."""
    if root.is_file() and root.suffix != ".json":
        return Look(LAYOUT)
    files = [root] if root.is_file() else [path for path in entries(root) if path.suffix == ".json" and path.is_file()]
    lists = [path for path in files if _lists(path)]
    if len(lists) > 1:
        names = ", ".join(path.name for path in lists)
        return Look(LAYOUT, (f"lists of cases: {names}",), ("a choice: give the path of one of them",))
    if not lists:
        return (
            Look(LAYOUT, ("a JSON file",), ("lists training, validation or test in it",))
            if root.is_file()
            else Look(LAYOUT)
        )
    counts = ", ".join(f"{name} {count}" for name, count in _lists(lists[0]).items())
    return Look(LAYOUT, (f"{lists[0].name} lists cases ({counts})",))


def read(root: Path, asked: Asked = AS_IT_IS) -> Cohort:
    """Read a datalist.

    Args:
        root: the JSON file, or the folder that holds it and no other.
        asked: mask: 'lesion' for the key `label`, or another key; work: where 4-D images are split.

    Raises:
        CohortError: the file cannot be understood, a sequence is not known, or a file is not there.
        ImageError: a 4-D image cannot be read.
    """
    file = root if root.is_file() else _only_list(root)
    content = table_of(read_json(file), file, "the content")
    named = _names(content.get("modality", content.get("channel_names")), file)
    items = list(_items(content, file))
    if not items:
        raise CohortError(f"{file}: no case; expected a list training, validation or test with entries")
    titles = [_title(item, where) for where, _, item in items]
    plain = plain_names(titles, file)
    cases = tuple(
        _case(where, part, item, plain[title], file, named, asked)
        for (where, part, item), title in zip(items, titles, strict=True)
    )
    files = [path for case in cases for path in (*case.images.values(), case.label) if path]
    if elsewhere := outside(file.parent, files):
        _log.warning(
            "%s: %d of %d files lie elsewhere, first %s; they are only read",
            file,
            len(elsewhere),
            len(files),
            elsewhere[0],
        )
    return Cohort(
        cases=cases,
        labels=asked.labels or _labels(content.get("labels"), file),
        regions={} if asked.labels else _regions(content.get("regions"), file),
        name=file.parent.resolve().name if file.name == "dataset.json" else file.stem,
    )


def _only_list(root: Path) -> Path:
    """The list in a folder that holds one and no other."""
    lists = [path for path in entries(root) if path.suffix == ".json" and _lists(path)]
    return the_only(lists, root, "list", "one JSON file with training, validation or test", of=" of cases")


def write(cohort: Cohort, file: Path) -> None:
    """Write a datalist that names the files where they lie, relative to it where they lie below it.

    Raises:
        OutputError: the file is there already, or cannot be written.
    """
    if file.exists() or file.is_symlink():
        raise OutputError(f"{file}: is there already; choose another name")
    check_writable(file.parent)
    lists: dict[str, list[dict[str, Any]]] = {"training": [], "validation": [], "test": []}
    for case in cohort.cases:
        part = case.info.get("part", "")
        lists[part if part in lists else "training"].append(_entry(case, file.parent))
    write_json(
        file,
        {
            "name": cohort.name,
            "modality": {str(number): name for number, name in enumerate(cohort.modalities)},
            "labels": {"0": "background", **{str(value): name for name, value in cohort.labels.items()}},
            **({"regions": {name: list(parts) for name, parts in cohort.regions.items()}} if cohort.regions else {}),
            "numTraining": len(lists["training"]),
            "numTest": len(lists["test"]),
            **lists,
        },
    )


def _entry(case: Case, home: Path) -> dict[str, Any]:
    """What the list says about one case."""
    info = {key: value for key, value in case.info.items() if key not in ("part", "fold")}
    files = {"image": list(case.images.values()), "label": case.label, "brain": case.brain}
    place = {
        key: [_written(p, home) for p in v] if isinstance(v, list) else _written(v, home)
        for key, v in files.items()
        if v
    }
    fold = {"fold": int(case.info["fold"])} if case.info.get("fold", "").isdecimal() else {}
    more = {
        "session": case.session,
        "dataset": case.dataset,
        "info": info,
        "unlooked": case.unlooked if case.sparse else None,
    }
    return {
        **place,
        **fold,
        "modality": list(case.images),
        "subject": case.subject,
        **{k: v for k, v in more.items() if v},
    }


def _written(path: Path, home: Path) -> str:
    path, home = Path(os.path.abspath(path)), Path(os.path.abspath(home))
    return path.relative_to(home).as_posix() if path.is_relative_to(home) else path.as_posix()


def _lists(file: Path) -> dict[str, int]:
    """List → entries; empty where the file holds none."""
    try:
        content = table_or_none(read_json(file))
    except CohortError:
        return {}
    return {key: len(content[key]) for key in _LISTS if isinstance(content.get(key), list)}


def _items(content: Mapping[str, Any], file: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(where it stands, part, entry) of every case; an entry may be a file name alone."""
    for key, part in _LISTS.items():
        for number, item in enumerate(list_of(content.get(key, []), file, f"'{key}'")):
            where = f"{file}: {key}[{number}]"
            entry = {"image": item} if isinstance(item, str | list) else table_of(item, where, "the entry")
            yield where, part, entry


def _names(given: Any, where: object) -> list[str]:
    """Sequences in order, as the file calls them; empty where it does not."""
    if given is None or given == {}:
        return []
    if isinstance(given, str):
        return [given]
    if isinstance(given, list):
        return [str(name) for name in given]
    table = {
        whole_number(number, where, "a number in 'modality'"): str(name)
        for number, name in table_of(given, where, "'modality'").items()
    }
    return [table[number] for number in sorted(table)]


def _sources(item: Mapping[str, Any], where: str) -> tuple[list[str], list[str]]:
    """(paths, names) of the images of an entry; names are empty where it gives none."""
    if "image" in item:
        image = item["image"]
        paths = [image] if isinstance(image, str) else list(list_of(image, where, "'image'"))
        return [str(path) for path in paths], _names(item.get("modality"), where)
    keys = [key for key, value in item.items() if is_sequence(key) and isinstance(value, str)]
    return [item[key] for key in keys], keys


def _case(
    where: str, part: str, item: Mapping[str, Any], title: str, file: Path, named: Sequence[str], asked: Asked
) -> Case:
    """One entry as a case."""
    texts, own = _sources(item, where)
    if not texts:
        raise CohortError(f"{where}: names no image; expected the key 'image', or one key for each sequence")
    paths = [existing(file.parent, text, where) for text in texts]
    names = own or list(named)
    joined = paths[0] if len(paths) == 1 and len(names) > 1 else None
    paths = [joined] * len(names) if joined else paths
    if not names:
        names = [_ending(stem(path)) or (f"image{n}" if len(paths) > 1 else "image") for n, path in enumerate(paths)]
    if len(names) != len(paths):
        raise CohortError(
            f"{where}: {several(len(paths), 'image')} and {several(len(names), 'sequence')} ({', '.join(names)}); expected as many"
        )
    images: dict[str, Path] = {}
    for name, path in zip(names, paths, strict=True):
        if (sequence := asked.sequence(name, where)) in images:
            raise CohortError(f"{where}: two images are called {sequence}; keep one of each sequence")
        images[sequence] = path
    key = "label" if asked.mask in (None, "lesion") else str(asked.mask)
    label = existing(file.parent, item[key], where) if asked.mask and item.get(key) else None
    unlooked = whole_number(item["unlooked"], where, "'unlooked'", most=255) if item.get("unlooked") else NOBODY_LOOKED
    dataset, subject, session = ("", title, "") if item.get("subject") else who(title)
    info = {k: str(v) for k, v in table_or_none(item.get("info")).items()}
    case = Case(
        subject=subject,
        session=str(item.get("session", session)),
        dataset=str(item.get("dataset", dataset)),
        images=images,
        label=label,
        sparse=label is not None and (bool(item.get("unlooked")) or says_sparse(label)),
        unlooked=unlooked if label else NOBODY_LOOKED,
        brain=existing(file.parent, item["brain"], where) if item.get("brain") else None,
        info=info | ({"part": part} if part else {}) | ({"fold": str(item["fold"])} if "fold" in item else {}),
    )
    return replace(case, images=_split(joined, list(images), case.name, where, asked.work)) if joined else case


def _title(item: Mapping[str, Any], where: str) -> str:
    """Name of a case: what the entry says, else what its files have in common, else the folder they lie in."""
    if item.get("subject"):
        return str(item["subject"]).removeprefix("sub-")
    texts = [text for text in _sources(item, where)[0] if text]
    if not texts:
        raise CohortError(f"{where}: names no image; expected the key 'image', or one key for each sequence")
    stems = [stem(Path(text)) for text in texts]
    names = {re.sub(r"_\d{4}$", "", name) for name in stems} if len(stems) > 1 else {""}
    names = names if len(names) == 1 and "" not in names else {_without_sequence(name) for name in stems}
    if len(names) == 1 and (name := names.pop()):
        return name
    parents = {Path(text).parent.name for text in texts}
    if len(parents) == 1 and (parent := parents.pop()):
        return parent
    raise CohortError(
        f'{where}: cannot tell whose images these are ({", ".join(texts)[:80]}); add "subject" to the entry'
    )


def _ending(name: str) -> str:
    """The sequence that a file name ends in; '' where it does in none."""
    parts = re.split(r"[_.\- ]", name)
    return next((end for end in ("_".join(parts[-2:]), parts[-1]) if is_sequence(end)), "")


def _without_sequence(name: str) -> str:
    """'BRATS_001_t1c' → 'BRATS_001'; a name that is a sequence only becomes ''."""
    end = _ending(name)
    return name[: len(name) - len(end)].rstrip("_.- ") if end else name


def _split(path: Path, names: Sequence[str], case: str, where: str, work: Path | None) -> dict[str, Path]:
    """Sequence → its image of one 4-D file, written into the work folder, below the name of the case, where it is not there yet."""
    try:
        image = nib.load(path)
        shape = image.shape
    except Exception as error:  # whatever a damaged file does to nibabel
        raise ImageError(path, f"cannot be read ({type(error).__name__})", "copy it again from its source") from error
    if len(shape) != 4 or shape[3] != len(names):
        raise CohortError(
            f"{where}: {path.name} has shape {shape}, expected 4-D with {len(names)} images ({', '.join(names)})"
        )
    if work is None:
        raise CohortError(
            f"{path}: holds {len(names)} images in one 4-D file; make a folder of 3-D images first: oligovox cohort write {path.parent.parent} OUT --to bids"
        )
    made = {name: work / case / f"{case}_{name}.nii.gz" for name in names}
    for number, target in enumerate(made.values()):
        if not target.is_file():
            with atomic_file(target) as temporary:
                nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj[..., number]), image.affine), temporary)
    return made


def _labels(given: Any, where: object) -> dict[str, int]:
    """Class → value; {"lesion": 1} where nothing is said. Both directions are in use: value → name, and name → value."""
    if not given:
        return {"lesion": 1}
    table = table_of(given, where, "'labels'")
    if all(key.isdecimal() for key in table):
        table = {str(name): value for value, name in table.items()}
    return {name: value for name, v in table.items() if (value := whole_number(v, where, f"label '{name}'", most=254))}


def _regions(given: Any, where: object) -> dict[str, tuple[str, ...]]:
    table = table_or_none(given)
    return {name: tuple(map(str, list_of(parts, where, f"region '{name}'"))) for name, parts in table.items()}
