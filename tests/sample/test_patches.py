from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oligovox.errors import CohortError, LabelError, SettingsError
from oligovox.prepare.store import Plan, StoredCase
from oligovox.sample.patches import Patch, PatchSource, Stream

PLAN = Plan(modalities=("T1w", "T2w", "FLAIR"))
LESION = np.array([[6, 2, 9], [6, 3, 9], [7, 2, 9]])


@pytest.fixture
def make_case(tmp_path: Path):
    """Writes a case whose voxel values are their own flat index + 1, in every sequence with another sign or scale."""

    def make(
        name="a", person=None, shape=(10, 8, 12), present=(True, False, True), labelled=True, lesion=LESION, looked=None
    ) -> StoredCase:
        folder = tmp_path / name
        folder.mkdir()
        index = np.arange(np.prod(shape)).reshape(shape) + 1
        np.save(
            folder / "image.npy", np.stack([index, -index, index / 2][: len(present)])[list(present)].astype(np.float16)
        )
        foreground = np.zeros(shape, dtype=bool)
        foreground[1:-1, 1:-1, 1:-1] = True
        np.save(folder / "foreground.npy", foreground)
        np.save(folder / "foreground_voxels.npy", np.argwhere(foreground).astype(np.int16))
        lesion = np.asarray(lesion, dtype=np.int16).reshape(-1, 3) if labelled else np.zeros((0, 3), dtype=np.int16)
        if labelled:
            label = np.zeros(shape, dtype=np.int8)
            label[tuple(lesion.T)] = 1
            if looked is not None:
                label[~looked] = -1
                lesion = np.argwhere(label > 0).astype(np.int16)
                np.save(folder / "looked_voxels.npy", np.argwhere(looked).astype(np.int16))
            np.save(folder / "label.npy", label)
            np.save(folder / "lesion_voxels.npy", lesion)
        return StoredCase(
            folder=folder, name=name, person=person or name, dataset="", present=present, shape=shape,
            spacing=(1.0, 1.0, 2.0), labelled=labelled, lesion_voxels=len(lesion), placement=None, sources={},
            unlooked_voxels=0 if looked is None else int((~looked).sum()),
        )  # fmt: skip

    return make


def stub(
    shape: tuple[int, int, int], foreground: list[tuple[int, int, int]], lesion: list[tuple[int, int, int]]
) -> StoredCase:
    """A case in memory, for what needs coordinates only."""

    class InMemory(StoredCase):
        def foreground_voxels(self) -> np.ndarray:
            return np.array(foreground, dtype=np.int16)

        def lesion_voxels_index(self) -> np.ndarray:
            return np.array(lesion, dtype=np.int16)

    return InMemory(
        folder=Path(), name="m", person="m", dataset="", present=(True,) * 3, shape=shape, spacing=(1.0, 1.0, 1.0),
        labelled=True, lesion_voxels=len(lesion), placement=None, sources={},
    )  # fmt: skip


def source(*streams: Stream, patch=(4, 4, 6), seed=0, apart=False) -> PatchSource:
    return PatchSource(PLAN, streams, patch, seed, apart=apart)


def where(cuts: list[Patch]) -> list[tuple[str, tuple[int, int, int]]]:
    return [(cut.case.name, cut.corner) for cut in cuts]


# ── data order ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_draw_depends_on_its_four_numbers_only(make_case):
    cases = tuple(make_case(name) for name in "abcdef")
    one = source(Stream(cases, 3))
    other = source(Stream(cases[::-1], 3))
    places = [(step, micro, slot) for step in range(4) for micro in range(4) for slot in range(3)]
    forwards = where([one.draw(*place) for place in places])
    backwards = where([other.draw(*place) for place in reversed(places)])
    assert forwards == backwards[::-1]
    assert len(set(forwards)) > 0.8 * len(places)
    assert where([source(Stream(cases, 3), seed=1).draw(*place) for place in places]) != forwards


def test_two_ranks_of_two_accumulations_see_what_one_process_of_four_sees(make_case):
    cases = tuple(make_case(name) for name in "abc")
    alone = [source(Stream(cases, 2)).batch(7, micro) for micro in range(4)]
    for rank in range(2):
        here = source(Stream(cases, 2))
        for a in range(2):
            batch, expected = here.batch(7, rank * 2 + a), alone[rank * 2 + a]
            assert torch.equal(batch.image, expected.image)
            assert batch.cases == expected.cases


def test_the_order_is_the_same_on_every_machine(make_case):
    drawn = source(Stream((make_case(), make_case("b")), 1), seed=3)
    expected = [("b", (0, 0, 0)), ("a", (6, 4, 0)), ("b", (6, 4, 3)), ("b", (2, 0, 0))]
    assert where([drawn.draw(step, 0, 0) for step in range(4)]) == expected


def test_the_global_rng_is_left_alone(make_case):
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    source(Stream((make_case(),), 2, "lesion")).batch(0, 0)
    assert (np.random.get_state()[1] == before[0]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])


