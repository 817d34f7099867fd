"""The page of `oligovox check`: what was found, in which file, what to do, and a picture of each case that has something."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path

from oligovox.cohort.manifest import Case, Cohort
from oligovox.doctor.finding import Finding, Severity
from oligovox.files import atomic_file
from oligovox.report.check_pictures import Thumbnail, thumbnails
from oligovox.report.page import document
from oligovox.report.tables import table
from oligovox.report.text import Html, count, escape

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""Worst first."""

MOST_PICTURES = 60
"""Cases that are drawn; beyond, a page would be too large to open."""

_TOGETHER = "together"
"""Column, and word, for what is about a case as a whole."""

_CHIP = {"error": "worse", "warning": "caution", "note": "even"}
_REPAIR = {
    "header": "rewrites the header",
    "labels": "renumbers labels",
    "grid": "brings the mask to the image's grid",
    "values": "replaces values",
}
_STYLE = (
    ".chip.caution { color: var(--caution); font-weight: 620; } .thumbs { display: flex; flex-wrap: wrap; gap: 0.6rem; margin: 1rem 0; }"
    " .thumbs figure { margin: 0; width: 11.5rem; } .thumbs img { display: block; width: 100%; background: #000; border-radius: 6px; }"
    " .thumbs .none { background: var(--wash); border-radius: 6px; padding: 1.2rem 0.8rem; font-size: 0.86rem; overflow-wrap: anywhere; }"
    " .found { padding-left: 1.2rem; font-size: 0.92rem; } .found li { margin: 0.3rem 0; overflow-wrap: anywhere; }"
)


def write_check_page(findings: Sequence[Finding], cohort: Cohort, out: Path, *, command: str) -> Path:
    """Write one HTML file without scripts or outside resources, whole or not at all.

    Args:
        findings: of all checks, in any order.
        cohort: what was checked; its images are read again for the pictures.
        out: path of the page.
        command: as it was typed, to repeat it.

    Returns:
        `out`.

    Raises:
        OutputError: the file cannot be written.
    """
    page = render_check(findings, cohort, command)
    with atomic_file(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out


def render_check(findings: Sequence[Finding], cohort: Cohort, command: str) -> str:
    """The page as HTML; see `write_check_page`."""
    ordered = sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), f.case, f.sequence, f.check))
    kind = "gain-shown" if not ordered else "worse" if ordered[0].severity == "error" else ""
    parts = [
        f"<style>{_STYLE}</style>",
        f'<p class="over">oligovox check</p><h1>{escape(cohort.name)}</h1>',
        f'<div class="verdict {kind}"><strong>{escape(headline(ordered, cohort))}</strong>{_mended(ordered)}</div>',
    ]
    if ordered:
        parts += ['<section id="findings"><h2>Findings</h2>', _findings(ordered), "</section>"]
    parts += ['<section id="cases"><h2>Cases</h2>', _matrix(ordered, cohort), "</section>"]
    parts += _pictures(ordered, cohort)
    parts += [f'<section id="repeat"><h2>How to repeat it</h2><pre>{escape(command)}</pre></section>']
    return document(f"Check of {cohort.name}", parts)


def headline(findings: Sequence[Finding], cohort: Cohort) -> str:
    """'12 cases; 2 errors in 1 file, 3 warnings.'"""
    told = []
    for severity in SEVERITIES:
        of = [found for found in findings if found.severity == severity]
        files = {path for found in of for path in found.files}
        where = f" in {count(len(files), 'file')}" if severity == "error" and files else ""
        told += [count(len(of), severity) + where] if of else []
    return f"{count(len(cohort), 'case')}; {', '.join(told) or 'nothing was found that is wrong'}."


def _mended(findings: Sequence[Finding]) -> str:
    able = sum(found.repair is not None for found in findings)
    return f"<p>{escape(count(able, 'finding'))} can be mended without a person.</p>" if able else ""


