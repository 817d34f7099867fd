from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage

from oligovox.errors import SettingsError
from oligovox.settings import parse
from oligovox.simulate import ms
from oligovox.simulate.ms import MSRecipe, simulate_subject

FAST = MSRecipe(spacing=3.0)


def _same(a, b):
    return np.array_equal(a.lesions, b.lesions) and all(np.array_equal(a.images[m], b.images[m]) for m in a.images)


def test_a_subject_is_a_function_of_recipe_and_seed():
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first = simulate_subject(FAST, 5)
    assert _same(first, simulate_subject(FAST, 5))
    assert not _same(first, simulate_subject(FAST, 6))
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002


def test_noise_keeps_brain_and_lesions():
    quiet = simulate_subject(FAST.model_copy(update={"noise_t2w": (0.0, 0.0)}), 5)
    loud = simulate_subject(FAST.model_copy(update={"noise_t2w": (0.3, 0.3)}), 5)
    assert np.array_equal(quiet.lesions, loud.lesions)
    assert np.array_equal(quiet.images["T1w"], loud.images["T1w"])
    assert not np.array_equal(quiet.images["FLAIR"], loud.images["FLAIR"])


def test_images_are_zero_outside_the_brain_and_fit_int16():
    person = simulate_subject(FAST, 5)
    assert set(person.images) == {"T1w", "T2w", "FLAIR"}
    for image in person.images.values():
        assert image.dtype == np.float32
        assert image[person.brain].min() >= 1
        assert not image[~person.brain].any()
        assert image.max() < 32767
    assert np.all(person.brain[person.lesions])
    assert np.array_equal(np.sign(np.diag(person.affine)), [1, 1, 1, 1])  # RAS


def test_missing_sequences_are_missing_at_their_rate_but_never_all():
    recipe = FAST.model_copy(update={"missing": 0.6})
    drawn = [ms._acquired(np.random.default_rng(seed), recipe) for seed in range(2000)]
    assert all(drawn)
    assert np.mean(["FLAIR" in kept for kept in drawn]) == pytest.approx(0.4 + 0.6**3 / 3, abs=0.04)
    assert set(simulate_subject(MSRecipe(spacing=4.0, modalities=("FLAIR",)), 0).images) == {"FLAIR"}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("load_ml", (5.0, 2.0), "load_ml = (5.0, 2.0)"),
        ("field", 7.0, "less than or equal to 3"),
        ("lod_ml", 1, "did you mean 'load_ml'"),
    ],
)
def test_impossible_recipes_are_refused(key, value, message):
    with pytest.raises(SettingsError, match="recipe: ") as error:
        parse(MSRecipe, {key: value}, "recipe")
    assert message in str(error.value)


@pytest.fixture(scope="module")
def contrast():
    """Medians over subjects of: lesion / WM, lesion / GM, GM / WM, CSF / WM; and the least lesion / GM."""
    seen, draw = SimpleNamespace(anatomy=None), ms.draw_anatomy
    rows = {m: [] for m in ("T1w", "T2w", "FLAIR")}

    def remember(rng, average):
        seen.anatomy = draw(rng, average)
        return seen.anatomy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ms, "draw_anatomy", remember)
        for seed in range(8):
            person = simulate_subject(MSRecipe(spacing=2.0, load_ml=(2.0, 40.0)), seed)
            healthy = ~ndimage.binary_dilation(person.lesions)
            a, inner = seen.anatomy, ndimage.binary_erosion(person.brain, iterations=2)
            places = (person.lesions, (a.wm > 0.95) & healthy, (a.gm > 0.5) & healthy, (a.csf > 0.8) & inner)
            for modality, image in person.images.items():
                lesion, wm, gm, csf = (np.median(image[place]) for place in places)
                rows[modality].append((lesion / wm, lesion / gm, gm / wm, csf / wm))
    return {m: (np.median(r, axis=0), np.min(r, axis=0)) for m, r in rows.items()}


@pytest.mark.parametrize(
    ("modality", "ranges"),
    [  # what three patients of the Ljubljana set have, widened by how little three are
        ("T1w", ((0.69, 0.85), (1.10, 1.36), (0.51, 0.72), (0.10, 0.28))),
        ("T2w", ((1.50, 1.96), (1.10, 1.35), (1.30, 1.55), (2.4, 3.1))),
        ("FLAIR", ((1.25, 1.50), (1.20, 1.50), (0.90, 1.18), (0.10, 0.71))),
    ],
)
def test_contrast_is_that_of_patients(contrast, modality, ranges):
    median, least = contrast[modality]
    for value, (low, high) in zip(median, ranges, strict=True):
        assert low < value < high
    assert least[1] > 1  # every lesion above grey matter: a crude simulator failed here
