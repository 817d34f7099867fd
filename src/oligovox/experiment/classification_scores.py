"""Predictions of lesions against their grades: scores with intervals over people, folds, curves, differences, the page.

OUT/scores.json   settings, scores of lesions and people with intervals, each fold, calibration, curves, the comparison and its tests
OUT/scores.tsv    region, metric, value, low, high; `difference` where something is compared
OUT/classify.html the same to read, with pictures of the lesions

Rims that the masks miss are in no table of predictions. Where the lesion store is known, those of the exams that were tested (`missed_of`) count in
the scores of people: "missed_rims" of scores.json is the store's, "missed_rims_scored" what of it counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oligovox.engine.log import say
from oligovox.errors import CohortError, LabelError
from oligovox.experiment.classification_page import draw_page
from oligovox.files import check_writable, read_json, read_tsv, write_json, write_tsv
from oligovox.metrics.bootstrap import defined
from oligovox.metrics.delong import roc_area_test
from oligovox.metrics.lesion_curves import net_benefit, precision_recall_points, reliability, roc_points
from oligovox.metrics.protocols.prl import MAIN, Estimate, Settings, lesion_differences, lesion_intervals, score_lesions
from oligovox.prepare.lesion_store import LesionStore, person_of
from oligovox.settings import parse

SEED = 0
PLACE = ("x", "y", "z", "volume_mm3")
ACTING = tuple(np.round(np.arange(0.02, 0.99, 0.02), 2).tolist())
"""Threshold probabilities of the decision curve."""

_APART = 0.1  # mm, mm³: tables round to a hundredth


@dataclass(frozen=True)
class Scored:
    """Lesions of known grade with what was said of them.

    Attributes:
        lesion: names.
        person: whose they are.
        exam: person and exam, by which visits are told apart; the person, where the table names no exam.
        truth: (n,) 1 Rim+, 0 Rim−.
        probability: (n,) of a rim.
        threshold: (n,) above which a lesion is called.
        fold: of each, '' where there is none.
        place: (n, 4) x, y, z (mm, RAS) and volume (mm³); NaN where the table does not say.
        rows: all lesions as the page has them, those of unknown grade (-1) too.
    """

    lesion: tuple[str, ...]
    person: tuple[str, ...]
    exam: tuple[str, ...]
    truth: NDArray[np.int64]
    probability: NDArray[np.float64]
    threshold: NDArray[np.float64]
    fold: tuple[str, ...]
    place: NDArray[np.float64]
    rows: tuple[Mapping[str, Any], ...]


def classify_evaluate(
    predictions: Path | str,
    out: Path | str,
    *,
    against: Path | str | None = None,
    lesions: Path | str | None = None,
    changes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Score predictions of graded lesions, and compare them with those of another classifier on the same lesions.

    Args:
        predictions: run folder of `classify_train`, folder of `classify_predict`, or its predictions.tsv.
        out: folder to write: scores.json, scores.tsv, classify.html.
        against: the same of another classifier.
        lesions: lesion store with the grades, where the table has none; also for the pictures.
        changes: settings of the protocol `prl`; a `threshold` is then that of every lesion, in place of those that the folds chose.

    Returns:
        "scores", "page" and the "lesion" scores; with `against` also the "difference".

    Raises:
        CohortError: a table is missing or lacks a column, or tables and lesion store are not about the same lesions.
        LabelError: nobody's grade is known.
    """
    store = LesionStore.open(Path(lesions)) if lesions else None
    out, table = Path(out), table_of(Path(predictions))
    scored, other = read_scored(table, store), read_scored(table_of(Path(against)), store) if against else None
    check_writable(out)
    settings = parse(Settings, changes or {}, "protocol prl")
    if "threshold" in settings.model_fields_set:
        scored, other = _called_above(settings.threshold, scored), other and _called_above(settings.threshold, other)
    return _write(out, scored, other, table, store, settings)


def _called_above(threshold: float, scored: Scored) -> Scored:
    """The same lesions, called by one threshold."""
    rows = [{**row, "threshold": threshold, "called": int(row["probability"] > threshold)} for row in scored.rows]
    return replace(scored, threshold=np.full(len(scored.lesion), threshold), rows=tuple(rows))


def score_run(run: Path, store: LesionStore) -> dict[str, Any]:
    """Score the out-of-fold predictions of a run in its own folder."""
    table = run / "predictions.tsv"
    return _write(run, read_scored(table, None), None, table, store, Settings())


