"""Fixtures every room may use."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("fixed", derandomize=True, database=None)
settings.register_profile("search", max_examples=200, deadline=None)
settings.load_profile("fixed")  # a failure says something about the change; `make bench` looks for new examples


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real MRI sets (see CONTRIBUTING); the test is skipped where it is absent."""
    folder = Path(os.environ.get("OLIGOVOX_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "openms").is_dir():
        pytest.skip(f"no real MRI at {folder}; set OLIGOVOX_DATA to the folder that holds openms/")
    return folder


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """A NIfTI file, folders included; 1 mm isotropic where no affine is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def write_phantom(root: Path, subjects: int = 6, labelled: int = 6, side: int = 24) -> Path:
    """A BIDS folder of small balls with bright lesions of known place: not anatomy, but every file a cohort has."""
    rng = np.random.default_rng(0)
    axes = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij")) - side / 2
    brain = (axes**2).sum(0) < (side / 2 - 2) ** 2
    for number in range(1, subjects + 1):
        name = f"sub-{number:02d}"
        lesion = np.zeros(brain.shape, bool)
        for x, y, z in rng.integers(side // 3, 2 * side // 3, size=(3, 3)):
            lesion[x : x + 3, y : y + 3, z : z + 2] = True
        lesion &= brain
        for sequence, contrast in {"T1w": -60, "T2w": 80, "FLAIR": 90}.items():
            image = np.where(brain, 100 + contrast * lesion + rng.normal(0, 5, brain.shape), 0).clip(0).round()
            write_nifti(root / name / "anat" / f"{name}_{sequence}.nii.gz", image.astype(np.int16))
        derived = root / "derivatives" / "manual" / name / "anat"
        write_nifti(derived / f"{name}_desc-brain_mask.nii.gz", brain.astype(np.uint8))
        if number <= labelled:
            write_nifti(derived / f"{name}_label-lesion_mask.nii.gz", lesion.astype(np.uint8))
    description = {"Name": "phantom", "BIDSVersion": "1.10.0"}
    (root / "dataset_description.json").write_text(json.dumps(description))
    (root / "derivatives" / "manual" / "dataset_description.json").write_text(
        json.dumps(description | {"DatasetType": "derivative", "GeneratedBy": [{"Name": "manual"}]})
    )
    return root


@pytest.fixture(scope="session")
def make_phantom() -> Callable[..., Path]:
    """`write_phantom` itself, for cohorts of another size."""
    return write_phantom


@pytest.fixture
def phantom(tmp_path: Path) -> Path:
    """`write_phantom` with six labelled subjects."""
    return write_phantom(tmp_path / "phantom")


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for PATH whose `oligovox` does not have to import anything (see warm.py)."""
    folder, program = tmp_path_factory.mktemp("warm"), Path(__file__).with_name("warm.py")
    address = Path(tempfile.mkdtemp(prefix="warm-"), "socket")  # a path of at most 104 bytes
    command = folder / "oligovox"
    words = shlex.join([sys.executable, "-E", "-S", str(program), str(address)])
    command.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    command.chmod(0o755)
    with subprocess.Popen([sys.executable, program, address]) as server:
        while not address.exists():
            assert server.poll() is None, "warm.py ended; start it by hand to see why"
            time.sleep(0.05)
        yield folder
        server.kill()
    shutil.rmtree(address.parent)


@pytest.fixture(scope="session")
def oligovox(warm: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line: `oligovox("prepare", data, store)` in a process of its own."""

    return caller([str(warm / "oligovox")])


@pytest.fixture(scope="session")
def fresh_oligovox() -> Callable[..., subprocess.CompletedProcess[str]]:
    """The same in an interpreter that has imported nothing: for what is said of the start itself."""
    return caller([sys.executable, "-m", "oligovox"])


def caller(program: list[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A program as a function of its arguments."""

    def call(*arguments: object, check: int | None = 0, **more: object) -> subprocess.CompletedProcess[str]:
        command = [*program, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, **more)  # type: ignore[call-overload]
        assert check is None or done.returncode == check, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return call
