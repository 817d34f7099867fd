"""One page a run: report.json (the content) and report.html (the same numbers to read), offline and on paper."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from importlib.resources import files as package_files
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

from oligovox.errors import CheckpointError
from oligovox.files import atomic_file, read_json, write_json
from oligovox.report import figures, tables
from oligovox.report.content import METRICS, MetricName, Report, ShownCase
from oligovox.report.labels import LabelView, labels_png, read_view
from oligovox.report.overlay import overlay
from oligovox.report.text import UNDEFINED, Html, count, escape, interval, number
from oligovox.report.verdict import Verdict, judge, verdict
from oligovox.settings import parse

_FORMAT = 1
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_TILES: tuple[MetricName, ...] = ("dice", "lesion_f1", "hd95_mm")


def write_report(report: Report, folder: Path) -> Path:
    """Write report.json and report.html into `folder`, each complete or not at all; returns the path of the page.

    Raises:
        OutputError: the folder cannot be written.
    """
    page = render(report, folder)
    found = verdict(report)
    write_json(
        folder / "report.json",
        {"format": _FORMAT, "verdict": found._asdict(), "report": report.model_dump(mode="json", fallback=str)},
    )
    return _write(folder / "report.html", page)


def load_report(path: Path) -> Report:
    """Read report.json.

    Raises:
        CohortError: the file is missing or is not JSON.
        CheckpointError: it is not a report, or of another version of the format.
        SettingsError: a value is missing, unknown or of the wrong kind.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != _FORMAT or not isinstance(content.get("report"), dict):
        raise CheckpointError(f"{path}: not a report of format {_FORMAT}; write it again with this version of oligovox")
    return parse(Report, content["report"], str(path))


def write_index(reports: Sequence[Report], folder: Path, links: Sequence[str] = ()) -> Path:
    """Write index.html and index.json, one row a run.

    Args:
        reports: the runs, in the order of the rows.
        folder: where to write.
        links: paths of the reports' pages relative to `folder`, one a report; without them the rows are not linked.

    Raises:
        OutputError: the folder cannot be written.
    """
    rows = [{"title": r.title, "created": r.created, "verdict": verdict(r)._asdict()} for r in reports]
    write_json(folder / "index.json", {"format": _FORMAT, "runs": rows})
    lines = [_run(report, links[i] if i < len(links) else "") for i, report in enumerate(reports)]
    head = [
        "Run",
        "Start",
        "Labelled subjects",
        "Test subjects",
        "Dice",
        "Compared with",
        "Difference in Dice",
        "Outcome",
    ]
    note = "Runs on different test subjects cannot be compared with each other by this table. 95 % intervals."
    parts = [f"<h1>{count(len(reports), 'run')}</h1>"]
    if any(report.simulated for report in reports):
        parts.append(banner("Some numbers are about simulated subjects (marked in the table)."))
    parts.append(tables.table(head, lines, "Runs", note, words=[1, 5, 7]))
    return _write(folder / "index.html", document("Runs", parts))


def render(report: Report, root: Path = Path()) -> str:
    """The page as one HTML document without scripts or outside resources.

    Args:
        report: the content.
        root: folder that relative image paths start from.
    """
    sections = {
        "results": ("Results", _results(report)),
        "lesions": ("Lesions", _lesions(report)),
        "pictures": ("Pictures", _pictures(report, root)),
        "labels": ("Labels", _labels(report, root)),
        "training": ("Training", _training(report)),
        "data": ("Data", _data(report)),
        "repeat": ("How to repeat it", _repeat(report)),
    }
    filled = {key: (title, parts) for key, (title, parts) in sections.items() if parts}
    links = "".join(f'<li><a href="#{key}">{title}</a></li>' for key, (title, _) in filled.items())
    parts = [*_first_screen(report), f'<nav aria-label="Sections"><ul>{links}</ul></nav>']
    for key, (title, body) in filled.items():
        parts += [f'<section id="{key}"><h2>{title}</h2>', *body, "</section>"]
    return document(report.title, parts)


def _first_screen(report: Report) -> list[str]:
    found = verdict(report)
    parts = [
        f'<p class="over">oligovox report · {escape(report.created.replace("T", " "))}</p><h1>{escape(report.title)}</h1>'
    ]
    if report.simulated:
        parts.insert(0, banner("Numbers on simulated subjects. They say nothing about patients."))
    parts += [_sentence(found), _tiles(report)]
    if report.scored and any(row.dice is not None for arm in report.arms for row in arm.cases):
        caption = "Each row is one test case; filled circles: " + (report.main or report.ordered[0].name) + "."
        if report.compared("dice"):
            caption += " On the right the difference between the two arms; the bar is the 95 % interval of its mean."
        caption += _left_out(report)
        parts.append(figure(figures.scores_by_case(report), caption))
    return parts


def _sentence(found: Verdict) -> str:
    cautions = "".join(f"<p>{escape(caution)}</p>" for caution in found.cautions)
    return f'<div class="verdict {found.outcome.replace(" ", "-")}"><strong>{escape(found.sentence)}</strong>{cautions}</div>'


