from __future__ import annotations

import math
from dataclasses import fields, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from oligovox.errors import SettingsError
from oligovox.sample.augment import (
    EFFECTS,
    FLIPS_AND_ROTATIONS,
    Augmentation,
    Parameters,
    apply,
    augment,
    draw_parameters,
)
from oligovox.sample.batch import Batch
from oligovox.settings import parse

EVERYTHING = Augmentation.only(
    **dict.fromkeys(EFFECTS, 1.0) | {"drop_sequences": 0.0, "some_sequences": 0.0},
    noise_sd=(0.1, 0.3),
    low_resolution_factor=(0.5, 0.6),
)
TENSORS = ("image", "present", "foreground", "spacing", "label")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ball(shape: tuple[int, ...], spacing: tuple[float, ...], radius_mm: float) -> torch.Tensor:
    """Voxels within radius of the grid's centre."""
    ticks = [(torch.arange(n) - (n - 1) / 2) * mm for n, mm in zip(shape, spacing, strict=True)]
    return sum(t**2 for t in torch.meshgrid(*ticks, indexing="ij")) <= radius_mm**2


def make_batch(b: int = 2, shape=(16, 12, 14), spacing=(1.0, 1.0, 1.0), seed: int = 0) -> Batch:
    """Three sequences, the second absent in the first sample; the label is a ball off the centre."""
    foreground = ball(shape, spacing, 0.45 * min(n * mm for n, mm in zip(shape, spacing, strict=True))).expand(
        b, 1, -1, -1, -1
    )
    present = torch.ones(b, 3, dtype=torch.bool)
    present[0, 1] = False
    image = torch.randn(b, 3, *shape, generator=seeded(seed)) * foreground * present[:, :, None, None, None]
    label = ball(shape, spacing, 3.0).roll((2, 1, -1), (0, 1, 2)).long().expand(b, -1, -1, -1)
    return Batch(
        image=image, present=present, foreground=foreground.clone(), spacing=torch.tensor(spacing).repeat(b, 1),
        modalities=("T1w", "T2w", "FLAIR"), cases=tuple(f"case-{i}" for i in range(b)), label=label.clone(),
    )  # fmt: skip


def neutral(b: int = 2, m: int = 3) -> Parameters:
    return draw_parameters(b, m, Augmentation.only(), seeded())


def equal(one: Batch, other: Batch) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in TENSORS)


# ── contract ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_any_effect_the_batch_stays_equal():
    assert equal(augment(make_batch(), Augmentation.only(), seeded()), make_batch())


def test_every_setting_is_a_probability_in_effects_or_belongs_to_one():
    others = set(Augmentation.model_fields) - set(EFFECTS)
    assert set(EFFECTS) < set(Augmentation.model_fields)
    assert {name.rsplit("_", 1)[0] for name in others} == set(EFFECTS) - {"flip", "drop_sequences", "some_sequences"}


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_zero_outside_the_foreground_and_in_absent_sequences_whatever_is_drawn(seed):
    before = make_batch(seed=seed)
    after = augment(before, EVERYTHING, seeded(seed))
    assert after.image.isfinite().all()
    assert not (after.image * ~after.foreground).any()
    assert not after.image[0, 1].any()
    assert after.image[0, 0].any()
    assert set(after.label.unique().tolist()) <= {-1, 0, 1}
    assert not after.foreground[:, 0][after.label == -1].any()
    assert torch.equal(after.present, before.present)
    assert (after.cases, after.modalities) == (before.cases, before.modalities)


def test_the_given_batch_and_the_global_rng_are_left_alone():
    batch, state = make_batch(), torch.get_rng_state()
    after = augment(batch, EVERYTHING, seeded())
    assert equal(batch, make_batch())
    assert torch.equal(torch.get_rng_state(), state)
    assert not equal(after, batch)


def test_the_generator_decides_and_moves_on():
    rng = seeded(5)
    first, second = (augment(make_batch(), EVERYTHING, rng) for _ in range(2))
    assert equal(first, augment(make_batch(), EVERYTHING, seeded(5)))
    assert not equal(first, second)


def test_one_probability_leaves_the_other_draws_as_they_were():
    on, off = (draw_parameters(8, 3, Augmentation(elastic=p), seeded()) for p in (1.0, 0.0))
    same = {f.name for f in fields(Parameters) if torch.equal(getattr(on, f.name), getattr(off, f.name))}
    assert same == {f.name for f in fields(Parameters)} - {"displacement"}