def table_of(path: Path) -> Path:
    """predictions.tsv, given itself or its folder.

    Raises:
        CohortError: neither.
    """
    table = path if path.is_file() else path / "predictions.tsv"
    if not table.is_file():
        raise CohortError(
            f"{path}: no predictions.tsv in it; expected a folder of `oligovox classify train` or `predict`"
        )
    return table


def read_scored(table: Path, store: LesionStore | None) -> Scored:
    """The rows of known grade; grades come from the store where one is given.

    Raises:
        CohortError: a column is missing, a value is no number, or the store's lesion of a name is another one: cut from other masks.
        LabelError: nobody's grade is known.
    """
    try:
        rows = [_read(row) for row in read_tsv(table)]
    except (KeyError, ValueError) as error:
        raise CohortError(
            f"{table}: not a table of predictions ({error!r}); expected lesion, person, grade (1, 0, -1 or n/a), "
            "probability and threshold (in [0, 1]), and x, y, z, volume_mm3 as numbers or n/a"
        ) from error
    if store:
        rows = _graded_by(store, rows, table)
    kept = [row for row in rows if row["grade"] >= 0]
    if not kept:
        raise LabelError(
            f"{table}: none of {len(rows)} lesions has a grade; give the lesion store that has them (--lesions)"
        )
    return Scored(
        lesion=tuple(row["lesion"] for row in kept),
        person=tuple(row["person"] for row in kept),
        exam=tuple(row["exam"] for row in kept),
        truth=np.array([row["grade"] for row in kept]),
        probability=np.array([row["probability"] for row in kept]),
        threshold=np.array([row["threshold"] for row in kept]),
        fold=tuple(row["fold"] for row in kept),
        place=np.array([[row[key] for key in PLACE] for row in kept], float),  # None: NaN
        rows=tuple(rows),
    )


def _read(row: Mapping[str, str]) -> dict[str, Any]:
    """One row in numbers; None where a position is not said, grade -1 where nobody knows it, called by the threshold."""
    grade, probability, threshold = int(row["grade"] or -1), float(row["probability"]), float(row["threshold"])
    if grade not in (1, 0, -1) or not (0 <= probability <= 1 and 0 <= threshold <= 1):
        raise ValueError(f"grade {grade}, probability {probability}, threshold {threshold} of {row['lesion']}")
    place = {key: float(text) if (text := row.get(key)) else None for key in PLACE}
    return {
        "lesion": row["lesion"], "person": row["person"], "exam": " ".join(filter(None, (row["person"], row.get("exam")))), "fold": row.get("fold", ""), "grade": grade,
        "probability": probability, "threshold": threshold, "called": int(probability > threshold), **place,
    }  # fmt: skip


def _graded_by(store: LesionStore, rows: Sequence[Mapping[str, Any]], table: Path) -> list[dict[str, Any]]:
    """The rows with the store's grades; lesions that the store does not have keep theirs."""
    known, graded = {lesion.name: lesion for lesion in store.lesions}, []
    for row in rows:
        grade = row["grade"]
        if (lesion := known.get(row["lesion"])) is not None:
            place = np.array([row[key] for key in PLACE], float)
            if not (np.abs(place - (*lesion.position_mm, lesion.volume_mm3)) <= _APART).all():
                raise CohortError(
                    f"{table}: {lesion.name} is another lesion than in {store.root} (at {_at(place)}, there at "
                    f"{_at((*lesion.position_mm, lesion.volume_mm3))}): the two were cut from other masks, or by other rules; "
                    "extract a lesion store with grades from the masks that were classified (classify extract --masks)"
                )
            grade = lesion.grade
        graded.append({**row, "grade": grade})
    return graded


def _at(place: Sequence[float] | NDArray[np.float64]) -> str:
    x, y, z, volume = place
    return f"{x:.1f}, {y:.1f}, {z:.1f} mm, {volume:.0f} mm³"