def _tiles(report: Report) -> str:
    arm = report.arm(report.main)
    tiles = [_score_tile(report, name) for name in _TILES if arm and name in arm.means]
    if arm and not tiles:
        volume = sum(row.volume_predicted_ml or 0.0 for row in arm.cases)
        tiles.append(_tile("Predicted lesion volume, all cases", f"{number(volume, 1)} <small>mL</small>", ""))
    people = {name: len(who) for name, who in report.data.splits.items() if who}
    if arm:
        most = f"{people['pretrain']} people in pre-training" if "pretrain" in people else "no pre-training"
        tested = f"tested on {people['test']} people" if "test" in people else ""
        tiles.append(_tile("Labelled subjects", str(arm.labels), escape(", ".join(filter(None, (most, tested))))))
    return f'<ul class="tiles">{"".join(tiles)}</ul>' if tiles else ""


def _score_tile(report: Report, name: MetricName) -> str:
    arm, baseline = report.arm(report.main), report.arm(report.baseline)
    metric = METRICS[name]
    mean = arm.means[name] if arm else None
    unit = f" <small>{metric.unit}</small>" if metric.unit else ""
    more: list[str] = []
    if baseline and (theirs := baseline.means.get(name)):
        missing = f" ({theirs.n} of {theirs.n + theirs.undefined} subjects)" if theirs.undefined else ""
        more.append(escape(f"{baseline.name}: {number(theirs.mean, metric.digits)}{missing}"))
    if c := report.compared(name):
        more.append(escape(f"difference {interval(c.mean, c.low, c.high, metric.digits, sign=True)}"))
    elif mean:
        more.append(escape(f"interval {number(mean.low, metric.digits)} to {number(mean.high, metric.digits)}"))
    if not metric.higher_is_better:
        more.append("lower is better")
    missing = f", {mean.n} of {mean.n + mean.undefined} subjects" if mean and mean.undefined else ""
    value = number(mean.mean if mean else None, metric.digits) + unit
    return _tile(f"{metric.title}, mean{missing}", value, "<br>".join(more))


def _tile(what: str, value: str, more: str) -> str:
    below = f'<span class="more">{more}</span>' if more else ""
    return f'<li><span class="what">{escape(what)}</span><span class="value">{value}</span>{below}</li>'


def _results(report: Report) -> list[str]:
    parts: list[str] = []
    if any(arm.means for arm in report.arms):
        parts.append(tables.means(report))
    if any(arm.classes for arm in report.arms):
        parts.append(tables.classes(report))
    if report.comparisons:
        parts.append(tables.comparisons(report))
    return parts + [tables.cases(arm) for arm in report.ordered if arm.cases]


def _lesions(report: Report) -> list[str]:
    if not sum(size.count for size in report.bins):
        return ["<p>The reference masks of the test cases hold no lesion.</p>"] if report.bins else []
    caption = "Lesions of all test cases together, by the volume of the lesion in the reference mask." + _left_out(
        report
    )
    plot = figure(figures.lesions_found(report.bins, report.ordered), caption)
    return [plot, tables.bins(report.bins, report.ordered)]


def _pictures(report: Report, root: Path) -> list[str]:
    if not report.shown:
        return []
    convention = (
        "Radiological convention: the patient's right (R) is on the left of the picture; in the sagittal plane the front "
        "(A) is on the left. L left, P back, S top, I bottom. Slices go through the largest area of lesion in the reference "
        "(without one, in the first prediction); the closer look is the frame in the first picture. Grey values run from the 1st to the 99.9th percentile."
    )
    return [f"<p>{convention}</p>", *(part for case in report.shown for part in _shown(report, case, root))]


def _shown(report: Report, case: ShownCase, root: Path) -> list[str]:
    picture = overlay(case, [arm.name for arm in report.ordered], root)
    keys = [f"<span>{_key('truth')}reference</span>"] if case.truth else []
    keys += [
        f"<span>{_key(f'predicted arm-{place % 4}')}{escape(arm.name)}</span>"
        for place, arm in enumerate(report.ordered)
        if arm.name in case.predictions
    ]
    words = [f'<span class="keys">{"".join(keys)}</span>'] if picture.svg and keys else []
    words += [escape(f"{case.sequence}, slices {picture.slices}.")] if picture.slices else []
    words += [escape(note) for note in picture.notes]
    parts = [f"<h3>{escape(case.case)} <small>({escape(case.role)})</small></h3>"]
    parts.append(f"<figure>{picture.svg}<figcaption>{' '.join(words)}</figcaption></figure>")
    return parts + ([tables.lesions(case, report.ordered)] if case.lesions else [])


