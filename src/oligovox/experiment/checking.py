"""`check`: everything that is wrong with a folder before it is prepared, in one go, and a mended copy where that is asked for."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from oligovox.cohort.manifest import Case, Cohort
from oligovox.cohort.splits import Split
from oligovox.doctor import header, images, labels, mend, people
from oligovox.doctor.finding import Finding, Severity
from oligovox.doctor.scan import read_scans, readable
from oligovox.doctor.seen import Seen
from oligovox.errors import CohortError, OutputError
from oligovox.experiment.cohorts import Show, quiet, read_cohort
from oligovox.files import check_writable, write_json, write_tsv
from oligovox.prepare.workers import run_cases

_RANK: Mapping[Severity, int] = {"error": 0, "warning": 1, "note": 2}
_COLUMNS = ("severity", "check", "case", "sequence", "found", "expected", "remedy", "repair", "files")


@dataclass(frozen=True)
class _Seen:
    """What one case gives: findings of its own, and what it is compared with others by."""

    findings: list[Finding]
    traits: list[people.Trait]
    label: labels.Drawn | None
    looked: images.Looked


def check_data(
    data: Path | str,
    out: Path | str | None = None,
    *,
    fix: Path | str | None = None,
    layout: str = "",
    sequences: Sequence[str] = (),
    labels: Sequence[str] = (),
    mask: str | None = "lesion",
    split: Path | str | None = None,
    workers: int = 2,
    show: Show = quiet,
) -> dict[str, Any]:
    """Look at every file of a folder; nothing in it is changed.

    Args:
        data: a folder of any layout that is known, or a list or table of files.
        out: folder for check.json, check.tsv and check.html; None: nothing is written.
        fix: new folder for a mended copy in BIDS, with mended.json.
        layout, sequences, labels, mask: how the folder is to be read, as for `prepare`.
        split: split file, to see whether somebody is in training and in test; None: as the folder says.
        workers: processes; each holds one case in memory.
        show: progress.

    Returns:
        data, cases, people; error, warning, note: how many of each; findings as in check.json, the worst first; out and mended, where
        something was written.

    Raises:
        CohortError: there is no such folder, or the split cannot be read.
        OutputError: `out` or `fix` cannot be written, or lies in the folder.
        SettingsError: a layout, sequence or class that cannot be understood.
    """
    data = Path(data)
    if not data.exists():
        raise CohortError(f"{data}: no such folder; expected one with images, or a list or table of them")
    for folder in (Path(path) for path in (out, fix) if path is not None):
        check_apart(data, folder)
        check_writable(folder)
    held_out = Split.load(Path(split)) if split else None
    cohort: Cohort | None
    try:
        cohort = read_cohort(data, layout=layout, sequences=sequences, labels=labels, mask=mask)
    except CohortError as error:
        cohort, findings = None, [_no_layout(data, error)]
    else:
        findings = ordered(look(cohort, held_out, workers, show))
    result = _result(data, cohort, findings)
    if out is not None:
        result["out"] = str(out)
        _write(Path(out), result, findings, cohort)
    if fix is not None and cohort is not None:
        done = mend.mend(findings, cohort, Path(fix))
        result |= {"mended": str(fix), "actions": len(done["actions"]), "left_out": len(done["left_out"])}
    return result


def look(cohort: Cohort, split: Split | None = None, workers: int = 1, show: Show = quiet) -> list[Finding]:
    """All findings of a cohort, case by case in worker processes, then across cases."""
    tell, count = show("check"), 0

    def done(name: str) -> None:
        nonlocal count
        count += 1
        tell(count, len(cohort), name)

    job = partial(_look_at_case, scheme=dict(cohort.labels))
    seen = list(run_cases(job, {case.name: case for case in cohort.cases}, workers, done).values())
    findings = [finding for one in seen for finding in one.findings]
    findings += labels.look_at_scheme(cohort)
    findings += images.compare_cases(cohort, [one.looked for one in seen])
    findings += labels.compare_masks(one.label for one in seen if one.label)
    return findings + people.look_at_people([trait for one in seen for trait in one.traits], cohort, split)


def ordered(findings: Sequence[Finding]) -> list[Finding]:
    """The worst first; of equals by check, case and sequence."""
    return sorted(findings, key=lambda f: (_RANK[f.severity], f.check, f.case, f.sequence, f.found))


def _look_at_case(case: Case, scheme: Mapping[str, int]) -> _Seen:
    scans, findings = read_scans(case)
    findings += header.look_at_headers(case, scans)
    findings += labels.look_at_masks(case, scans, scheme)
    wrong = {finding.sequence for finding in findings if finding.severity == "error"}  # said already
    seen = [Seen.of(key, scan.path, scan.volume) for key, scan in readable(case, scans).items() if key not in wrong]
    looked = images.look_at(case.name, seen)
    findings += looked.findings
    return _Seen(findings, people.traits_of(case, scans), labels.drawn(case, scans), looked)


def _no_layout(data: Path, error: CohortError) -> Finding:
    return Finding(
        check="layout",
        severity="error",
        files=(data,),
        found=str(error),
        expected="a folder of a layout that is known",
        remedy="mend that first; `oligovox cohort look` says more",
    )


def check_apart(data: Path, folder: Path) -> None:
    """What is written must not touch the folder of the data; beside a list or table it may.

    Raises:
        OutputError: it would.
    """
    home, wanted = data.resolve(), folder.resolve()
    if data.is_dir() and (wanted.is_relative_to(home) or home.is_relative_to(wanted)):
        raise OutputError(f"{folder}: lies in the folder of the data ({home}), or around it; choose another folder")


def _result(data: Path, cohort: Cohort | None, findings: Sequence[Finding]) -> dict[str, Any]:
    counts = Counter(finding.severity for finding in findings)
    return {
        "data": str(data),
        "cases": len(cohort) if cohort else 0,
        "people": len(cohort.people) if cohort else 0,
        **{severity: counts[severity] for severity in _RANK},
        "findings": [as_row(finding) for finding in findings],
    }


def as_row(finding: Finding) -> dict[str, Any]:
    """A finding as JSON has it."""
    return {
        "severity": finding.severity,
        "check": finding.check,
        "case": finding.case,
        "sequence": finding.sequence,
        "files": [str(path) for path in finding.files],
        "found": finding.found,
        "expected": finding.expected,
        "remedy": finding.remedy,
        "repair": finding.repair,
        "numbers": dict(finding.numbers),
    }


def lines(result: Mapping[str, Any]) -> list[str]:
    """A result as a person reads it: how many of each severity, then one line for each finding, equal notes together."""
    counts = ", ".join(_several(result[severity], severity) for severity in _RANK)
    head = f"{result['data']}: {_several(result['cases'], 'exam')} of {_several(result['people'], 'person')}: {counts}"
    alike: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in result["findings"]:
        alone = (row["case"], row["sequence"]) if row["severity"] != "note" else ()
        alike.setdefault((row["severity"], row["check"], row["found"], row["remedy"], *alone), []).append(row)
    body = [
        f"{severity:7}  {check}  {_where(rows)}: {found}; {todo}"
        for (severity, check, found, todo, *_), rows in alike.items()
    ]
    tail = [f"{key}: {result[key]}" for key in ("out", "mended", "actions", "left_out") if key in result]
    return [_one_line(line) for line in (head, *body, *tail)]


def _several(count: int, what: str) -> str:
    plural = {"person": "people"}.get(what, f"{what}s")
    return f"{count} {what if count == 1 else plural}"


def _where(rows: Sequence[Mapping[str, Any]]) -> str:
    """The file, or the first of several and how many more; a case where the finding is about the case."""
    files = list(dict.fromkeys(file for row in rows for file in row["files"]))
    return f"{files[0]} and {len(files) - 1} more" if len(files) > 1 else files[0] if files else rows[0]["case"]


def _one_line(text: str) -> str:
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def _write(out: Path, result: Mapping[str, Any], findings: Sequence[Finding], cohort: Cohort | None) -> None:
    rows = [as_row(finding) | {"files": "; ".join(map(str, finding.files))} for finding in findings]
    write_tsv(out / "check.tsv", rows, _COLUMNS)
    write_json(out / "check.json", result)
    if cohort:
        from oligovox.report.check import write_check_page  # pictures need what --help must not wait for

        command = f"oligovox check {shlex.quote(str(result['data']))} --out {shlex.quote(str(out))}"
        write_check_page(findings, cohort, out / "check.html", command=command)
