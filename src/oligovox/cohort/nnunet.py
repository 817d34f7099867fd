"""nnU-Net's raw folders, read and written; and the names of its predictions.

    DatasetNNN_Name/dataset.json                 channel_names, labels, numTraining, file_ending
    DatasetNNN_Name/imagesTr/CASE_0000.nii.gz    one file a channel; imagesTs the same, without labels
    DatasetNNN_Name/labelsTr/CASE.nii.gz

A label may be a value, or a list of values: a region. Classes are then the parts that the regions cut out of each other, called as the smallest
region they belong to. `ignore` is a value where nobody looked. The older form (modality for channel_names, value → name for labels) is read as
well, and a table of files under the key "dataset".

nnU-Net knows cases and no people. A case called sub-01_ses-2 or BraTS-GLI-00005-100 is a visit of sub-01 and of BraTS-GLI-00005; all others are
taken for a person each.

Source: nnU-Net v2, documentation of the dataset format, region-based training and the ignore label.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from oligovox.cohort.annotate import NOBODY_LOOKED
from oligovox.cohort.manifest import Case, Cohort
from oligovox.cohort.reading import (
    AS_IT_IS,
    OWN,
    Asked,
    Look,
    entries,
    existing,
    niftis,
    plain_names,
    several,
    stem,
    table_of,
    table_or_none,
    who,
    whole_number,
)  # fmt: skip
from oligovox.cohort.writing import check_files, check_one_grid, new_folder, place, place_label
from oligovox.errors import CohortError, SettingsError
from oligovox.files import read_json, write_json

_log = logging.getLogger(__name__)

LAYOUT = "nnunet"
ABOUT = "dataset.json"
OURS = "oligovox"
"""Key of dataset.json for what nnU-Net has no place for."""

_FOLDER = re.compile(r"Dataset\d{3}_.+")
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})", re.DOTALL)
_TRAIN, _TEST = ("imagesTr", "labelsTr"), ("imagesTs", "labelsTs")


def look(root: Path) -> Look:
    """dataset.json with names of channels, and images with a channel number in their name."""
    found, missing = [], []
    numbered = [path for part in (_TRAIN, _TEST) for path in entries(root / part[0]) if _CHANNEL.fullmatch(stem(path))]
    if numbered:
        found.append(f"{several(len(numbered), 'image')} with a channel number, such as {numbered[0].name}")
    elif (root / _TRAIN[0]).is_dir():
        missing.append("images with a channel number in imagesTr, such as CASE_0000.nii.gz")
        found.append("a folder imagesTr")
    if not found:
        return Look(LAYOUT)
    if not (root / ABOUT).is_file():
        missing.append(f"{ABOUT} with channel_names and labels")
    elif not {"channel_names", "modality"} & set(_content(root)):
        missing.append(f"channel_names in {ABOUT}")
    else:
        found.append(f"{ABOUT} with names of the channels")
    return Look(LAYOUT, tuple(found), tuple(missing))


def read(root: Path, asked: Asked = AS_IT_IS) -> Cohort:
    """Read a raw dataset; cases in imagesTs are unlabelled unless there is a labelsTs.

    Args:
        root: the folder that holds dataset.json.
        asked: mask: 'lesion' for labelsTr, or the name of another folder of labels in it.

    Raises:
        CohortError: dataset.json cannot be understood, a channel or a file is not known or not there, or nothing is there.
    """
    about = table_of(read_json(root / ABOUT), root / ABOUT, "the content")
    ours = table_or_none(about.get(OURS))
    scheme = _scheme(
        about.get("labels", {"background": 0, "lesion": 1}), table_or_none(ours.get("labels")), root / ABOUT
    )
    channels = _channels(about, asked, root / ABOUT)
    found = _listed(root, about) if "dataset" in about else _in_folders(root, about, asked)
    names = plain_names([case for case, _, _ in found], root)
    cases = []
    told = table_or_none(ours.get("info"))
    for case, files, (label, info) in found:
        more = table_or_none(told.get(case))
        dataset, subject, session = who(names[case])
        images: dict[str, Path] = {}
        for channel, path in files.items():
            if channel not in channels:
                raise CohortError(
                    f"{path}: has the channel number {channel}, {ABOUT} names only {', '.join(map(str, channels))}; name it there"
                )
            if channels[channel] in images:
                raise CohortError(
                    f"{root / ABOUT}: two channels are called {channels[channel]}; give them names of their own"
                )
            images[channels[channel]] = path
        label = label if asked.mask else None
        sparse = label is not None and scheme.ignore is not None and _holds(label, scheme.ignore)
        cases.append(
            Case(
                subject=subject, session=session, dataset=dataset, images=images, label=label,
                info=info | {key: value for key, value in more.items() if isinstance(value, str)},
                sparse=sparse, unlooked=scheme.ignore if sparse and scheme.ignore else NOBODY_LOOKED,
            )
        )  # fmt: skip
    return Cohort(
        cases=tuple(cases),
        labels=asked.labels or scheme.labels,
        regions={} if asked.labels else scheme.regions,
        name=root.resolve().name,
    )


def predictions(folder: Path) -> dict[tuple[str, str, str], Path]:
    """(dataset, subject, session) → label map in a folder that nnU-Net predicted into; empty where none has such a name."""
    files = niftis(folder)
    names = plain_names(files, folder)
    return {who(names[name]): path for name, path in files.items()}


@dataclass(frozen=True)
class _Scheme:
    """What the values in label files mean."""

    labels: Mapping[str, int]
    regions: Mapping[str, tuple[str, ...]]
    ignore: int | None


def _content(root: Path) -> dict[str, Any]:
    """dataset.json, empty where it is none."""
    try:
        content = read_json(root / ABOUT)
    except CohortError:
        return {}
    return content if isinstance(content, dict) else {}


def _scheme(given: Any, named: Mapping[str, Any], where: Path) -> _Scheme:
    """Classes, regions and the ignore label; `named`: what we wrote beside them, which names the classes that regions are made of."""
    given = table_of(given, where, "labels")
    if given and all(isinstance(value, str) and key.isdigit() for key, value in given.items()):  # the older form
        given = {name: value for value, name in given.items()}
    ignore = None
    single: dict[str, int] = {}
    several_values: dict[str, frozenset[int]] = {}
    for name, value in given.items():
        what = f"label '{name}'"
        if isinstance(value, list):
            parts = frozenset(whole_number(v, where, what, most=254) for v in value) - {0}
            several_values |= {name: parts} if parts else {}
        elif name == "ignore":
            ignore = whole_number(value, where, what, least=1, most=255)
        elif number := whole_number(value, where, what, most=254):
            single[name] = number
    if not several_values:
        return _Scheme(single, {}, ignore)
    values = {name: frozenset([value]) for name, value in single.items()} | several_values
    regions = {name: values[name] for name in given if name in values}
    classes = _parts(regions, named)
    by_value = {value: name for name, value in classes.items()}
    made = {name: tuple(by_value[v] for v in sorted(parts)) for name, parts in regions.items()}
    return _Scheme(classes, made, ignore)


def _parts(regions: Mapping[str, frozenset[int]], named: Mapping[str, Any]) -> dict[str, int]:
    """Class → value: each value is called as the smallest region that holds it, with its number where others are left of that region."""
    values = sorted(frozenset().union(*regions.values()))
    if set(named.values()) == set(values) and len(named) == len(values):
        return {name: int(value) for name, value in named.items()}
    classes = {}
    for value in values:
        name = min((name for name, parts in regions.items() if value in parts), key=lambda name: len(regions[name]))
        classes[name if len(regions[name]) == 1 else f"{name}-{value}"] = value
    return classes


def _channels(about: Mapping[str, Any], asked: Asked, where: Path) -> dict[int, str]:
    """Channel number → sequence."""
    given = about.get("channel_names", about.get("modality"))
    if isinstance(given, list):
        given = dict(enumerate(given))
    names = table_of(given, where, "channel_names")
    return {
        whole_number(number, where, "a channel number"): asked.sequence(str(name), where)
        for number, name in names.items()
    }


_Found = tuple[str, dict[int, Path], tuple[Path | None, dict[str, str]]]
"""Case, channel number → image, (label, info)."""


def _in_folders(root: Path, about: Mapping[str, Any], asked: Asked) -> list[_Found]:
    """Cases of imagesTr and imagesTs."""
    ending = about.get("file_ending", ".nii.gz")
    if ending not in (".nii.gz", ".nii"):
        raise CohortError(
            f"{root / ABOUT}: file_ending is {ending!r}; only NIfTI is read (.nii.gz, .nii), convert the images"
        )
    found: list[_Found] = []
    for images, labels in (_TRAIN, _TEST):
        own = labels if asked.mask in (None, OWN) else str(asked.mask)
        if asked.mask not in (None, OWN) and not (root / own).is_dir():
            raise CohortError(
                f"{root}: no folder of labels '{own}' in it; give the name of one that is there, or leave the mask out"
            )
        masks = niftis(root / own) if Path(own).name == own else {}
        channels: dict[str, dict[int, Path]] = defaultdict(dict)
        for name, path in niftis(root / images).items():
            if not (match := _CHANNEL.fullmatch(name)):
                raise CohortError(f"{path}: has no channel number in its name, expected CASE_0000.nii.gz; rename it")
            channels[match["case"]][int(match["channel"])] = path
        if own == labels == _TRAIN[1] and (lost := sorted(set(masks) - set(channels))):
            raise CohortError(
                f"{masks[lost[0]]}: a label without an image; bring {lost[0]}_0000 back to {images}, or move the label out"
            )
        for case, files in sorted(channels.items()):
            tested = images == _TEST[0] and case in masks and own == labels
            found.append((case, files, (masks.get(case), {"part": "test"} if tested else {})))
    return found


def _listed(root: Path, about: Mapping[str, Any]) -> list[_Found]:
    """Cases of the table "dataset": {case: {"images": […], "label": …}}."""
    found: list[_Found] = []
    for case, files in table_of(about["dataset"], root / ABOUT, "dataset").items():
        where = f"{root / ABOUT}: {case}"
        files = table_of(files, where, "the entry")
        images: Sequence[Any] = files.get("images") or ()
        paths = {number: existing(root, text, where) for number, text in enumerate(images)}
        label = existing(root, files["label"], where) if files.get("label") else None
        found.append((case, paths, (label, {})))
    return found


def _holds(path: Path, value: int) -> bool:
    """Whether a label map has a value; one that cannot be read is said when it is prepared."""
    try:
        return bool((np.asanyarray(nib.load(path).dataobj) == value).any())
    except Exception:  # whatever a damaged file does to nibabel
        return False


def write(cohort: Cohort, out: Path, *, link: bool = False, incomplete: str = "refuse") -> Sequence[Case]:
    """Write a raw dataset: labelled cases to imagesTr, the others, and those of the part 'test', to imagesTs.

    Label values become 1, 2, 3 … where they are not, and the one after them is where nobody looked, as nnU-Net asks. Brain masks have no place.

    Args:
        cohort: who there is; `case.info` and the names of classes go under a key of our own in dataset.json.
        out: a new folder; nnU-Net looks for DatasetNNN_Name.
        link: link the files instead of copying them.
        incomplete: what to do with a case that lacks a sequence, which nnU-Net cannot use: refuse all, leave it out, or write what it has.

    Returns:
        The cases that were written.

    Raises:
        CohortError: a case lacks a sequence, lies on several grids, or has a name that would be read as another.
        ImageError: a file is missing or cannot be read.
        LabelError: a label map has a value that is no class.
        OutputError: `out` is there already, or cannot be written.
        SettingsError: nothing of that name is done with incomplete cases.
    """
    if incomplete not in ("refuse", "leave out", "keep"):
        raise SettingsError(f"incomplete = '{incomplete}'; expected refuse, 'leave out' or keep")
    cases = _complete(cohort, incomplete)
    check_files(cohort)
    for case in cases:
        check_one_grid(case, "nnU-Net needs one for all channels and the label")
    order = sorted(cohort.labels, key=lambda name: cohort.labels[name])
    values = {name: number for number, name in enumerate(order, start=1)}
    changes = {cohort.labels[name]: value for name, value in values.items()}
    ignore = len(values) + 1 if any(case.sparse for case in cases) else None
    ids = {case.name: _id(case) for case in cases}
    training = 0
    with new_folder(out) as folder:
        for case in cases:
            images, labels = _TEST if case.label is None or case.info.get("part") == "test" else _TRAIN
            training += images == _TRAIN[0]
            for number, name in enumerate(cohort.modalities):
                if name in case.images:
                    place(case.images[name], folder / images / f"{ids[case.name]}_{number:04d}.nii.gz", link=link)
            if case.label:
                target, unlooked = folder / labels / f"{ids[case.name]}.nii.gz", (case.unlooked, ignore or 0)
                place_label(case.label, target, changes, link=link, unlooked=unlooked if case.sparse else None)
        about: dict[str, Any] = {
            "channel_names": {str(number): name for number, name in enumerate(cohort.modalities)},
            "labels": {"background": 0, **_written(cohort.regions, values), **({"ignore": ignore} if ignore else {})},
            "numTraining": training,
            "file_ending": ".nii.gz",
            OURS: {"labels": values, "info": {ids[case.name]: dict(case.info) for case in cases if case.info}},
        }
        if cohort.regions:
            about["regions_class_order"] = _painted(cohort.regions, values)
        write_json(folder / ABOUT, about)
    if not _FOLDER.fullmatch(out.name):
        _log.info("%s: nnU-Net looks for a folder called DatasetNNN_Name, such as Dataset001_%s", out, out.name)
    return cases


def _complete(cohort: Cohort, incomplete: str) -> Sequence[Case]:
    lacking = [case for case in cohort.cases if len(case.images) < len(cohort.modalities)]
    if incomplete == "keep" or not lacking:
        return cohort.cases
    missing = ", ".join(name for name in cohort.modalities if name not in lacking[0].images)
    if incomplete == "refuse" or len(lacking) == len(cohort):
        raise CohortError(
            f"{len(lacking)} of {several(len(cohort), 'case')} lack a sequence, first {lacking[0].name} without {missing}; nnU-Net needs all of them: "
            "choose the sequences that everybody has (--modalities), or leave these cases out (--incomplete 'leave out')"
        )
    return [case for case in cohort.cases if case not in lacking]


def _id(case: Case) -> str:
    """The shortest name of the case that is read back as the same."""
    for name in (case.subject, case.name):
        if who(name) == (case.dataset, case.subject, case.session):
            return name
    raise CohortError(f"{case.name}: would be read back as somebody else; rename the subject")


def _written(regions: Mapping[str, tuple[str, ...]], values: Mapping[str, int]) -> dict[str, int | list[int]]:
    """Labels as nnU-Net has them: classes, or regions from the largest to the smallest."""
    if not regions:
        return dict(values)
    lists = {name: sorted(values[part] for part in regions[name]) for name in _by_size(regions)}
    return {name: parts[0] if len(parts) == 1 else parts for name, parts in lists.items()}


def _painted(regions: Mapping[str, tuple[str, ...]], values: Mapping[str, int]) -> list[int]:
    """regions_class_order: each region paints the first of its classes that no later one holds."""
    order = _by_size(regions)
    later = [{part for name in order[place + 1 :] for part in regions[name]} for place in range(len(order))]
    return [
        min(values[p] for p in (set(regions[name]) - held or regions[name]))
        for name, held in zip(order, later, strict=True)
    ]


def _by_size(regions: Mapping[str, tuple[str, ...]]) -> list[str]:
    return sorted(regions, key=lambda name: (-len(regions[name]), name))
