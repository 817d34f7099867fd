"""A small report with everything in it."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from oligovox.report.content import (
    Arm,
    CaseRow,
    CohortSummary,
    Comparison,
    Data,
    Interval,
    Lesion,
    Report,
    ShownCase,
    Stage,
    size_bins,
)

_SHAPE = (24, 28, 22)


def _arm(name: str, start: str, dice: tuple[float, ...]) -> Arm:
    rows = tuple(
        CaseRow(
            case=f"sub-{i}",
            dice=value,
            hd95_mm=float("nan") if i == 5 else 10.0 - value,
            lesion_f1=value / 2,
            volume_true_ml=1.25 + i,
            volume_predicted_ml=1.0 + i,
            lesions_true=4,
            lesions_predicted=3,
        )
        for i, value in enumerate(dice)
    )
    means = {
        "dice": Interval(mean=sum(dice) / 6, low=0.412, high=0.689, n=6),
        "hd95_mm": Interval(mean=9.44, low=9.1, high=9.8, n=5, undefined=1),
    }
    return Arm(name=name, start=start, labels=3, cases=rows, means=means)  # type: ignore[arg-type]


@pytest.fixture
def report(tmp_path: Path) -> Report:
    """Two arms, six subjects, one shown case whose images lie in `tmp_path`."""
    rng = np.random.default_rng(0)
    image = np.zeros(_SHAPE, np.float32)
    image[2:-2, 2:-2, 2:-2] = rng.uniform(1, 2, [s - 4 for s in _SHAPE])
    truth = np.zeros(_SHAPE, np.uint8)
    truth[8:12, 9:14, 10:13] = 1
    for name, array in {"flair": image, "truth": truth, "ours": np.roll(truth, 1, 0), "theirs": truth}.items():
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / f"{name}.nii.gz")
    found = {"pre-trained": True, "scratch": False}
    lesions = tuple(
        Lesion(number=i + 1, volume_mm3=v, centre=(1, 2, i), found=found, overlap={"pre-trained": 0.75})
        for i, v in enumerate((9.9, 10.0, 250.0, 4321.0))
    )
    curve = tuple((i, 1.0 / (1 + i)) for i in range(50))
    stage = Stage(
        name="generative",
        phase="Pre-training",
        method="generative",
        network="resenc",
        steps=50,
        seconds=61,
        losses=curve,
    )
    tuned = stage.model_copy(
        update={
            "name": "fine-tune",
            "phase": "Fine-tuning",
            "validation": ((0, 0.1), (50, 0.6)),
            "settings": {"lr": 0.001},
        }
    )
    return Report(
        title="A run",
        created="2026-01-02T03:04:05",
        command="oligovox demo",
        versions={"oligovox": "0.1.0"},
        seeds={"split": 7},
        recipe="pretrain:\n  method: generative\n",
        simulated=True,
        data=Data(
            cohorts=(CohortSummary(name="one", cases=9, people=8, labelled=7, sequences={"FLAIR": 9, "T1w": 5}),),
            splits={"train": ("a", "b"), "test": ("c",), "pretrain": ("a", "d")},
            preparation={"spacing": [1.0, 1.0, 1.0]},
            warnings=("sub-3 has no T1w",),
        ),
        stages=(stage, tuned),
        arms=(
            _arm("scratch", "scratch", (0.51, 0.42, 0.63, 0.34, 0.75, 0.16)),
            _arm("pre-trained", "generative", (0.53, 0.46, 0.61, 0.4, 0.77, 0.21)),
        ),
        main="pre-trained",
        baseline="scratch",
        comparisons=(
            Comparison(metric="dice", arm="pre-trained", against="scratch", mean=0.0283, low=0.0057, high=0.0491, n=6),
        ),
        bins=size_bins(lesions, ["pre-trained", "scratch"]),
        shown=(
            ShownCase(
                case="sub-5",
                role="worst",
                sequence="FLAIR",
                image="flair.nii.gz",
                truth="truth.nii.gz",
                predictions={"pre-trained": "ours.nii.gz", "scratch": "theirs.nii.gz"},
                lesions=lesions,
            ),
        ),
    )