def test_samples_do_not_depend_on_their_neighbours():
    batch, drawn = make_batch(3), draw_parameters(3, 3, EVERYTHING, seeded())
    alone = Parameters(**{f.name: getattr(drawn, f.name)[1:2] for f in fields(Parameters)})
    assert equal(apply(batch, drawn).samples([1]), apply(batch.samples([1]), alone))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), often=st.floats(0, 1), some=st.sampled_from([0.0, 0.5, 1.0]), none=st.booleans())
def test_of_the_sequences_that_are_there_some_are_hidden_and_never_all(seed, often, some, none):
    before = make_batch(4, shape=(6, 5, 4), seed=seed)
    if none:
        before = replace(before, present=torch.zeros_like(before.present), image=torch.zeros_like(before.image))
    after = augment(before, Augmentation.only(drop_sequences=often, some_sequences=some), seeded(seed))
    assert not (after.present & ~before.present).any()
    assert torch.equal(after.present.any(1), before.present.any(1))
    kept = after.present[:, :, None, None, None]
    assert torch.equal(after.image, before.image * kept), "what is shown keeps its z-scores"
    assert torch.equal(after.foreground, before.foreground)
    assert torch.equal(after.label, before.label)
    if often == some == 0:
        assert equal(after, before)


def test_a_sequence_is_hidden_as_often_as_it_says_but_for_the_last_one():
    batch = make_batch(1, shape=(2, 2, 2))
    batch = replace(batch, present=torch.ones(1, 3, dtype=torch.bool)).samples([0] * 4000)
    share = augment(batch, Augmentation.only(drop_sequences=0.4), seeded()).present.float().mean().item()
    assert share == pytest.approx(0.6 + 0.4**3 / 3, abs=0.01)
    alone = augment(batch, Augmentation.only(drop_sequences=1.0), seeded()).present.sum(1)
    assert (alone == 1).all()


@pytest.mark.parametrize(("present", "choices"), [([1, 1, 1], 6), ([1, 0, 1], 2), ([0, 1, 0], 0)])
def test_where_some_are_shown_any_number_of_them_and_any_choice_is_as_likely(present, choices):
    batch = replace(make_batch(1, shape=(2, 2, 2)), present=torch.tensor([present]).bool()).samples([0] * 6000)
    for often in (1.0, 0.5):
        after = augment(batch, Augmentation.only(some_sequences=often), seeded()).present.long()
        seen, counts = after.unique(dim=0, return_counts=True)
        shares = {tuple(one): n / 6000 for one, n in zip(seen.tolist(), counts.tolist(), strict=True)}
        assert shares.pop(tuple(present), 0.0) == pytest.approx(1 - often if choices else 1.0, abs=0.03)
        assert list(shares.values()) == pytest.approx([often / choices] * choices if choices else [], abs=0.02)


def test_dropping_sequences_leaves_every_other_draw_as_it_was():
    on, off = (draw_parameters(8, 3, Augmentation(drop_sequences=p), seeded()) for p in (0.5, 0.0))
    assert [f.name for f in fields(Parameters) if not torch.equal(getattr(on, f.name), getattr(off, f.name))] == [
        "stay"
    ]
    assert (off.stay >= 0).all()


def test_a_run_begun_without_the_setting_is_known_by_the_same_text():
    assert "drop_sequences" not in Augmentation().model_dump(mode="json")
    chosen = Augmentation(drop_sequences=0.25)
    assert Augmentation.model_validate(chosen.model_dump(mode="json")) == chosen


def test_a_batch_without_labels_stays_without():
    assert augment(replace(make_batch(), label=None), EVERYTHING, seeded()).label is None


def test_flips_and_rotations_leave_intensities_as_measured():
    drawn = draw_parameters(64, 3, FLIPS_AND_ROTATIONS, seeded())
    assert drawn.flip.any()
    assert drawn.angle.any()
    for name in {f.name for f in fields(Parameters)} - {"flip", "angle", "noise_seed"}:
        assert torch.equal(getattr(drawn, name), getattr(neutral(64), name)), name


