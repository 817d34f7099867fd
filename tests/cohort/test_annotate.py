"""Labels of a part only: what each kind knows, that nothing else has an influence, and how a file says that it is one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from oligovox.cohort.annotate import _USED, NOT_LOOKED, Sparse, chance_of, says_sparse, sparsify
from oligovox.errors import CohortError, LabelError, SettingsError
from oligovox.settings import parse

SHAPE = (60, 60, 60)


def lesions(count: int) -> np.ndarray:
    """Balls of radius 2.5 of class 2; some touch each other."""
    where, rng = np.indices(SHAPE), np.random.default_rng(count)
    away = [np.linalg.norm(where - centre.reshape(3, 1, 1, 1), axis=0) for centre in rng.uniform(8, 52, (count, 3))]
    return (np.min(away, axis=0) < 2.5).astype(np.uint8) * 2


@given(axis=st.integers(0, 2), every=st.integers(1, 20), seed=st.integers(0, 99))
@settings(max_examples=12, deadline=None)
def test_every_nth_slice_is_known_and_nothing_else(axis: int, every: int, seed: int) -> None:
    labels = lesions(5)
    sparse = sparsify(labels, np.random.default_rng(seed), Sparse(axis=axis, every=every), 1.0)
    known = np.flatnonzero(np.moveaxis(sparse, axis, 0).reshape(60, -1).max(1) != NOT_LOOKED)
    assert known[0] < every
    assert np.array_equal(known, np.arange(known[0], 60, every))
    assert np.array_equal(sparse[sparse >= 0], labels[sparse >= 0])
    assert (sparse == NOT_LOOKED).sum() == 60 * 60 * (60 - len(known))


def test_slices_at_random_and_the_largest() -> None:
    labels = lesions(8)
    some = sparsify(labels, np.random.default_rng(0), Sparse(kind="random", slices=7), 1.0)
    assert (some >= 0).any((0, 1)).sum() == 7
    large = sparsify(labels, np.random.default_rng(0), Sparse(kind="largest", slices=3), 1.0)
    area = np.count_nonzero(labels, (0, 1))
    chosen = (large >= 0).any((0, 1))
    assert chosen.sum() == 3
    assert area[chosen].min() >= area[~chosen].max()


def test_a_share_of_the_lesions_is_known_with_the_background_around() -> None:
    labels = lesions(20)
    parts, count = ndimage.label(labels, np.ones((3, 3, 3)))
    sparse = sparsify(labels, np.random.default_rng(1), Sparse(kind="lesions", share=0.25, margin_mm=3.0), 1.0)
    kept = {n for n in range(1, count + 1) if (sparse[parts == n] == 2).all()}
    lost = {n for n in range(1, count + 1) if (sparse[parts == n] == NOT_LOOKED).all()}
    assert len(kept) == round(0.25 * count)
    assert kept | lost == set(range(1, count + 1))
    distance = ndimage.distance_transform_edt(~np.isin(parts, list(kept)))
    assert np.array_equal(sparse == 0, (labels == 0) & (distance <= 3))


def test_what_nobody_looked_at_has_no_influence() -> None:
    labels = lesions(10)
    for chosen in (Sparse(every=9), Sparse(kind="random", slices=6)):
        sparse = sparsify(labels, np.random.default_rng(4), chosen, 1.0)
        other = np.where(sparse == NOT_LOOKED, 7, labels).astype(np.uint8)
        assert np.array_equal(sparsify(other, np.random.default_rng(4), chosen, 1.0), sparse)


def test_every_nth_slice_and_the_largest() -> None:
    labels = lesions(6)
    chosen = (sparsify(labels, np.random.default_rng(2), Sparse(kind="slices", every=25), 1.0) >= 0).any((0, 1))
    every = (sparsify(labels, np.random.default_rng(2), Sparse(kind="every", every=25), 1.0) >= 0).any((0, 1))
    assert set(np.flatnonzero(chosen)) == {*np.flatnonzero(every), np.count_nonzero(labels, (0, 1)).argmax()}


def test_trusted_background_is_all_but_the_surroundings_of_what_was_left_out() -> None:
    labels = lesions(20)
    parts, count = ndimage.label(labels, np.ones((3, 3, 3)))
    chosen = Sparse(kind="lesions", share=0.25, margin_mm=4.0, background="trusted")
    known = sparsify(labels, np.random.default_rng(1), chosen, (1.0, 1.0, 2.0))
    near = sparsify(labels, np.random.default_rng(1), Sparse(kind="lesions", share=0.25), 1.0)
    assert np.array_equal(known == 2, near == 2), "the same lesions, whatever is known about the background"
    left_out = np.isin(parts, [n for n in range(1, count + 1) if not (known[parts == n] == 2).all()])
    distance = ndimage.distance_transform_edt(~left_out, sampling=(1.0, 1.0, 2.0))
    assert np.array_equal(known == NOT_LOOKED, (distance <= 4.0) & (known != 2))
    assert (known[(labels == 0) & (distance > 4.0)] == 0).all()


@given(seed=st.integers(0, 99), axis=st.integers(0, 2), thick=st.sampled_from([1.0, 3.0]), count=st.integers(0, 8))
@settings(max_examples=15, deadline=None)
def test_scribbles_are_thin_right_and_in_every_lesion(seed: int, axis: int, thick: float, count: int) -> None:
    labels = lesions(count) if count else np.zeros(SHAPE, np.uint8)
    labels[labels > 0] -= np.random.default_rng(seed).integers(0, 2, dtype=np.uint8)
    inside = np.zeros(SHAPE, bool)
    inside[5:55, 5:55, 5:55] = True
    chosen = Sparse(kind="scribbles", axis=axis, length_mm=20.0)
    known = sparsify(labels, np.random.default_rng(seed), chosen, (1.0, 1.0, thick), inside)
    looked = known != NOT_LOOKED
    assert np.array_equal(known[looked], labels[looked])
    parts, found = ndimage.label(labels, np.ones((3, 3, 3)))
    slices = {n: np.flatnonzero(np.moveaxis(looked & (parts == n), axis, 0).any((1, 2))) for n in range(1, found + 1)}
    assert all(len(levels) == 1 for levels in slices.values()), "one stroke in each lesion, in one slice"
    background = looked & (labels == 0)
    assert background.any()
    assert (background <= inside).all()
    levels = {int(levels[0]) for levels in slices.values()}
    assert set(np.flatnonzero(np.moveaxis(background, axis, 0).any((1, 2)))) <= levels or not levels
    assert looked.sum() < 0.01 * labels.size
    assert not found or (looked & (labels > 0)).sum() < 0.35 * (labels > 0).sum()


def test_boxes_know_that_there_is_nothing_outside_them() -> None:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[5:8, 6:7, 10:14] = labels[8, 7, 14] = 3  # touches at a corner, so both lie in one box
    known = sparsify(labels, np.random.default_rng(0), Sparse(kind="boxes", box_mm=2.0), (1.0, 1.0, 2.0))
    expected = np.zeros(labels.shape, np.int8)
    expected[3:11, 4:10, 9:16] = NOT_LOOKED
    assert np.array_equal(known, expected)
    empty = sparsify(np.zeros_like(labels), np.random.default_rng(0), Sparse(kind="boxes"), 1.0)
    assert not empty.any(), "no lesion, no box: all of it is background"


def test_the_chance_of_a_case_is_its_own() -> None:
    draws = {name: chance_of(3, name).integers(1 << 40) for name in ("sub-1", "sub-2", "sub-1_ses-2")}
    assert len(set(draws.values())) == 3
    assert chance_of(3, "sub-2").integers(1 << 40) == draws["sub-2"]
    assert chance_of(4, "sub-2").integers(1 << 40) != draws["sub-2"]


def test_what_cannot_be_made_sparse_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(LabelError, match="class 200; classes up to 127"):
        sparsify(np.full((2, 2, 2), 200, np.uint8), rng, Sparse(), 1.0)
    for kind in ("random", "largest"):
        with pytest.raises(LabelError, match="7 slices to be labelled, the volume has 6; ask for fewer"):
            sparsify(np.zeros((9, 9, 6), np.uint8), rng, parse(Sparse, {"kind": kind, "slices": 7}, "x"), 1.0)
    with pytest.raises(SettingsError, match="kind = 'scribble'"):
        parse(Sparse, {"kind": "scribble"}, "annotate")


def test_a_setting_of_another_kind_is_refused_and_what_was_resolved_is_read_again() -> None:
    numbers = {
        "axis": 1,
        "every": 3,
        "slices": 3,
        "share": 0.5,
        "margin_mm": 1.0,
        "stroke_mm": 3.0,
        "length_mm": 9.0,
        "strokes": 2,
        "box_mm": 1.0,
    }
    changed = numbers | {"background": "trusted"}
    assert {*changed, "kind"} == {*Sparse.model_fields}
    for kind, own in _USED.items():
        chosen = parse(Sparse, {"kind": kind, **{key: changed[key] for key in own}}, "annotate")
        assert parse(Sparse, chosen.model_dump(), "again") == chosen
        frozen = chosen.model_dump() | {key: changed[key] for key in {*changed} - {*own}}
        assert parse(Sparse, frozen, "frozen before it was refused").model_dump() == frozen
        for key in {*changed} - {*own}:
            with pytest.raises(SettingsError, match=f"{key} = .* has no effect on {kind}, it is for .*; leave it out"):
                parse(Sparse, {"kind": kind, key: changed[key]}, "annotate")


def test_every_setting_of_a_kind_changes_its_label() -> None:
    labels = np.zeros((40, 40, 40), np.uint8)
    for corner in (4, 16, 28):
        labels[corner : corner + 7, corner : corner + 8, corner : corner + 9] = 1
    other = {
        "axis": 0,
        "every": 3,
        "slices": 2,
        "share": 0.6,
        "margin_mm": 2.0,
        "background": "trusted",
        "stroke_mm": 5.0,
        "length_mm": 3.0,
        "strokes": 4,
        "box_mm": 5.0,
    }
    for kind, own in _USED.items():
        plain = sparsify(labels, np.random.default_rng(0), parse(Sparse, {"kind": kind}, "x"), 1.0)
        for key in own:
            chosen = parse(Sparse, {"kind": kind, key: other[key]}, "x")
            assert (sparsify(labels, np.random.default_rng(0), chosen, 1.0) != plain).any(), (
                f"{key} does nothing to {kind}"
            )


@pytest.mark.parametrize(
    ("name", "sidecar", "sparse"),
    [
        ("sub-01_desc-sparse_dseg.nii.gz", None, True),
        ("sub-01_label-sparse_mask.nii", None, True),
        ("sub-01_desc-sparser_dseg.nii.gz", None, False),
        ("sub-01_label-lesion_mask.nii.gz", None, False),
        ("sub-01_label-lesion_mask.nii.gz", '{"Unlabelled": 255}', True),
        ("sub-01_label-lesion_mask.nii.gz", '{"Rater": "A"}', False),
    ],
)
def test_a_file_says_that_it_is_sparse(tmp_path: Path, name: str, sidecar: str | None, sparse: bool) -> None:
    if sidecar:
        (tmp_path / "sub-01_label-lesion_mask.json").write_text(sidecar)
    assert says_sparse(tmp_path / name) is sparse


@pytest.mark.parametrize(
    ("sidecar", "said"), [('{"Unlabelled": 9}', "is 9, expected 255"), ("{", "cannot be read as JSON")]
)
def test_a_sidecar_that_says_nothing_usable_is_named(tmp_path: Path, sidecar: str, said: str) -> None:
    (tmp_path / "a_mask.json").write_text(sidecar)
    with pytest.raises(CohortError, match=rf"a_mask\.json: .*{said}"):
        says_sparse(tmp_path / "a_mask.nii.gz")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Sparse(kind="slices", every=8), "one axial slice in 8, and the one with the largest lesion area"),
        (Sparse(kind="random", slices=3, axis=1), "3 coronal slices at random"),
        (Sparse(kind="largest"), "the 5 axial slices with the largest lesion area"),
        (
            Sparse(kind="lesions", background="trusted"),
            "30 % of the lesions, and all background but 5 mm around the others",
        ),
        (Sparse(kind="scribbles"), "strokes in lesions and in background"),
        (Sparse(kind="boxes"), "all outside of boxes around lesions"),
    ],
)
def test_a_part_is_said_in_words(settings: Sparse, words: str) -> None:
    assert settings.words == words
