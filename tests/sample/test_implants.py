"""Tissue, relations, bodies and blending: the parts of implanted lesions, each by itself."""

from __future__ import annotations

from dataclasses import fields, replace

import torch

from oligovox.sample.batch import Batch
from oligovox.sample.bodies import Bodies, Kind, Slots, draw_shapes, draw_slots, with_twins
from oligovox.sample.implants import Painting, _by_size, _masks, blend, paint
from oligovox.sample.relations import Relation, at_least, one_flipped, one_kept
from oligovox.sample.tissue import along_fluid, beyond, box_mean, closed, grown, middle_plane, survey, unlike

SIDE = 24
NAMES = ("T1w", "T2w", "FLAIR")
LOW, HIGH = torch.tensor([-2.0, 0.4, 0.6]), torch.tensor([0.0, 2.5, 3.0])


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def exam(field: float = 0.0) -> Batch:
    """White matter (1, -1, 0), fluid (-2, 3, -2) in a corner, air at one face, a brightness that rises along x, some noise."""
    image = torch.tensor([1.0, -1.0, 0.0])[None, :, None, None, None].repeat(2, 1, SIDE, SIDE, SIDE)
    image[:, :, :, :6, :6] = torch.tensor([-2.0, 3.0, -2.0])[None, :, None, None, None]
    image += field * torch.linspace(-1, 1, SIDE)[:, None, None] + 0.1 * torch.randn(image.shape, generator=rng(1))
    foreground = torch.ones(2, 1, SIDE, SIDE, SIDE, dtype=torch.bool)
    foreground[..., -2:] = False
    return Batch(
        image=image * foreground,
        present=torch.ones(2, 3, dtype=torch.bool),
        foreground=foreground,
        spacing=torch.ones(2, 3),
        modalities=NAMES,
        cases=("a", "b"),
    )


def ball(centre: tuple[int, int, int] = (12, 12, 12), **changed: object) -> Bodies:
    """One smooth ball of 4 mm in the first sample, brighter by 2 in every sequence."""
    plain = {
        "sample": torch.tensor([0]),
        "centre": torch.tensor([centre]),
        "start": torch.tensor([[1.0, -1.0, 0.0]]),
        "offset": torch.zeros(1, 3),
        "radii": torch.full((1, 3), 4.0),
        "turn": torch.eye(3)[None],
        "mirrored": torch.tensor([False]),
        "bend": torch.zeros(1),
        "waves": torch.ones(1, 2, 3),
        "phases": torch.zeros(1, 2),
        "rough": torch.zeros(1),
        "edge": torch.ones(1),
        "follow": torch.zeros(1),
        "hugging": torch.tensor([False]),
        "layers": torch.tensor([[1.0, 0.0, 0.0]]),
        "contrast": torch.full((1, 3, 3), 2.0),
        "replace": torch.zeros(1),
        "extent": torch.ones(1, 3),
        "lesion": torch.tensor([True]),
        "nested": torch.tensor([False]),
    }
    return Bodies(**{**plain, **changed})


def painted(bodies: Bodies, batch: Batch) -> Painting:
    return paint(bodies, batch, survey(batch, rng()), torch.ones(2, 1, SIDE, SIDE, SIDE))


def test_the_usual_tissue_is_found_and_followed_across_the_patch() -> None:
    tissue = survey(exam(field=0.3), rng())
    torch.testing.assert_close(tissue.usual, torch.tensor([[1.0, -1.0, 0.0]] * 2), atol=0.25, rtol=0)
    rise = tissue.field[:, :, 18, 16, 12] - tissue.field[:, :, 5, 16, 12]
    assert (rise > 0.2).all()  # 0.34 in truth
    fluid = unlike(tissue, 3.0)
    assert fluid[:, :, 12, 3, 3].min() > 0.9
    assert fluid[:, :, 12, 16, 12].max() < 0.1
    bank = along_fluid(tissue)[:, 0, 12, :, 3]
    assert bank[:, 7].min() > 0.5
    assert bank[:, [0, 1, 2, 3, 10, 14]].max() < 0.1  # neither in the fluid nor far from it
    gone = exam()
    nothing = survey(replace(gone, image=gone.image * 0, foreground=gone.foreground & False), rng())
    assert not nothing.common.any()


