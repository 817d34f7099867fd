"""Who is held out by a plan: the folder's own test part where it has one, else people that are drawn."""

from __future__ import annotations

from dataclasses import replace

from oligovox.cohort.manifest import Cohort
from oligovox.cohort.splits import set_apart
from oligovox.experiment.planning_choice import chosen_split
from oligovox.experiment.planning_facts import Facts
from oligovox.experiment.recipe import SplitChoice


def split_of(facts: Facts, cohort: Cohort | None) -> tuple[SplitChoice, str]:
    """The split, and why.

    All fully labelled people of the folder's test part are tested on, and nobody else; others validate and learn. Without such people it is
    `chosen_split` of those outside of that part.

    Args:
        facts: of everyone.
        cohort: the same people; None where the files of a store are gone.

    Raises:
        SettingsError: fewer than two labelled people, or none fully.
    """
    apart = set(set_apart(cohort)) if cohort else set()
    others = replace(facts, exams=tuple(exam for exam in facts.exams if exam.person not in apart))
    partly = {exam.person for exam in facts.exams if exam.sparse}
    tested = {exam.person for exam in facts.exams if exam.labelled} & apart - partly
    if not tested:
        return chosen_split(others)
    validation = 2 if others.scorable >= 5 else 1 if others.scorable >= 3 else 0
    labels = others.labelled - validation
    return (
        SplitChoice(test=tuple(sorted(tested)), validation=validation, labels=labels),
        f"split: {len(tested)} labelled people of the folder's own test part to test on, {validation} others to choose the checkpoint by, "
        f"{labels} to learn from",
    )
