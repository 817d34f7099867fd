"""The one sentence at the top of a report, computed from its numbers and from nothing else."""

from __future__ import annotations

from typing import Literal, NamedTuple

from oligovox.report.content import METRICS, Comparison, Report
from oligovox.report.text import count, interval

Outcome = Literal["gain shown", "no gain shown", "worse", "undecided", "not compared", "not scored"]

FEWEST_SUBJECTS = 6
"""With fewer, even a gain in every subject is no evidence: the two-sided sign test of 5 out of 5 has p = 0.0625."""


class Verdict(NamedTuple):
    """What the numbers allow to say: the outcome, one sentence, and what to keep in mind when reading it."""

    outcome: Outcome
    sentence: str
    cautions: tuple[str, ...]


def judge(comparison: Comparison) -> Outcome:
    """Whether a gain or a loss is shown: only by an interval that excludes 0, over at least `FEWEST_SUBJECTS` subjects."""
    mean, low, high = comparison.mean, comparison.low, comparison.high
    if mean is None or low is None or high is None or comparison.n < FEWEST_SUBJECTS:
        return "undecided"
    if low <= 0 <= high:
        return "no gain shown"
    return "gain shown" if (low > 0) == METRICS[comparison.metric].higher_is_better else "worse"


def verdict(report: Report) -> Verdict:
    """The verdict on the main arm: against the baseline where there is one, else its plain score."""
    comparison = report.compared("dice")
    if comparison is not None:
        return Verdict(judge(comparison), _compared(report, comparison), _cautions(report))
    arm = report.arm(report.main)
    if arm is None:
        return Verdict("not scored", "This run trained no model that predicts lesions: there is nothing to score.", ())
    dice = arm.means.get("dice")
    if dice is None or dice.mean is None:
        why = "Dice is undefined for all of them" if report.scored else "without reference masks its quality is unknown"
        sentence = f"The arm “{arm.name}” was applied to {count(len(arm.cases), 'case')}; {why}."
        return Verdict("not scored", sentence, _cautions(report))
    score = interval(dice.mean, dice.low, dice.high, METRICS["dice"].digits)
    sentence = f"The arm “{arm.name}” reached a mean Dice of {score} over {count(dice.n, 'held-out subject')}"
    return Verdict("not compared", f"{sentence}; it was compared with no other training.", _cautions(report))


def _compared(report: Report, comparison: Comparison) -> str:
    arm, against = report.arm(comparison.arm), report.arm(comparison.against)
    if arm and against and against.start == "scratch" and arm.start != "scratch":
        change = f"Pre-training with {arm.start}"
    else:
        change = f"“{comparison.arm}” instead of “{comparison.against}”"
    numbers = interval(comparison.mean, comparison.low, comparison.high, METRICS["dice"].digits, sign=True)
    ending: str = judge(comparison)
    if ending == "undecided":
        few = comparison.n < FEWEST_SUBJECTS
        ending = "too few to show a gain or a loss" if few else "without an interval nothing is shown"
    return f"{change} changed Dice by {numbers} over {count(comparison.n, 'held-out subject')}: {ending}."


def _cautions(report: Report) -> tuple[str, ...]:
    found = []
    arm, against = report.arm(report.main), report.arm(report.baseline)
    if report.scored and arm is not None:
        labels = count(arm.labels, "labelled subject")
        found.append(
            f"Intervals (95 %) are over test subjects, for one draw of {labels} and one seed; "
            "another draw or seed can give another answer."
        )
    if watched := report.data.splits.get("validation", ()):
        found.append(
            f"The best checkpoint of each arm was chosen on the labels of {count(len(watched), 'validation subject')} more."
        )
    if arm and against and arm.labels != against.labels:
        found.append(
            f"“{arm.name}” was trained on {count(arm.labels, 'labelled subject')}, “{against.name}” on {against.labels}."
        )
    splits = {name: set(people) for name, people in report.data.splits.items()}
    test = splits.get("test", set())
    if shared := test & splits.get("pretrain", set()):
        found.append(f"Pre-training saw the images (not the labels) of {count(len(shared), 'test subject')}.")
    if shared := test & (splits.get("train", set()) | splits.get("validation", set())):
        found.append(f"{count(len(shared), 'test subject')} also used for training or validation: scores are too good.")
    return tuple(found)