def test_beyond_asks_for_all_sequences_at_once_and_for_acquired_ones_only() -> None:
    batch, relation = exam(), Relation(LOW, HIGH)
    batch.image[0, :, 10:13, 14:17, 10:13] = torch.tensor([0.0, 1.0, 2.0])[:, None, None, None]
    batch.image[0, :, 4:7, 14:17, 10:13] = torch.tensor([0.0, 1.0, -2.0])[:, None, None, None]  # like fluid
    found = beyond(batch, survey(batch, rng()), relation, 0.0, 1.0)[0, 0]
    assert found[10:13, 14:17, 10:13].all()
    assert found.sum() == 27
    assert beyond(batch, survey(batch, rng()), relation, 0.0, 9 / batch.foreground[0].sum().item())[0].sum() == 9
    without = replace(batch, present=torch.tensor([[True, True, False]] * 2))
    assert beyond(without, survey(without, rng()), relation, 0.0, 1.0)[0, 0, 4:7, 14:17, 10:13].all()
    silent = replace(batch, present=torch.zeros(2, 3, dtype=torch.bool))
    assert not beyond(silent, survey(silent, rng()), relation, 0.0, 1.0).any()


def test_morphology_and_mean_agree_with_plain_versions() -> None:
    mask = torch.rand(1, 1, 9, 8, 7, generator=rng()) < 0.1
    wide = torch.nn.functional.max_pool3d(mask.float(), 5, 1, 2) > 0
    assert torch.equal(grown(mask, 2), wide)
    assert torch.equal(closed(mask, 2), torch.nn.functional.max_pool3d(-wide.float(), 5, 1, 2) < 0)
    assert torch.equal(grown(mask, 0), mask)
    values = torch.randn(2, 3, 9, 8, 7, generator=rng())
    torch.testing.assert_close(box_mean(values), torch.nn.functional.avg_pool3d(values, 3, 1, 1))


def test_the_plane_of_a_symmetric_patch_is_found() -> None:
    half = torch.randn(1, 2, 9, 8, 8, generator=rng())
    whole = torch.cat([half, half.flip(2)], dim=2)  # voxel i opposite 17 − i
    assert middle_plane(whole).tolist() == [17]
    assert middle_plane(whole[:, :, 3:]).tolist() == [11]


def test_relations_are_drawn_inside_their_ranges_and_severity_rules_all_sequences() -> None:
    relation = Relation(torch.tensor([-2.0, 0.4, -0.5]), torch.tensor([0.0, 2.5, 1.5]))
    assert relation.side.tolist() == [-1.0, 1.0, 0.0]
    assert relation.sure.tolist() == [False, True, False]
    drawn = relation.draw(torch.rand(500, 4, 1, generator=rng()), 0.7, rng(1)).flatten(0, 1)
    assert (drawn >= relation.low).all()
    assert (drawn <= relation.high).all()
    assert drawn[:, 1].median() < 1.2  # small differences are more frequent
    apart = relation.draw(torch.rand(500, 4, 1, generator=rng()), 0.0, rng(1)).flatten(0, 1)
    together, alone = (torch.corrcoef(values[:, :2].T)[0, 1] for values in (drawn, apart))
    assert together < -0.6
    assert alone.abs() < 0.1
    faint = at_least(torch.tensor([[-0.1, 0.2], [-1.0, 0.2]]), torch.tensor([[True, False], [True, True]]), 0.5)
    torch.testing.assert_close(faint, torch.tensor([[-0.5, 1.0], [-1.0, 0.2]]))


