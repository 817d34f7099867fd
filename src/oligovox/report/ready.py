"""The page of analysis-ready exams: how well each sequence lies on its reference, before and after; the brain mask; the numbers."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import ndimage

from oligovox.files import atomic_file
from oligovox.prepare.geometry import Shape, Volume, read_volume, resample_to, shifted, spacing_of, to_ras
from oligovox.prepare.ready_exam import left_out
from oligovox.prepare.ready_files import Record
from oligovox.report import tables
from oligovox.report.page import banner, document, figure
from oligovox.report.text import UNDEFINED, Html, count, duration, escape, number

_INCH, _DPI = 2.3, 100
_BACK, _EDGES, _MASK = "#101214", "#ff8a4c", "#56b4e9"
_LEVEL = 0.55  # edges of the reference: where it is this part as bright as its median
_MOST_PICTURES = 40  # in the page itself, those with a warning first; of the others there are links
_FAR_MM, _FAR_DEG = 15.0, 10.0  # a head that moved more between two sequences is worth a look
_LESION_KEPT = 0.95  # of the volume of the lesions; less is worth a look
_MOVED_STEPS = ("register", "register to the first exam", "register to the template")
_RUN = "repeat"
_ORIGINS = {
    "given": "given with the data",
    "derivatives": "found in derivatives",
    "stripped": "the images are stripped",
    "hd-bet": "HD-BET",
    "mri_synthstrip": "SynthStrip",
    "own": "oligovox' network",
}
_CAPTION = (
    "Orange: edges of the reference, drawn over the sequence as its header places it (before) and as it was registered (after). They should follow "
    "the same borders. Blue: the brain mask on the reference. Radiological convention: the patient's right is on the left."
)


@dataclass(frozen=True, eq=False)
class _Over:
    """An image that was registered, and what it was registered to; affines lead to the ready space."""

    title: str
    fixed: Volume
    before: Volume
    after: Volume


def draw_ready(
    record: Record, mask: Path | None, path: Path, *, first: Record | None = None, template: Path | None = None
) -> None:
    """Write the picture of one exam as PNG, from its original files.

    Args:
        record: of the exam.
        mask: its brain mask, or None.
        path: file to write.
        first: record of the person's first exam, where this one was brought to it.
        template: the template, where the exam was brought to one itself.

    Raises:
        ImageError: an original cannot be read any more.
    """
    affine, shape = np.array(record["affine"]), _shape(record["shape"])
    brain = read_volume(mask) if mask else None
    reference = _placed(record, record["reference"])
    cut = _middle(brain, shape)
    overs = [*_within(record, reference), *_onward(record, reference, first, template)]
    rows = len(overs) + 1
    drawing = Figure(figsize=(4 * _INCH, rows * _INCH), dpi=_DPI, facecolor=_BACK)
    axes = np.atleast_2d(drawing.subplots(rows, 4, gridspec_kw={"wspace": 0.02, "hspace": 0.06}))
    drawing.subplots_adjust(0.005, 0.005, 0.995, 1 - 0.02 / rows)
    for row, over in enumerate(overs):
        for column, (axis, image, when) in enumerate(
            (axis, image, when) for axis in (2, 0) for image, when in ((over.before, "before"), (over.after, "after"))
        ):
            edges = _slice(over.fixed, affine, shape, axis, cut)
            _panel(axes[row, column], _slice(image, affine, shape, axis, cut), affine, axis, f"{over.title}, {when}")
            _outline(axes[row, column], ndimage.gaussian_filter(edges, 0.7), _level(edges), _EDGES)
    for column, axis in enumerate((2, 1, 0)):
        _panel(axes[-1, column], _slice(reference, affine, shape, axis, cut), affine, axis, record["reference"])
        if brain is not None:
            _outline(axes[-1, column], _slice(brain, affine, shape, axis, cut), 0.5, _MASK)
    axes[-1, 3].set_axis_off()
    with atomic_file(path) as part:
        drawing.savefig(part, format="png", facecolor=_BACK)


def _placed(record: Record, name: str, matrix: NDArray[np.float64] | None = None) -> Volume:
    """An original image in the ready space, by its own transform or another one."""
    about = record["sequences"][name]
    volume = to_ras(read_volume(Path(about["source"])))
    return Volume(volume.array, (np.array(about["matrix"]) if matrix is None else matrix) @ volume.affine)


def _within(record: Record, reference: Volume) -> list[_Over]:
    """Sequences that were registered to the reference of their exam."""
    onward = np.array(record["sequences"][record["reference"]]["matrix"])
    names = [step["sequence"] for step in record["steps"] if step["step"] == "register"]
    return [
        _Over(f"{name} on {record['reference']}", reference, _placed(record, name, onward), _placed(record, name))
        for name in names
    ]


def _onward(record: Record, reference: Volume, first: Record | None, template: Path | None) -> list[_Over]:
    """The reference itself, where it was registered to an earlier exam or to a template."""
    name = record["reference"]
    if first is not None:
        other = name if name in first["sequences"] else first["reference"]
        there = np.array(first["sequences"][other]["matrix"])
        title = f"{name} on that of {first['name']}" if other == name else f"{name} on {other} of {first['name']}"
        return [_Over(title, _placed(first, other), _placed(record, name, there), reference)]
    if template is not None:
        return [_Over(f"{name} on the template", read_volume(template), _placed(record, name, np.eye(4)), reference)]
    return []


def _slice(volume: Volume, affine: NDArray[np.float64], shape: Shape, axis: int, cut: Sequence[int]) -> NDArray[Any]:
    """One slice of the ready grid, (row from the top, column from the left) as it is looked at."""
    low = [cut[axis] if other == axis else 0 for other in range(3)]
    size = [1 if other == axis else shape[other] for other in range(3)]
    found = resample_to(volume, shifted(affine, _shape(low)), _shape(size), 1).array
    return np.asarray(np.take(found, 0, axis=axis)[::-1, ::-1].T)


def _middle(brain: Volume | None, shape: Shape) -> list[int]:
    """Where to cut: through the ventricles, a little above the middle of the brain; beside the midline."""
    if brain is None:
        return [int(size * part) for size, part in zip(shape, (0.47, 0.5, 0.5), strict=True)]
    parts = ndimage.find_objects((brain.array > 0.5).astype(np.int8))[0]
    places = zip(parts, (0.46, 0.5, 0.55), strict=True)
    return [int(part.start + share * (part.stop - part.start)) for part, share in places]


def _panel(axes: Any, picture: NDArray[Any], affine: NDArray[np.float64], axis: int, title: str) -> None:
    across, up = (step for other, step in enumerate(spacing_of(affine)) if other != axis)
    shown = picture[picture != 0]
    low, high = np.percentile(shown, (1, 99)) if shown.size else (0.0, 1.0)
    axes.imshow(
        picture, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=up / across, interpolation="bilinear"
    )
    axes.text(0.02, 0.02, title, color="white", fontsize=7.5, transform=axes.transAxes, parse_math=False)
    axes.set_axis_off()


def _level(picture: NDArray[Any]) -> float:
    shown = picture[picture > picture.mean()]
    return _LEVEL * float(np.median(shown)) if shown.size else 0.5


def _outline(axes: Any, picture: NDArray[Any], level: float, colour: str) -> None:
    if picture.min() < level < picture.max():  # else there is no line to draw
        axes.contour(picture, [level], colors=[colour], linewidths=0.7)


def write_ready_page(
    path: Path, records: Sequence[Record], pictures: Mapping[str, Path], settings: Mapping[str, object]
) -> Path:
    """Write the page, complete or not at all.

    Args:
        path: file to write.
        records: of all exams.
        pictures: name of the exam → its picture, below the folder of the page.
        settings: what was asked for.
    """
    look = [warning for record in records for warning in warnings_of(record)]
    first = sorted(records, key=lambda record: not warnings_of(record))[:_MOST_PICTURES]
    drawn = {record["name"] for record in first}
    parts = ['<p class="over">oligovox · ready</p>', f"<h1>{escape(count(len(records), 'exam'))} made ready</h1>"]
    parts += [banner(text) for text in look]
    parts += [
        "<h2>Numbers</h2>",
        _moves(records),
        _brains(records),
        "<h2>Pictures</h2>",
        f'<p class="note">{escape(_CAPTION)}</p>',
    ]
    for record in records:
        parts.append(f"<h3>{escape(record['name'])}</h3>")
        parts += [f'<p class="note">{escape(note)}</p>' for note in _notes(record)]
        parts.append(_shown(record, pictures.get(record["name"]), path.parent, record["name"] in drawn))
    parts += ["<h2>Settings</h2>", tables.facts(dict(settings))]
    text = document("Exams made ready", parts)
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _shown(record: Record, picture: Path | None, folder: Path, whole: bool) -> str:
    """The picture of an exam in the page, or a link to it where there are too many."""
    if picture is None:
        return '<p class="note">No picture: an original is not there any more.</p>'
    if not whole:
        return (
            f'<p class="note"><a href="{quote(picture.relative_to(folder).as_posix())}">{escape(picture.name)}</a></p>'
        )
    words = escape(f"{record['name']}: sequences over their reference, before and after")
    data = base64.b64encode(picture.read_bytes()).decode()
    return figure(Html(f'<img src="data:image/png;base64,{data}" alt="{words}">'), "")


def warnings_of(record: Record) -> list[str]:
    """What a person should look at, one line each."""
    name, found = record["name"], []
    for step in record["steps"]:
        if step["step"] in _MOVED_STEPS:
            what = f"{name}: {step['sequence']}"
            if not step["improved"] and not step["overlap"]:
                found.append(f"{what} does not overlap with {step['to']}; it lies where its header says.")
            elif step["step"] == "register" and (step["moved_mm"] > _FAR_MM or step["turned_deg"] > _FAR_DEG):
                found.append(
                    f"{what} moved {step['moved_mm']:.0f} mm and {step['turned_deg']:.0f}° within one exam; look at it."
                )
        elif step["step"] == _RUN and not step["used"]:
            found.append(f"{name}: {left_out(step)}.")
        elif step["step"] == "label" and (kept := _kept(record, step)) < _LESION_KEPT:
            found.append(f"{name}: {kept:.0%} of the lesions' volume lie on the ready grid, the rest is cut off.")
    if record["brain"] is None:
        found.append(f"{name} has no brain mask; the whole head is kept.")
    elif not 800 < record["brain"]["mL"] < 2000:
        found.append(f"{name}: a brain of {record['brain']['mL']:.0f} mL is unusual; look at its mask.")
    return found


def _notes(record: Record) -> list[str]:
    """What is unusual about the brain mask, and often right in clinical exams."""
    return [f"Brain mask: {doubt}." for doubt in (record["brain"] or {}).get("doubts", ())]


def _kept(record: Record, step: Mapping[str, Any]) -> float:
    """Part of the lesions' volume that the ready label has, what a template changed of their size set aside."""
    matrix = np.array(record["sequences"][step["sequence"]]["matrix"])
    native = step["lesion_mm3_native"] * abs(np.linalg.det(matrix[:3, :3]))
    return float(step["lesion_mm3_ready"] / native) if native else 1.0


