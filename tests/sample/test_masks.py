from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oligovox.errors import SettingsError
from oligovox.sample.masks import by_sequence, drop_sequences, in_channels, random_blocks, random_box

NAMES = ("T1w", "T2w", "FLAIR", "T1wGd")
SIDES = st.tuples(*[st.integers(1, 13)] * 3)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grid_of(mask: torch.Tensor, block: int, offset: tuple[int, int, int]) -> torch.Tensor | None:
    """The mask's blocks on the grid with this offset, or None where the mask does not lie on that grid."""
    first = [(torch.arange(side) + start) // block for side, start in zip(mask.shape, offset, strict=True)]
    shape = [int(index[-1]) + 1 for index in first]
    blocks = torch.zeros(shape, dtype=torch.bool)
    x, y, z = torch.meshgrid(*first, indexing="ij")
    blocks[x[mask], y[mask], z[mask]] = True
    return blocks if torch.equal(blocks[x, y, z], mask) else None


@settings(max_examples=40, deadline=None)
@given(sides=SIDES, block=st.integers(1, 6), ratio=st.floats(0, 1), shared=st.booleans(), seed=st.integers(0, 999))
def test_each_channel_hides_the_exact_number_of_whole_blocks_of_one_grid(sides, block, ratio, shared, seed):
    hidden = random_blocks((2, 3, *sides), block, ratio, seeded(seed), shared)
    offsets = torch.cartesian_prod(*[torch.arange(block)] * 3).tolist()
    for sample in hidden:

        def exact(offset, sample=sample):
            grids = [grid_of(channel, block, offset) for channel in sample]
            return all(g is not None and int(g.sum()) == round(ratio * g.numel()) for g in grids)

        assert any(exact(offset) for offset in offsets)
        if shared:
            assert (sample == sample[0]).all()


def test_ratio_zero_hides_nothing_and_one_everything():
    assert not random_blocks((2, 2, 9, 8, 7), 4, 0.0, seeded()).any()
    assert random_blocks((2, 2, 9, 8, 7), 4, 1.0, seeded()).all()


def test_channels_and_samples_differ_unless_shared_and_the_seed_decides():
    shape = (2, 2, 16, 16, 16)
    hidden = random_blocks(shape, 4, 0.5, seeded())
    assert not torch.equal(hidden[0, 0], hidden[0, 1])
    assert not torch.equal(hidden[0], hidden[1])
    assert torch.equal(hidden, random_blocks(shape, 4, 0.5, seeded()))


def test_every_voxel_is_hidden_equally_often():
    hidden = random_blocks((2000, 1, 6, 6, 6), 4, 0.5, seeded()).float().mean((0, 1))
    assert (hidden - 0.5).abs().max() < 0.06  # 5 standard errors


@pytest.mark.parametrize(("block", "ratio"), [(0, 0.5), (4, -0.1), (4, 1.1)])
def test_impossible_settings_are_refused(block, ratio):
    with pytest.raises(SettingsError, match=f"block {block}, ratio {ratio}"):
        random_blocks((1, 1, 8, 8, 8), block, ratio, seeded())


def test_dropped_sequences_leave_one_and_never_invent_one():
    present = torch.tensor([[True, True, True, False], [False, False, True, False], [False] * 4]).repeat(3000, 1)
    kept = drop_sequences(present, NAMES, 0.4, seeded())
    assert not (kept & ~present).any()
    assert torch.equal(kept.any(1), present.any(1))
    assert abs(float(kept[::3, :3].float().mean()) - (0.6 + 0.4**3 / 3)) < 0.025  # the best of three never goes
    assert torch.equal(drop_sequences(present, NAMES, 0.0, seeded()), present)
    assert torch.equal(drop_sequences(present, NAMES, 1.0, seeded()).sum(1), present.any(1).long())


def test_acquisitions_of_a_sequence_go_together():
    names = ("FLAIR", "T1w", "FLAIR_run-2")
    present = torch.tensor([[True, True, True], [True, True, False], [True, False, True]]).repeat(2000, 1)
    there = by_sequence(present, names)
    assert there.tolist()[:3] == [[True, True], [True, True], [True, False]]
    assert torch.equal(in_channels(there, present, names), present)
    kept = drop_sequences(present, names, 0.5, seeded())
    assert torch.equal(kept[::3, 0], kept[::3, 2])
    assert not kept[1::3, 2].any()
    assert torch.equal(kept[2::3], present[2::3]), "its only sequence stays whole"
    assert abs(float((~kept[::3, 0]).float().mean()) - 0.375) < 0.03, "as often as of two files"


def test_a_random_box_is_one_full_box_with_every_side_and_place_equally_often():
    smallest, largest = torch.tensor([[2, 1, 3]]), torch.tensor([[3, 1, 5]])
    boxes = random_box((3000, 6, 4, 5), smallest, largest, seeded())
    ends = []
    for axis in range(3):
        line = boxes.any(tuple(a + 1 for a in range(3) if a != axis)).float()
        first, side = line.argmax(1), line.sum(1)
        assert (line.diff(dim=1).abs().sum(1) + line[:, 0] + line[:, -1] == 2).all()  # without a gap
        ends.append((first, side))
    assert torch.equal(boxes.sum((1, 2, 3)), ends[0][1] * ends[1][1] * ends[2][1])
    assert (ends[0][1].long().bincount()[2:] / 3000 - 1 / 2).abs().max() < 0.05
    assert (ends[2][1].long().bincount()[3:] / 3000 - 1 / 3).abs().max() < 0.05
    assert (ends[1][0].bincount() / 3000 - 1 / 4).abs().max() < 0.05
    rows = random_box(
        (2, 6, 4, 5), torch.tensor([[1, 1, 1], [6, 4, 5]]), torch.tensor([[1, 1, 1], [6, 4, 5]]), seeded()
    )
    assert rows.sum((1, 2, 3)).tolist() == [1, 120]  # limits of each sample
