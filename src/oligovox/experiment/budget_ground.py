"""The ground of a label-budget study: its store, who is tested, who is validated on, and whose labels each draw has."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from oligovox.cohort.annotate import SPARSE
from oligovox.cohort.manifest import Case, Cohort
from oligovox.cohort.splits import Split, nested_budgets, set_apart
from oligovox.engine.runtime import Runtime
from oligovox.errors import CohortError, LabelError, SettingsError, nearest
from oligovox.experiment.budget_claims import awaited
from oligovox.experiment.budget_plan import Study
from oligovox.experiment.cohorts import Show, planned, together
from oligovox.experiment.people import draw, label_pool, pretraining_people, say_apart
from oligovox.experiment.recipe import Pretrain, SplitChoice
from oligovox.experiment.training import check, of_finetuning
from oligovox.files import read_json, write_json
from oligovox.prepare.pipeline import prepare as prepare_cohort
from oligovox.prepare.store import Plan, Store
from oligovox.simulate.write import simulate_cohort

PEOPLE = "people.json"
"""Who is what in a study, in its folder."""

_DRAWS_A_SEED = 1000
"""Draw d of a study with seed s is the nested budget of this · s + d."""


@dataclass(frozen=True)
class Ground:
    """What all runs of a study share.

    Attributes:
        store: prepared volumes.
        cohort: who is in it.
        split: who is tested and validated on, and who is kept apart; `train` are the people whose labels may be drawn.
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


def check_study(study: Study, out: Path | None = None) -> None:
    """Everything that can be refused before anything is written.

    Args:
        study: what is asked.
        out: folder of the study, where it may have begun.

    Raises:
        InputError: methods, networks, patches, sequences, people or cohorts do not fit, or what was begun learns from a test part.
    """
    store = Store.open(Path(study.store)) if study.store else None
    plan = store.plan if store else study.prepare
    assert plan is not None, "a study has a store or a plan"
    check_arms(study, plan)
    cohort = _cohort_of(store) if store else together({name: _planned_or_read(study, name) for name in study.cohorts})
    split = _draw(study, cohort)
    for name, arm in study.arms.items():
        if arm.pretext:
            recipe = study.recipe(SplitChoice()).model_copy(update={"pretrain": study.pretraining(name, seed=0)})
            pretraining_people(recipe, cohort, split)
    apart = {*set_apart(cohort)} - {*split.train, *split.validation}
    if apart and out and (out / PEOPLE).is_file():
        _check_begun(study, out, apart)


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
        if (out / PEOPLE).is_file():
            return
        apart = () if study.store else set_apart(_prepare(study, out, workers, show))
        store = _store_of(study, out)
        check_metric(study, store)
        cohort = _cohort_of(store, apart)
        split = _draw(study, cohort)
        say_apart(cohort, split)
        ground, most = Ground(store, cohort, split), max(study.counts)
        content = {"test": split.test, "validation": split.validation, "labels": split.train}
        content |= {"apart": split.apart} if split.apart else {}
        draws = {draw: ground.labels(study, most, draw) for draw in range(max(map(study.draws_of, study.counts)))}
        write_json(out / PEOPLE, {**content, "order_of_draw": draws})


def open_ground(study: Study, out: Path) -> Ground:
    """The ground, once it is built; who is what, is what was written down then.

    Raises:
        CohortError: it is not built, or its people.json is damaged.
    """
    store = _store_of(study, out)
    people = read_json(out / PEOPLE)
    try:
        labels, validation, test = (tuple(people[key]) for key in ("labels", "validation", "test"))
    except (KeyError, TypeError) as error:
        raise CohortError(
            f"{out / PEOPLE}: not the people of a study ({type(error).__name__}: {error}); restore it from a copy"
        ) from error
    return Ground(store, _cohort_of(store), Split(labels, validation, test, study.seed, kept_apart(out)))


def kept_apart(out: Path) -> tuple[str, ...]:
    """People of a test part whom the study in this folder neither tests nor learns from; nobody where an earlier version built it."""
    return tuple(read_json(out / PEOPLE).get("apart", ())) if (out / PEOPLE).is_file() else ()


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


def _store_of(study: Study, out: Path) -> Store:
    return Store.open(Path(study.store) if study.store else out / "store")


