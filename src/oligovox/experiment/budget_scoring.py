"""How the models of a label-budget study are scored: predicted masks person by person, and the probability at which a voxel is called."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from oligovox.engine.runtime import Runtime
from oligovox.experiment.budget_plan import Study
from oligovox.experiment.prediction import load_segmentation, task_of
from oligovox.infer.window import predict_case
from oligovox.metrics.protocols import generic
from oligovox.metrics.protocols.counts import LESION
from oligovox.prepare.store import Store, StoredCase

Mask = NDArray[np.bool_]
Masks = Mapping[str, tuple[Mask, Mask]]
"""Output → (predicted, reference); '' is any class."""

Scores = dict[str, dict[str, float | None]]
"""Person → metric → value; None where it is undefined."""

_Row = dict[str, float | int | None]

HALF = 0.5
LIMITS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, HALF, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
"""Probabilities among which the operating point is chosen."""


@dataclass(frozen=True)
class Predicted:
    """What a network says of one case.

    Attributes:
        case: the case.
        probability: (k, x, y, z), one a class or region; of classes without the background.
        names: of them.
        truth: for each, where it is.
        exclusive: classes exclude each other: with several, a voxel is that of the largest probability, background included.
    """

    case: StoredCase
    probability: NDArray[np.float32]
    names: tuple[str, ...]
    truth: tuple[Mask, ...]
    exclusive: bool

    def masks(self, limit: float) -> Masks:
        """Predicted and true masks of each output, and of any.

        Args:
            limit: a voxel is called above it; without effect where several classes exclude each other.
        """
        if self.exclusive and len(self.names) > 1:
            background = 1.0 - self.probability.sum(0, keepdims=True)
            winner = np.concatenate([background, self.probability]).argmax(0)
            each = [winner == place + 1 for place in range(len(self.names))]
        else:
            each = [self.probability[place] > limit for place in range(len(self.names))]
        pairs = {name: (mask, truth) for name, mask, truth in zip(self.names, each, self.truth, strict=True)}
        return {"": (np.any(each, axis=0), lesion(self.case))} | (pairs if len(pairs) > 1 else {})


def predicted(model: Path, people: Iterable[str], study: Study, store: Store) -> Iterator[Predicted]:
    """What the network of a model folder says of the labelled cases of these people, one after the other."""
    network, description = load_segmentation(model)
    runtime = Runtime(study.finetune.training)
    runtime.place(network)
    outputs = task_of(description.settings)
    exclusive = outputs.mode == "classes"
    for case in store.of(people):
        if not case.labelled:
            continue
        found = predict_case(
            network, case, store.plan, patch=description.patch, overlap=study.predict.overlap,
            mirror=study.predict.mirror, activation="softmax" if exclusive else "sigmoid",
            device=runtime.device, precision=runtime.precision,
        )  # fmt: skip
        truth = np.asarray(case.label())
        yield Predicted(
            case, found[1:] if exclusive else found, tuple(outputs.labels),
            tuple(np.isin(truth, values) for values in outputs.labels.values()), exclusive,
        )  # fmt: skip


def limits_of(study: Study) -> tuple[float, ...]:
    """The probabilities among which the study chooses where a voxel is called."""
    return LIMITS if study.operating_point == "validation" else (HALF,)


def scored_at(seen: Iterable[Predicted], limits: Sequence[float]) -> dict[float, Scores]:
    """Scores of the people for each of these limits, holding one case at a time."""
    rows: dict[float, list[tuple[str, _Row]]] = {limit: [] for limit in limits}
    for one in seen:
        for limit in limits:
            rows[limit].append((one.case.person, _row(one.masks(limit), one.case.spacing)))
    return {limit: _by_person(found) for limit, found in rows.items()}


def operating_point(scores: Mapping[float, Scores], study: Study) -> float:
    """The limit with the best mean of the primary metric, among those at which it is defined for most people; of equal ones the nearest to a half.

    Labelled people can be sicker than others, and patches are drawn around lesions: then a network says "lesion" too often, the more so the
    less it was trained, and what is compared at a half is that.

    Args:
        scores: limit → scores of validation people.
        study: says what the primary metric is.
    """
    sign = 1 if study.higher_is_better else -1
    means = {limit: mean_of(found, study.metric) for limit, found in scores.items()}
    defined = {limit: sum(row[study.metric] is not None for row in found.values()) for limit, found in scores.items()}
    most = max(defined.values(), default=0)
    known = {limit: sign * mean for limit, mean in means.items() if mean is not None and defined[limit] == most}
    return max(sorted(known, key=lambda limit: abs(limit - HALF)), key=lambda limit: known[limit], default=HALF)


def score_people(cases: Iterable[StoredCase], masks: Callable[[StoredCase], Masks]) -> Scores:
    """Person → metric → mean over the sessions in which it is defined; of one class as 'class/metric'."""
    return _by_person([(case.person, _row(masks(case), case.spacing)) for case in cases if case.labelled])


def _row(masks: Masks, spacing: tuple[float, float, float]) -> _Row:
    row: _Row = {}
    for output, (mask, truth) in masks.items():
        prefix = f"{output}/" if output else ""
        row |= {f"{prefix}{k}": value for k, value in generic.score(mask, truth, spacing).regions[LESION].items()}
    return row


def _by_person(rows: Iterable[tuple[str, _Row]]) -> Scores:
    people: dict[str, list[_Row]] = {}
    for person, row in rows:
        people.setdefault(person, []).append(row)
    return {
        person: {metric: _mean(row[metric] for row in sessions) for metric in sessions[0]}
        for person, sessions in people.items()
    }


def mean_of(scores: Scores, metric: str) -> float | None:
    """Mean over the people for whom the metric is defined."""
    return _mean(row[metric] for row in scores.values())


def lesion(case: StoredCase) -> Mask:
    """Where any class is."""
    label: Mask = np.asarray(case.label()) > 0
    return label


def _mean(values: Iterable[float | int | None]) -> float | None:
    defined = [value for value in values if value is not None and math.isfinite(value)]
    return fmean(defined) if defined else None
