"""Radiomics: worked by hand where that can be done, by geometry where not, and what must not change them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oligovox.errors import GeometryError, LabelError
from oligovox.prepare.radiomics import FEATURES, FIRST_ORDER, SHAPE, TEXTURE, co_occurrence, radiomics


def _named(image: np.ndarray, lesion: np.ndarray, spacing: tuple[float, ...] = (1, 1, 1), width: float = 1.0) -> dict:
    return dict(zip(FEATURES, radiomics(image, lesion, spacing, width), strict=True))


def _row(*values: float) -> tuple[np.ndarray, np.ndarray]:
    """One line of voxels along x, in an empty volume."""
    image = np.full((len(values) + 2, 3, 3), 99.0)
    lesion = np.zeros(image.shape, bool)
    image[1:-1, 1, 1], lesion[1:-1, 1, 1] = values, True
    return image, lesion


def _ball(radius: float, side: int = 41) -> np.ndarray:
    grid = np.indices((side,) * 3) - (side - 1) / 2
    return (grid**2).sum(0) <= radius**2


def test_sixty_names() -> None:
    assert (len(FIRST_ORDER), len(SHAPE), len(TEXTURE)) == (19, 17, 24)
    assert len(set(FEATURES)) == 60


def test_co_occurrence_of_a_row() -> None:
    """Levels 1 1 2 along x: pairs (1, 1) and (1, 2), each counted both ways; no other direction has a pair."""
    levels = np.array([1, 1, 2]).reshape(3, 1, 1)
    np.testing.assert_allclose(co_occurrence(levels), [[[0.5, 0.25], [0.25, 0.0]]])


def test_co_occurrence_of_a_square_has_four_directions() -> None:
    """1 2 over 3 1: two pairs along x, two along y, one on each diagonal."""
    found = co_occurrence(np.array([[1, 2], [3, 1]])[..., None])
    assert found.shape == (4, 3, 3)
    pairs = [((1, 2), (3, 1)), ((1, 3), (2, 1)), ((1, 1),), ((2, 3),)]
    expected = []
    for both in pairs:
        matrix = np.zeros((3, 3))
        for a, b in both:
            matrix[a - 1, b - 1] += 1
            matrix[b - 1, a - 1] += 1
        expected.append((matrix / matrix.sum()).tolist())
    assert sorted(found.tolist()) == sorted(expected)


def test_texture_of_a_row_by_hand() -> None:
    """p = [[1/2, 1/4], [1/4, 0]]: margins 3/4 and 1/4, mean 5/4, variance 3/16."""
    image, lesion = _row(5.2, 5.9, 6.1)
    found = _named(image, lesion)
    h_margin = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    expected = {
        "autocorrelation": 0.5 * 1 + 0.5 * 2,
        "joint_average": 1.25,
        "cluster_tendency": 0.5 * 0.25 + 0.5 * 0.25,  # i + j - 2.5 is -0.5, then 0.5
        "cluster_shade": 0.0,
        "cluster_prominence": 0.0625,
        "contrast": 0.5,
        "correlation": (1.5 - 1.5625) / 0.1875,
        "difference_average": 0.5,
        "difference_entropy": 1.0,
        "difference_variance": 0.25,
        "joint_energy": 0.375,
        "joint_entropy": 1.5,
        "information_correlation_1": (1.5 - 2 * h_margin) / h_margin,
        "information_correlation_2": math.sqrt(1 - math.exp(-2 * (2 * h_margin - 1.5))),
        "inverse_difference_moment": 0.75,
        "normalised_inverse_difference_moment": 0.5 + 0.5 / 1.25,
        "inverse_difference": 0.75,
        "normalised_inverse_difference": 0.5 + 0.5 / 1.5,
        "inverse_variance": 0.5,
        "maximum_probability": 0.5,
        "sum_average": 2.5,
        "sum_entropy": 1.0,
        "sum_of_squares": 0.1875,
        "maximal_correlation": 1 / 3,
    }
    assert {name: found[name] for name in TEXTURE} == {name: pytest.approx(value) for name, value in expected.items()}


def test_first_order_of_a_row_by_hand() -> None:
    image, lesion = _row(1.0, 2.0, 2.5, 6.0)
    found = _named(image, lesion, spacing=(1, 1, 2), width=2.0)
    assert found["energy"] == pytest.approx(1 + 4 + 6.25 + 36)
    assert found["total_energy"] == pytest.approx(2 * 47.25)
    assert found["root_mean_square"] == pytest.approx(math.sqrt(47.25 / 4))
    assert found["entropy"] == pytest.approx(1.5)  # bins 0, 1, 1, 3
    assert found["uniformity"] == pytest.approx(0.375)
    assert (found["mean"], found["median"], found["range"]) == pytest.approx((2.875, 2.25, 5.0))
    assert found["variance"] == pytest.approx(3.546875)
    assert found["mean_absolute_deviation"] == pytest.approx((1.875 + 0.875 + 0.375 + 3.125) / 4)
    apart = np.array([1, 2, 2.5, 6]) - 2.875
    assert found["skewness"] == pytest.approx((apart**3).mean() / 3.546875**1.5)
    assert found["kurtosis"] == pytest.approx((apart**4).mean() / 3.546875**2)


@pytest.mark.parametrize("radius", [6, 9, 12])
def test_shape_of_a_ball(radius: int) -> None:
    ball = _ball(radius)
    found = _named(np.zeros(ball.shape), ball)
    assert found["volume_mm3"] == ball.sum()
    assert found["surface_mm2"] == pytest.approx(4 * math.pi * radius**2, rel=0.03)
    assert found["sphericity"] == pytest.approx(1.0, abs=0.02)
    for name in ("diameter_mm", "diameter_xy_mm", "diameter_xz_mm", "diameter_yz_mm", "equivalent_diameter_mm"):
        assert found[name] == pytest.approx(2 * radius, abs=1.1)
    assert found["inscribed_diameter_mm"] == pytest.approx(2 * radius, abs=1.5)
    assert found["major_axis_mm"] == pytest.approx(4 * radius / math.sqrt(5), rel=0.02)
    assert (found["elongation"], found["flatness"]) == pytest.approx((1, 1), abs=0.01)


def test_shape_of_a_box_in_mm() -> None:
    lesion = np.zeros((12, 9, 7), bool)
    lesion[2:10, 2:6, 2:4] = True
    found = _named(np.zeros(lesion.shape), lesion, spacing=(1.0, 1.0, 3.0))
    assert found["volume_mm3"] == 8 * 4 * 2 * 3
    assert found["box_share"] == 1.0
    assert found["diameter_mm"] == pytest.approx(math.sqrt(7**2 + 3**2 + 3**2))
    assert found["diameter_xy_mm"] == pytest.approx(math.sqrt(7**2 + 3**2))
    assert found["diameter_xz_mm"] == pytest.approx(math.sqrt(7**2 + 3**2))
    assert found["diameter_yz_mm"] == pytest.approx(math.sqrt(3**2 + 3**2))
    spread = [4 * math.sqrt(side) for side in (63 / 12, 9 / 4, 15 / 12)]
    assert (found["major_axis_mm"], found["minor_axis_mm"], found["least_axis_mm"]) == pytest.approx(spread)


def test_what_lies_outside_and_where_it_lies_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    lesion = _ball(4, 16) & (rng.random((16,) * 3) < 0.8)
    image = rng.normal(0, 30, lesion.shape)
    base = radiomics(image, lesion, (1, 1, 1), 25.0)
    other = np.where(lesion, image, 1e6)
    np.testing.assert_array_equal(radiomics(other, lesion, (1, 1, 1), 25.0), base)
    moved = radiomics(np.roll(image, (3, -2, 1), (0, 1, 2)), np.roll(lesion, (3, -2, 1), (0, 1, 2)), (1, 1, 1), 25.0)
    np.testing.assert_allclose(moved, base)
    turned = radiomics(np.rot90(image).copy(), np.rot90(lesion).copy(), (1, 1, 1), 25.0)
    swapped = dict(zip(FEATURES, turned, strict=True))
    swapped["diameter_xz_mm"], swapped["diameter_yz_mm"] = swapped["diameter_yz_mm"], swapped["diameter_xz_mm"]
    np.testing.assert_allclose([swapped[name] for name in FEATURES], base, rtol=1e-9)


@given(st.integers(0, 10_000), st.floats(0.02, 0.9), st.floats(0, 200))
def test_always_finite(seed: int, share: float, noise: float) -> None:
    rng = np.random.default_rng(seed)
    lesion = rng.random((4, 5, 3)) < share
    lesion[2, 2, 1] = True
    assert np.isfinite(radiomics(rng.normal(0, noise, lesion.shape), lesion, (1, 1, 1.5), 25.0)).all()


def test_a_single_voxel_and_a_flat_lesion() -> None:
    lesion = np.zeros((3, 3, 3), bool)
    lesion[1, 1, 1] = True
    one = _named(np.full(lesion.shape, 7.0), lesion)
    assert (one["diameter_mm"], one["contrast"], one["joint_energy"], one["skewness"]) == (0, 0, 1, 0)
    flat = _named(np.full(lesion.shape, 7.0), np.ones_like(lesion))
    assert (flat["correlation"], flat["maximal_correlation"], flat["joint_entropy"]) == (1, 1, 0)


def test_what_cannot_be_measured_is_said() -> None:
    with pytest.raises(LabelError, match="no voxel"):
        radiomics(np.zeros((3, 3, 3)), np.zeros((3, 3, 3), bool), (1, 1, 1), 1.0)
    with pytest.raises(GeometryError, match="expected one 3-D shape"):
        radiomics(np.zeros((3, 3, 3)), np.zeros((3, 3, 4), bool), (1, 1, 1), 1.0)
