"""What metrics_agreement.py found, as the tables of docs/reference/metrics.md, with the reason for every difference."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
RESULT = HERE / "metrics_agreement.json"
PAGE = HERE.parent / "docs" / "reference" / "metrics.md"
MARK = "<!-- tables: written by benchmarks/metrics_agreement.py, do not edit -->"
END = "<!-- end of tables -->"
EQUAL = 1e-6

TITLES = {
    "masks": "Two masks: overlap, surfaces, components",
    "ms": "Multiple sclerosis: MSSEG 2016, ISBI 2015",
    "organs": "CHAOS",
    "tumours_2023": "BraTS 2023",
    "tumours_2024": "BraTS 2024",
    "rims": "Rim lesions",
    "statistics": "Calibration, FROC, tests",
}

WHY: tuple[tuple[str, tuple[str, ...], str, str], ...] = (
    (
        "a",
        ("surface dice",),
        "MONAI",
        "Reference empty, prediction not: MONAI skips the case by default (`ignore_empty`), here Dice is 0. Both masks empty: undefined in both.",
    ),
    (
        "b",
        ("surface hd95_mm",),
        "MONAI",
        "MONAI interpolates the percentile in 32 bits. `torch.quantile` of our distances gives its number in 32 bits and ours in 64.",
    ),
    (
        "c",
        ("surface hd95_mm",),
        "panoptica",
        "panoptica takes the 95th percentile of both lists of distances as one list; here it is the larger of the two directed percentiles.",
    ),
    (
        "d",
        ("surface assd_mm",),
        "panoptica",
        "panoptica takes the mean of the two directed means; here all distances are one list, so the larger surface weighs more.",
    ),
    (
        "e",
        ("surface nsd",),
        "panoptica",
        "panoptica takes the mean of the two directed shares; here the share of both surfaces together. Where one mask is empty panoptica's value is a "
        "setting (not asked for), here 0.",
    ),
    (
        "f",
        ("surface mssd_mm", "surface hd95_mm", "surface assd_mm", "surface nsd"),
        "surface-distance",
        "surface-distance puts surface elements on voxel corners and weighs them by area; here surface voxels, all alike. Its percentile takes the next "
        "element, here it is interpolated; its ASSD is the mean of two means. BraTS uses its HD95, and so do our BraTS protocols: last row of the table.",
    ),
    (
        "g",
        ("isbi2015 ppv", "isbi2015 lfpr", "isbi2015 score_partial"),
        "lesion-metrics",
        "Prediction empty, reference not: lesion-metrics has no number (NaN); here PPV 0, LFPR 0 and the score that follows, flagged by `empty_prediction`.",
    ),
    (
        "h",
        ("msseg2016 lesion_f1", "msseg2016 lesion_precision"),
        "Anima",
        "No lesion in the reference: Anima's function gives 0 (for an empty reference the program does not print it, only number and volume of the "
        "false lesions); here the number is undefined.",
    ),
    (
        "i",
        ("hd95_mm", "sensitivity", "specificity"),
        "BraTS-2024-Metrics",
        "Numbers of the whole region: the program takes the map of lesion numbers for a mask, so its values are wrong from the second lesion on. Here they "
        "come from the mask, and its own functions agree once they are given the mask (last rows of the table). The lesion-wise scores, which rank, do "
        "not use them.",
    ),
    (
        "j",
        ("prl balanced_accuracy",),
        "scikit-learn",
        "Only Rim+ or only Rim− lesions: scikit-learn takes the mean over the classes that are there; here it is undefined.",
    ),
    (
        "k",
        ("chaos assd_mm", "chaos mssd_mm"),
        "CHAOS-evaluation",
        "A mask that fills the array has no border there.",
    ),
)
"""Letter, ends of the quantities, the other program, reason."""


@dataclass
class Row:
    """One quantity against one other program; `where` is the case of the largest difference, relative where the number is above 1."""

    quantity: str
    against: str
    numbers: int = 0
    undefined: int = 0
    ours_only: int = 0
    theirs_only: int = 0
    largest: float = 0.0
    where: str = ""

    def add(self, ours: float | None, theirs: float | None, case: str) -> None:
        ours, theirs = (math.nan if v is None or not math.isfinite(v) else float(v) for v in (ours, theirs))
        if math.isnan(ours) or math.isnan(theirs):
            self.undefined += math.isnan(ours) and math.isnan(theirs)
            self.ours_only += not math.isnan(ours)
            self.theirs_only += not math.isnan(theirs)
            return
        self.numbers += 1
        difference = abs(ours - theirs) / max(1, abs(theirs))
        if difference > self.largest:
            self.largest, self.where = difference, case

    @property
    def equal(self) -> bool:
        return self.largest <= EQUAL and not self.ours_only and not self.theirs_only

    @property
    def reason(self) -> str | None:
        """Letter of the explanation; rows that prove one (with a colon) and lesion-wise scores have none."""
        if ":" in self.quantity or "lesionwise" in self.quantity:
            return None
        for letter, ends, against, _ in WHY:
            if self.against == against and self.quantity.endswith(ends):
                return letter
        return None


class Table:
    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], Row] = {}

    def add(self, quantity: str, against: str, ours: float | None, theirs: float | None, case: str) -> None:
        self.rows.setdefault((quantity, against), Row(quantity, against)).add(ours, theirs, case)

    def compare(
        self,
        protocol: str,
        against: str,
        ours: Mapping[str, float | None],
        theirs: Mapping[str, float | None],
        case: str,
    ) -> None:
        """All numbers that both name."""
        for name in theirs:
            if name in ours:
                self.add(f"{protocol} {name}", against, ours[name], theirs[name], case)


def rows_of(result: Mapping[str, dict]) -> dict[str, list[Row]]:
    return {part: [Row(**row) for row in result["parts"][part]["rows"]] for part in TITLES if part in result["parts"]}


def unexplained(result: Mapping[str, dict]) -> list[Row]:
    return [row for rows in rows_of(result).values() for row in rows if not row.equal and row.reason is None]


def tables(result: Mapping[str, dict]) -> str:
    """Everything between the marks."""
    blocks, used = [], set()
    for part, rows in rows_of(result).items():
        found = result["parts"][part]
        blocks += [f"### {TITLES[part]}", f"{found['cases']} cases, {found['date'][:10]}.", "\n".join(_lines(rows))]
        used |= {row.reason for row in rows if not row.equal}
    reasons = "\n".join(f"- **{letter}** {why}" for letter, _, _, why in WHY if letter in used)
    versions = ", ".join(
        f"{name} {number}" for name, number in sorted(result["versions"].items(), key=lambda v: v[0].lower())
    )
    return "\n\n".join([*blocks, "### Reasons", reasons, f"Versions: {versions}."])


def _lines(rows: list[Row]) -> list[str]:
    lines = ["| quantity | against | numbers | largest difference | verdict |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        one = "".join(
            f", {n} {who}" for n, who in ((row.ours_only, "ours only"), (row.theirs_only, "theirs only")) if n
        )
        verdict = "equal" if row.equal else f"explained: {row.reason}" if row.reason else "**not explained**"
        lines.append(f"| {row.quantity} | {row.against} | {row.numbers}{one} | {row.largest:.0e} | {verdict} |")
    return lines


def write_page() -> None:
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    text = PAGE.read_text(encoding="utf-8")
    before, after = text[: text.index(MARK) + len(MARK)], text[text.index(END) :]
    PAGE.write_text(f"{before}\n\n{tables(result)}\n\n{after}", encoding="utf-8")


if __name__ == "__main__":
    write_page()
