"""Other people's code behind one kind of call each, for metrics_agreement.py: packages as installed, challenges from clones, unchanged.

A clone lies in the folder given by --sources under the name in CLONES. Code for older libraries gets the names it expects (`old_names`); a module
that a challenge imports but that its numbers do not need is replaced by an empty one.
"""

import contextlib
import ctypes
import importlib.util
import math
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import SimpleITK

from agreement_cases import Case

CLONES = {
    "brats2023": "BraTS-2023-Metrics",
    "brats2024": "BraTS-2024-Metrics",
    "chaos": "CHAOS-evaluation",
    "isbi2015": "lesion-metrics",
    "anima": "Anima-Public",
}
ANIMA = "Anima/segmentation/validation_tools/segmentation_performance_analyzer/animaSegPerfCAnalyzer.cxx"
TRACKS_2024 = {"GLI": "GLI", "SSA": "SSA", "PED": "PED", "MET": "MET", "MEN-RT": "MEN_RT"}


def old_names() -> None:
    """What numpy 2 and pandas 2 no longer have, for code written before them: two names, and `replace` in columns that hold arrays."""
    vars(np).update(Inf=math.inf, NaN=math.nan)
    pd.DataFrame.append = lambda self, other: pd.concat([self, other])
    original = pd.DataFrame.replace

    def replace(self, old, new, inplace=False):
        try:
            return original(self, old, new, inplace=inplace)
        except ValueError:
            return self.apply(lambda column: column if column.dtype == object else column.replace(old, new))

    pd.DataFrame.replace = replace


def module_from(path: Path, *absent: str, change: tuple[str, str] = ("", "")) -> Any:
    """A module from a file, with its own folder first on the path, so that it finds the packages beside it; `change` replaces a text in it."""
    beside = {entry.stem for entry in path.parent.iterdir()}
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in beside}
    sys.modules.update({name: types.ModuleType(name) for name in absent if importlib.util.find_spec(name) is None})
    module = types.ModuleType(f"other_{path.stem}")
    sys.path.insert(0, str(path.parent))
    try:
        exec(compile(path.read_text(encoding="utf-8").replace(*change), str(path), "exec"), module.__dict__)
    finally:
        sys.path.pop(0)
        for name in [name for name in sys.modules if name.split(".")[0] in beside]:
            del sys.modules[name]
        sys.modules.update(hidden)
    return module


@contextlib.contextmanager
def files_of(case: Case, folder: Path) -> Iterator[tuple[str, str]]:
    """Prediction and reference as NIfTI files in a folder, which is the working directory meanwhile."""
    here = Path.cwd()
    os.chdir(folder)
    try:
        for name, labels in (("pred", case.prediction), ("ref", case.truth)):
            nib.save(nib.Nifti1Image(labels.astype(np.int16), np.diag([*case.spacing, 1])), f"{name}.nii.gz")
        yield "pred.nii.gz", "ref.nii.gz"
    finally:
        os.chdir(here)


class Brats2023:
    """metrics.py of BraTS 2023: region → its own names → number."""

    def __init__(self, sources: Path, folder: Path) -> None:
        self.code = module_from(sources / CLONES["brats2023"] / "metrics.py")
        self.folder = folder

    def __call__(self, case: Case, track: str) -> dict[str, dict[str, float]]:
        with files_of(case, self.folder) as (prediction, truth):
            table = self.code.get_LesionWiseResults(prediction, truth, f"BraTS-{track}")
        return table.set_index("Labels").to_dict("index")


class Brats2024:
    """metrics_<track>.py of BraTS 2024; `typo` False corrects the misspelt SNFH in a copy."""

    def __init__(self, sources: Path, folder: Path, track: str, typo: bool = True) -> None:
        path = sources / CLONES["brats2024"] / f"metrics_{TRACKS_2024[track]}.py"
        self.code = module_from(path, change=("", "") if typo else ('"SFNH"', '"SNFH"'))
        self.folder, self.track = folder, track

    def __call__(self, case: Case) -> dict[str, dict[str, float]]:
        with files_of(case, self.folder) as (prediction, truth), contextlib.redirect_stdout(None):
            table, _ = self.code.get_LesionWiseResults(prediction, truth, f"BraTS-{self.track}")
        return table.set_index("Labels").to_dict("index")

    def of_masks(self, region: str) -> dict[str, float]:
        """Its own functions for the whole region, on the files that the last call left, as masks instead of lesion numbers."""
        sides = {"tmp_pred": "pred", "tmp_gt": "ref"}
        files = (self.folder / at / side / f"{side}_{region}_cc_combined.nii.gz" for at, side in sides.items())
        prediction, truth = (np.asarray(nib.load(path).dataobj) > 0 for path in files)
        sensitivity, specificity = self.code.get_sensitivity_and_specificity(prediction.astype(int), truth.astype(int))
        found = {"sensitivity": sensitivity, "specificity": specificity}
        if prediction.any() and truth.any():
            distances = self.code.surface_distance.compute_surface_distances(truth, prediction, (1, 1, 1))
            found["hd95_mm"] = self.code.surface_distance.compute_robust_hausdorff(distances, 95)
        return found


