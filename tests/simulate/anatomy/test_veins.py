import numpy as np
import pytest

from oligovox.simulate.anatomy.brain import Vein, draw_anatomy, template
from oligovox.simulate.anatomy.veins import rasterise

SPACING = 3.0


@pytest.mark.parametrize("spacing", [0.7, 2.0])
@pytest.mark.parametrize("radius", [0.25, 1.2])
def test_rasterising_keeps_the_volume(spacing, radius):
    points = np.linspace([8.3, 9.1, 7.7], [28.4, 22.2, 30.9], 35).astype(np.float32)
    fraction = rasterise([Vein(points, radius)], (40, 40, 40), spacing)
    length = np.linalg.norm(points[-1] - points[0]) * spacing
    assert fraction.sum() * spacing**3 == pytest.approx(np.pi * radius**2 * length, rel=0.02)
    assert fraction.max() <= 1


def test_a_wide_vein_fills_its_voxels_and_a_vein_outside_the_grid_none():
    points = np.stack([np.full(30, 10.0), np.full(30, 10.0), np.arange(30.0)], axis=1).astype(np.float32)
    fraction = rasterise([Vein(points, 3.0), Vein(points + 100, 3.0)], (21, 21, 30), 1.0)
    assert fraction[10, 10, 15] > 0.95
    assert fraction[14, 10, 15] < 0.05


def test_medullary_veins_climb_from_the_ventricles_through_white_matter():
    person = draw_anatomy(np.random.default_rng(3), template(SPACING))
    thin = [vein for vein in person.veins if vein.radius <= 0.5 and _at(person.to_ventricle, vein.points[:1])[0] < 9]
    medullary = [vein for vein in thin if _at(person.wm, vein.points).min() > 0.3]
    assert 20 <= len(medullary) <= 150
    for vein in medullary:
        length = np.linalg.norm(np.diff(vein.points, axis=0), axis=1).sum() * SPACING
        assert 12 <= length <= 48  # mm
        assert vein.radius >= 0.2
    climbed = [np.diff(_at(person.to_ventricle, vein.points[[0, -1]]))[0] for vein in medullary]
    assert np.median(climbed) > 12  # mm


def test_vessels_lie_in_the_brain_and_the_great_ones_in_the_middle():
    person = draw_anatomy(np.random.default_rng(4), template(SPACING))
    assert not person.vessels[~person.brain].any()
    assert 2 < person.vessels.sum() * SPACING**3 / 1e3 < 15  # mL
    widest = max(person.veins, key=lambda vein: vein.radius).points
    middle = np.argwhere(person.brain).mean(axis=0)
    assert np.abs(widest[:, 0] - middle[0]).mean() * SPACING < 8  # the sagittal sinus is between the halves
    assert widest[:, 2].max() > middle[2] + 30 / SPACING  # and above them


def _at(volume, points):
    low = np.array(volume.shape) - 1
    return volume[tuple(np.clip(np.round(points).astype(int), 0, low).T)]
