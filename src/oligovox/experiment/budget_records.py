"""What was computed once is not computed again: the results of a study in one file, and taking them over into another study.

    STUDY/records.jsonl     first line: the study as it was frozen; then one line for each finished piece of work, with its result

| taken over from | what |
| --- | --- |
| records.jsonl, which is small enough to keep or to publish | trials and runs |
| the folder of a study | these, pre-trained models, cohorts and store (as hard links where the disk has them) |

A piece of work is the same where all that decides its outcome is the same: its arm, and everything in the study but name, title, arms, counts,
draws and later seeds. Its result then says where it was taken from, and the page says how many were. So somebody who adds a method to a
published study trains that method alone.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oligovox.engine.checkpoint import difference
from oligovox.errors import SettingsError
from oligovox.experiment.budget_freeze import Frozen, frozen_versions
from oligovox.experiment.budget_ground import Ground, kept_apart
from oligovox.experiment.budget_jobs import Job, jobs_of, other_code
from oligovox.experiment.budget_plan import Study, parse_study, plain, write_study
from oligovox.files import atomic_file, atomic_folder, read_json, write_json

RECORDS = "records.jsonl"
TAKEN = "taken_from"
"""Key of a result that was not computed in this study: the first 12 digits of the other one's SHA-256."""

_FREE = ("name", "title", "arms", "counts", "draws", "seeds")
_LINKED = ("cohorts", "store")


@dataclass(frozen=True)
class Records:
    """The finished work of another study.

    Attributes:
        study: as it was when the last arms were added.
        sha256: of the study as it was before its first run.
        results: place in the folder of a study → result.
        apart: people of a test part whom it neither tested nor learned from.
        home: its folder; None where only the file is there.
    """

    study: Study
    sha256: str
    results: Mapping[str, dict[str, Any]]
    apart: tuple[str, ...]
    home: Path | None


def write_records(first: Frozen, study: Study, out: Path) -> Path:
    """Write records.jsonl: what is finished so far, whole.

    Args:
        first: the study as it was before the first run.
        study: as it is now.
        out: its folder.
    """
    apart = kept_apart(out)
    head: dict[str, Any] = {"study": write_study(study), "frozen": first.date, "sha256": first.sha256}
    head |= {"apart": apart} if apart else {}
    lines = [head, *({"place": place, "result": _packed(result)} for place, result in _finished(study, out))]
    path = out / RECORDS
    with atomic_file(path) as temporary:
        temporary.write_text("".join(f"{json.dumps(_rounded(line))}\n" for line in lines), encoding="utf-8")
    return path


def read_records(source: Path) -> Records:
    """The records of a study's folder or file.

    Raises:
        SettingsError: neither, or a damaged file.
    """
    if source.is_dir():
        if not (versions := frozen_versions(source)):
            raise SettingsError(f"{source}: no study.yaml in it; expected the folder of a study, or its {RECORDS}")
        study = versions[-1].study
        return Records(study, versions[0].sha256, dict(_finished(study, source)), kept_apart(source), source)
    try:
        head, *rows = (json.loads(line) for line in source.read_text(encoding="utf-8").splitlines())
        results = {str(row["place"]): _unpacked(row["result"]) for row in rows}
        study = parse_study(head["study"], str(source))
        return Records(study, str(head["sha256"]), results, tuple(head.get("apart", ())), None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"{source}: cannot be read as the records of a study ({type(error).__name__}); expected the folder of a study, "
            f"or the {RECORDS} that `oligovox budget` wrote in one"
        ) from None


def check_records(records: Records, study: Study) -> None:
    """Whether the other study stands on the same ground.

    Raises:
        SettingsError: something that decides the outcome of its runs differs; says what.
    """
    before, now = ({k: v for k, v in plain(one).items() if k not in _FREE} for one in (records.study, study))
    if found := difference(before, now) or difference(records.study.seeds[0], study.seeds[0], "seeds[0]"):
        raise SettingsError(
            f"--reuse: the other study has {found}; only arms, counts, draws and later seeds may differ, so leave --reuse out"
        )


def link_ground(records: Records, out: Path) -> None:
    """Bring the other study's cohorts and store into the folder, so that nothing is simulated or prepared again."""
    for name in _LINKED:
        if records.home and (records.home / name).is_dir() and not (out / name).exists():
            with atomic_folder(out / name) as temporary:
                shutil.copytree(records.home / name, temporary, copy_function=_link, dirs_exist_ok=True)


def take_over(records: Records, study: Study, ground: Ground, out: Path) -> int:
    """Write the results that the other study has and this one lacks; how many.

    Raises:
        SettingsError: a piece of work has other people under the same name, or was done by code that gave other results, or the other study learned
            from people who are kept apart in this one; nothing is written then.
    """
    if records.apart != ground.split.apart:
        raise SettingsError("--reuse: the other study kept other people of the test part apart; leave --reuse out")
    arms = {name for name, arm in study.arms.items() if records.study.arms.get(name) == arm}
    common = [job for job in jobs_of(study, study.runs) if job.arm in arms and job.result.as_posix() in records.results]
    missing = {job: records.results[job.result.as_posix()] for job in common if not (out / job.result).exists()}
    for job, result in missing.items():
        if other := other_code(result):
            raise SettingsError(f"--reuse: {job.folder} of the other study was {other}; leave --reuse out")
        _check_people(job, result, study, ground)
    count = 0
    for job, result in missing.items():
        if job.kind == "pretrain":
            if not records.home or not (records.home / job.folder / "model").is_dir():
                continue
            with atomic_folder(out / job.folder / "model") as temporary:
                shutil.copytree(records.home / job.folder / "model", temporary, dirs_exist_ok=True)
        write_json(out / job.result, {TAKEN: records.sha256[:12], **result})
        count += 1
    return count


def _check_people(job: Job, result: Mapping[str, Any], study: Study, ground: Ground) -> None:
    if job.kind == "pretrain":
        same = ground.pretraining(study, study.pretraining(job.arm, seed=job.seed)) == tuple(result.get("people", ()))
    else:
        count, draw = (job.run.count, job.run.draw) if job.run else (study.tune.count, study.tune.draw)
        same = ground.labels(study, count, draw) == tuple(result.get("labels", ()))
        scored, judged = ("scores", ground.split.test) if job.run else ("validation", ground.split.validation)
        same &= "diverged" in result or sorted(judged) == sorted(result.get(scored, ()))
    if not same:
        raise SettingsError(
            f"--reuse: {job.folder} of the other study learned from or tested other people than this one would; leave --reuse out"
        )


def _finished(study: Study, out: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for job in jobs_of(study, study.runs):
        if (out / job.result).is_file():
            yield job.result.as_posix(), read_json(out / job.result)


def _packed(result: Mapping[str, Any]) -> dict[str, Any]:
    """The names of the metrics once, not for each person."""
    if "scores" not in result:
        return dict(result)
    scores = result["scores"]
    metrics = list(next(iter(scores.values()), {}))
    rows = {person: [row[metric] for metric in metrics] for person, row in scores.items()}
    return {**result, "scores": {"metrics": metrics, "people": rows}}


def _unpacked(result: Mapping[str, Any]) -> dict[str, Any]:
    if "scores" not in result:
        return dict(result)
    metrics, rows = result["scores"]["metrics"], result["scores"]["people"]
    return {**result, "scores": {p: dict(zip(metrics, row, strict=True)) for p, row in rows.items()}}


def _rounded(value: Any) -> Any:
    """Floats to six significant digits: what is published stays small, and no score is read further."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list | tuple) else value


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)