class Chaos:
    """CHAOSmetrics.py of CHAOS; voxels become mm by the spacing instead of DICOM headers."""

    def __init__(self, sources: Path) -> None:
        self.code = module_from(sources / CLONES["chaos"] / "Python" / "CHAOSmetrics.py", "pydicom", "cv2")
        self.code.transformToRealCoordinates = lambda points, spacing: points.T * np.asarray(spacing)

    def __call__(self, case: Case) -> dict[str, float]:
        """NaN for distances where one mask has no border."""
        with np.errstate(invalid="ignore", divide="ignore"):
            found = {
                "dice": self.code.DICE(case.truth, case.prediction),
                "ravd_percent": self.code.RAVD(case.truth, case.prediction),
            }
        try:
            assd, mssd = self.code.SSD(case.truth, case.prediction, case.spacing)
        except (ValueError, IndexError):  # a border without voxels
            assd = mssd = math.nan
        return found | {"assd_mm": assd, "mssd_mm": mssd}


class Isbi2015:
    """lesion-metrics; its components have 26 neighbours."""

    def __init__(self, sources: Path) -> None:
        sys.path.insert(0, str(sources / CLONES["isbi2015"]))
        from lesion_metrics import metrics

        self.code = metrics

    def __call__(self, case: Case) -> dict[str, float]:
        code, masks = self.code, (case.prediction, case.truth)
        return {
            "dice": code.dice(*masks),
            "jaccard": code.jaccard(*masks),
            "ppv": code.ppv(*masks),
            "tpr": code.tpr(*masks),
            "ltpr": code.ltpr(*masks),
            "lfpr": code.lfdr(*masks),
            "volume_error": code.avd(*masks),
            "score_partial": 100 * code.isbi15_score(*masks),
        }


class Anima:
    """Lesion detection of Anima: components by ITK, the two C++ functions of its rule cut out of its source and compiled as they are."""

    def __init__(self, sources: Path, folder: Path) -> None:
        text = (sources / CLONES["anima"] / ANIMA).read_text(encoding="utf-8")
        start, stop = (
            text.index("int SegPerfCAnalyzer::getTruePositiveLesions"),
            text.index("SegPerfCAnalyzer::transposer"),
        )
        (folder / "anima.cxx").write_text(
            _HEAD + text[start : text.rindex("/**", start, stop)] + _TAIL, encoding="utf-8"
        )
        subprocess.run(["g++", "-shared", "-fPIC", "-o", "anima.so", "anima.cxx"], cwd=folder, check=True)
        self.code = ctypes.CDLL(str(folder / "anima.so"))

    def __call__(self, case: Case) -> dict[str, float]:
        unit = case.spacing[0] * case.spacing[1] * case.spacing[2]
        smallest = math.floor(3 / unit) + 1
        reference, predicted = (itk_components(mask, smallest) for mask in (case.truth, case.prediction))
        table = np.zeros((reference.max() + 1, predicted.max() + 1), np.intc)
        np.add.at(table, (reference, predicted), 1)
        found, true = (self.detected(one) for one in (table, np.ascontiguousarray(table.T)))
        lesions, detections = table.shape[0] - 1, table.shape[1] - 1
        precision = true / detections if detections else 0.0
        sensitivity = found / lesions if lesions else math.nan
        f1 = 2 * precision * sensitivity / (precision + sensitivity) if precision + sensitivity > 0 else 0.0
        return {"lesion_sensitivity": sensitivity, "lesion_precision": precision, "lesion_f1": f1, "lesions": lesions}

    def detected(self, table: np.ndarray) -> int:
        if min(table.shape) < 2:
            return 0
        pointer = table.ctypes.data_as(ctypes.POINTER(ctypes.c_int))
        return int(self.code.detected(*table.shape, pointer))


