"""One page that sets simulated images beside real ones: pictures, histograms, lesions, a table of contrasts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from oligovox.files import atomic_file
from oligovox.report import realism_figures as figures
from oligovox.report import tables
from oligovox.report.page import banner, document, figure
from oligovox.report.realism_figures import Shown, outline_style
from oligovox.report.text import UNDEFINED, Html, count, escape, number
from oligovox.simulate.comparison import (
    SMALLEST_MM3,
    Compared,
    Distance,
    HistogramDistance,
    Histograms,
    LesionFacts,
    Meaning,
    meaning,
)
from oligovox.simulate.realism import ANATOMY

_WORDS = {"inside": "inside", "overlap": "ranges meet", "apart": "apart"}
_CHIPS = {"inside": "gain-shown", "overlap": "", "apart": "worse"}  # colours of the style sheet


@dataclass(frozen=True)
class Source:
    """Where one side comes from.

    Attributes:
        name: of the cohort.
        cases: names of those that were measured.
        note: what a reader must know about it, '' for nothing.
    """

    name: str
    cases: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Realism:
    """All that is on the page; of the real side nothing, where there are no real images.

    Attributes:
        title: of the page.
        created: time, given by the caller.
        simulated: the simulated side.
        real: the real side, or None.
        masks: where the real lesions come from that the distributions compare, where not from `real`.
        labels: names of the labelled classes, in the order of the masks of a view.
        compared: the table of contrasts.
        distances: of the distributions.
        apart: distances of the histograms.
        lesions: of the simulated and of the real people; () where nothing is counted.
        histograms: of the simulated and of the real people.
        shown: people side by side.
        gallery: people in one slice.
        notes: what could not be done.
    """

    title: str
    created: str
    simulated: Source
    real: Source | None
    masks: Source | None
    labels: tuple[str, ...]
    compared: tuple[Compared, ...]
    distances: tuple[Distance, ...]
    apart: tuple[HistogramDistance, ...]
    lesions: tuple[Sequence[LesionFacts], Sequence[LesionFacts]]
    histograms: tuple[Sequence[Histograms], Sequence[Histograms]]
    shown: tuple[Shown, ...]
    gallery: tuple[Shown, ...]
    notes: tuple[str, ...] = ()

    @property
    def sequences(self) -> tuple[str, ...]:
        """Sequences that some simulated person has, as they come."""
        return tuple(dict.fromkeys(s for person in self.shown if person.simulated for s in person.views))


def write_realism(content: Realism, path: Path) -> Path:
    """Write the page, complete or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    page = render_realism(content)
    with atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def render_realism(content: Realism) -> str:
    """The page as one HTML document without scripts or outside resources."""
    sections = {
        "pictures": ("Side by side", _pictures(content)),
        "contrast": ("Contrast, noise, sharpness", _contrast(content)),
        "histograms": ("Histograms of each tissue", _histograms(content)),
        "lesions": ("Lesions: how many, how large, where", _lesions(content)),
        "more": ("Everyone who was measured", _gallery(content)),
        "data": ("Data", _data(content)),
    }
    filled = {key: section for key, section in sections.items() if section[1]}
    links = "".join(f'<li><a href="#{key}">{title}</a></li>' for key, (title, _) in filled.items())
    parts = [*_head(content), f'<nav aria-label="Sections"><ul>{links}</ul></nav>']
    for key, (title, body) in filled.items():
        parts += [f'<section id="{key}"><h2>{title}</h2>', *body, "</section>"]
    return document(content.title, parts)


def _head(content: Realism) -> list[str]:
    parts = [f'<p class="over">oligovox realism · {escape(content.created.replace("T", " "))}</p>']
    parts.append(f"<h1>{escape(content.title)}</h1>")
    if content.real is None:
        parts.insert(0, banner("Simulated images only: no real images were given, so nothing is compared."))
    parts.append(f'<div class="verdict"><strong>{escape(_sentence(content))}</strong>{_sources(content)}</div>')
    if content.notes:
        parts.append(f'<ul class="warnings">{"".join(f"<li>{escape(note)}</li>" for note in content.notes)}</ul>')
    verdicts = [row.verdict for row in content.compared if row.verdict]
    if verdicts:
        tiles = [
            _tile("Simulated median inside the real range", verdicts.count("inside"), len(verdicts)),
            _tile("Outside, but the ranges meet", verdicts.count("overlap"), len(verdicts)),
            _tile("Ranges apart", verdicts.count("apart"), len(verdicts)),
        ]
        if content.distances:
            near = sum(row.simulated <= row.real_high for row in content.distances)
            tiles.append(_tile("Lesion distributions no farther than real groups", near, len(content.distances)))
        parts.append(f'<ul class="tiles">{"".join(tiles)}</ul>')
    return parts


