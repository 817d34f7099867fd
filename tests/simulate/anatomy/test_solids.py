import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oligovox.simulate.anatomy.solids import Canvas, Frame, Solid, blend, ellipsoid, rotation, stack, tube


def grid(spacing=(2.0, 2.0, 2.0), half=40.0, shift=None):
    x, y, z = (np.arange(-half, half + 0.1, s, dtype=np.float32) for s in spacing)
    return Frame((x, y, z), shift)


def volume(frame, solid):
    return float(frame.cover(solid.level).sum()) * float(np.prod(frame.voxel))


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (1.6, 1.6, 6.0)])
def test_covers_add_up_to_the_volume_of_the_shape_also_in_thick_slices(spacing):
    frame = grid(spacing)
    ball = ellipsoid(frame, (3, -2, 1), (20, 20, 20))
    assert volume(frame, ball) == pytest.approx(4 / 3 * np.pi * 20**3, rel=0.03)
    oval = ellipsoid(frame, (0, 0, 0), (28, 14, 20), rotation(x=20, y=30, z=40))
    assert volume(frame, oval) == pytest.approx(4 / 3 * np.pi * 28 * 14 * 20, rel=0.04)
    rod = tube(frame, [(0, 0, -20, 9), (0, 0, 20, 9)])
    assert volume(frame, rod) == pytest.approx(np.pi * 81 * 40 + 4 / 3 * np.pi * 9**3, rel=0.05)
    pile = stack(frame, (-30.0, 30.0), ((0.0, 0.0), (0.0, 0.0)), ((15.0, 15.0), (20.0, 20.0)))
    assert volume(frame, pile) == pytest.approx(np.pi * 15 * 20 * 60, rel=0.05)


def test_a_thick_slice_is_soft_where_a_surface_is_slanted_and_sharp_where_it_is_upright():
    frame = grid((1.0, 1.0, 6.0))
    x, _, z = np.broadcast_arrays(*frame.at(frame.whole))
    upright = frame.cover(x.astype(np.float32) - 0.5)
    slanted = frame.cover(((x + z) / np.sqrt(2)).astype(np.float32))
    row = frame.shape[1] // 2, frame.shape[2] // 2
    assert np.count_nonzero((upright[:, *row] > 0.01) & (upright[:, *row] < 0.99)) <= 2
    assert np.count_nonzero((slanted[:, *row] > 0.01) & (slanted[:, *row] < 0.99)) >= 5


def test_the_surface_of_a_shape_is_where_its_axes_end():
    frame = grid()
    oval = ellipsoid(frame, (0, 0, 0), (10, 20, 30), rotation(z=90), around=np.inf)
    assert oval.level.shape == frame.shape
    at = lambda x, y, z: oval.level[int(20 + x / 2), int(20 + y / 2), int(20 + z / 2)]  # noqa: E731
    assert at(20, 0, 0) == pytest.approx(0, abs=1e-3)  # its second axis now points along x
    assert at(0, 10, 0) == pytest.approx(0, abs=1e-3)
    assert at(0, 14, 0) == pytest.approx(4, abs=1.0)
    assert at(0, 0, 0) < -5


def test_what_is_laid_first_stays_and_nothing_is_laid_twice():
    frame = grid()
    canvas = Canvas(frame, np.ones(frame.shape, np.float32))
    ball = ellipsoid(frame, (0, 0, 0), (12, 12, 12))
    first = canvas.lay(ball, "bone")
    canvas.lay(ellipsoid(frame, (0, 0, 0), (20, 20, 20)), {"fat": 0.75, "muscle": 0.25})
    canvas.lay(ellipsoid(frame, (20, 0, 0), (15, 15, 15)), "air")
    found = {part.tissue: part.fraction for part in canvas.parts()}
    assert set(found) == {"bone", "fat", "muscle"}
    np.testing.assert_allclose(found["bone"][first.box], frame.cover(ball.level))
    np.testing.assert_allclose(found["fat"], 3 * found["muscle"], atol=1e-5)
    total = sum(found.values())
    assert np.all(total + canvas.room <= 1 + 1e-5)
    centre = tuple(n // 2 for n in frame.shape)
    assert total[centre] == pytest.approx(1)
    assert total[centre[0] + 13, centre[1], centre[2]] == 0  # only air is there


def test_a_lined_solid_is_its_core_and_a_wall_as_thick_as_asked():
    frame = grid((1.0, 1.0, 1.0), 20)
    canvas = Canvas(frame, np.ones(frame.shape, np.float32))
    canvas.lay_lined(ellipsoid(frame, (0, 0, 0), (15, 15, 15)), "marrow", 3.0, "bone")
    marrow, bone = (part.fraction.sum() for part in canvas.parts())
    assert marrow == pytest.approx(4 / 3 * np.pi * 12**3, rel=0.02)
    assert marrow + bone == pytest.approx(4 / 3 * np.pi * 15**3, rel=0.02)


def test_a_shift_moves_every_solid_alike():
    shift = np.zeros((3, *grid().shape), np.float32)
    shift[0] = -10  # each voxel is 10 mm further left than it seems: solids appear 10 mm further right
    plain, moved = (ellipsoid(f, (0, 0, 0), (8, 8, 8)) for f in (grid(), grid(shift=shift)))
    middle = [np.argwhere(s.level < 0).mean(0)[0] + s.box[0].start for s in (plain, moved)]
    assert middle[1] - middle[0] == pytest.approx(5)  # voxels of 2 mm


def test_solids_outside_the_grid_are_empty_and_harmless():
    frame = grid()
    canvas = Canvas(frame, np.ones(frame.shape, np.float32))
    for solid in (
        ellipsoid(frame, (300, 0, 0), (5, 5, 5)),
        tube(frame, [(0, 200, 0, 4), (0, 300, 0, 4)]),
        stack(frame, (-200.0, -100.0), ((0.0, 0.0), (0.0, 0.0)), ((9.0, 9.0), (9.0, 9.0))),
    ):
        assert solid.level.size == 0
        canvas.lay_lined(Solid(solid.box, solid.level), "marrow", 1.0, "bone")
    assert canvas.parts() == () or all(part.fraction.max() == 0 for part in canvas.parts())


@settings(max_examples=10, deadline=None)
@given(a=st.floats(-20, 20), b=st.floats(-20, 20), over=st.floats(0.5, 20))
def test_a_blend_is_a_union_that_only_adds(a, b, over):
    one, other = np.full((1, 1, 1), a, np.float32), np.full((1, 1, 1), b, np.float32)
    joined = float(blend(one, other, over)[0, 0, 0])
    assert min(a, b) - over / 4 - 1e-4 <= joined <= min(a, b) + 1e-4
    assert joined == pytest.approx(float(blend(other, one, over)[0, 0, 0]))


def test_a_rotation_turns_x_towards_y_about_z():
    np.testing.assert_allclose(rotation(z=90) @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(rotation(x=90) @ [0, 1, 0], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(rotation(20, 30, 40) @ rotation(20, 30, 40).T, np.eye(3), atol=1e-12)