def _labels(report: Report, root: Path) -> list[str]:
    """Training cases of which only a part is labelled; what cannot be drawn is said."""
    views, notes = [], []
    for case in report.labels:
        try:
            views.append(read_view(case.case, root / case.image, root / case.label))
        except Exception as error:  # any file may lie here; a page never fails because of a picture
            notes.append(f"{case.case} is not drawn ({' '.join(str(error).split())[:120]}).")
    if not views:
        return [f"<p>{escape(note)}</p>" for note in notes]
    return [drawn_labels(views, "Training cases that are labelled in part", " ".join(notes))]


def drawn_labels(views: Sequence[LabelView], whose: str, notes: str = "") -> str:
    """A picture of what is labelled, with the words below it."""
    picture = base64.b64encode(labels_png(views)).decode()
    caption = (
        f"{whose}: inside the blue border somebody looked, and drew the lesions outlined in orange; the rest is pale, and no label is learned "
        f"there. Cut where most lesion is known. {notes}"
    )
    what = escape(f"What is labelled of {', '.join(view.title for view in views)}")
    return figure(Html(f'<img src="data:image/png;base64,{picture}" alt="{what}">'), caption.strip())


def _key(style: str) -> str:
    line = f'<svg viewBox="0 0 40 14" aria-hidden="true"><path class="{style}" fill="none" d="M4,7H36"/></svg>'
    return f'<span class="key">{line}</span>'


def _training(report: Report) -> list[str]:
    parts: list[str] = []
    for phase, grouped in groupby(report.stages, key=lambda stage: stage.phase):
        stages = list(grouped)
        parts.append(f"<h3>{escape(phase)}</h3>")
        if any(stage.losses for stage in stages):
            caption = "Pale: loss as logged; strong: running mean over about a twentieth of the curve."
            parts.append(figure(figures.learning_curves(stages, [arm.name for arm in report.ordered]), caption))
        for stage in stages:
            if stage.settings:
                parts.append(f'<p class="note">Settings of {escape(stage.name)}</p>{tables.facts(stage.settings)}')
    return [*parts, tables.stages(report.stages)] if report.stages else []


def _data(report: Report) -> list[str]:
    data = report.data
    parts: list[str] = []
    if data.warnings:
        parts.append(f'<ul class="warnings">{_items(data.warnings)}</ul>')
    if data.cohorts:
        parts.append(tables.cohorts(report))
    if data.splits:
        parts.append(tables.splits(report))
    if data.preparation:
        parts.append(f"<h3>How the images were prepared</h3>{tables.facts(data.preparation)}")
    return parts


def _repeat(report: Report) -> list[str]:
    parts = [f"<pre>{escape(report.command)}</pre>"]
    if report.recipe:
        parts.append(f"<h3>Recipe</h3><pre>{escape(report.recipe)}</pre>")
    if report.seeds:
        parts.append(f"<h3>Seeds</h3>{tables.facts(report.seeds)}")
    if report.versions:
        parts.append(f"<h3>Versions</h3>{tables.facts(report.versions)}")
    files = [(case.case, name, file) for case in report.shown for name, file in _files(case)]
    if files:
        shown = tables.table(["Case", "Content", "File"], files, "Files behind the pictures", words=[1, 2])
        parts.append(f'<div class="people">{shown}</div>')
    return parts


def _files(case: ShownCase) -> list[tuple[str, str]]:
    truth = [("reference", case.truth)] if case.truth else []
    return [(case.sequence, case.image), *truth, *case.predictions.items()]


def _run(report: Report, link: str) -> list[object]:
    arm, comparison = report.arm(report.main), report.compared("dice")
    title = escape(report.title + (" (simulated)" if report.simulated else ""))
    mean = arm.means.get("dice") if arm else None
    digits = METRICS["dice"].digits
    outcome = judge(comparison) if comparison else verdict(report).outcome
    return [
        Html(f'<a href="{escape(quote(link))}">{title}</a>') if link else title,
        arm.start if arm else UNDEFINED,
        arm.labels if arm else UNDEFINED,
        mean.n if mean else UNDEFINED,
        tables.stacked(interval(mean.mean, mean.low, mean.high, digits)) if mean else UNDEFINED,
        comparison.against if comparison else UNDEFINED,
        tables.stacked(interval(comparison.mean, comparison.low, comparison.high, digits, sign=True))
        if comparison
        else UNDEFINED,
        Html(f'<span class="chip {outcome.replace(" ", "-")}">{escape(outcome)}</span>'),
    ]


def _left_out(report: Report) -> str:
    more = len(report.arms) > figures.MOST_ARMS
    return f" Only the first {figures.MOST_ARMS} arms are drawn; the tables have them all." if more else ""


def banner(text: str) -> str:
    """A warning on top of a page."""
    return f'<p class="banner" role="note">{escape(text)}</p>'


def figure(svg: Html, caption: str) -> str:
    """A picture with the words below it."""
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _items(texts: Iterable[str]) -> str:
    return "".join(f"<li>{escape(text)}</li>" for text in texts)


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page: one HTML file without scripts or outside resources."""
    style = package_files("oligovox.report").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style></head>\n<body><main>\n"
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def _write(path: Path, text: str) -> Path:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