_HEAD = """
#include <cstring>
#include <vector>
#include <algorithm>
struct SegPerfCAnalyzer {
    double m_dfDetectionThresholdAlpha = 0.10, m_dfDetectionThresholdBeta = 0.70, m_dfDetectionThresholdGamma = 0.65;
    int getTruePositiveLesions(int, int, int **);
    bool falsePositiveRatioTester(int, int, int, int **, int *, int *, double, double);
};
"""
_TAIL = """
extern "C" int detected(int rows, int columns, int *table) {
    std::vector<int *> pointers;
    for (int i = 0; i < rows; ++i) pointers.push_back(table + i * columns);
    return SegPerfCAnalyzer().getTruePositiveLesions(rows, columns, pointers.data());
}
"""


def itk_components(mask: np.ndarray, smallest: int) -> np.ndarray:
    """Components with 6 neighbours, numbered from the largest; small ones are background."""
    image = SimpleITK.GetImageFromArray(mask.astype(np.uint8))
    image = SimpleITK.RelabelComponent(SimpleITK.ConnectedComponent(image), minimumObjectSize=smallest)
    return SimpleITK.GetArrayFromImage(image).astype(np.intp)


def panoptica_scores(case: Case, tolerance: float) -> dict[str, float]:
    """Its metrics of the two masks as wholes, with spacing; and components (26 neighbours) matched one to one at IoU above 0.5."""
    from panoptica import (
        ConnectedComponentsInstanceApproximator,
        InputType,
        Metric,
        NaiveThresholdMatching,
        Panoptica_Evaluator,
    )

    evaluator = Panoptica_Evaluator(
        expected_input=InputType.SEMANTIC,
        instance_approximator=ConnectedComponentsInstanceApproximator(),
        instance_matcher=NaiveThresholdMatching(matching_metric=Metric.IOU, matching_threshold=0.5000001),
        instance_metrics=[Metric.DSC],
        global_metrics=[Metric.DSC],
    )
    masks = [np.asarray(mask, np.uint8) for mask in (case.prediction, case.truth)]
    result = evaluator.evaluate(*masks, voxelspacing=case.spacing, verbose=False)["ungrouped"]
    found = {
        "dice": result.global_bin_dsc,
        "components matched": result.tp,
        "components false": result.fp,
        "components missed": result.fn,
    }
    surfaces = {"mssd_mm": Metric.HD, "hd95_mm": Metric.HD95, "assd_mm": Metric.ASSD}
    if not all(mask.any() for mask in masks):
        return found | dict.fromkeys([*surfaces, "nsd"], math.nan)
    more = {"reference_arr": masks[1], "prediction_arr": masks[0], "voxelspacing": case.spacing}
    return (
        found
        | {name: metric(**more) for name, metric in surfaces.items()}
        | {"nsd": Metric.NSD(**more, threshold=tolerance)}
    )


def monai_scores(case: Case, tolerance: float) -> dict[str, float]:
    import monai.metrics as m
    import torch

    pair = [torch.from_numpy(np.asarray(mask)[None, None].astype(np.float32)) for mask in (case.prediction, case.truth)]
    more = {"include_background": True, "spacing": list(case.spacing)}
    return {
        "dice": float(m.compute_dice(*pair, include_background=True)),
        "mssd_mm": float(m.compute_hausdorff_distance(*pair, **more)),
        "hd95_mm": float(m.compute_hausdorff_distance(*pair, percentile=95, **more)),
        "assd_mm": float(m.compute_average_surface_distance(*pair, symmetric=True, **more)),
        "nsd": float(m.compute_surface_dice(*pair, class_thresholds=[tolerance], **more)),
    }


def surface_distance_scores(case: Case, tolerance: float) -> dict[str, float]:
    import surface_distance as s

    found = s.compute_surface_distances(case.truth.astype(bool), case.prediction.astype(bool), case.spacing)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "dice": s.compute_dice_coefficient(case.truth.astype(bool), case.prediction.astype(bool)),
            "mssd_mm": s.compute_robust_hausdorff(found, 100),
            "hd95_mm": s.compute_robust_hausdorff(found, 95),
            "assd_mm": float(np.mean(s.compute_average_surface_distance(found))),
            "nsd": s.compute_surface_dice_at_tolerance(found, tolerance),
        }
