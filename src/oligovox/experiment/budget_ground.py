"""The ground of a label-budget study: its store, who is tested, who is validated on, and whose labels each draw has."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from oligovox.cohort.annotate import SPARSE
from oligovox.cohort.manifest import Case, Cohort
from oligovox.cohort.splits import Split, nested_budgets
from oligovox.engine.runtime import Runtime
from oligovox.errors import LabelError, SettingsError, nearest
from oligovox.experiment.budget_claims import awaited
from oligovox.experiment.budget_plan import Study
from oligovox.experiment.cohorts import Show, planned, together
from oligovox.experiment.people import draw, label_pool, pretraining_people
from oligovox.experiment.recipe import Pretrain, SplitChoice
from oligovox.experiment.training import check, of_finetuning
from oligovox.files import write_json
from oligovox.prepare.pipeline import prepare as prepare_cohort
from oligovox.prepare.store import Plan, Store
from oligovox.simulate.write import simulate_cohort

_DRAWS_A_SEED = 1000
"""Draw d of a study with seed s is the nested budget of this · s + d."""


@dataclass(frozen=True)
class Ground:
    """What all runs of a study share.

    Attributes:
        store: prepared volumes.
        cohort: who is in it.
        split: who is tested and validated on; `train` are the people whose labels may be drawn.
    """

    store: Store
    cohort: Cohort
    split: Split

    def labels(self, study: Study, count: int, draw: int) -> tuple[str, ...]:
        """The labelled people of a run; of one draw, fewer are the first of more."""
        return nested_budgets(self.split.train, [count], _DRAWS_A_SEED * study.seed + draw)[count]

    def pretraining(self, study: Study, stage: Pretrain) -> tuple[str, ...]:
        """Whose images a pretext sees: the same in every draw."""
        recipe = study.recipe(SplitChoice()).model_copy(update={"pretrain": stage})
        return pretraining_people(recipe, self.cohort, self.split)


def check_study(study: Study) -> None:
    """Everything that can be refused before anything is written.

    Raises:
        InputError: methods, networks, patches, sequences, people or cohorts do not fit.
    """
    store = Store.open(Path(study.store)) if study.store else None
    plan = store.plan if store else study.prepare
    assert plan is not None, "a study has a store or a plan"
    check_arms(study, plan)
    cohort = _cohort_of(store) if store else together({name: _planned_or_read(study, name) for name in study.cohorts})
    ground = _draw(study, cohort)
    for name, arm in study.arms.items():
        if arm.pretext:
            recipe = study.recipe(SplitChoice()).model_copy(update={"pretrain": study.pretraining(name, seed=0)})
            pretraining_people(recipe, cohort, ground)


def check_arms(study: Study, plan: Plan) -> None:
    """The part of `check_study` that knows nothing of people: methods, networks, patches, sequences and devices of every arm.

    Raises:
        SettingsError: they do not fit.
    """
    for name, arm in study.arms.items():
        if arm.classical:
            _check_sequence(study.threshold(name).sequence, name, plan)
            continue
        stage = study.finetuning(name, lr=study.lr[0], seed=0)
        Runtime(stage.training)
        check(*of_finetuning(stage), study.network, stage, plan)
        if arm.pretext:
            before = study.pretraining(name, seed=0)
            check(before.method, before.settings, study.network, before, plan)


def build_ground(study: Study, out: Path, *, workers: int, show: Show) -> None:
    """Simulate and prepare what the study needs, and write down who is what; one process does it, others wait.

    Args:
        study: what is asked.
        out: folder of the study.
        workers: processes that simulate and prepare.
        show: progress.
    """
    with awaited(out / "claims" / "ground"):
        if (out / "people.json").is_file():
            return
        if not study.store:
            _prepare(study, out, workers, show)
        ground = open_ground(study, out)
        check_metric(study, ground.store)
        most = max(study.counts)
        content = {"test": ground.split.test, "validation": ground.split.validation, "labels": ground.split.train}
        draws = {draw: ground.labels(study, most, draw) for draw in range(max(map(study.draws_of, study.counts)))}
        write_json(out / "people.json", {**content, "order_of_draw": draws})


def open_ground(study: Study, out: Path) -> Ground:
    """The ground, once it is built."""
    store = Store.open(Path(study.store) if study.store else out / "store")
    cohort = _cohort_of(store)
    return Ground(store, cohort, _draw(study, cohort))


def check_metric(study: Study, store: Store) -> None:
    """Say whether the class of the primary metric is one that is scored by itself.

    Raises:
        SettingsError: it is not.
    """
    output = study.metric.rpartition("/")[0]
    classes = list(study.finetune.settings.get("labels", store.labels))
    if output and (output not in classes or len(classes) < 2):
        raise SettingsError(
            f"metric '{study.metric}': no class '{output}' is scored by itself; {nearest(output, classes)}"
        )


def _prepare(study: Study, out: Path, workers: int, show: Show) -> None:
    cohorts = {}
    for name, choice in study.cohorts.items():
        if choice.simulate:
            folder = out / "cohorts" / name
            simulate_cohort(
                folder, choice.simulate.recipe, subjects=choice.simulate.subjects, seed=choice.simulate.seed,
                workers=workers, progress=show(f"simulate {name}"),
            )  # fmt: skip
            cohorts[name] = choice.read(folder)
        else:
            cohorts[name] = choice.read()
    assert study.prepare is not None, "cohorts come with a plan"
    prepare_cohort(together(cohorts), study.prepare, out / "store", workers=workers, progress=show("prepare"))


def _draw(study: Study, cohort: Cohort) -> Split:
    """Test and validation people, and in `train` everyone whose labels may be drawn.

    Raises:
        LabelError: someone named has no label, or there are fewer labelled people than the largest count.
    """
    test, validation, labels = (
        _named(part, cohort) for part in (study.split.test, study.split.validation, study.split.labels)
    )
    most = max(*study.counts, study.tune.count)
    recipe = study.recipe(SplitChoice(test=test, validation=validation, labels=labels or most))
    split = draw(recipe, cohort)
    pool = label_pool(recipe, cohort, split)
    if len(pool) < most:
        raise LabelError(f"the study asks for {most} labelled people, {cohort.name} has {len(pool)} whose labels may be drawn; "
                         "lower counts, or hold out fewer people")  # fmt: skip
    return replace(split, train=tuple(sorted(pool)))


def _named(choice: int | tuple[str, ...], cohort: Cohort) -> int | tuple[str, ...]:
    """The same choice, with the labelled people of a cohort in place of its name."""
    if isinstance(choice, int):
        return choice
    of: dict[str, set[str]] = {}
    for case in cohort.labelled:
        of.setdefault(case.dataset or "", set()).add(case.person)
    return tuple(person for name in choice for person in (sorted(of[name]) if name and name in of else [name]))


def _planned_or_read(study: Study, name: str) -> Cohort:
    """A cohort that is there, or that of a simulation to come."""
    choice = study.cohorts[name]
    if not choice.simulate:
        return choice.read()
    labels = choice.labels or {"lesion" if choice.mask == SPARSE else choice.mask: 1}
    return replace(planned(choice.simulate.subjects, choice.mask), labels=labels)


def _cohort_of(store: Store) -> Cohort:
    """Who is in a store, as a cohort; files are named but not looked at."""
    cases = []
    for case in store.cases:
        subject = case.person.removeprefix(f"{case.dataset}_") if case.dataset else case.person
        present = store.plan.held(case.present)
        cases.append(Case(
            subject=subject, session=case.name.partition("_ses-")[2], dataset=case.dataset,
            images=dict.fromkeys(present, case.folder / "image.npy"),
            label=case.folder / "label.npy" if case.labelled else None, sparse=case.sparse,
        ))  # fmt: skip
    return Cohort(cases=tuple(cases), labels=store.labels, name=store.root.name)


def _check_sequence(sequence: str, arm: str, plan: Plan) -> None:
    if sequence not in plan.modalities:
        raise SettingsError(f"arms.{arm}: sequence {sequence} is not prepared ({', '.join(plan.modalities)}); "
                            "name another one in its settings, or leave the arm out")  # fmt: skip
