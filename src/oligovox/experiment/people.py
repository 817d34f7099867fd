"""Who is in a run: held-out people, whose labels each arm uses, whose images pre-training and strategies see."""

from __future__ import annotations

from collections.abc import Sequence

from oligovox.cohort.manifest import Cohort
from oligovox.cohort.splits import Split, draw_split, first_drawn, nested_budgets, set_apart
from oligovox.engine.log import say
from oligovox.errors import CohortError, LabelError
from oligovox.experiment.recipe import Arm, Recipe, Semi
from oligovox.experiment.training import learns_alone, needs_of
from oligovox.prepare.store import Store, StoredCase


def draw(recipe: Recipe, cohort: Cohort) -> Split:
    """Test and validation people as the recipe says; `train` are the people whose labels are used.

    Who is labelled in part is trained on only. People of the folder's own test part are tested first, and are in no other group unless named;
    those who are not tested are `apart`.

    Raises:
        CohortError: someone named is not in the cohort.
        LabelError: someone named has no label, or only a part of one to be scored against; or more people are asked for than there are.
    """
    choice, labelled = recipe.split, sorted({case.person for case in cohort.labelled})
    named = [p for part in (choice.test, choice.validation, choice.labels) if not isinstance(part, int) for p in part]
    cohort.of(named)  # says who is unknown
    if unlabelled := [person for person in named if person not in labelled]:
        raise LabelError(
            f"the split names '{unlabelled[0]}', who has no label in {cohort.name}; name people with a lesion mask"
        )
    sparse = {case.person for case in cohort.labelled if case.sparse}
    scored = [p for part in (choice.test, choice.validation) if not isinstance(part, int) for p in part]
    if partly := [person for person in scored if person in sparse]:
        raise LabelError(
            f"the split tests or validates on '{partly[0]}', of whom only a part is labelled in {cohort.name}; name people with a full mask"
        )
    apart = set(set_apart(cohort)) - set(named)
    free = [person for person in labelled if person not in named and person not in apart]
    counts = {k: v for k in ("test", "validation") if isinstance(v := getattr(choice, k), int)}
    first = first_drawn((p for p in labelled if p in apart and p not in sparse), counts.get("test", 0), recipe.seed)
    counts |= {"test": counts["test"] - len(first)} if first else {}
    beside = f" and not of the test part of the folder, {len(first)} of whom are tested" if apart else ""
    wanted = sum(counts.values()) + (choice.labels if isinstance(choice.labels, int) else 0)
    if wanted > len(free):
        raise LabelError(
            f"the split asks for {wanted} labelled people (test, validation, labels), {cohort.name} has {len(free)} "
            f"that are not named already{beside}; lower the numbers"
        )
    if sum(counts.values()) > len(whole := [person for person in free if person not in sparse]):
        raise LabelError(
            f"the split asks for {sum(counts.values())} people to test and validate on, {cohort.name} has {len(whole)} with a full mask "
            f"that are not named already{beside}; lower the numbers, or label more people fully"
        )
    sizes = {group: counts.get(group, 0) for group in ("validation", "test")}
    learning = () if isinstance(choice.labels, int) else choice.labels  # are there, so that nobody else need be left
    drawn = draw_split(
        [*free, *learning],
        **sizes,
        seed=recipe.seed,
        rest=int(isinstance(choice.labels, int)),
        only_train={*sparse, *learning},
    )
    test = tuple(sorted((*first, *drawn.test))) if isinstance(choice.test, int) else choice.test
    validation = drawn.validation if isinstance(choice.validation, int) else choice.validation
    if isinstance(choice.labels, int):
        train = nested_budgets(drawn.train, [choice.labels], recipe.seed)[choice.labels] if choice.labels else ()
    else:
        train = choice.labels
    rest = sorted({*set_apart(cohort)} - {*train, *validation, *test})
    return Split(tuple(train), tuple(validation), tuple(test), recipe.seed, apart=tuple(rest))


def say_apart(cohort: Cohort, split: Split) -> None:
    """One line where the folder has a test part of its own."""
    if apart := set_apart(cohort):
        tested, used = (len({*apart} & {*people}) for people in (split.test, split.train))
        say(
            f"split: people in the test part of {cohort.name}: {len(apart)}, of whom {tested} tested on and {used} learned from"
        )


def label_pool(recipe: Recipe, cohort: Cohort, split: Split) -> tuple[str, ...]:
    """Labelled people that are neither tested nor validated on, nor of the folder's own test part."""
    if not isinstance(recipe.split.labels, int):
        return tuple(recipe.split.labels)
    return tuple(sorted({case.person for case in cohort.labelled} - split.held_out))


def budget_sizes(pool: int, used: int) -> list[int]:
    """1, 2, 4, … up to the pool, and the size that is used."""
    sizes = {1 << k for k in range(pool.bit_length()) if 1 << k <= pool}
    return sorted(sizes | ({used} if 0 < used <= pool else set()))


def pretraining_people(recipe: Recipe, cohort: Cohort, split: Split) -> tuple[str, ...]:
    """Everyone in the chosen cohorts who is neither tested nor validated on, nor of the folder's own test part, unless the run is transductive.

    Of that part, people whose labels are used are seen.
    """
    stage = recipe.pretrain
    assert stage is not None
    allowed = {c.person for c in cohort.cases if not stage.cohorts or not c.dataset or c.dataset in stage.cohorts}
    if not stage.transductive:
        allowed -= split.held_out
    if not stage.share_labelled:
        allowed -= set(split.train)
    if not allowed:
        raise CohortError(
            f"{cohort.name}: nobody is left to pre-train on; hold out fewer people or add unlabelled exams"
        )
    return tuple(sorted(allowed))


def seen_unlabelled(
    store: Store, semi: Semi, labelled: Sequence[StoredCase], split: Split | None
) -> tuple[StoredCase, ...]:
    """Exams that a strategy sees without a label: of everyone who is not held out, those whose labels are not used.

    Where there are none, and the strategy can do with it, those labelled in part: they are shown a second time, as if nobody had labelled them.

    Raises:
        LabelError: there are neither, and the strategy learns from nothing else, or cohorts were named.
    """
    seen = [case for case in store.cases if not (split and case.person in split.held_out)]
    chosen, used = [c for c in seen if not semi.cohorts or c.dataset in semi.cohorts], {case.name for case in labelled}
    cases = tuple(case for case in chosen if case.name not in used)
    if cases or learns_alone(semi):
        return cases
    partly = () if needs_of(semi).whole_cases else tuple(case for case in chosen if case.sparse)
    if not partly:
        where = f" of {', '.join(semi.cohorts)}" if semi.cohorts else ""
        raise LabelError(
            f"{store.root}: {semi.name} learns from exams without a label, and none{where} is left beside the {len(labelled)} whose labels are "
            "used and the held-out people; use fewer labels, add exams, or leave semi out"
        )
    return partly


def final_people(arm: Arm, recipe: Recipe, cohort: Cohort, split: Split) -> tuple[str, ...]:
    """Whose labels the final model of an arm uses: the arm's, those that the label budget left out, and those of held-out people."""
    pool = label_pool(recipe, cohort, split)
    return tuple(sorted({*arm_people(arm, cohort, split), *pool, *split.validation, *split.test}))


def arm_people(arm: Arm, cohort: Cohort, split: Split) -> tuple[str, ...]:
    """Whose labels an arm uses: those of the split, and all of the cohorts the arm adds but for held-out people."""
    added = {case.person for case in cohort.labelled if case.dataset in arm.also}
    return tuple(sorted({*split.train, *added} - split.held_out))
