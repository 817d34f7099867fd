"""What a report says: plain frozen values, filled from a run, saved as report.json, and drawn by `page`.

Undefined numbers (a surface distance to an empty mask) are None; NaN and infinity become None on the way in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from oligovox.settings import Settings


def _defined(value: Any) -> Any:
    """None for NaN and infinity; numpy scalars become plain numbers."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


Measure = Annotated[float | None, BeforeValidator(_defined)]
"""A number that may be undefined."""


def _encodable(text: str) -> str:
    """`text` as UTF-8 can hold it: bytes of a file name that are no text become '\\udcff' in plain letters."""
    return text.encode("utf-8", "backslashreplace").decode()


Text = Annotated[str, AfterValidator(_encodable)]
"""Text from outside: file names, command lines."""

MetricName = Literal["dice", "hd95_mm", "lesion_f1", "lesion_sensitivity", "lesion_precision"]


class Metric(NamedTuple):
    """How one score is written: its title, unit ('' where it has none), decimals, and which way is better."""

    title: str
    unit: str
    digits: int
    higher_is_better: bool


METRICS: dict[MetricName, Metric] = {
    "dice": Metric("Dice", "", 3, True),
    "hd95_mm": Metric("HD95", "mm", 1, False),
    "lesion_f1": Metric("Lesion F1", "", 3, True),
    "lesion_sensitivity": Metric("Lesion sensitivity", "", 3, True),
    "lesion_precision": Metric("Lesion precision", "", 3, True),
}

BIN_EDGES_MM3 = (0.0, 10.0, 100.0, 1000.0, math.inf)
"""Lesion size bins; a lesion of exactly 10 mm³ is in the second."""


class Interval(Settings):
    """A mean over subjects with its 95 % interval."""

    mean: Measure
    low: Measure = None
    high: Measure = None
    n: int = Field(description="subjects that count")
    undefined: int = Field(0, description="subjects left out, because the score is undefined for them")


class CohortSummary(Settings):
    """One source of images."""

    name: str
    cases: int
    people: int
    labelled: int = Field(description="cases with a reference mask")
    sequences: dict[str, int] = Field(description="sequence name → number of cases that have it")


class Data(Settings):
    """Who was used, for what, and how the images were prepared."""

    cohorts: tuple[CohortSummary, ...] = ()
    splits: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="'train', 'validation', 'test', 'pretrain' → people"
    )
    preparation: dict[str, Any] = Field(default_factory=dict, description="the plan, as plain values")
    warnings: tuple[Text, ...] = ()


class Stage(Settings):
    """One training run. Stages of the same phase are drawn into one figure."""

    name: str = Field(description="unique, e.g. 'generative' or 'fine-tune, scratch'")
    phase: str = Field(description="e.g. 'Pre-training' or 'Fine-tuning'")
    arm: str = Field("", description="the arm it belongs to, whose colour its curves take; '' for none")
    method: str
    network: str
    settings: dict[str, Any] = Field(default_factory=dict)
    steps: int
    seconds: float
    waited: float = Field(0.0, description="share of the time spent waiting for data, 0 … 1")
    losses: tuple[tuple[int, Measure], ...] = Field((), description="(step, total loss)")
    validation: tuple[tuple[int, Measure], ...] = Field((), description="(step, mean Dice over validation subjects)")


class CaseRow(Settings):
    """Scores of one case in one arm; without a reference mask only what was predicted is known."""

    case: str
    dice: Measure = Field(None, description="0 … 1")
    hd95_mm: Measure = None
    lesion_f1: Measure = Field(None, description="0 … 1")
    lesion_sensitivity: Measure = Field(None, description="0 … 1")
    lesion_precision: Measure = Field(None, description="0 … 1")
    volume_true_ml: Measure = Field(None, description="None: nobody drew a reference mask")
    volume_predicted_ml: Measure = None
    lesions_true: int | None = None
    lesions_predicted: int | None = None


class Arm(Settings):
    """One way of training, applied to every test case."""

    name: str
    start: str = Field(description="'scratch', or the pretext method whose weights it started from")
    labels: int = Field(description="labelled people it was trained on")
    cases: tuple[CaseRow, ...] = ()
    means: dict[MetricName, Interval] = Field(default_factory=dict, description="of all classes together")
    classes: dict[str, dict[MetricName, Interval]] = Field(
        default_factory=dict, description="class → means, where there are several"
    )


class Comparison(Settings):
    """Mean over subjects of (score of `arm` − score of `against`), paired by subject, with its 95 % interval."""

    metric: MetricName
    arm: str
    against: str
    mean: Measure
    low: Measure = None
    high: Measure = None
    n: int = Field(description="subjects with both scores")