# ── which case ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_people_are_drawn_evenly_however_many_sessions_they_have(make_case):
    sessions = [make_case(f"often-{i}", person="often") for i in range(5)]
    drawn = source(Stream((*sessions, make_case("once")), 1))
    names = [drawn.draw(step, 0, 0).case.name for step in range(800)]
    assert names.count("once") == pytest.approx(400, abs=70)  # 5 standard errors
    assert all(names.count(case.name) == pytest.approx(80, abs=45) for case in sessions)


def test_patches_that_are_told_apart_are_of_different_people(make_case):
    """Two patches of one brain are each other's negatives otherwise, in half the steps of a small cohort."""
    cases = tuple(make_case(f"{name}-{i}", person=name) for name in "abcde" for i in range(2))
    drawn = source(Stream(cases, 2), apart=True)
    for step in range(40):
        people = [drawn.draw(step, micro, slot).case.person for micro in range(4) for slot in range(2)]
        assert len(set(people[:5])) == 5, "everybody once"
        assert len(set(people[5:])) == 3, "and then once more"
    first = [drawn.draw(step, 0, 0).case.name for step in range(600)]
    assert all(first.count(case.name) == pytest.approx(60, abs=37) for case in cases)  # 5 standard errors


def test_streams_fill_their_own_slots(make_case):
    labelled, unlabelled = (make_case("l"),), (make_case("u", labelled=False),)
    batch = source(Stream(labelled, 1, "lesion"), Stream(unlabelled, 2)).batch(0, 0)
    assert batch.cases == ("l", "u", "u")
    assert (batch.label[0] >= 0).all()
    assert (batch.label[1:] == -1).all()


def test_the_lesion_share_is_kept_by_cases_with_lesions_only(make_case):
    cases = (make_case("with"), *(make_case(f"without-{i}", lesion=[]) for i in range(9)))
    drawn = source(Stream(cases, 1, "lesion", lesion_share=0.4))
    names = [drawn.draw(step, 0, 0).case.name for step in range(500)]
    assert names.count("with") / 500 == pytest.approx(0.4 + 0.6 / 10, abs=0.11)
    always = source(Stream(cases, 1, "lesion", lesion_share=1.0))
    assert all((always.batch(step, 0).label == 1).any() for step in range(30))


# ── cases labelled in part ───────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*[st.integers(3, 16)] * 3),
    patch=st.tuples(*[st.integers(1, 8)] * 3),
    share=st.floats(0, 1),
    seed=st.integers(0, 9),
)
def test_every_supervised_patch_holds_a_voxel_that_somebody_looked_at(
    tmp_path_factory: pytest.TempPathFactory, shape, patch, share, seed
):
    rng = np.random.default_rng(seed)
    looked = rng.random(shape) < 0.02
    looked.flat[rng.integers(looked.size)] = True
    lesion = np.argwhere(looked)[:1]
    folder = tmp_path_factory.mktemp("case")
    part = make_case.__wrapped__(folder)("part", shape=shape, lesion=lesion, looked=looked)
    full = make_case.__wrapped__(folder)("full", shape=shape, lesion=lesion)
    drawn = source(Stream((part, full), 2, "lesion", share), Stream((part,), 1, use_labels=False), patch=patch)
    for step in range(8):
        batch = drawn.batch(step, 0)
        for slot in (0, 1):
            known = batch.label[slot] >= 0
            assert known.any()
            assert batch.cases[slot] == "full" or not share or share < 1 or (batch.label[slot] == 1).any()
        assert (batch.label[2] == -1).all()


def test_full_and_sparse_labels_and_none_side_by_side(make_case):
    looked = np.zeros((10, 8, 12), dtype=bool)
    looked[:, :, 9] = True
    cases = (make_case("part", looked=looked), make_case("full"))
    batches = [source(Stream(cases, 2, "lesion"), Stream((make_case("u", labelled=False),), 1)).batch(0, 0)]
    batches += [
        source(Stream(cases, 2, "lesion"), Stream(cases, 1, use_labels=False)).batch(step, 0) for step in range(20)
    ]
    for batch in batches:
        for name, label in zip(batch.cases[:2], batch.label[:2], strict=True):
            assert (label >= 0).all() if name == "full" else (label[..., (label >= 0).any((0, 1))] >= 0).all()
            assert (label >= 0).any((0, 1)).sum() == (6 if name == "full" else 1)
        assert (batch.label[2] == -1).all()
    with pytest.raises(LabelError, match="only a part of it is labelled"):
        cases[0].label()


# ── which corner ───────────────────────────────────────────────────────────────────────────────────────────────────────

SIDES = st.tuples(*[st.integers(1, 20)] * 3)