def _sentence(content: Realism) -> str:
    ours = count(len(content.simulated.cases), "simulated person").replace("persons", "people")
    if content.real is None:
        return f"{ours}, measured and drawn; there is nothing real beside them."
    verdicts = [row.verdict for row in content.compared if row.verdict]
    theirs = count(len(content.real.cases), "real person").replace("persons", "people")
    return (
        f"Of {len(verdicts)} numbers measured in {ours} and {theirs} by the same program, the simulated median lies within "
        f"the real range for {verdicts.count('inside')}."
    )


def _sources(content: Realism) -> str:
    sides = [("Simulated", content.simulated), ("Real", content.real), ("Real lesion masks", content.masks)]
    return "".join(
        f"<p>{what}: {escape(source.name)}, {count(len(source.cases), 'case')}. {escape(source.note)}</p>"
        for what, source in sides
        if source
    )


def _tile(what: str, value: int, of: int) -> str:
    return f'<li><span class="what">{escape(what)}</span><span class="value">{value} <small>of {of}</small></span></li>'


def _pictures(content: Realism) -> list[str]:
    if not content.shown:
        return []
    colours = "".join(
        f'<span><span class="key"><svg viewBox="0 0 40 14" aria-hidden="true"><path class="{outline_style(place)}" '
        f'fill="none" d="M4,7H36"/></svg></span>{escape(name)}</span>'
        for place, name in enumerate(content.labels)
    )
    words = (
        "Radiological convention: the patient's right is on the left, the front of a sagittal slice is on the left. Slices lie "
        "at the same place below the top of each brain or, where one large thing is labelled, through most of it. Grey runs from 0 to the 99.8th percentile of the brain. "
        "The upper row is without outlines: look there first."
    )
    if content.real is not None:
        words += " Each simulated person (blue bar) stands left of the real one (orange bar) whose labelled volume is nearest."
    parts = [f"<p>{words}</p>"]
    if colours:
        parts.append(f'<p class="note"><span class="keys">{colours}</span></p>')
    for sequence in content.sequences:
        drawn = figures.slices(content.shown, sequence)
        absent = [p.title for p in content.shown if sequence not in p.views]
        note = f"Without {sequence}: {', '.join(absent)}." if absent else ""
        parts += [f"<h3>{escape(sequence)}</h3>", figure(drawn, note)]
    return parts


def _contrast(content: Realism) -> list[str]:
    if not content.compared:
        return []
    caption = "Ratios are ratios of medians. Field, 95 %: upper end of a smooth field fitted to white matter."
    parts = [figure(figures.contrasts(content.compared), caption)]
    cells = {(row.quantity, row.sequence): row for row in content.compared}
    sequences = [s for s in dict.fromkeys(s for _, s in cells) if s != ANATOMY]
    quantities = list(dict.fromkeys(q for q, s in cells if s != ANATOMY))
    rows = [[q, *(_cell(cells.get((q, s))) for s in sequences)] for q in quantities]
    anatomy = [[q, _cell(row)] for (q, s), row in cells.items() if s == ANATOMY]
    note = "Simulated median [lowest … highest person]; below it the real people."
    if content.real is not None:
        note += (
            " Inside: the simulated median lies between the lowest and the highest real value. Ranges meet: it does not, but some "
            "simulated people do. Apart: none does. Few real people have a narrower range than patients at large: outside is a "
            "question to answer, not a fault by itself."
        )
    parts.append(f'<div class="contrast">{tables.table(["Quantity", *sequences], rows, "By sequence", note)}</div>')
    if anatomy:
        parts.append(f'<div class="contrast">{tables.table(["Quantity", "Whole brain"], anatomy, "Anatomy")}</div>')
    return [*parts, _explained(content.compared)]