class Lesion(Settings):
    """One lesion of the reference mask."""

    number: int
    volume_mm3: float
    centre: tuple[int, int, int] = Field(description="voxel (x, y, z) on the grid of the reference mask")
    found: dict[str, bool] = Field(default_factory=dict, description="arm → detected")
    overlap: dict[str, Measure] = Field(default_factory=dict, description="arm → share of its voxels predicted, 0 … 1")


class SizeBin(Settings):
    """Lesions of the whole test set with low ≤ volume < high."""

    low_mm3: float
    high_mm3: float | None = Field(description="None: no upper end")
    count: int
    found: dict[str, int] = Field(default_factory=dict, description="arm → how many of them it detected")


class ShownCase(Settings):
    """One case with its pictures. Paths are absolute or relative to the folder of the report."""

    case: str
    role: str = Field(description="why it is shown: 'best', 'median', 'worst', …")
    sequence: str = Field(description="name of the sequence in the picture, e.g. 'FLAIR'")
    image: Text = Field(description="NIfTI file")
    truth: Text | None = Field(None, description="NIfTI reference mask on the same grid")
    predictions: dict[str, Text] = Field(default_factory=dict, description="arm → NIfTI mask on the same grid")
    lesions: tuple[Lesion, ...] = ()


class LabelledCase(Settings):
    """One training case of which only a part is labelled. Paths are absolute or relative to the folder of the report."""

    case: str
    image: Text = Field(description="NIfTI file")
    label: Text = Field(description="NIfTI label map on the same grid; 255 where nobody looked")


class Report(Settings):
    """Everything on one page."""

    title: Text
    created: str = Field(description="ISO 8601 time, given by the caller")
    command: Text
    versions: dict[str, str] = Field(default_factory=dict, description="package → version")
    seeds: dict[str, int] = Field(default_factory=dict, description="what is drawn → seed")
    recipe: Text = Field("", description="the resolved recipe, YAML text")
    simulated: bool = Field(False, description="every number is about simulated subjects")
    data: Data = Data()
    stages: tuple[Stage, ...] = ()
    arms: tuple[Arm, ...] = ()
    main: str = Field("", description="name of the arm the page is about; '' where there is none")
    baseline: str = Field("", description="name of the arm it is compared with; '' where there is none")
    comparisons: tuple[Comparison, ...] = ()
    bins: tuple[SizeBin, ...] = ()
    shown: tuple[ShownCase, ...] = ()
    labels: tuple[LabelledCase, ...] = Field((), description="what is labelled, where it is only a part")

    @model_validator(mode="after")
    def _arms_exist(self) -> Report:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError(f"two arms have the same name: {names}")
        used = {self.main, self.baseline, *(name for c in self.comparisons for name in (c.arm, c.against))} - {""}
        if missing := sorted(used - set(names)):
            raise ValueError(f"arm '{missing[0]}' is referred to but is not in the report; it has {names}")
        return self

    def arm(self, name: str) -> Arm | None:
        """The arm of this name, or None."""
        return next((arm for arm in self.arms if arm.name == name), None)

    def compared(self, metric: MetricName) -> Comparison | None:
        """The main arm against the baseline in one score, or None where that was not done."""
        pairs = (c for c in self.comparisons if (c.metric, c.arm, c.against) == (metric, self.main, self.baseline))
        return next(pairs, None)

    @property
    def ordered(self) -> tuple[Arm, ...]:
        """Main arm first, baseline second, the others as given: the order of colours, rows and legends."""
        rank = {self.main: 0, self.baseline: 1}
        return tuple(sorted(self.arms, key=lambda arm: rank.get(arm.name, 2)))

    @property
    def scored(self) -> bool:
        """Whether any case has a reference mask."""
        return any(row.dice is not None or row.volume_true_ml is not None for arm in self.arms for row in arm.cases)


def size_bins(lesions: Sequence[Lesion], arms: Sequence[str]) -> tuple[SizeBin, ...]:
    """Count lesions, and those each arm found, by size (`BIN_EDGES_MM3`)."""
    bins = []
    for low, high in pairwise(BIN_EDGES_MM3):
        inside = [lesion for lesion in lesions if low <= lesion.volume_mm3 < high]
        found = {arm: sum(lesion.found.get(arm, False) for lesion in inside) for arm in arms}
        bins.append(SizeBin(low_mm3=low, high_mm3=_defined(high), count=len(inside), found=found))
    return tuple(bins)


def telling_cases(rows: Sequence[CaseRow]) -> Mapping[str, str]:
    """'best', 'median' and 'worst' → case name, by Dice; fewer where there are fewer cases, none without scores."""
    ranked = sorted((row for row in rows if row.dice is not None), key=lambda row: (-(row.dice or 0.0), row.case))
    if not ranked:
        return {}
    places = {"best": 0, "worst": len(ranked) - 1, "median": len(ranked) // 2}
    names: dict[str, str] = {}
    for role, place in places.items():
        if ranked[place].case not in names.values():
            names[role] = ranked[place].case
    return {role: names[role] for role in ("best", "median", "worst") if role in names}