def _write(
    out: Path, scored: Scored, other: Scored | None, table: Path, store: LesionStore | None, settings: Settings
) -> dict[str, Any]:
    missed = missed_of(store, scored.rows) if store else None
    known = {lesion.name: lesion.person for lesion in store.lesions} if store else {}
    called = {known[row["lesion"]]: row["person"] for row in scored.rows if row["lesion"] in known}
    people = {exam: called.get(person_of(exam), person_of(exam)) for exam in missed or {}}
    people |= dict(zip(scored.exam, scored.person, strict=True))
    pooled = lesion_intervals(
        scored.probability, scored.truth, scored.exam, settings,
        seed=SEED, thresholds=scored.threshold, missed=missed, people=people,
    )  # fmt: skip
    rows = _rows("value", pooled)
    content: dict[str, Any] = {
        "lesions": len(scored.lesion),
        "people": len(set(scored.person)),
        "exams": len(set(scored.exam)),
        "rim_plus": int(scored.truth.sum()),
        "ungraded": len(scored.rows) - len(scored.lesion),
        "missed_rims": store.missed_rims if store else None,
        "missed_rims_scored": None if missed is None else sum(missed.values()),
        "seed": SEED,
        "settings": settings.model_dump(
            mode="json", exclude=None if "threshold" in settings.model_fields_set else {"threshold"}
        ),
        "scores": {region: {m: e.as_row() for m, e in found.items()} for region, found in pooled.items()},
        "folds": _folds(scored, settings),
        **_curves(scored),
    }
    if other is not None:
        other = _same_lesions(scored, other, table)
        compared = _compared(scored, other, settings, missed, people)
        content["difference"] = {
            region: {m: e.as_row() for m, e in found.items()} for region, found in compared.items()
        } | {"tests": _tests(scored, other, compared)}
        rows += _rows("difference", compared)
    run = table.parent / "classify.json"
    about = read_json(run) if run.is_file() else {}
    simulated = bool(about.get("simulated") or (store is not None and store.simulated))
    content["simulated"] = simulated
    content["transductive"] = bool((about.get("settings", {}).get("pretrain") or {}).get("transductive"))
    write_tsv(out / "scores.tsv", rows, ("what", "region", "metric", "value", "low", "high", "resamples"))
    write_json(out / "scores.json", content)
    page = draw_page(content, scored.rows, table.parent, out, store)
    found: dict[str, Any] = {"scores": str(out / "scores.json"), "page": str(page)}
    found |= {"lesion": {m: content["scores"]["lesion"][m] for m in MAIN}}
    if other is None:
        return found
    tests = content["difference"]["tests"]
    return found | {"difference": {m: content["difference"]["lesion"][m] | tests.get(m, {}) for m in MAIN}}


def missed_of(store: LesionStore, rows: Sequence[Mapping[str, Any]]) -> dict[str, int] | None:
    """Exam, as the table calls it → Rim+ lesions that the masks miss in it, of those that were tested; None where the store cannot say.

    Tested are exams of which the table has a lesion, and of the exams without a lesion, which no table can name,

    * those whose person has a tested exam;
    * all, where the table has no folds and every exam of the store that has a lesion is in it: then everybody in the store was asked. With folds
      somebody without a graded lesion was in none, so was never tested.

    Args:
        store: has the exams, and what their masks miss.
        rows: of the table of predictions, those of unknown grade too.
    """
    known = {lesion.name: lesion for lesion in store.lesions}
    seen = [(known[row["lesion"]], row.get("exam") or row["person"]) for row in rows if row["lesion"] in known]
    tested, filled = {lesion.exam: exam for lesion, exam in seen}, {lesion.exam for lesion in store.lesions}
    people = {lesion.person for lesion, _ in seen}
    everybody = tested.keys() == filled and not any(row["fold"] for row in rows)
    if (counts := store.missed_by_exam) is None:
        return None
    missed: dict[str, int] = {}
    for exam, count in counts.items():
        if count and (exam in tested or (exam not in filled and (everybody or person_of(exam) in people))):
            name = tested.get(exam, exam)
            missed[name] = missed.get(name, 0) + count
    return missed


def score_headlines(result: Mapping[str, Any]) -> dict[str, Any]:
    """What `classify_train` and `classify_evaluate` return, for people: a line a score, with its interval over people."""
    lines: dict[str, Any] = {}
    for key, value in result.items():
        if not isinstance(value, Mapping):
            lines[key] = value
            continue
        for metric, estimate in value.items():
            ends = [estimate[end] for end in ("value", "low", "high")]
            shown = ["undefined" if end is None else f"{end:.3f}" for end in ends]
            line = shown[0] if None in ends[1:] else f"{shown[0]} [{shown[1]}, {shown[2]}]"
            lines[f"{metric} ({key})"] = line + _said(estimate)
    return lines


def _said(estimate: Mapping[str, Any]) -> str:
    """The test of a difference, where there is one."""
    if (p := estimate.get("p")) is None:
        return ""
    return f", {f'p = {p:.3f}' if p >= 0.001 else 'p < 0.001'} ({estimate['test']})"


def _rows(what: str, found: Mapping[str, Mapping[str, Estimate]]) -> list[dict[str, Any]]:
    return [
        {"what": what, "region": region, "metric": metric, **estimate.as_row()}
        for region, metrics in found.items()
        for metric, estimate in metrics.items()
    ]