def _findings(findings: Sequence[Finding]) -> Html:
    rows = [
        [
            found.case or "cohort",
            _chip(found.severity, found.severity),
            found.sequence or _TOGETHER,
            Html(f"{escape(found.found)}<br><small>{escape(found.check)}; expected: {escape(found.expected)}</small>"),
            found.remedy,
            _REPAIR[found.repair] if found.repair else "no",
        ]
        for found in findings
    ]
    head = ["Case", "Severity", "Sequence", "Found", "What to do", "Mended by itself"]
    return Html(table(head, rows, "Worst first", words=[1, 2, 3, 4, 5]))


def _matrix(findings: Sequence[Finding], cohort: Cohort) -> Html:
    """One row a case: which files it has, and the worst that was found in each."""
    columns = [*cohort.modalities, "label", "brain"]
    rows = []
    for case in cohort.cases:
        there = {*case.images, *(["label"] if case.label else []), *(["brain"] if case.brain else [])}
        of = [found for found in findings if found.case == case.name]
        cells = [_cell([found for found in of if found.sequence == name], name in there) for name in columns]
        rows.append([case.name, *cells, _cell([found for found in of if found.sequence not in columns], True)])
    note = "ok: the file is there and nothing was found in it. The last column is about the case as a whole."
    return Html(table(["Case", *columns, _TOGETHER], rows, "Cases and files", note, words=range(1, len(columns) + 2)))


def _cell(findings: Sequence[Finding], there: bool) -> object:
    if not findings:
        return "ok" if there else "no file"
    worst = next(severity for severity in SEVERITIES if any(found.severity == severity for found in findings))
    number = sum(found.severity == worst for found in findings)
    return _chip(worst, count(number, worst))


def _chip(severity: Severity, text: str) -> Html:
    return Html(f'<span class="chip {_CHIP[severity]}">{escape(text)}</span>')


def _pictures(findings: Sequence[Finding], cohort: Cohort) -> list[str]:
    named = {case.name: case for case in cohort.cases}
    worst = list(dict.fromkeys(found.case for found in findings if found.case in named))
    if not worst:
        return []
    parts = ['<section id="pictures"><h2>Pictures</h2>']
    parts.append(
        "<p>Radiological convention: the patient's right is on the left of the picture, in sagittal slices the front. Through the largest area of the "
        "mask, which is outlined; an image with odd slices is cut across them. Grey values run from the 1st to the 99.9th percentile.</p>"
    )
    for name in worst[:MOST_PICTURES]:
        of = [found for found in findings if found.case == name]
        parts += [f"<h3>{escape(name)}</h3>", _row(thumbnails(named[name], of)), _told(of), _files(named[name])]
    if len(worst) > MOST_PICTURES:
        parts.append(f'<p class="note">{len(worst) - MOST_PICTURES} further cases with findings are not drawn.</p>')
    return [*parts, "</section>"]


def _row(pictures: Iterable[Thumbnail]) -> str:
    shown = []
    for picture in pictures:
        if picture.png:
            data = base64.b64encode(picture.png).decode()
            body = f'<img src="data:image/png;base64,{data}" alt="{escape(picture.caption)}">'
        else:
            body = '<p class="none">no picture</p>'
        shown.append(f"<figure>{body}<figcaption>{escape(picture.caption)}</figcaption></figure>")
    return f'<div class="thumbs">{"".join(shown)}</div>'


def _told(findings: Sequence[Finding]) -> str:
    items = "".join(
        f"<li>{_chip(f.severity, f.severity)} {escape(f'{f.sequence}: ' if f.sequence else '')}{escape(f.found)}</li>"
        for f in findings
    )
    return f'<ul class="found">{items}</ul>'


def _files(case: Case) -> str:
    files = {
        **case.images,
        **({"label": case.label} if case.label else {}),
        **({"brain": case.brain} if case.brain else {}),
    }
    rows = [[name, str(path)] for name, path in files.items()]
    return f'<details class="people"><summary>Files</summary>{table(["Content", "File"], rows, "Files", words=[1])}</details>'
