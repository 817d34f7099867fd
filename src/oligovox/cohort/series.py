"""Series that were made of DICOM, and which sequence each of them is: guessed from its tags, written down in a table that people correct.

    OUT/series.tsv                   one row a series; the column `sequence` is what counts, empty where a series is not used; `run` numbers
                                     those that were acquired several times alike
    OUT/nifti/001_1_02.nii.gz        subject, session, number of the series; the JSON beside it holds its tags
    OUT/patients.tsv                 whose number is whose: the only file that names people, keep it apart

Masks that are drawn later are named in the column `label` of any series of the session, as paths relative to the table.

The guess looks at the description first and at the times second; where they speak against each other, it says so.

Source: Bernstein, King, Zhou, Handbook of MRI Pulse Sequences, 2004 (which times make which contrast); limits are for 1.5 and 3 T.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oligovox.cohort.annotate import says_sparse
from oligovox.cohort.manifest import Case, Cohort
from oligovox.cohort.reading import AS_IT_IS, Asked, Look, existing, plain_names, several
from oligovox.errors import CohortError
from oligovox.files import read_tsv

_log = logging.getLogger(__name__)

LAYOUT = "series"
TABLE = "series.tsv"
COLUMNS = (
    "file",
    "subject",
    "session",
    "sequence",
    "run",
    "description",
    "why",
    "TE",
    "TR",
    "TI",
    "flip",
    "voxels",
    "label",
)

_WORDS: tuple[tuple[str, str], ...] = (
    ("", r"locali[sz]er|scout|survey|topogram|smartbrain|calib|asset.?cal|b0.?map|field.?map|shim|screen ?save|report"),
    ("T1w", r"\bt1w? mpr\b"),  # so Siemens calls an MPRAGE; mpr elsewhere is a reformatted series
    (
        "",
        r"dwi|dti|diff(?!er)|\badc\b|trace|bold|fmri|\brest\b|resting|perf|asl|dsc|mra|tof|angio|spectro|\bmrs\b|mpr(?!age)|\bmip\b",
    ),
    ("QSM", r"qsm|chi.?map|suscept.*map"),
    ("FLAIR", r"flair|dark.?fl|tirm.?dark"),
    ("T2starw", r"swi|swan|t2.?\*|t2.?star|hemo|medic|venbold"),
    ("T1w", r"t1|mp.?rage|bravo|spgr|\btfe\b|vibe"),
    ("PDw", r"\bpd|proton"),
    ("T2w", r"t2|space|cube"),
)
"""Sequence ('': none that is used) → what its description looks like; the first that fits."""

_CONTRAST = re.compile(r"\bgd|gad|post|\+ ?c\b|\bce\b|\bkm\b|contrast|c\+|\bkontrast", re.IGNORECASE)


_PROTOCOL = (
    *("SeriesDescription", "ProtocolName", "ScanningSequence", "SequenceVariant", "ImageType"),
    *("EchoTime", "RepetitionTime", "InversionTime", "FlipAngle", "ContrastBolusIngredient", "ContrastBolusAgent", "SliceThickness"),
)  # fmt: skip
"""Tags that are the same in all runs of a sequence."""

_WHEN = "AcquisitionTime"


@dataclass(frozen=True)
class Guess:
    """What a series probably is.

    Attributes:
        sequence: its name; '' for none that is used.
        why: what speaks for it, in words.
    """

    sequence: str
    why: str


def guess(tags: Mapping[str, Any]) -> Guess:
    """The sequence of a series by its tags, as dcm2niix writes them (times in s).

    Args:
        tags: Modality, SeriesDescription, ProtocolName, EchoTime, RepetitionTime, InversionTime, ScanningSequence, ImageType, ContrastBolusIngredient, …
    """
    described = " ".join(str(tags.get(key, "")) for key in ("SeriesDescription", "ProtocolName"))
    words = re.sub(r"[_\-/]+", " ", described).lower()
    kind = (
        [str(part).upper() for part in tags.get("ImageType", ()) or ()]
        if isinstance(tags.get("ImageType"), list)
        else []
    )
    if (modality := str(tags.get("Modality", "MR"))) != "MR":
        return Guess("", f"modality {modality}, not MR")
    if unused := {"PHASE", "P", "ADC", "TRACEW", "MIP", "MPR", "LOCALIZER", "PROJECTION IMAGE"} & set(kind):
        return Guess("", f"image type {unused.pop().lower()}")
    named = next(((name, match[0]) for name, look in _WORDS if (match := re.search(look, words))), None)
    if named and not named[0]:
        return Guess("", f"'{named[1]}' in its description")
    planar = "EP" in re.split(r"[^A-Z]+", str(tags.get("ScanningSequence", "")).upper())
    if named is None and planar:
        return Guess("", "echo-planar, and nothing in its description says what it is")
    timed = _by_times(tags)
    if named is None and not timed:
        return Guess("", "nothing in its description or times says what it is")
    sequence = named[0] if named else timed
    why = f"'{named[1]}' in its description" if named else _times(tags)
    if named and timed and timed != sequence and {timed, sequence} != {"T2w", "T2starw"} and sequence != "QSM":
        why += f", but {_times(tags)} looks like {timed}: check"
    if sequence == "T1w" and (agent := _agent(tags, described)):
        return Guess("T1wGd", f"{why}, {agent}")
    return Guess(sequence, why)


def look(root: Path) -> Look:
    """A table series.tsv with the columns that `oligovox cohort series` writes."""
    table = root / TABLE
    if not table.is_file():
        return Look(LAYOUT)
    try:
        rows = read_tsv(table)
    except CohortError as error:
        return Look(LAYOUT, (f"a table {TABLE}",), (f"a table that can be read ({error})",))
    missing = [name for name in ("file", "subject", "sequence") if not rows or name not in rows[0]]
    return Look(
        LAYOUT, (f"{TABLE} with {several(len(rows), 'row')}",), tuple(f"a column {name} in it" for name in missing)
    )


def read(root: Path, asked: Asked = AS_IT_IS) -> Cohort:
    """Read the folder as its table says; series without a sequence are left out.

    Args:
        root: the folder that holds series.tsv.
        asked: how.

    Raises:
        CohortError: the table is not usable, a file is not there, or two series of one session are the same sequence and the same run.
    """
    table = root / TABLE
    found: dict[tuple[str, str], dict[str, dict[str, Path]]] = defaultdict(lambda: defaultdict(dict))
    labels: dict[tuple[str, str], Path] = {}
    rows = read_tsv(table)
    if rows and (missing := [name for name in ("file", "subject", "sequence") if name not in rows[0]]):
        raise CohortError(f"{table}: has no column {missing[0]}; make the table again, or bring the column back")
    people = plain_names((row["subject"] for row in rows), table)
    visits = plain_names((row.get("session", "") or "-" for row in rows), table)
    for number, row in enumerate(rows, start=2):
        where = f"{table}: line {number}"
        visit = visits[row["session"]] if row.get("session") else ""
        who = (people[row["subject"]], visit)
        if row["sequence"]:
            sequence = asked.sequence(row["sequence"], where)
            runs, run = found[who][sequence], row.get("run", "")
            if run in runs or (runs and "" in (run, *runs)):
                raise CohortError(
                    f"{where}: sub-{who[0]} {visit} has {sequence} twice ({next(iter(runs.values())).name}, {row['file']}); leave one's sequence "
                    "empty, or number runs of the same in the column run"
                )
            runs[run] = existing(root, row["file"], where)
        if row.get("label") and asked.mask:
            labels[who] = existing(root, row["label"], where)
    cases = []
    for who, images in found.items():
        ordered = {
            name: [runs[run] for run in sorted(runs, key=lambda run: (len(run), run))] for name, runs in images.items()
        }
        label = labels.get(who)
        cases.append(
            Case(
                subject=who[0], session=who[1], images={name: first for name, (first, *_) in ordered.items()}, label=label,
                repeats={name: tuple(again) for name, (_, *again) in ordered.items()}, sparse=label is not None and says_sparse(label),
            )
        )  # fmt: skip
    if again := [path.name for case in cases for paths in case.repeats.values() for path in paths]:
        _log.warning(
            "%s: further runs, averaged by `oligovox ready`, else used by plans that name them (as FLAIR_run-2): %s",
            table,
            ", ".join(again),
        )
    if not cases:
        raise CohortError(f"{table}: no series has a sequence; fill in the column (T1w, T1wGd, T2w, FLAIR, …)")
    return Cohort(cases=tuple(cases), labels=asked.labels or {"lesion": 1}, name=root.resolve().name)


def choose(rows: Sequence[dict[str, Any]], tags: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Of series of one session that are guessed to be the same sequence keep the one with most voxels; the others say why not.

    Those that were acquired like it, at another time, are kept too, and all of them get a number in the column `run`.

    Args:
        rows: of the table; changed in place.
        tags: file → its tags, as `guess` takes them; None: no series is known to be a run of another.
    """
    kept: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (-int(row["voxels"]), str(row["file"]))):
        if not row["sequence"]:
            continue
        runs = kept[row["subject"], row["session"], row["sequence"]]
        if not runs or (row["voxels"] == runs[0]["voxels"] and tags and _repeats(row, runs, tags)):
            runs.append(row)
            continue
        more = "which has more voxels" if row["voxels"] < runs[0]["voxels"] else "which comes before it"
        row["why"] += f"; {row['sequence']} is taken from {runs[0]['file']}, {more}"
        row["sequence"] = ""
    for runs in kept.values():
        for number, row in enumerate(runs if len(runs) > 1 else (), start=1):
            row["run"] = number


