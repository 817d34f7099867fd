"""The plan, the tables of voxels, and opening a store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from oligovox.cohort.manifest import Cohort
from oligovox.errors import CohortError, SettingsError
from oligovox.files import read_json, write_json
from oligovox.prepare.pipeline import prepare
from oligovox.prepare.store import Plan, Store, lesion_balanced_voxels, some_voxels
from oligovox.settings import parse


def test_a_plan_names_sequences() -> None:
    plan = parse(Plan, {"modalities": ["t2f", "t1"], "spacing": [1, 1, 3]}, "recipe")
    assert (plan.modalities, plan.spacing) == (("FLAIR", "T1w"), (1.0, 1.0, 3.0))
    assert parse(Plan, plan.model_dump(mode="json"), "store.json") == plan
    for wrong in (
        {"modalities": []},
        {"modalities": ["T1w", "t1"]},
        {"modalities": ["x"]},
        {"modalities": ["T1w"], "spacing": [1, 1, 0]},
    ):
        with pytest.raises(SettingsError):
            parse(Plan, wrong, "recipe")


def test_every_lesion_has_the_same_number_of_rows() -> None:
    label = np.zeros((30, 30, 30), dtype=np.int8)
    label[2, 2, 2] = 1
    label[3, 3, 3] = 1  # touches the first at a corner, so both are one lesion
    label[10:20, 10:20, 10:20] = 1
    label[25, 25, 20:24] = 1
    rows = lesion_balanced_voxels(label, np.random.default_rng(0))
    assert rows.dtype == np.int16
    assert (label[tuple(rows.T)] > 0).all()
    lesions, _ = ndimage.label(label > 0, np.ones((3, 3, 3)))
    assert np.bincount(lesions[tuple(rows.T)])[1:].tolist() == [1000, 1000, 1000]
    assert len({tuple(row) for row in rows.tolist()}) == np.count_nonzero(label)


def test_every_class_has_the_same_number_of_rows_and_in_it_every_lesion() -> None:
    label = np.zeros((30, 30, 30), dtype=np.int8)
    label[2:22, 2:22, 2:22] = 1  # a liver
    label[22, 5, 5] = 3  # touches it
    label[26:28, 26:28, 26:28] = 3
    label[26, 2, 2] = label[26, 2, 6] = 4
    label[27, 2, 2] = 4
    rows = lesion_balanced_voxels(label, np.random.default_rng(0))
    values = label[tuple(rows.T)]
    assert np.bincount(values).tolist() == [0, 6666, 0, 6666, 6666]  # a third of 20,000 each
    lesions, _ = ndimage.label(label > 0, np.ones((3, 3, 3)))
    for value, expected in ((3, [3333, 3333]), (4, [3333, 3333])):
        found = np.bincount(lesions[tuple(rows[values == value].T)])
        assert found[found > 0].tolist() == expected
    spots = {tuple(row) for row in rows[values > 1].tolist()}
    assert len(spots) == np.count_nonzero(label > 1)


@given(seed=st.integers(0, 10), most=st.integers(5, 400))
def test_of_one_class_the_rows_are_those_there_always_were(seed: int, most: int) -> None:
    """Stores and studies made before classes were balanced stay what they were, bit for bit."""
    label = (np.random.default_rng(seed).random((9, 8, 7)) > 0.93).astype(np.int8)
    flat = np.flatnonzero(label)
    lesions, count = ndimage.label(label, np.ones((3, 3, 3)))
    rng = np.random.default_rng(1)
    kept = np.sort(rng.choice(count, most, replace=False)) if count > most else np.arange(count)
    parts = [flat[lesions.ravel()[flat] == lesion + 1] for lesion in range(count)]
    rows = min(most // len(kept), max(part.size for part in parts))
    expected = np.concatenate([np.resize(rng.permutation(parts[lesion]), rows) for lesion in kept])
    found = lesion_balanced_voxels(label, np.random.default_rng(1), most)
    assert np.array_equal(np.ravel_multi_index(found.T, label.shape), expected)


def test_more_lesions_or_voxels_than_rows() -> None:
    label = np.zeros((12, 12, 12), dtype=np.int8)
    label[::2, ::2, ::2] = 1  # 216 lesions of one voxel
    rows = lesion_balanced_voxels(label, np.random.default_rng(0), most=50)
    assert len({tuple(row) for row in rows.tolist()}) == 50
    some = some_voxels(label > 0, np.random.default_rng(0), most=50)
    assert len({tuple(row) for row in some.tolist()}) == 50
    assert (label[tuple(some.T)] == 1).all()
    assert lesion_balanced_voxels(np.zeros((3, 3, 3), dtype=np.int8), np.random.default_rng(0)).shape == (0, 3)


@pytest.fixture
def store(make_case, tmp_path: Path) -> Store:
    cohort = Cohort(cases=(make_case("1"), make_case("2", labelled=False)))
    return prepare(cohort, Plan(modalities=("T1w", "T2w", "FLAIR")), tmp_path / "store", workers=1)


def test_what_an_opened_store_knows(store: Store) -> None:
    again = Store.open(store.root)
    assert (again.plan, again.labels, again.people) == (store.plan, {"lesion": 1}, ("1", "2"))
    one, two = again.cases
    assert again.case("sub-1") is one
    assert again.of(["2"]) == (two,)
    assert again.labelled == (one,)
    assert one.present == (True, False, True)
    image, foreground, label = one.image(), one.foreground(), one.label()
    assert isinstance(image, np.memmap)
    assert (image.dtype, image.shape) == (np.float16, (2, *one.shape))
    assert (foreground.dtype, foreground.shape) == (np.bool_, one.shape)
    assert label is not None
    assert (label.dtype, label.shape) == (np.int8, one.shape)
    assert not image[:, ~foreground].any()
    assert one.lesion_voxels == 8 == np.count_nonzero(label)
    assert foreground[tuple(one.foreground_voxels().T)].all()
    assert len(one.foreground_voxels()) == foreground.sum()
    assert two.label() is None
    assert (two.lesion_voxels, len(two.lesion_voxels_index())) == (0, 0)


def test_what_is_no_store(store: Store, tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="not a store"):
        Store.open(tmp_path)
    with pytest.raises(CohortError, match=r"no case 'sub-11'; did you mean 'sub-1'"):
        store.case("sub-11")
    with pytest.raises(CohortError, match="no person '3'"):
        store.of(["3"])
    table = read_json(store.root / "store.json")
    write_json(store.root / "store.json", table | {"format": 0})
    with pytest.raises(CohortError, match="store format 0, expected 1"):
        Store.open(store.root)
    write_json(store.root / "store.json", table | {"finished": False})
    with pytest.raises(CohortError, match=r"not finished \(2 of 2 case folders"):
        Store.open(store.root)


def test_a_damaged_case_says_which_file(store: Store) -> None:
    (store.cases[0].folder / "image.npy").write_bytes(b"")
    with pytest.raises(CohortError, match=r"image\.npy: cannot be read"):
        store.cases[0].image()
    write_json(store.cases[0].folder / "case.json", {})
    with pytest.raises(CohortError, match=r"case\.json: not a case"):
        Store.open(store.root)