@settings(max_examples=150, deadline=None)
@given(shape=SIDES, patch=SIDES, policy=st.sampled_from(["uniform", "foreground", "lesion"]), data=st.data())
def test_patches_lie_in_the_volume_and_hold_the_voxel_they_were_drawn_around(shape, patch, policy, data):
    voxel = tuple(data.draw(st.integers(0, side - 1)) for side in shape)
    case = stub(shape, [voxel], [voxel])
    for step in range(3):
        corner = source(Stream((case,), 1, policy, lesion_share=1.0), patch=patch).draw(step, 0, 0).corner
        for start, side, size, place in zip(corner, patch, shape, voxel, strict=True):
            if size >= side:
                assert 0 <= start <= size - side
            else:
                before, after = -start, start + side - size
                assert 0 <= before - after <= 1  # symmetric padding
            assert policy == "uniform" or start <= place < start + side


def test_the_lesion_is_found_anywhere_in_the_central_half_of_the_patch():
    drawn = source(Stream((stub((40, 40, 40), [(0, 0, 0)], [(20, 20, 20)]),), 1, "lesion", 1.0), patch=(8, 8, 8))
    inside = np.array([np.subtract(20, drawn.draw(step, 0, 0).corner) for step in range(300)])
    assert all(set(column) == {2, 3, 4, 5, 6} for column in inside.T.tolist())


def test_uniform_draws_every_corner_equally_often():
    drawn = source(Stream((stub((6, 4, 4), [], []),), 1, "uniform"), patch=(4, 4, 4))
    corners = [drawn.draw(step, 0, 0).corner for step in range(600)]
    assert set(corners) == {(0, 0, 0), (1, 0, 0), (2, 0, 0)}
    assert all(corners.count((x, 0, 0)) == pytest.approx(200, abs=60) for x in range(3))


# ── what is cut ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_batch_is_the_stored_voxels_in_the_plans_channels(make_case):
    case = make_case()
    drawn = source(Stream((case,), 3, "lesion"))
    batch = drawn.batch(5, 1)
    assert batch.modalities == PLAN.modalities
    assert batch.spacing.tolist() == [[1.0, 1.0, 2.0]] * 3
    for slot in range(3):
        x, y, z = drawn.draw(5, 1, slot).corner
        box = np.s_[..., x : x + 4, y : y + 4, z : z + 6]
        first, third = torch.tensor(np.asarray(case.image()[box])).float()
        assert batch.present[slot].tolist() == [True, False, True]
        assert torch.equal(batch.image[slot], torch.stack([first, torch.zeros(4, 4, 6), third]))
        assert torch.equal(batch.foreground[slot, 0], torch.tensor(np.asarray(case.foreground()[box])))
        assert torch.equal(batch.label[slot], torch.tensor(np.asarray(case.label()[box])).long())
    assert (batch.image.dtype, batch.label.dtype) == (torch.float32, torch.int64)


def test_a_small_volume_is_centred_and_padded(make_case):
    batch = source(Stream((make_case(),), 1), patch=(16, 8, 15)).batch(0, 0)
    image, label = batch.image[0, 0], batch.label[0]
    assert (image[3:13, :, 2:14] > 0).all()
    assert (label[3:13, :, 2:14] >= 0).all()
    assert int((image != 0).sum()) == int((label >= 0).sum()) == 10 * 8 * 12
    assert not batch.foreground[0, 0][label == -1].any()


def test_hidden_labels_are_nobody_looked(make_case):
    batch = source(Stream((make_case(),), 2, use_labels=False)).batch(0, 0)
    assert (batch.label == -1).all()


def test_a_batch_may_be_changed_without_touching_the_store(make_case):
    case = make_case()
    drawn = source(Stream((case,), 1))
    drawn.batch(0, 0).image.fill_(7)
    assert (case.image()[0].ravel() == np.arange(960) + 1).all()


# ── errors ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_lesion_stream_without_a_lesion_is_refused(make_case):
    healthy, unlabelled = make_case("h", lesion=[]), make_case("u", labelled=False)
    with pytest.raises(LabelError, match="1 labelled of 2 cases and no lesion voxel"):
        Stream((healthy, unlabelled), 1, "lesion")
    with pytest.raises(LabelError, match="0 labelled of 1 cases"):
        Stream((make_case(),), 1, "lesion", use_labels=False)


@pytest.mark.parametrize("wrong", [{"count": 0}, {"count": 1, "lesion_share": 1.5}])
def test_impossible_streams_are_refused(make_case, wrong):
    with pytest.raises(SettingsError, match="expected count"):
        Stream((make_case(),), **wrong)


def test_a_stream_without_cases_is_refused():
    with pytest.raises(CohortError, match="no cases"):
        Stream((), 1)


@pytest.mark.parametrize("wrong", [{"patch": (4, 0, 4)}, {"seed": -1}])
def test_impossible_sources_are_refused(make_case, wrong):
    with pytest.raises(SettingsError, match="sides ≥ 1 voxel and a seed ≥ 0"):
        source(Stream((make_case(),), 1), **wrong)
    with pytest.raises(SettingsError, match="0 streams"):
        source()


def test_a_case_of_another_plan_is_refused(make_case):
    with pytest.raises(CohortError, match=r"prepared with 2 sequences, the plan has 3 \(T1w, T2w, FLAIR\)"):
        source(Stream((make_case(), make_case("b", present=(True, True))), 1))