def _repeats(row: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], tags: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a series was acquired as these are, and at no time of theirs: that would be another image of the same echoes.

    Never of T1w: the second one of a visit is too often the one with contrast agent, and nothing in its tags says so.
    """
    own, others = tags[row["file"]], [tags[run["file"]] for run in runs]
    alike = all(own.get(key) == other.get(key) for other in others for key in _PROTOCOL)
    later = own.get(_WHEN) not in (None, "", *(other.get(_WHEN) for other in others))
    return alike and later and row["sequence"] not in ("T1w", "T1wGd")


def _by_times(tags: Mapping[str, Any]) -> str:
    """The sequence that echo, repetition and inversion time stand for; '' where they say nothing."""
    te, tr, ti = (_seconds(tags.get(key)) for key in ("EchoTime", "RepetitionTime", "InversionTime"))
    if te is None or tr is None:
        return ""
    if ti is not None and ti > 1.5 and te > 0.06:
        return "FLAIR"
    if te < 0.03 and (tr < 1.0 or (ti is not None and 0.4 < ti <= 1.5)):
        return "T1w"
    if tr > 1.8:
        return "T2w" if te > 0.06 else "PDw" if te < 0.04 and ti is None else ""
    return ""


def _times(tags: Mapping[str, Any]) -> str:
    named = {"TE": "EchoTime", "TR": "RepetitionTime", "TI": "InversionTime"}
    found = {short: _seconds(tags.get(key)) for short, key in named.items()}
    return ", ".join(f"{short} {value * 1000:.0f} ms" for short, value in found.items() if value is not None)


def _agent(tags: Mapping[str, Any], described: str) -> str:
    """What speaks for contrast agent; '' for nothing."""
    for key in ("ContrastBolusIngredient", "ContrastBolusAgent"):
        text = str(tags.get(key, "")).strip()
        if text and text.lower() not in ("none", "no", "0", "n"):
            return f"contrast agent '{text}'"
    match = _CONTRAST.search(re.sub(r"[_\-/]+", " ", described))
    return f"'{match[0].strip()}' in its description" if match else ""


def _seconds(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e3 else None