def _cell(row: Compared | None) -> Html | str:
    if row is None:
        return UNDEFINED
    middle = number(float(median(row.simulated)), 2)
    ours = f"{middle} [{_range(row.simulated)}]" if len(row.simulated) > 1 else middle
    lines = [f"<small>real {escape(_range(row.real))}</small>"] if row.real else []
    if row.verdict:
        lines.append(f'<span class="chip {_CHIPS[row.verdict]}">{_WORDS[row.verdict]}</span>')
    return Html(f'<span class="stacked">{escape(ours)}{"".join(lines)}</span>')


def _range(values: Sequence[float]) -> str:
    ends = [number(end, 2) for end in (min(values), max(values))]
    return " … ".join(dict.fromkeys(ends))


def _explained(compared: Sequence[Compared]) -> Html:
    """What the quantities are, once for those that mean the same, and what else can move them where they lie outside."""
    groups: dict[Meaning, list[Compared]] = {}
    for row in compared:
        groups.setdefault(meaning(row.quantity), []).append(row)
    rows = []
    for (what, beware), members in groups.items():
        outside = list(dict.fromkeys(row.sequence for row in members if row.verdict in ("overlap", "apart")))
        names = "; ".join(dict.fromkeys(row.quantity for row in members))
        rows.append([names, what, ", ".join(outside) or "nowhere", beware if outside else ""])
    head = ["Quantity", "What it is", "Outside for", "What else moves it than the scene"]
    note = "WM white matter, GM grey matter, CSF cerebrospinal fluid: the voxels that are surely of this tissue."
    return Html(
        f'<div class="contrast">{tables.table(head, rows, "What the quantities are", note, words=[1, 2, 3])}</div>'
    )


def _histograms(content: Realism) -> list[str]:
    if not any(content.histograms[0]):
        return []
    caption = (
        "One line for each person; height is the share of the tissue's voxels. The tissues are the cores that the same "
        "clustering of T1w and T2w finds on both sides; the labels are the masks. Numbers: mean distance (largest difference of the "
        "cumulative histograms) between a simulated and a real person, in brackets between two real people."
    )
    return [figure(figures.tissue_histograms(*content.histograms, content.apart), caption)]


def _lesions(content: Realism) -> list[str]:
    ours, theirs = content.lesions
    if not ours:
        return []
    caption = (
        f"Share of the people (or lesions, or lesion voxels) that lie at or below a value. 26-connected components of at least "
        f"{SMALLEST_MM3:g} mm³. The ventricles are those of the average brain, scaled to each brain along its axes, on both sides. "
        "Numbers: distance of simulated from real people, in brackets of real from real."
    )
    parts = [figure(figures.distributions(ours, theirs, content.distances), caption)]
    if content.distances:
        rows = [
            [d.quantity, d.people, number(d.simulated, 2), number(d.real, 2), number(d.real_high, 2), _chip(d)]
            for d in content.distances
        ]
        note = (
            "Largest difference of two cumulative distributions, between groups of this many people; median of 200 random draws. "
            "Last column: no farther apart than 95 % of the pairs of real groups."
        )
        head = [
            "Distribution",
            "People a group",
            "Simulated to real",
            "Real to real",
            "Real to real, 95 %",
            "As near as real?",
        ]
        parts.append(tables.table(head, rows, "Distances of the distributions", note, words=[5]))
    elif theirs:
        parts.append(
            '<p class="note">Distances need at least four real people with a mask; give a folder of masks.</p>'
        )
    return parts


def _chip(distance: Distance) -> Html:
    near = distance.simulated <= distance.real_high
    return Html(f'<span class="chip {"gain-shown" if near else "worse"}">{"yes" if near else "no"}</span>')


def _gallery(content: Realism) -> list[str]:
    sequence = next((s for s in ("FLAIR", *content.sequences) if s in content.sequences), None)
    if sequence is None or not content.gallery:
        return []
    return [
        figure(figures.gallery(content.gallery, sequence), f"{sequence}, the same height as above, without outlines.")
    ]


def _data(content: Realism) -> list[str]:
    sides = [("simulated", content.simulated), ("real", content.real), ("real masks", content.masks)]
    rows = [[what, s.name, len(s.cases), ", ".join(s.cases)] for what, s in sides if s]
    head = ["Side", "Cohort", "Cases", "Which"]
    return [f'<div class="people">{tables.table(head, rows, "What was measured", words=[1, 3])}</div>']
