"""A study is written down before it runs, and what is added later is known as such.

    STUDY/study.yaml        the resolved study as it was before the first run; never changes
    STUDY/added-<k>.yaml    the study after arms, counts, draws or seeds were added for the k-th time

The first line of each file holds its date; the hash of the study is the SHA-256 of study.yaml (`sha256sum study.yaml`).

| the study that is asked for | what happens |
| --- | --- |
| is the one that stands | goes on |
| has more arms, counts, draws or seeds | goes on; runs that study.yaml does not have are exploratory |
| lacks something, or differs in anything else | refused |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from oligovox.engine.checkpoint import difference
from oligovox.errors import SettingsError
from oligovox.experiment.budget_claims import awaited
from oligovox.experiment.budget_plan import Study, parse_study, plain, write_study
from oligovox.files import atomic_file, hash_file

_HEAD = "# Frozen "
_MAY_GROW = ("arms", "counts", "draws", "seeds")


@dataclass(frozen=True)
class Frozen:
    """A study as it was written down.

    Attributes:
        study: what stood in the file.
        date: when, ISO 8601.
        sha256: of the file.
        path: the file.
    """

    study: Study
    date: str
    sha256: str
    path: Path

    @property
    def text(self) -> str:
        """The file as it is."""
        return self.path.read_text(encoding="utf-8")


def freeze(study: Study, out: Path) -> tuple[Frozen, tuple[Frozen, ...]]:
    """Write the study down, or check that the one in the folder allows for it.

    Returns:
        The study as it was before the first run, and what it was after each addition.

    Raises:
        SettingsError: the folder holds something else, or a study that this one is not an extension of. Nothing is written then.
    """
    check_freeze(study, out)
    with awaited(out / "claims" / "study"):
        versions = check_freeze(study, out)
        last = versions[-1].study if versions else None
        if last is None or write_study(last) != write_study(study):
            name = f"added-{len(versions)}.yaml" if versions else "study.yaml"
            with atomic_file(out / name) as temporary:
                temporary.write_text(_head() + write_study(study), encoding="utf-8")
    first, *added = frozen_versions(out)
    return first, tuple(added)


def check_freeze(study: Study, out: Path) -> tuple[Frozen, ...]:
    """What stands in the folder; reads only.

    Raises:
        SettingsError: as `freeze`.
    """
    versions = frozen_versions(out)
    if not versions:
        if out.exists() and any(path.name != "claims" for path in out.iterdir()):
            raise SettingsError(f"{out}: is not empty and not a study of oligovox; choose another --out")
        return ()
    if problem := _refusal(plain(versions[-1].study), plain(study)):
        raise SettingsError(
            f"{out}: the study was frozen on {versions[0].date[:10]}; {problem}. Only arms, counts, draws and seeds may be "
            "added; for anything else choose another --out"
        )
    return versions


def frozen_versions(out: Path) -> tuple[Frozen, ...]:
    """The study as it was frozen, then after each addition; () where there is none.

    Raises:
        SettingsError: a file is damaged.
    """
    found: list[Frozen] = []
    while (path := out / (f"added-{len(found)}.yaml" if found else "study.yaml")).is_file():
        text = path.read_text(encoding="utf-8")
        first = text.partition("\n")[0]
        if not first.startswith(_HEAD):
            raise SettingsError(f"{path}: its first line is not '{_HEAD}DATE …'; restore it from a copy")
        found.append(Frozen(parse_study(text, str(path)), first.removeprefix(_HEAD).split()[0], hash_file(path), path))
    return tuple(found)


def _head() -> str:
    return f"{_HEAD}{datetime.now(UTC).isoformat(timespec='seconds')} by oligovox {version('oligovox')}, before its first run\n"


def _refusal(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """Why the new study is not the old one or more of it, in a few words."""
    before, now = ({key: value for key, value in one.items() if key not in _MAY_GROW} for one in (old, new))
    if changed := difference(before, now):
        return changed
    for name, arm in old["arms"].items():
        if name not in new["arms"]:
            return f"arm '{name}' is gone"
        if changed := difference(arm, new["arms"][name], f"arms.{name}"):
            return changed
    if gone := sorted({*old["counts"]} - {*new["counts"]}):
        return f"counts: {gone[0]} is gone"
    if new["seeds"][: len(old["seeds"])] != old["seeds"]:
        return f"seeds = {new['seeds']}, expected those that were there, {old['seeds']}, and new ones after them"
    for count, draws in old["draws"].items():
        if new["draws"][count] < draws:
            return f"draws for {count} labels: {new['draws'][count]}, were {draws}"
    return None
