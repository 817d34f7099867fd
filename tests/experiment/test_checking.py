"""`check` as a whole: what a hospital brings is found, one line each; clean data give nothing; the command says the same."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from oligovox import experiment
from oligovox.cohort.splits import Split
from oligovox.errors import CohortError, OutputError
from oligovox.files import read_json, read_tsv


def serious(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Check → its finding, of errors and warnings."""
    rows = [row for row in result["findings"] if row["severity"] != "note"]
    found = {row["check"]: row for row in rows}
    assert len(found) == len(rows), rows
    return found


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three people of the simulator, at 3 mm."""
    root = tmp_path_factory.mktemp("simulated") / "ms"
    experiment.simulate(root, subjects=3, workers=1, changes=("spacing=3.0",))
    return root


@pytest.fixture
def hospital(simulated: Path, tmp_path: Path) -> Path:
    """The same with what real people bring."""
    root = tmp_path / "hospital"
    shutil.copytree(simulated, root)
    first, second, third = (sorted((root / f"sub-00{n}").rglob("*.nii.gz")) for n in (1, 2, 3))
    first[0].write_bytes(first[0].read_bytes()[:5000])
    image = nib.load(first[1])
    made = nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
    made.set_qform(image.affine + np.array([[0] * 4, [0, 0, 0, 12], [0] * 4, [0] * 4]), 1)
    nib.save(made, first[1])
    for path, other in zip(second, third, strict=True):
        shutil.copy(path, other)
    mask = next(root.glob("derivatives/*/sub-001/**/*lesion_mask.nii.gz"))
    image = nib.load(mask)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) * np.uint8(255), np.eye(4)), mask)
    return root


def test_clean_simulated_people_give_no_error_and_no_warning(simulated: Path) -> None:
    result = experiment.check_data(simulated, workers=1)
    assert (result["cases"], serious(result)) == (3, {})


def test_what_a_hospital_brings_is_found(hospital: Path, tmp_path: Path) -> None:
    Split(train=("001", "002"), validation=(), test=("003",), seed=0).save(tmp_path / "split.json")
    result = experiment.check_data(hospital, tmp_path / "out", split=tmp_path / "split.json", workers=1)
    found = serious(result)
    assert set(found) == {"truncated", "sform_qform", "mask_grid", "label_values", "train_test"}
    assert found["train_test"]["numbers"]["cases"] == ["sub-002", "sub-003"]
    severities = [row["severity"] for row in result["findings"]]
    assert severities == [severity for severity in ("error", "warning", "note") for _ in range(result[severity])]
    assert "sub-002" in (tmp_path / "out" / "check.html").read_text()
    assert read_json(tmp_path / "out" / "check.json") == result | {"out": str(tmp_path / "out")}
    rows = read_tsv(tmp_path / "out" / "check.tsv")
    assert Counter(row["check"] for row in rows) == Counter(row["check"] for row in result["findings"])


def test_the_command_finds_mends_and_says_so(
    oligovox: Callable[..., subprocess.CompletedProcess[str]], hospital: Path, tmp_path: Path
) -> None:
    done = oligovox("check", hospital, "--fix", tmp_path / "mended", "--workers", 1, check=1)
    head, *lines = done.stdout.splitlines()
    assert head.startswith(f"{hospital}: 3 exams of 3 people: 4 errors, ")
    told = [line.split()[1] for line in lines if line.startswith(("error", "warning"))]
    assert told == [
        "duplicate_image", "label_values", "mask_grid", "truncated", "sform_qform",
    ]  # fmt: skip
    assert sum("truncated" in line for line in lines) == 1
    assert "--fix writes the sform" in done.stdout
    again = experiment.check_data(tmp_path / "mended", workers=1)
    assert set(serious(again)) == {"duplicate_image"}


def test_a_folder_without_a_layout_is_one_finding(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    result = experiment.check_data(tmp_path / "data", fix=tmp_path / "fixed")
    assert (result["error"], result["findings"][0]["check"]) == (1, "layout")
    assert not (tmp_path / "fixed").exists()
    with pytest.raises(CohortError, match="no such folder"):
        experiment.check_data(tmp_path / "nowhere")


def test_nothing_is_written_into_the_data(phantom: Path) -> None:
    for option in ({"out": phantom / "check"}, {"fix": phantom.parent}, {"out": phantom}):
        with pytest.raises(OutputError, match="choose another folder"):
            experiment.check_data(phantom, **option)


@pytest.mark.real
@pytest.mark.parametrize("folder", ["openms", "brats", "brats13_nc"])
def test_real_data_that_others_prepared_are_clean(real_data: Path, tmp_path: Path, folder: str) -> None:
    """Of openms two people, one with two visits; of the others everybody."""
    data = real_data / folder
    if not data.is_dir():
        pytest.skip(f"no {folder} at {real_data}")
    if folder == "openms":
        data = tmp_path / "openms"
        for name in ("sub-cs07", "sub-lo12"):
            for below in ("", "derivatives"):
                (data / below).mkdir(parents=True, exist_ok=True)
                (data / below / name).symlink_to(real_data / folder / below / name)
    result = experiment.check_data(data, workers=1)
    rows = [row for row in result["findings"] if row["severity"] != "note"]
    assert rows == [], json.dumps(rows, indent=1)
