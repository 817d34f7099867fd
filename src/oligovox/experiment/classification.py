"""Cross-validated classification of lesions: in each fold a start, a classifier, a threshold, and what it says of people it never saw.

    RUN/classify.json            settings, folds, hash of the lesion store; finished or not
    RUN/fold-1/pretrain/         a run folder, where there is a start (RUN/pretrain/ for a transductive one)
    RUN/fold-1/train/            a run folder; train/model is the checkpoint with the highest validation PR-AUC; of a forest train/forest alone
    RUN/fold-1/fold.json         calibration, threshold, people
    RUN/fold-1/predictions.tsv   the tested people's lesions
    RUN/maps/sub-01/anat/sub-01_desc-rim_probseg.nii.gz    each lesion coloured by that probability, and its table
    RUN/predictions.tsv          those of all folds: out of fold, once every lesion of people with a graded one (nobody else is in a fold)

Everything resumes: a fold that has its fold.json is done, one that has not goes on from its last checkpoint.

Source: train.py and evaluate.py of veronicapignedoli/FRODO, arXiv 2606.16756: folds by participant, threshold by validation F1, checkpoint by
    validation PR-AUC.
Deviates: the start of a fold sees nobody who is tested or validated on (the release: everybody; `pretrain.transductive` does that); folds are
    stratified by Rim+ lesions; no early stopping: all steps are taken and the best checkpoint is kept; a network's answers become probabilities on
    validated people, before the threshold is chosen (`calibrate: false` leaves them as they are).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from oligovox.cohort.folds import Fold
from oligovox.engine.fit import AnyMethod, Training, Validate
from oligovox.engine.log import say
from oligovox.engine.model import ModelDescription
from oligovox.engine.runtime import Runtime
from oligovox.errors import CheckpointError, OutputError
from oligovox.experiment.classification_maps import write_map
from oligovox.experiment.classification_recipe import FORMAT, Classify, plan_folds, pretrained_on, with_counts
from oligovox.experiment.classification_scores import score_run
from oligovox.experiment.cohorts import Show, quiet
from oligovox.experiment.radiomics_forest import FOREST, ForestSettings, RadiomicsForest, lesion_rows
from oligovox.experiment.training import build_encoder, build_method, fit_and_export, load_network, load_start, resolved
from oligovox.files import check_writable, read_json, read_tsv, sweep, write_json, write_tsv
from oligovox.infer.calibration import Calibration, calibration_of
from oligovox.infer.lesions import Mirrored, predict_lesions
from oligovox.metrics.protocols.prl import best_threshold, score_lesions
from oligovox.prepare.lesion_store import SEQUENCES, LesionStore, StoredLesion
from oligovox.sample.augment import Augmentation, augment
from oligovox.sample.batch import Batch
from oligovox.sample.lesions import LesionSource
from oligovox.sample.turns import Turns, turned
from oligovox.settings import parse

PREDICTIONS = (
    *("lesion", "person", "fold", "grade", "uncertain", "probability", "threshold", "called"),
    *("exam", "number", "x", "y", "z", "volume_mm3"),
)
"""Columns of predictions.tsv."""

_BEST_BY = "pr_auc"
_PLAIN = Augmentation.only()
_Answer = Callable[[Sequence[StoredLesion]], NDArray[np.float64]]


def classify_train(
    lesions: LesionStore | Path | str,
    out: Path | str,
    *,
    chosen: Classify | None = None,
    show: Show = quiet,
) -> dict[str, Any]:
    """Train and test a classifier of lesions by cross-validation over people.

    Args:
        lesions: lesion store with grades.
        out: run folder; a killed run resumes there.
        chosen: method, folds, schedule; None: the defaults.
        show: progress, over folds.

    Returns:
        "run", "predictions", "scores", "page" (paths), "folds", and the pooled "lesion" scores with their intervals.

    Raises:
        CohortError: too few people with a Rim+ lesion for so many folds.
        LabelError: nobody is graded, or a fold would learn from one class only.
        SettingsError: method, network and patch do not fit; said before the first step.
        CheckpointError: `out` holds a run with other settings, lesions or folds.
    """
    store = lesions if isinstance(lesions, LesionStore) else LesionStore.open(Path(lesions))
    out, chosen = Path(out), chosen or Classify()
    folds = plan_folds(store, chosen)
    check_writable(out)
    run = _Run(store, out, chosen, folds)
    run.claim()
    count, rows = show("fold"), []
    if chosen.pretrain and chosen.pretrain.transductive:
        say("the start sees the lesions of tested people, without their grades: this run is transductive")
    for number, fold in enumerate(folds, start=1):
        rows += run.fold(number, fold)
        count(number, len(folds), f"fold {number}")
    rows = sorted(rows, key=lambda row: str(row["lesion"]))
    for exam in sorted({str(row["exam"]) for row in rows}):
        write_map(
            out / "maps",
            store,
            exam,
            rows,
            {"Classifier": str(out), "Warnings": ["Out of fold: by the classifier that never saw this person."]},
        )
    write_tsv(out / "predictions.tsv", rows, PREDICTIONS)
    run.claim(finished=True)
    found = score_run(out, store)
    return {"run": str(out), "predictions": str(out / "predictions.tsv"), "folds": len(folds)} | found


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """One training: pre-training or classification."""

    method: str
    settings: Mapping[str, Any]
    training: Training
    turns: Turns
    classifies: bool
    transductive: bool
    augmentation: Augmentation = _PLAIN

    def augment(self, batch: Batch, rng: torch.Generator) -> Batch:
        """Flips and turns, then what is asked beside them."""
        batch = turned(batch, self.turns, rng)
        return batch if self.augmentation == _PLAIN else augment(batch, self.augmentation, rng)


@dataclass(frozen=True)
class _Run:
    store: LesionStore
    out: Path
    chosen: Classify
    folds: tuple[Fold, ...]

    def claim(self, *, finished: bool = False) -> None:
        """Write classify.json, or make sure that the one there is of this run."""
        table = self.out / "classify.json"
        about = {
            "format": FORMAT,
            "finished": finished,
            "settings": self.chosen.model_dump(mode="json"),
            "lesions": self.store.content,
            "extraction": self.store.plan.model_dump(mode="json"),
            "folds": [asdict(fold) for fold in self.folds],
            "simulated": self.store.simulated,
        }
        if table.is_file():
            before = read_json(table)
            plain = {key: _plain(value) for key, value in about.items()}
            for key in ("format", "settings", "lesions", "extraction", "folds"):
                if before.get(key) != plain[key]:
                    raise CheckpointError(
                        f"{table}: the run in it has other {key}; use the same to go on, or another output folder to start anew"
                    )
            if before.get("finished"):
                return
        elif self.out.is_dir() and any(self.out.iterdir()):
            raise OutputError(f"{self.out}: holds files that are not a classification; choose an empty or a new folder")
        if self.out.is_dir():
            sweep(self.out)
        write_json(table, about)

    def fold(self, number: int, fold: Fold) -> list[dict[str, Any]]:
        """The rows of one fold, made or read."""
        home = self.out / f"fold-{number}"
        if (home / "fold.json").is_file():
            return [dict(row) for row in read_tsv(home / "predictions.tsv")]
        train = [lesion for lesion in self.store.of(fold.train) if lesion.grade >= 0]
        watched = [lesion for lesion in self.store.of(fold.validation) if lesion.grade >= 0]
        if self.chosen.method == FOREST:
            answer = self._forest(home, fold, train)
        else:
            answer = self._network(home, fold, train, watched)
        validated, grades = answer(watched), [lesion.grade for lesion in watched]
        calibrate = Calibration()
        if self.chosen.calibrate and self.chosen.method != FOREST:  # a forest's share of trees is what it is
            calibrate = calibration_of(validated, grades, self._usual([*train, *watched]))
        threshold = best_threshold(calibrate(validated), grades)
        test = self.store.of(fold.test)
        rows = prediction_rows(test, calibrate(answer(test)), np.full(len(test), threshold), number)
        write_tsv(home / "predictions.tsv", rows, PREDICTIONS)
        about = {"calibration": asdict(calibrate), "threshold": threshold, "people": asdict(fold)}
        write_json(home / "fold.json", about)
        return rows

    def _usual(self, known: Sequence[StoredLesion]) -> float:
        """Offset of a logit that speaks of halves, where these lesions say how frequent rims are; 0 of one that has seen them as frequent as they are."""
        evened = self.chosen.balanced or self.chosen.settings.get("imbalance") in ("class_balanced", "logit_adjustment")
        rims = sum(lesion.grade for lesion in known)
        return math.log(rims / (len(known) - rims)) if evened else 0.0

    def _forest(self, home: Path, fold: Fold, train: Sequence[StoredLesion]) -> _Answer:
        """What a forest, fitted on these lesions and kept, says of others."""
        forest = RadiomicsForest(self._forest_settings)
        forest.fit(self._measured(train), [lesion.grade for lesion in train])
        forest.save(home / "train" / "forest", fold.train)
        return lambda lesions: forest.predict(self._measured(lesions))

    def _measured(self, lesions: Sequence[StoredLesion]) -> NDArray[np.float64]:
        """(n, 60), each lesion measured once."""
        return np.array([self._radiomics[lesion.name] for lesion in lesions])

    @cached_property
    def _forest_settings(self) -> ForestSettings:
        return parse(ForestSettings, self.chosen.settings, f"settings of {FOREST}")

    @cached_property
    def _radiomics(self) -> dict[str, NDArray[np.float64]]:
        rows = lesion_rows(self.store.lesions, self.store.plan, self._forest_settings.bin_ppb)
        return {lesion.name: row for lesion, row in zip(self.store.lesions, rows, strict=True)}

    def _network(
        self, home: Path, fold: Fold, train: Sequence[StoredLesion], watched: Sequence[StoredLesion]
    ) -> _Answer:
        """What the network of a fold, trained or read, says of lesions."""
        chosen = self.chosen
        truth, people = [lesion.grade for lesion in watched], [lesion.person for lesion in watched]

        def validate(method: AnyMethod) -> Mapping[str, float]:
            scores = score_lesions(self._predict(method.export(), watched), truth, people).regions["lesion"]
            return {name: math.nan if (value := scores[name]) is None else value for name in (_BEST_BY, "roc_auc")}

        start, transductive = self._pretrained(home, fold), bool(chosen.pretrain and chosen.pretrain.transductive)
        seen = {*fold.train, *(pretrained_on(self.store, fold, transductive) if start else ())}
        source = LesionSource(
            train,
            count=chosen.batch, patch=chosen.patch, plan=self.store.plan, seed=chosen.training.seed, balanced=chosen.balanced,
        )  # fmt: skip
        stage = _Stage(
            method=chosen.method, settings=with_counts(chosen, train), training=chosen.training, turns=chosen.turns,
            classifies=True, transductive=transductive, augmentation=chosen.augmentation,
        )  # fmt: skip
        model = self._trained(stage, source, home / "train", sorted(seen), start, validate)
        network = load_network(model)[0].to(Runtime(chosen.training).device)
        return lambda lesions: self._predict(network, lesions)

    def _pretrained(self, home: Path, fold: Fold) -> Path | None:
        """The start of a fold; None where there is none."""
        if (pretrain := self.chosen.pretrain) is None:
            return None
        people = pretrained_on(self.store, fold, pretrain.transductive)
        out = self.out / "pretrain" if pretrain.transductive else home / "pretrain"
        if (out / "model" / "model.json").is_file():
            return out
        source = LesionSource(
            self.store.of(people),
            count=pretrain.batch, patch=self.chosen.patch, plan=self.store.plan, seed=pretrain.training.seed,
            balanced=False, use_grades=False,
        )  # fmt: skip
        stage = _Stage(
            method=pretrain.method, settings=pretrain.settings, training=pretrain.training, turns=pretrain.turns,
            classifies=False, transductive=pretrain.transductive,
        )  # fmt: skip
        self._trained(stage, source, out, people, None, None)
        return out

    def _trained(
        self,
        stage: _Stage,
        source: LesionSource,
        out: Path,
        seen: Sequence[str],
        start: Path | None,
        validate: Validate | None,
    ) -> Path:
        """Train and export; the model folder."""
        runtime = Runtime(stage.training)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stage.training.seed)
            method = build_method(stage.method, stage.settings, build_encoder(self.chosen.network, SEQUENCES))
        parent = load_start(method, start) if start else None
        description = ModelDescription(
            kind="classification" if stage.classifies else None,
            method=stage.method,
            settings=resolved("METHOD", stage.method, stage.settings),
            network=self.chosen.network.name,
            network_settings=resolved("NETWORK", self.chosen.network.name, self.chosen.network.settings),
            modalities=SEQUENCES,
            plan=self.store.plan.model_dump(mode="json"),
            patch=(self.chosen.patch,) * 3,
            trained_on=tuple(seen),
            transductive=stage.transductive,
            parent=parent.identity if parent else None,
        )
        drawn = {
            "lesions": self.store.content,
            "batch": source.size,
            "balanced": self.chosen.balanced,
            "turns": stage.turns.model_dump(),
        }
        if stage.augmentation != _PLAIN:
            drawn["augmentation"] = stage.augmentation.model_dump()
        return fit_and_export(
            method,
            source.batch,
            stage.training,
            out,
            description,
            runtime=runtime,
            augment=stage.augment,
            validate=validate,
            best_by=_BEST_BY,
            data=drawn,
        )

    def _predict(self, network: Callable[..., Any], lesions: Sequence[StoredLesion]) -> NDArray[np.float64]:
        parameter = next(network.parameters(), None) if isinstance(network, torch.nn.Module) else None
        device = torch.device("cpu") if parameter is None else parameter.device
        return predict_lesions(
            Mirrored(network) if self.chosen.mirror else network,
            lesions,
            patch=self.chosen.patch,
            plan=self.store.plan,
            batch=self.chosen.batch,
            device=device,
        )


def prediction_rows(
    lesions: Sequence[StoredLesion], probability: NDArray[np.float64], threshold: NDArray[np.float64], fold: int | None
) -> list[dict[str, Any]]:
    """Rows of predictions.tsv."""
    keys = ("lesion", "exam", "number", "x", "y", "z", "volume_mm3", "grade", "uncertain")
    return [
        {key: value for key, value in lesion.row().items() if key in keys}
        | {
            "person": lesion.person,
            "fold": fold,
            "probability": float(f"{p:.9g}"),  # digits that count: a network that is sure still has an order
            "threshold": float(t),
            "called": int(p > t),
        }
        for lesion, p, t in zip(lesions, probability, threshold, strict=True)
    ]


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