def test_decoys_break_the_relation_where_it_can_be_known() -> None:
    relation = Relation(LOW, HIGH)
    lesion = relation.draw(torch.rand(3, 200, 1, generator=rng()), 0.7, rng(1))[:, :, None]
    present = torch.tensor([[True, True, True], [True, False, False], [False, False, True]])
    flipped = one_flipped(lesion, relation, present, 0.5, rng(2))
    changed = (flipped != lesion)[:, :, 0]
    assert (changed.sum(2) == 1).all()  # one sequence, an acquired one
    assert not (changed & ~present[:, None]).any()
    assert (flipped[:, :, 0][changed] * relation.side.expand(3, 200, 3)[changed] <= -0.5).all()
    kept, contradicts = one_kept(lesion, relation, present, 0.5, rng(2))
    assert contradicts[:, 0].tolist() == [True, False, False]  # alone, a sequence contradicts nothing
    assert ((kept[0, :, 0] != 0).sum(1) == 1).all()
    assert (kept[0, :, 0] != 0).any(0).all()  # any of the three may be the one


def test_a_ball_has_the_volume_of_a_ball_and_ends_before_its_window() -> None:
    batch = exam()
    painting = painted(ball(), batch)
    solid = painting.strength[0, 0] >= 0.5
    assert abs(solid.sum().item() / (4 / 3 * torch.pi * 64) - 1) < 0.08
    assert not painting.strength[0, 1].any()
    assert not painting.strength[1:].any()
    assert painting.owner[0, 0][solid].eq(0).all()
    assert painting.owner[0, 0][painting.strength[0, 0] == 0].eq(1).all()
    layered = painted(ball(layers=torch.tensor([[1.0, 0.6, 0.3]])), batch).strength[:, 0] >= 0.5
    assert layered.flatten(1).sum(1).tolist() == sorted(layered.flatten(1).sum(1).tolist(), reverse=True)
    assert (layered[1] <= layered[0]).all()
    assert (layered[2] <= layered[1]).all()
    assert layered[2].any()


