"""`oligovox cohort look`, `write` and `series`: what a folder is, the same cohort in another layout, and NIfTI series of DICOM."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from oligovox.cohort import bids_write, datalist, dicom, layouts, nnunet
from oligovox.cohort.manifest import Cohort
from oligovox.cohort.modalities import channel, sequence_of
from oligovox.cohort.reading import several
from oligovox.cohort.series import TABLE
from oligovox.engine.log import say
from oligovox.errors import CohortError, OutputError, SettingsError, nearest
from oligovox.experiment.cohorts import read_cohort

FORMATS = ("bids", "nnunet", "datalist", "table")
"""What a cohort can be written as."""


def look_at(
    data: Path | str, *, layout: str = "", sequences: Sequence[str] = (), labels: Sequence[str] = ()
) -> dict[str, Any]:
    """What a folder is, why, and who is in it; nothing is written and no image is opened.

    Args:
        data: a folder, or a list or table of files.
        layout: name of the layout; '': as it looks.
        sequences: what the folder calls a sequence whose name is not known, as NAME=FLAIR.
        labels: value of each class in the label files, as hole=2; empty: as the folder says.

    Returns:
        "layout", "because", "cases", "people", "labelled", "sequences" (name → cases), "labels" (class → value) and "nearly": other layouts that
        something speaks for.

    Raises:
        CohortError: no layout that is known, or the folder is not usable.
        SettingsError: no such layout.
    """
    data = Path(data)
    seen = layouts.looks(data)
    chosen = layout or layouts.detect(data).layout
    cohort = read_cohort(data, layout=chosen, sequences=sequences, labels=labels)
    return {
        "layout": chosen,
        "because": [reason for look in seen if look.layout == chosen for reason in look.found],
        "cases": len(cohort),
        "people": len(cohort.people),
        "labelled": len(cohort.labelled),
        "sequences": {name: sum(name in case.images for case in cohort.cases) for name in cohort.modalities},
        "labels": dict(cohort.labels),
        "nearly": {look.layout: list(look.missing) for look in seen if look.layout != chosen and look.missing},
    }


def write_cohort(
    data: Path | str,
    out: Path | str,
    *,
    to: str = "bids",
    layout: str = "",
    mask: str = "lesion",
    sequences: Sequence[str] = (),
    labels: Sequence[str] = (),
    modalities: Sequence[str] = (),
    incomplete: str = "refuse",
    link: bool = False,
) -> dict[str, Any]:
    """Write a cohort in another layout; `data` is only read.

    Args:
        data: a folder of any layout, or a list or table of files.
        out: a new folder; a new .json for a datalist, a new .tsv for a table, which both name the files where they lie.
        to: bids, nnunet, datalist or table.
        layout: name of the layout of `data`; '': as it looks.
        mask: which label, in the words of the layout.
        sequences: what the folder calls a sequence whose name is not known, as NAME=FLAIR.
        labels: value of each class in the label files, as hole=2; empty: as the folder says.
        modalities: only these; empty: all.
        incomplete: of nnU-Net, what to do with exams that lack a sequence: refuse, leave out, or keep.
        link: link files instead of copying them.

    Returns:
        "cohort" (what was written), "layout", "cases", "people", "labelled", "modalities".

    Raises:
        CohortError: the folder is not usable, or the layout has no place for it.
        ImageError: a file is missing or cannot be read.
        OutputError: `out` is there already, lies in `data`, or cannot be written.
        SettingsError: no such layout or format.
    """
    data, out = Path(data), Path(out)
    if to not in FORMATS:
        raise SettingsError(f"a cohort cannot be written as '{to}'; {nearest(to, FORMATS)}")
    if data.is_dir() and out.resolve().is_relative_to(data.resolve()):
        raise OutputError(f"{out}: lies in {data}, which is only read; choose a place outside of it")
    suffix = {"datalist": ".json", "table": ".tsv"}.get(to, "")
    if suffix and out.suffix != suffix:
        raise OutputError(f"{out}: a {to} is one file; give it a name that ends in {suffix}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".tmp-unpacked-") as scratch:
        work = None if suffix else Path(scratch)
        read = read_cohort(data, mask=mask, layout=layout, sequences=sequences, labels=labels, work=work)
        cohort = _only(read, modalities)
        if to in ("nnunet", "datalist") and (
            again := sum(len(runs) for c in cohort.cases for runs in c.repeats.values())
        ):
            say(f"{several(again, 'further run')} of a sequence: {to} has one file of each, so these are not written")
        unpacked = any(path.is_relative_to(scratch) for case in cohort.cases for path in case.images.values())
        match to:
            case "nnunet":
                written = nnunet.write(cohort, out, link=link and not unpacked, incomplete=incomplete)
                cohort = replace(cohort, cases=tuple(written))
            case "datalist":
                datalist.write(cohort, out)
            case "table":
                _save(cohort, out)
            case _:
                bids_write.write(cohort, out, link=link and not unpacked)
    return {
        "cohort": str(out),
        "layout": to,
        "cases": len(cohort),
        "people": len(cohort.people),
        "labelled": len(cohort.labelled),
        "modalities": list(cohort.modalities),
    }


def series(data: Path | str, out: Path | str) -> dict[str, Any]:
    """DICOM files → NIfTI series and the table series.tsv, whose column `sequence` is a guess to be looked at.

    Args:
        data: a folder of DICOM files, at any depth.
        out: a new folder; prepare or write it when its table is right.

    Returns:
        "table", "series" (its rows), and "used": how many have a sequence.

    Raises:
        SettingsError: dcm2niix is not installed.
        CohortError: no series.
        RunError: dcm2niix failed.
        OutputError: `out` is there already, lies in `data`, or cannot be written.
    """
    data, out = Path(data), Path(out)
    if data.is_dir() and out.resolve().is_relative_to(data.resolve()):
        raise OutputError(f"{out}: lies in {data}, which is only read; choose a place outside of it")
    rows = dicom.convert(data, out)
    table = out / TABLE
    say(
        f"{table}: look at the column sequence and correct it, then prepare {out}; {out / dicom.PATIENTS} names people, keep it apart"
    )
    return {"table": str(table), "used": sum(bool(row["sequence"]) for row in rows), "series": rows}


def _only(cohort: Cohort, modalities: Sequence[str]) -> Cohort:
    """The cohort with these sequences only; who has none of them is left out, and said."""
    if not modalities:
        return cohort
    names = {sequence_of(channel(name)) for name in modalities}
    kept = [
        replace(c, images={n: p for n, p in c.images.items() if n in names})
        for c in cohort.cases
        if names & set(c.images)
    ]
    if not kept:
        raise CohortError(
            f"{cohort.name}: nobody has {', '.join(sorted(names))}; there are {', '.join(cohort.modalities)}"
        )
    if len(kept) < len(cohort):
        say(
            f"{len(cohort) - len(kept)} of {len(cohort)} cases have none of {', '.join(sorted(names))} and are left out"
        )
    return replace(cohort, cases=tuple(kept))


def _save(cohort: Cohort, out: Path) -> None:
    if taken := [path for path in (out, out.with_suffix(".json")) if path.exists()]:
        raise OutputError(
            f"{taken[0]}: is there already, and a table is two files, .tsv and .json; choose another name"
        )
    cohort.save(out)
