"""What comes from elsewhere: JSON, tables, names and links that mean harm or nothing. One clear error or a cohort; nothing is ever written."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oligovox.cohort import bids_write, nnunet
from oligovox.cohort.layouts import detect, looks, read
from oligovox.cohort.manifest import Cohort
from oligovox.errors import CohortError, InputError

MANY = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

IMAGE = nib.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4)).to_bytes()
PATHS = (
    "a.nii",
    "../a.nii",
    "/etc/passwd",
    "..",
    ".",
    "",
    "\0",
    "a" * 5000,
    "~",
    "b/../a.nii",
    "ü ñ.nii",
    "-rf",
    "$(id)",
    "http://x/a.nii",
)
KEYS = ("image", "label", "subject", "session", "modality", "fold", "info", "brain", "unlooked", "dataset", "flair")
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 300)
    | st.floats(allow_nan=True)
    | st.sampled_from(PATHS)
    | st.text(max_size=6)
)
junk = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(("0", "1", "x", *KEYS)), inner, max_size=4)
    ),
    max_leaves=8,
)
items = st.dictionaries(st.sampled_from(KEYS), junk, max_size=5) | junk


def tried(root: Path, layout: str = "") -> Cohort | None:
    """The cohort, or None for one clear line; anything else is a defect. The folder is as it was."""
    before = sorted((str(path), path.lstat().st_mtime_ns) for path in root.parent.rglob("*"))
    try:
        cohort = read(root, layout)
    except InputError as error:
        cohort, line = None, str(error)
    else:
        line = "read, and nothing is wrong with it"
    assert "\n" not in line
    assert len(line) > 20
    assert sorted((str(path), path.lstat().st_mtime_ns) for path in root.parent.rglob("*")) == before
    return cohort


def contained(cohort: Cohort, home: Path) -> None:
    """What is written of a cohort from elsewhere lands in the new folder."""
    for number, write in enumerate((bids_write.write, nnunet.write)):
        out = home / f"new{number}"
        before = set(home.rglob("*"))
        try:
            write(cohort, out)
        except InputError:
            assert set(home.rglob("*")) == before
        else:
            assert all(path.is_relative_to(out) for path in set(home.rglob("*")) - before)


@MANY
@given(
    content=st.fixed_dictionaries(
        {},
        optional={
            "training": st.lists(items, max_size=3) | junk,
            "test": junk,
            "modality": junk,
            "labels": junk,
            "regions": junk,
        },
    )
)
def test_any_datalist(content: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as home:
        root = Path(home) / "data"
        root.mkdir()
        (root / "a.nii").write_bytes(IMAGE)
        (root / "list.json").write_text(json.dumps(content))
        looks(root)
        if cohort := tried(root, "datalist"):
            contained(cohort, Path(home))


@MANY
@given(
    content=st.fixed_dictionaries(
        {},
        optional={
            "channel_names": st.dictionaries(st.sampled_from(["0", "1", "-1", "x"]), st.sampled_from(["T1", "FLAIR", "MRI", ""])) | junk,
            "labels": st.dictionaries(st.sampled_from(["background", "a", "ignore", "1"]), st.integers(-1, 300) | st.lists(st.integers(0, 9)) | junk),
            "file_ending": junk, "dataset": junk, "oligovox": junk, "regions_class_order": junk,
        },
    )
)  # fmt: skip
def test_any_nnunet_description(content: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as home:
        root = Path(home) / "data"
        (root / "imagesTr").mkdir(parents=True)
        (root / "labelsTr").mkdir()
        for name in ("imagesTr/c_0000.nii", "labelsTr/c.nii"):
            (root / name).write_bytes(IMAGE)
        (root / "dataset.json").write_text(json.dumps(content))
        looks(root)
        if cohort := tried(root, "nnunet"):
            contained(cohort, Path(home))


fields = st.sampled_from([*PATHS, "nan", "1", '"', "'", "=1+1", "sub-1"]) | st.text(
    st.characters(codec="utf-8"), max_size=8
)
headers = st.sampled_from(
    ["subject", "id", "FLAIR", "t1ce", "label", "brain", "session", "age", "file", "sequence", "participant_id", ""]
)


@MANY
@given(
    header=st.lists(headers, max_size=5),
    lines=st.lists(st.lists(fields, max_size=5), max_size=3),
    mark=st.sampled_from("\t,;"),
)
def test_any_table(header: list[str], lines: list[list[str]], mark: str) -> None:
    with tempfile.TemporaryDirectory() as home:
        root = Path(home) / "data"
        root.mkdir()
        (root / "a.nii").write_bytes(IMAGE)
        text = "\n".join(mark.join(line) for line in (header, *lines))
        for name in ("exams.csv", "series.tsv", "participants.tsv"):
            (root / name).write_text(text)
        looks(root)
        for layout in ("", "table", "series"):
            if cohort := tried(root, layout):
                contained(cohort, Path(home))


parts = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12).filter(
    lambda text: text not in (".", "..")
)


@MANY
@given(name=parts, layout=st.sampled_from(["nnunet", "brats", "table", "bids", "named"]))
def test_any_name(name: str, layout: str) -> None:
    with tempfile.TemporaryDirectory() as home:
        root = Path(home) / "data"
        files = {
            "nnunet": [f"imagesTr/{name}_0000.nii"],
            "brats": [f"{name}/{name}_t1ce.nii", f"{name}/{name}_seg.nii"],
            "table": [f"{name}/a.nii"],
            "bids": [f"sub-{name}/anat/sub-{name}_T1w.nii"],
            "named": [f"{name}/{name}_T1w.nii", f"{name}/lesion.nii", f"p/{name}.nii"],
        }[layout]
        for file in files:
            path = root / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(IMAGE)
        if layout == "nnunet":
            (root / "dataset.json").write_text(
                '{"channel_names": {"0": "FLAIR"}, "labels": {"background": 0, "lesion": 1}}'
            )
        if layout == "table":
            (root / "t.csv").write_text(f"id,FLAIR\np,{name}/a.nii\n")
        if cohort := tried(root, layout):
            contained(cohort, Path(home))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "NaN", '{"training": 3}', '{"a": 1}\x00', "\udcff"])
def test_files_that_are_no_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    looks(tmp_path)
    with pytest.raises(CohortError):
        read(tmp_path / "list.json")
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "imagesTr" / "a_0000.nii").write_bytes(IMAGE)
    (tmp_path / "list.json").rename(tmp_path / "dataset.json")
    with pytest.raises(CohortError):
        read(tmp_path, "nnunet")


def test_links_are_followed_to_read_and_loops_do_not_hang(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "flair.nii").write_bytes(IMAGE)
    root = tmp_path / "data"
    anat = root / "sub-01" / "anat"
    anat.mkdir(parents=True)
    (anat / "sub-01_FLAIR.nii").symlink_to(elsewhere / "flair.nii")  # as git-annex and many clusters have it
    (anat / "sub-01_T1w.nii").symlink_to(tmp_path / "gone.nii")
    (root / "loop").symlink_to(root, target_is_directory=True)
    (anat / "loop").symlink_to(anat, target_is_directory=True)
    assert detect(root).layout == "bids"
    cohort = read(root)
    with pytest.raises(InputError, match=r"sub-01_T1w\.nii: a file of sub-01 is missing \(or is a link to nowhere\)"):
        bids_write.write(cohort, tmp_path / "out")
    (anat / "sub-01_T1w.nii").unlink()
    bids_write.write(read(root), tmp_path / "out")
    copied = tmp_path / "out" / "sub-01" / "anat" / "sub-01_FLAIR.nii"
    assert copied.read_bytes() == IMAGE
    assert not copied.is_symlink()
    assert (elsewhere / "flair.nii").read_bytes() == IMAGE
