"""Damaged files of any kind: the doctor says so, or finds nothing; it never falls over, and never touches what it looks at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oligovox.doctor.finding import Finding
from oligovox.errors import InputError
from oligovox.experiment.checking import check_data
from oligovox.experiment.cohorts import read_cohort
from oligovox.prepare.pipeline import check
from oligovox.prepare.store import Plan

HEADER = 352  # bytes of a NIfTI header with its extension flag
change = st.tuples(st.integers(0, HEADER - 1), st.integers(0, 255))


class Files(dict[str, bytes]):
    """File → bytes; hypothesis need not print them all."""

    def __repr__(self) -> str:
        return f"{len(self)} files"


@pytest.fixture(scope="module")
def whole(make_phantom: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Files:
    """File → bytes of a small cohort without compression, so that a change of a byte is a change of the header."""
    root = make_phantom(tmp_path_factory.mktemp("whole") / "phantom", subjects=2, labelled=2, side=12)
    for path in sorted(root.rglob("*.nii.gz")):
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine), path.with_name(path.name[:-3]))
        path.unlink()
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return Files({path.relative_to(root).as_posix(): path.read_bytes() for path in files})


def build(root: Path, content: dict[str, bytes]) -> Path:
    for name, data in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def refusal(root: Path) -> str:
    """What `prepare` says against a cohort, '' where it takes it."""
    try:
        check(read_cohort(root), Plan(modalities=("T1w", "FLAIR"), reference=("FLAIR", "T1w")), workers=1)
    except InputError as error:
        return str(error)
    return ""


def survives(content: dict[str, bytes]) -> list[Finding]:
    """Everything that looks at a cohort says one clear thing or none; the files stay as they were."""
    with TemporaryDirectory() as folder:
        root = build(Path(folder) / "data", content)
        found = check_data(root, Path(folder) / "out", workers=1)
        assert found["error"] + found["warning"] + found["note"] == len(found["findings"])
        assert all("\n" not in row["found"] and row["remedy"] for row in found["findings"])
        refused = refusal(root)
        assert "\n" not in refused
        assert found["error"] or not refused, f"prepare refuses what the doctor passes: {refused}"
        assert {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()} == set(content)
        assert all((root / name).read_bytes() == data for name, data in content.items())
    return found["findings"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(change, min_size=1, max_size=6), victim=st.integers(0, 9))
def test_bytes_of_a_header_are_changed(whole: Files, changes: list[tuple[int, int]], victim: int) -> None:
    names = [name for name in whole if name.endswith(".nii")]
    name = names[victim % len(names)]
    data = bytearray(whole[name])
    for place, value in changes:
        data[place] = value
    survives(whole | {name: bytes(data)})


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(victim=st.integers(0, 9), share=st.floats(0, 1), junk=st.binary(max_size=40))
def test_files_are_cut_or_replaced(whole: Files, victim: int, share: float, junk: bytes) -> None:
    name = list(whole)[victim % len(whole)]
    data = whole[name]
    survives(whole | {name: data[: int(share * len(data))] + junk})