def test_how_often_effects_are_drawn_follows_the_settings():
    drawn = draw_parameters(4000, 2, Augmentation(), seeded())
    for shares, probability in [
        (drawn.flip, 0.5),
        (drawn.angle.any(1), 0.2),
        (drawn.zoom != 1, 0.2),
        (drawn.gamma != 1, 0.3),
        (drawn.noise > 0, 0.1),
    ]:
        assert shares.float().mean() == pytest.approx(probability, abs=0.03)
    assert drawn.angle.abs().max() <= math.radians(30)
    assert drawn.zoom.log().mean() == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"flip": 1.5}, "flip = 1.5"),
        ({"gamma_exponent": (1.5, 0.7)}, "smaller limit first"),
        ({"rotation": 0.2}, "unknown key 'rotation'"),
    ],
)
def test_impossible_settings_are_refused(given, message):
    with pytest.raises(SettingsError, match=message):
        parse(Augmentation, given, "recipe: augment")


# ── space ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_flip_alone_is_exact():
    batch, drawn = make_batch(1), neutral(1)
    drawn = replace(drawn, flip=torch.tensor([[True, False, True]]))
    after = apply(batch, drawn)
    assert torch.equal(after.image, batch.image.flip(2, 4))
    assert torch.equal(after.label, batch.label.flip(1, 3))
    assert torch.equal(after.foreground, batch.foreground.flip(2, 4))


def test_a_flip_by_resampling_equals_a_flip():
    batch, drawn = make_batch(1), replace(neutral(1), flip=torch.tensor([[True, False, True]]))
    resampled = apply(batch, replace(drawn, zoom=torch.tensor([1 + 1e-6])))
    torch.testing.assert_close(resampled.image, batch.image.flip(2, 4), atol=1e-3, rtol=0)
    assert torch.equal(resampled.label, batch.label.flip(1, 3))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_quarter_turn_is_right_handed_about_its_axis(axis):
    """A right-handed turn by 90° takes the content from axis i to axis j, with (axis, i, j) cyclic."""
    batch = make_batch(1, shape=(12, 12, 12))
    angle = torch.zeros(1, 3)
    angle[0, axis] = math.pi / 2
    after = apply(batch, replace(neutral(1), angle=angle))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    torch.testing.assert_close(after.image, batch.image.rot90(1, (i + 2, j + 2)), atol=1e-4, rtol=0)
    assert torch.equal(after.label, batch.label.rot90(1, (i + 1, j + 1)))


def test_a_ball_stays_a_ball_in_millimetres_when_turned_on_anisotropic_voxels():
    shape, spacing = (32, 32, 8), (1.0, 1.0, 4.0)
    batch = replace(make_batch(1, shape, spacing), label=ball(shape, spacing, 12.0).long()[None])
    after = apply(batch, replace(neutral(1), angle=torch.tensor([[0.5, -0.4, 0.3]])))
    overlap = 2 * ((after.label == 1) & (batch.label == 1)).sum() / ((after.label == 1).sum() + batch.label.sum())
    assert overlap > 0.9  # the rest is the 4 mm staircase; turned in voxels instead of mm it is below 0.6


def test_zoom_enlarges_volumes_by_its_cube_and_shows_nothing_where_nothing_was_imaged():
    batch = replace(make_batch(1, (32, 32, 32)), label=ball((32, 32, 32), (1, 1, 1), 8.0).long()[None])
    for zoom in (0.5, 1.5):
        after = apply(batch, replace(neutral(1), zoom=torch.tensor([zoom])))
        assert (after.label == 1).sum() / batch.label.sum() == pytest.approx(zoom**3, rel=0.05)
        assert (after.label == -1).any() == (zoom < 1)


def test_displacement_moves_by_its_share_of_the_lattice_distance_in_millimetres():
    """A constant displacement is a shift: 0.25 of the distance 16 mm / 4 spans is 1 mm, or half a 2 mm voxel."""
    batch = make_batch(1, shape=(16, 16, 16), spacing=(1.0, 1.0, 2.0))
    shift = torch.zeros(1, 3, 7, 7, 7)
    shift[:, 0] = 0.25
    after = apply(batch, replace(neutral(1), displacement=shift))
    moved = batch.image.roll(-1, 2) * after.foreground
    torch.testing.assert_close(after.image[:, :, :-1], moved[:, :, :-1], atol=1e-4, rtol=0)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_elastic_movement_never_folds(seed):
    """Along every line of voxels the sampled coordinate keeps rising, even at the strongest default."""
    shape = (24, 24, 24)
    drawn = draw_parameters(1, 1, Augmentation.only(elastic=1.0), seeded(seed))
    for axis in range(3):
        ramp = torch.arange(24.0).view([-1 if a == axis else 1 for a in range(3)]).expand(shape)[None, None]
        whole = torch.ones(1, 1, *shape, dtype=torch.bool)
        batch = Batch(image=ramp.contiguous(), present=torch.ones(1, 1, dtype=torch.bool), foreground=whole,
                      spacing=torch.ones(1, 3), modalities=("T1w",), cases=("a",))  # fmt: skip
        middle = apply(batch, drawn).image[0, 0, 4:-4, 4:-4, 4:-4].movedim(axis, 0)
        assert all((later > earlier).all() for earlier, later in pairwise(middle))