def test_no_body_is_cut_by_its_window() -> None:
    batch = replace(exam(), spacing=torch.tensor([[1.5, 1.5, 1.5], [1.0, 1.0, 2.0]]))
    kinds = torch.tensor([[Kind.PLAQUE] * 8 + [Kind.VESSEL] * 4] * 2)
    shapes = draw_shapes(Slots(kinds, kinds < 0, kinds >= 0), batch, (1.0, 4.0), (8.0, 9.0), 0.3, 2.0, rng(3))
    flat = {name: value.flatten(0, 1) for name, value in shapes.items()}
    others = {f.name: getattr(ball(), f.name).expand(24, *getattr(ball(), f.name).shape[1:]) for f in fields(Bodies)}
    others |= {"edge": flat["radii"].amin(1), "rough": torch.full((24,), 0.4)}
    others |= {"sample": torch.tensor([0, 1]).repeat_interleave(12)}
    wide = Batch(
        image=torch.zeros(2, 3, 99, 9, 9),
        present=batch.present,
        foreground=torch.ones(2, 1, 99, 9, 9, dtype=torch.bool),
        spacing=batch.spacing,
        modalities=NAMES,
        cases=batch.cases,
    )  # so that no window is limited by the patch
    bodies, seen = Bodies(**{**others, **flat}), 0
    for rows, side in _by_size(bodies, wide):
        here = torch.ones(len(rows), side, side, side, 5)
        mask = _masks(bodies.rows(rows), side, batch, here)[0]
        assert (mask[:, side // 2, side // 2, side // 2] == 1.0).all()
        assert not any(mask.select(axis, end).any() for axis in (1, 2, 3) for end in (0, -1))
        seen += len(rows)
    assert seen == 24


def test_a_body_keeps_to_its_tissue_and_to_the_foreground() -> None:
    batch = exam()
    loose, strict = (painted(ball((12, 7, 7), follow=torch.full((1,), f)), batch).strength[0, 0] for f in (0.0, 0.5))
    assert loose[:, :6, :6].max() > 0.5
    assert strict[:, :6, :6].max() < 0.05
    edge = painted(ball((12, 12, SIDE - 3)), batch).strength[0, 0]
    assert edge.max() == 1.0
    assert not edge[..., -2:].any()


def test_a_twin_is_the_mirror_image() -> None:
    batch = exam()
    batch = replace(batch, image=batch.image + batch.image.flip(2))  # symmetric: opposite of i is 23 − i
    waves, phases = torch.randn(1, 6, 3, generator=rng()), torch.rand(1, 6, generator=rng())
    cap = ball((7, 12, 12), hugging=torch.tensor([True]), waves=waves, phases=phases, rough=torch.full((1,), 0.3))
    both = with_twins(cap, survey(batch, rng()))
    assert both.centre.tolist() == [[7, 12, 12], [16, 12, 12]]
    strength = painted(both, batch).strength[0, 0]
    torch.testing.assert_close(strength, strength.flip(0))
    assert not torch.equal(strength[:12], strength[:12].flip(1))  # it is not just round


def test_blending_adds_the_contrast_keeps_the_noise_and_changes_nothing_else() -> None:
    batch = exam(field=0.3)
    batch = replace(batch, present=torch.tensor([[True, True, False], [True, True, True]]))
    batch = replace(batch, image=batch.image * batch.present[:, :, None, None, None])
    tissue = survey(batch, rng())
    for hidden in (0.0, 1.0):
        body = ball(replace=torch.full((1,), hidden), extent=torch.tensor([[1.0, 3.0, 1.0]]))
        painting = painted(body, batch)
        change = blend(batch, tissue, body, painting, 0.0, rng()) - batch.image
        assert not change[0, :, painting.strength[0, 0] == 0].any()
        assert not change[1].any()
        assert not change[0, 2].any()  # absent
        middle = change[0, :2, 11:14, 11:14, 11:14]
        torch.testing.assert_close(middle, torch.full_like(middle, 2.0), atol=1e-5 if hidden == 0 else 0.3, rtol=0)
        if hidden == 0:
            fine = painting.strength[0, 0]
            torch.testing.assert_close(change[0, 0], 2.0 * fine)
            torch.testing.assert_close(change[0, 1], 2.0 * fine**3)
    uneven = blend(batch, tissue, ball(), painted(ball(), batch), 0.25, rng()) - batch.image
    assert 0.1 < uneven[0, 0, 10:15, 10:15, 10:15].std() < 1.0


def test_counts_kinds_and_iron() -> None:
    weights = (1.0, 0.0, 2.0, 0.0, 0.0)
    slots = draw_slots(torch.tensor([[0.0], [1.0]] * 200), (1, 3), (2, 4), weights, 0.5, rng())
    lesions, decoys, large = slots.used[:, :3].sum(1), slots.used[:, 3:7].sum(1), slots.used[:, 7]
    assert sorted(set(lesions.tolist())) == [1, 2, 3]
    assert sorted(set(decoys.tolist())) == [2, 3, 4]
    assert 0.4 < large.float().mean() < 0.6
    assert (slots.kind[::2, :3] == Kind.PLAQUE).all()
    assert (slots.kind[1::2, :3] == Kind.IRON_RIM).all()
    assert set(slots.kind[:, 3:7].unique().tolist()) == {Kind.IMPOSSIBLE, Kind.VESSEL}
    assert 0.6 < (slots.kind[:, 3:7] == Kind.VESSEL).float().mean() < 0.73
    assert set(slots.kind[:, 7].tolist()) == {Kind.NESTED, Kind.IMPOSSIBLE}
    none = draw_slots(torch.zeros(4, 1), (0, 2), (2, 4), (0.0,) * 5, 1.0, rng())
    assert none.kind.shape == (4, 3)
    assert (none.kind[:, 2] == Kind.NESTED).all()