def _check_begun(study: Study, out: Path, apart: set[str]) -> None:
    """Whether what was begun keeps the test part apart; an earlier version forgot who is in it.

    Raises:
        SettingsError: it does not.
    """
    people = read_json(out / PEOPLE)
    kept = {*people["test"], *people.get("apart", ())}
    if learned := sorted(apart.intersection(_store_of(study, out).people) - kept):
        raise SettingsError(
            f"{out}: was begun by an earlier version, which learns from {len(learned)} people of the folder's own test part, first {learned[0]}; "
            "choose another --out"
        )


def _prepare(study: Study, out: Path, workers: int, show: Show) -> Cohort:
    """Make the store; who is in it, as their cohorts say."""
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
    cohort = together(cohorts)
    prepare_cohort(cohort, study.prepare, out / "store", workers=workers, progress=show("prepare"))
    return cohort


def _draw(study: Study, cohort: Cohort) -> Split:
    """Test and validation people, and in `train` everyone whose labels may be drawn.

    Raises:
        LabelError: someone named has no label, or there are fewer labelled people than the largest count.
    """
    outside = set_apart(cohort)
    test, validation, labels = (
        _named(part, cohort, apart)
        for part, apart in ((study.split.test, ()), (study.split.validation, outside), (study.split.labels, outside))
    )
    most = max(*study.counts, study.tune.count)
    recipe = study.recipe(SplitChoice(test=test, validation=validation, labels=labels or most))
    split = draw(recipe, cohort)
    pool = label_pool(recipe, cohort, split)
    if len(pool) < most:
        raise LabelError(f"the study asks for {most} labelled people, {cohort.name} has {len(pool)} whose labels may be drawn; "
                         "lower counts, or hold out fewer people")  # fmt: skip
    return replace(split, train=tuple(sorted(pool)))


def _named(choice: int | tuple[str, ...], cohort: Cohort, outside: Collection[str]) -> int | tuple[str, ...]:
    """The same choice, with the labelled people of a cohort in place of its name, but for some; these have to be named one by one.

    Raises:
        LabelError: all of a cohort are among those.
    """
    if isinstance(choice, int):
        return choice
    of: dict[str, set[str]] = {}
    for case in cohort.labelled:
        of.setdefault(case.dataset or "", set()).add(case.person)
    if empty := [name for name in choice if name and name in of and of[name] <= {*outside}]:
        raise LabelError(
            f"the split names the cohort '{empty[0]}' to learn from, of which everyone labelled is in a test part; name the people themselves"
        )
    return tuple(
        person for name in choice for person in (sorted(of[name] - {*outside}) if name and name in of else [name])
    )


def _planned_or_read(study: Study, name: str) -> Cohort:
    """A cohort that is there, or that of a simulation to come."""
    choice = study.cohorts[name]
    if not choice.simulate:
        return choice.read()
    labels = choice.labels or {"lesion" if choice.mask == SPARSE else choice.mask: 1}
    return replace(planned(choice.simulate.subjects, choice.mask), labels=labels)


def _cohort_of(store: Store, apart: Collection[str] = ()) -> Cohort:
    """Who is in a store, as a cohort; files are named but not looked at.

    Args:
        store: prepared volumes.
        apart: people of a folder's own test part, which a store does not know.
    """
    cases = []
    for case in store.cases:
        subject = case.person.removeprefix(f"{case.dataset}_") if case.dataset else case.person
        present = store.plan.held(case.present)
        cases.append(Case(
            subject=subject, session=case.name.partition("_ses-")[2], dataset=case.dataset,
            images=dict.fromkeys(present, case.folder / "image.npy"),
            label=case.folder / "label.npy" if case.labelled else None, sparse=case.sparse,
            info={"part": "test"} if case.person in apart else {},
        ))  # fmt: skip
    return Cohort(cases=tuple(cases), labels=store.labels, name=store.root.name)


def _check_sequence(sequence: str, arm: str, plan: Plan) -> None:
    if sequence not in plan.modalities:
        raise SettingsError(f"arms.{arm}: sequence {sequence} is not prepared ({', '.join(plan.modalities)}); "
                            "name another one in its settings, or leave the arm out")  # fmt: skip
