import numpy as np
import pytest
from scipy import ndimage

from oligovox.simulate.anatomy.brain import draw_anatomy, template
from oligovox.simulate.anatomy.cortex import draw_folds
from oligovox.simulate.anatomy.tubes import LIMBIC, PLEXUS, THICK, draw_tubes
from oligovox.simulate.physics.sequences import protocol, signal
from oligovox.simulate.physics.tissues import typical

RADIUS = 45.0


def ball(spacing):
    n = int(100 / spacing)
    axes = np.ogrid[tuple(slice(0, n) for _ in range(3))]
    return RADIUS - spacing * np.sqrt(sum((a - (n - 1) / 2) ** 2 for a in axes))


@pytest.mark.parametrize("spacing", [1.5, 2.5])
def test_new_sulci_start_at_the_surface_and_end_below_it(spacing):
    depth = ball(spacing)
    folds = draw_folds(np.random.default_rng(3), depth < 0, spacing)
    inside = depth > 0
    assert np.all(folds.surface <= folds.sulcus)
    assert np.all(folds.surface[inside] <= depth[inside] + spacing)
    shares = [np.mean(folds.sulcus[(depth > low) & (depth < low + 3)] < spacing / 2) for low in (1, 5, 9, 16)]
    assert 0.03 < shares[0] < 0.6
    assert shares[0] > shares[1] > shares[2] > shares[3] == 0


def test_a_sulcus_runs_along_the_normal():
    spacing, depth = 1.5, ball(1.5)
    sulcus = draw_folds(np.random.default_rng(5), depth < 0, spacing).sulcus
    n = sulcus.shape[0]
    directions = np.random.default_rng(0).standard_normal((4000, 3))
    directions /= np.linalg.norm(directions, axis=1)[:, None]

    def at(mm):
        places = (n - 1) / 2 + directions * (RADIUS - mm) / spacing
        return ndimage.map_coordinates(sulcus, places.T, order=1)

    near, deeper = at(1.0), at(2.5)  # above the least depth of a sulcus
    assert np.corrcoef(np.minimum(near, 6), np.minimum(deeper, 6))[0, 1] > 0.8


def test_the_cortex_is_a_ribbon():
    person = draw_anatomy(np.random.default_rng(1), template(1.5))
    grey = (person.gm - sum(person.nuclei.values())) > 0.5
    upper = grey & (person.below < 0.1) & (person.deep < 0.1) & (person.limbic == 0)
    inside = 1.5 * ndimage.distance_transform_edt(grey)
    assert np.mean(inside[upper] > 3.0) < 0.02  # nowhere thicker than about 6 mm
    assert person.to_cortex[upper].max() == 0


def test_tubes_are_mirrored_and_end():
    x, y, z = (np.arange(-60, 61, 1.0, dtype=np.float32).reshape(s) for s in ((-1, 1, 1), (1, -1, 1), (1, 1, -1)))
    limbic, plexus = draw_tubes(LIMBIC, x, y, z, 2.0), draw_tubes(PLEXUS, x, y, z, 1.5)
    for volume in (limbic, plexus):
        np.testing.assert_array_equal(volume, volume[::-1])
        assert volume.min() == 0
        assert volume.max() == 1
    assert limbic[60 + 29, 60 - 24, 60 - 12] == 1  # hippocampus
    assert limbic[60 + 6, 60 - 8, 60 + 40] == 0.5  # cingulate gyrus
    assert limbic[60 + 45, 60 + 30, 60 + 30] == 0
    assert THICK < 1


def test_what_is_bright_on_flair_and_no_lesion():
    s = protocol("FLAIR", 3.0)
    grey, limbic, plexus, mild = (
        float(signal(typical(name, 3.0), s, 3.0))
        for name in ("grey_matter", "limbic_grey_matter", "choroid_plexus", "lesion_mild")
    )
    assert 1.08 < limbic / grey < 1.25
    assert grey < limbic < mild
    assert 0.9 * grey < plexus < 1.3 * mild