def _folds(scored: Scored, settings: Settings) -> dict[str, Any]:
    """Each fold by itself, and mean and standard deviation over them; a fold with one class only has no areas."""
    names = sorted({fold for fold in scored.fold if fold}, key=lambda name: (len(name), name))
    each: dict[str, dict[str, Any]] = {}
    for name in names:
        inside = np.array([fold == name for fold in scored.fold])
        people = [person for person, there in zip(scored.person, inside, strict=True) if there]
        found = score_lesions(
            scored.probability[inside], scored.truth[inside], people, settings, thresholds=scored.threshold[inside]
        )
        each[name] = dict(found.regions["lesion"]) | {
            "lesions": int(inside.sum()),
            "threshold": float(scored.threshold[inside][0]),
        }
        if len(set(scored.truth[inside].tolist())) < 2:
            say(
                f"fold {name}: its tested people have one class only, so it has no areas; the pooled scores count its lesions"
            )
    over = {}
    for metric in MAIN if each else ():
        values = [float(v) for found in each.values() if (v := found[metric]) is not None]
        over[metric] = {
            "mean": fmean(values) if values else None,
            "sd": stdev(values) if len(values) > 1 else None,
            "folds": len(values),
        }
    return {"each": each, "over": over}


def _curves(scored: Scored) -> dict[str, Any]:
    """Points of every curve, as plain lists; None where undefined."""
    calibrated = reliability(scored.probability, scored.truth)
    ours, everyone = net_benefit(scored.probability, scored.truth, ACTING)
    return {
        "calibration": {
            "ece": defined(calibrated.ece),
            "brier": defined(calibrated.brier),
            "probability": _list(calibrated.mean_probability),
            "rim_share": _list(calibrated.lesion_share),
            "lesions": calibrated.voxels.tolist(),
        },
        "curves": {
            "roc": [_list(part) for part in roc_points(scored.probability, scored.truth)],
            "precision_recall": [_list(part) for part in precision_recall_points(scored.probability, scored.truth)],
            "decision": {"threshold": list(ACTING), "classifier": _list(ours), "everyone": _list(everyone)},
        },
    }


def _same_lesions(scored: Scored, other: Scored, table: Path) -> Scored:
    """The other's lesions in the order of ours."""
    place = {name: index for index, name in enumerate(other.lesion)}
    if set(place) != set(scored.lesion):
        alone = sorted(set(place) ^ set(scored.lesion))
        raise CohortError(
            f"{table}: the two classifiers were not tested on the same graded lesions ({len(alone)} are in one only, first {alone[0]}); "
            "compare runs of one lesion store"
        )
    order = [place[name] for name in scored.lesion]
    if (other.truth[order] != scored.truth).any():
        raise CohortError(
            f"{table}: the two tables give different grades for a lesion; compare runs of one lesion store"
        )
    apart = (np.abs(other.place[order] - scored.place) > _APART).any(axis=1)  # where both say where
    if apart.any():
        raise CohortError(
            f"{table}: {scored.lesion[int(apart.argmax())]} is another lesion in the other table, of another place or volume; "
            "compare runs of one lesion store"
        )
    return replace(
        other, lesion=scored.lesion, person=scored.person, exam=scored.exam, truth=scored.truth, probability=other.probability[order],
        threshold=other.threshold[order], fold=tuple(other.fold[index] for index in order), place=other.place[order],
    )  # fmt: skip


def _compared(
    scored: Scored, other: Scored, settings: Settings, missed: Mapping[str, int] | None, people: Mapping[str, str]
) -> dict[str, dict[str, Estimate]]:
    return lesion_differences(
        scored.probability, other.probability, scored.truth, scored.exam, settings,
        seed=SEED, thresholds=(scored.threshold, other.threshold), missed=missed, people=people,
    )  # fmt: skip


def _tests(scored: Scored, other: Scored, compared: Mapping[str, Mapping[str, Estimate]]) -> dict[str, dict[str, Any]]:
    """Of the differences of areas, p of each alone: several comparisons need `metrics.paired.holm`."""
    tested = roc_area_test(scored.probability, other.probability, scored.truth, scored.person)
    drawn = compared["lesion"]["pr_auc"]
    return {
        "roc_auc": tested.as_row() | {"test": "DeLong, clustered by people"},
        "pr_auc": {"difference": defined(drawn.value), "p": defined(drawn.p), "test": "bootstrap over people"},
    }


def _list(values: Sequence[float] | NDArray[np.float64]) -> list[float | None]:
    return [defined(round(float(v), 6)) if math.isfinite(v) else None for v in values]