def _moves(records: Sequence[Record]) -> Html:
    rows = [
        [
            record["name"], step["sequence"], step["to"], number(step["moved_mm"], 1), number(step["turned_deg"], 1),
            number(step["information_before"], 3), number(step["information_after"], 3),
            _result(step),
        ]
        for record in records
        for step in record["steps"]
        if step["step"] in _MOVED_STEPS or (step["step"] == _RUN and "moved_mm" in step)
    ]  # fmt: skip
    head = ["Exam", "Sequence", "To", "Moved, mm", "Turned, °", "MI before", "MI after", "Result"]
    note = "MI: mutual information in nats at 2 mm; more is better, and it can only be compared within a line."
    return tables.table(head, rows, "Registrations", note, words=(1, 2, 7))


def _result(step: Mapping[str, Any]) -> str:
    if step["step"] == _RUN:
        return f"{'averaged' if step['used'] else 'left out'} (correlation {step['correlation']:.2f})"
    return "registered" if step["improved"] else "kept as the header says"


def _brains(records: Sequence[Record]) -> Html:
    rows = []
    for record in records:
        brain = record["brain"]
        fields = [step for step in record["steps"] if step["step"] == "bias"]
        bias = ", ".join(f"{step['sequence']} {number(100 * step['sd'], 0)} %" for step in fields) or UNDEFINED
        spacing = " × ".join(number(step, 2) for step in spacing_of(np.array(record["affine"])))
        rows.append(
            [
                record["name"], _ORIGINS[brain["origin"]] if brain else "none", number(brain["mL"] if brain else None, 0),
                record["space"], spacing, bias, duration(record["seconds"]),
            ]
        )  # fmt: skip
    head = ["Exam", "Brain mask", "mL", "Space", "Voxels, mm", "Bias field", "Time"]
    return tables.table(head, rows, "Brain and grid", words=(1, 3, 5))


def _shape(values: Any) -> Shape:
    x, y, z = (int(value) for value in values)
    return x, y, z