# ── intensity ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def changed(name: str, value: float, batch: Batch) -> torch.Tensor:
    """The first sequence after one effect, in sample 0."""
    drawn = replace(neutral(), **{name: torch.full((2, 3), value)})
    return apply(batch, drawn).image[0, 0]


def test_gamma_keeps_mean_spread_and_order_over_the_foreground():
    batch = make_batch()
    inside = batch.foreground[0, 0]
    before, after = batch.image[0, 0][inside], changed("gamma", 1.4, batch)[inside]
    assert after.mean() == pytest.approx(float(before.mean()), abs=1e-5)
    assert after.std() == pytest.approx(float(before.std()), rel=1e-4)
    assert torch.equal(before.argsort(), after.argsort())
    assert not torch.allclose(before, after, atol=0.05)


def test_contrast_and_brightness_are_a_line():
    batch = make_batch()
    drawn = replace(neutral(), contrast=torch.full((2, 3), 1.2), brightness=torch.full((2, 3), -0.1))
    expected = (batch.image * 1.2 - 0.1) * batch.foreground * batch.present[:, :, None, None, None]
    torch.testing.assert_close(apply(batch, drawn).image, expected)


def test_a_constant_bias_field_scales_the_distance_from_the_lowest_intensity():
    batch = make_batch()
    inside, before = batch.foreground[0, 0], batch.image[0, 0]
    after = apply(batch, replace(neutral(), bias=torch.full((2, 3, 5, 5, 5), math.log(1.5)))).image[0, 0]
    expected = (before - before.min()) * 1.5 + before.min()
    torch.testing.assert_close(after[inside], expected[inside])


def test_blur_is_a_gaussian_in_millimetres():
    """A point becomes the product of three sampled Gaussians; twice the voxel size, half the width in voxels."""
    shape, spacing = (15, 15, 15), (1.0, 1.0, 2.0)
    batch = make_batch(2, shape, spacing)
    point = torch.zeros_like(batch.image)
    point[:, 0, 7, 7, 7] = 1
    after = changed("blur", 1.0, replace(batch, image=point, foreground=torch.ones_like(batch.foreground)))
    lines = [torch.exp(-(((torch.arange(15) - 7) * mm) ** 2) / 2) for mm in spacing]
    x, y, z = (line / line.sum() for line in lines)
    torch.testing.assert_close(after, x[:, None, None] * y[:, None] * z, atol=1e-5, rtol=0)


def test_low_resolution_by_half_averages_pairs_and_interpolates_back():
    batch = make_batch(2, (16, 16, 16))
    whole = replace(batch, foreground=torch.ones_like(batch.foreground))
    small = interpolate(whole.image[:1, :1], scale_factor=0.5, mode="area")
    expected = interpolate(small, scale_factor=2, mode="trilinear", align_corners=False)[0, 0]
    torch.testing.assert_close(changed("kept", 0.5, whole), expected, atol=1e-5, rtol=1e-5)


def test_noise_has_the_asked_spread_and_its_own_seed_for_each_sequence():
    batch = make_batch(2, (32, 32, 32))
    drawn = replace(draw_parameters(2, 3, Augmentation.only(noise=1.0), seeded()), noise=torch.full((2, 3), 0.2))
    added = apply(batch, drawn).image - batch.image
    inside = batch.foreground[1, 0]
    assert added[1, 0][inside].std() == pytest.approx(0.2, rel=0.03)
    correlation = torch.corrcoef(added[1][:, inside])
    assert (correlation - torch.eye(3)).abs().max() < 0.05


def test_an_empty_foreground_stays_empty_and_finite():
    batch = make_batch()
    empty = replace(batch, image=torch.zeros_like(batch.image), foreground=torch.zeros_like(batch.foreground))
    assert not augment(empty, EVERYTHING, seeded()).image.any()
