"""Where one image lies over another: rigid and affine registration by mutual information, and transforms as files.

A transform is a 4×4 matrix in RAS mm that takes a position of the moving image to the position of the same tissue in the fixed one. It is
applied by changing the affine of the moving image; voxels are interpolated once, later, by `geometry.resample_to`.

Source: Mattes et al. 2003, IEEE Trans Med Imaging 22:120-128 (the metric, as ITK has it); Powell 1964, Comput J 7:155-162 (the search; steps along the
    gradient stopped degrees away from the optimum of a turned head).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from oligovox.errors import CohortError, SettingsError
from oligovox.files import atomic_file
from oligovox.prepare import geometry
from oligovox.prepare.geometry import Shape, Volume, resample_to

Matrix = NDArray[np.float64]
Fit = Literal["rigid", "affine"]
Start = Literal["header", "centres of mass", "turned"]

_LEVELS_MM = (6.0, 3.0, 2.0)  # voxel size of each level; thicker voxels stay as they are
_SAMPLES = 25_000  # voxels that a step of the optimiser looks at, of those a level has
_BINS = 32
_ROUNDS, _LINE = 4, 12  # of the optimiser over all parameters, and steps along each
_RADIUS_MM = 70.0  # of a head: a turn by 1/70 rad moves its surface by 1 mm
_TURN = math.radians(15)  # of the starts that are tried where the head may be turned
_BRIGHTEST = 99.5  # percentile of the non-zero voxels above which all are as bright: fat would fill the histogram
_LEAST_OVERLAP = 0.05  # part of either image that the other must cover for the metric to say anything
_FAR_MM, _FAR_DEG = 30.0, 20.0  # within a session nobody moves that far, unless the header is wrong
_CLEARLY = 1.25  # times the metric of the headers, for a move that far to be believed
_LEAST_GAIN = 1e-4  # nats of mutual information below which nothing has moved
_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # RAS ↔ LPS


@dataclass(frozen=True, eq=False)
class Registration:
    """What a registration found.

    Attributes:
        matrix: 4×4, moving RAS mm → fixed RAS mm; the identity where nothing better was found.
        before: mutual information by the headers alone in nats, None where the images overlap too little or not at all.
        after: the same with `matrix`, None where they still do not.
        improved: whether `matrix` is better than the headers.
        start: where the search began that ended best.
        overlap: by the headers, the part of one image that the other covers, whichever is larger, 0 … 1; a thin slab is covered wholly.
    """

    matrix: Matrix
    before: float | None
    after: float | None
    improved: bool
    start: Start
    overlap: float


def simple_itk() -> Any:
    """The module SimpleITK.

    Raises:
        SettingsError: it is not installed.
    """
    try:
        import SimpleITK
    except ImportError:
        raise SettingsError(
            "registration and bias correction need SimpleITK, which is not installed; pip install 'oligovox[raw]'"
        ) from None
    return SimpleITK


def register(
    moving: Volume,
    fixed: Volume,
    *,
    fit: Fit = "rigid",
    near: bool = False,
    seed: int = 0,
    threads: int = 1,
) -> Registration:
    """Find where `moving` lies over `fixed`, whatever their contrasts.

    The search begins from the headers, and where another start already looks better (centres of mass, the head turned by 15° about an axis),
    there as well. The best end at the coarsest level is refined; no end is taken whose metric is not better than that of the headers.

    Args:
        moving: an image, on its own grid.
        fixed: an image, on its own grid.
        fit: 6 parameters, or 12 (the rigid result is refined).
        near: both are of one session. Where they overlap, a move of more than 30 mm or 20° must then be clearly better than the headers: the
            metric of a thin slab has high values far away from its place.
        seed: of the voxels that are looked at.
        threads: with 1 the result is the same on every run.

    Returns:
        The transform. It is the identity, with `improved` False, where nothing better than the headers was found.

    Raises:
        SettingsError: SimpleITK is not installed.
    """
    levels = [_Level(moving, fixed, spacing, seed, threads) for spacing in _LEVELS_MM]
    coarse, finest, identity = levels[0], levels[-1], np.eye(4)
    overlap, before = finest.overlap(identity), finest.information(identity)
    found = [(name, coarse.optimised(start, "rigid")) for name, start in _starts(coarse)]
    for name, end in sorted(found, key=lambda pair: -(coarse.information(pair[1]) or 0.0)):
        matrix = end
        for level in levels[1:]:
            matrix = level.optimised(matrix, "rigid")
        if fit == "affine":
            for level in levels[1:]:
                matrix = level.optimised(matrix, "affine")
        after = finest.information(matrix)
        far = near and overlap >= _LEAST_OVERLAP and _far(matrix, moving)
        if after is not None and _better(after, before, far):
            return Registration(matrix, before, after, True, name, overlap)
    return Registration(identity, before, before, False, "header", overlap)


def _better(after: float, before: float | None, far: bool) -> bool:
    if before is None:
        return not far
    return after > max(before + _LEAST_GAIN, before * (_CLEARLY if far else 1.0))


def _far(matrix: Matrix, moving: Volume) -> bool:
    shift, turn = shift_and_turn(matrix, moving.affine, moving.shape)
    return shift > _FAR_MM or turn > _FAR_DEG


def _starts(level: _Level) -> Iterator[tuple[Start, Matrix]]:
    """Where to begin: the headers where the images overlap, and what looks better than they do before any search."""
    identity, centred = np.eye(4), level.centred()
    base, overlaps = level.information(identity), level.overlap(identity) > 0
    if overlaps:
        yield "header", identity
    turned = [_about(level.centre, axis, sign * _TURN) for axis in range(3) for sign in (-1, 1)]
    others: list[tuple[Start, Matrix]] = [("centres of mass", centred)]
    others += [("turned", turn) for turn in turned] if overlaps else []
    others += [("turned", turn @ centred) for turn in turned]
    scored = [(score, name, start) for name, start in others if (score := level.information(start)) is not None]
    scored = [entry for entry in scored if base is None or entry[0] > base]
    for _, name, start in sorted(scored, key=lambda entry: -entry[0])[:2]:
        yield name, start


class _Level:
    """Both images at one voxel size, ready for the metric and the optimiser."""

    def __init__(self, moving: Volume, fixed: Volume, spacing: float, seed: int, threads: int) -> None:
        self._sitk, self._seed, self._threads = simple_itk(), seed, threads
        self._spacing = spacing
        self._fixed, self._moving = _at(fixed, spacing), _at(moving, spacing)
        self.centre = _centre_of_mass(self._fixed)
        self._images = [_image(self._sitk, volume) for volume in (self._fixed, self._moving)]
        self._share = min(1.0, _SAMPLES / self._fixed.array.size)

    def overlap(self, matrix: Matrix) -> float:
        """Part of one image's foreground that the field of view of the other covers, whichever is larger, 0 … 1."""
        moved_affine = np.asarray(matrix @ self._moving.affine)
        return max(
            _covered(self._fixed, Volume(self._moving.array, moved_affine)),
            _covered(Volume(self._moving.array, moved_affine), self._fixed),
        )

    def centred(self) -> Matrix:
        """The shift that brings the centres of mass together."""
        shift = np.eye(4)
        shift[:3, 3] = self.centre - _centre_of_mass(self._moving)
        return shift

    def information(self, matrix: Matrix) -> float | None:
        """Mutual information in nats over all voxels of this level; None where too few are seen by both."""
        if self.overlap(matrix) < _LEAST_OVERLAP:
            return None
        method = self._method(1.0)
        method.SetInitialTransform(self._transform(matrix, "affine"))
        try:
            return -float(method.MetricEvaluate(*self._images))
        except RuntimeError:  # ITK: too few samples
            return None

    def optimised(self, matrix: Matrix, fit: Fit) -> Matrix:
        """The transform at the top of the slope that begins at `matrix`; `matrix` itself where the images lose each other."""
        method, transform = self._method(self._share), self._transform(matrix, fit)
        method.SetOptimizerAsPowell(
            numberOfIterations=_ROUNDS,
            maximumLineIterations=_LINE,
            stepLength=self._spacing / 3,
            stepTolerance=self._spacing / 100,
            valueTolerance=_LEAST_GAIN / 10,
        )
        turns = transform.GetNumberOfParameters() - 3
        method.SetOptimizerScales([_RADIUS_MM] * turns + [1.0] * 3)
        method.SetInitialTransform(transform, inPlace=True)
        try:
            method.Execute(*self._images)
        except RuntimeError:  # ITK: the images were moved apart
            return matrix
        return _ras(transform)

    def _method(self, share: float) -> Any:
        method = self._sitk.ImageRegistrationMethod()
        method.SetNumberOfThreads(self._threads)
        method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=_BINS)
        if share < 1:
            method.SetMetricSamplingStrategy(method.RANDOM)
            method.SetMetricSamplingPercentage(share, self._seed + 1)  # 0 would be drawn from the clock
        method.SetInterpolator(self._sitk.sitkLinear)
        return method

    def _transform(self, matrix: Matrix, fit: Fit) -> Any:
        """As ITK wants it: from fixed to moving, LPS, turning about the middle of the fixed image."""
        transform = self._sitk.Euler3DTransform() if fit == "rigid" else self._sitk.AffineTransform(3)
        centre = self.centre * (-1, -1, 1)
        inverse = ras_to_lps(np.asarray(np.linalg.inv(matrix), np.float64))
        transform.SetCenter(centre.tolist())
        transform.SetMatrix(inverse[:3, :3].ravel().tolist(), *([1e-5] if fit == "rigid" else []))
        transform.SetTranslation((inverse[:3, :3] @ centre + inverse[:3, 3] - centre).tolist())
        return transform


def _at(volume: Volume, spacing: float) -> Volume:
    """The image on a RAS grid of this voxel size, without its brightest; axes that are coarser already keep theirs."""
    turned = geometry.to_ras(volume)
    x, y, z = (max(spacing, step) for step in geometry.spacing_of(turned.affine))
    affine, shape = geometry.ras_grid(turned.affine, turned.shape, (x, y, z))
    array = resample_to(turned, affine, shape, 1, smooth=True).array.astype(np.float32)
    shown = array[array != 0]
    return Volume(
        np.clip(array, *(np.percentile(shown, (100 - _BRIGHTEST, _BRIGHTEST)))) if shown.size else array, affine
    )


def _covered(one: Volume, other: Volume) -> float:
    """Part of the foreground of one image that lies in the field of view of the other, 0 … 1."""
    bright = one.array > one.array.mean()
    return float((bright & geometry.inside(other, one.affine, one.shape)).sum() / max(1, int(bright.sum())))


def _centre_of_mass(volume: Volume) -> Matrix:
    """In RAS mm, of what is brighter than the mean."""
    array = volume.array - volume.array.min()
    bright = np.where(array > array.mean(), array, 0)
    place = ndimage.center_of_mass(bright) if bright.any() else (np.array(volume.shape) - 1) / 2
    return np.asarray(volume.affine[:3, :3] @ np.asarray(place) + volume.affine[:3, 3])


def _about(centre: Matrix, axis: int, angle: float) -> Matrix:
    """A turn about an axis through a point."""
    first, second = (other for other in range(3) if other != axis)
    turn = np.eye(4)
    turn[first, first] = turn[second, second] = math.cos(angle)
    turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
    turn[:3, 3] = centre - turn[:3, :3] @ centre
    return turn


def _image(sitk: Any, volume: Volume) -> Any:
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.array.T))
    affine = _FLIP @ volume.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image


def itk_image(volume: Volume) -> Any:
    """A volume as SimpleITK has it (axes reversed in its arrays, LPS).

    Raises:
        SettingsError: SimpleITK is not installed.
    """
    return _image(simple_itk(), volume)


def _ras(transform: Any) -> Matrix:
    """Moving → fixed in RAS of an ITK transform, which is from fixed to moving in LPS."""
    turn = np.array(transform.GetMatrix()).reshape(3, 3)
    centre = np.array(transform.GetCenter())
    lps = np.eye(4)
    lps[:3, :3] = turn
    lps[:3, 3] = np.array(transform.GetTranslation()) + centre - turn @ centre
    return np.asarray(np.linalg.inv(ras_to_lps(lps)))


def ras_to_lps(matrix: Matrix) -> Matrix:
    """The same transform between positions whose first two coordinates have the other sign; its own inverse."""
    return np.asarray(_FLIP @ matrix @ _FLIP)


def moved(volume: Volume, matrix: Matrix) -> Volume:
    """The volume in the space it was registered to: the same voxels, another affine."""
    return Volume(volume.array, matrix @ volume.affine)


def shift_and_turn(matrix: Matrix, affine: Matrix, shape: Shape) -> tuple[float, float]:
    """How far a transform moves the middle of a grid (mm), and by how much it turns (degrees; of an affine its closest rotation)."""
    middle = affine @ np.array([*((np.array(shape) - 1) / 2), 1.0])
    u, _, vh = np.linalg.svd(matrix[:3, :3])
    turn = u @ np.diag([1, 1, np.linalg.det(u @ vh)]) @ vh
    sine = np.linalg.norm([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]]) / 2
    return float(np.linalg.norm((matrix @ middle - middle)[:3])), math.degrees(
        math.atan2(sine, (np.trace(turn) - 1) / 2)
    )


def farthest(one: Matrix, other: Matrix, affine: Matrix, shape: Shape) -> float:
    """The largest distance in mm between where two transforms put a corner of a grid."""
    corners = np.array([[*index, 1.0] for index in product(*((0, n - 1) for n in shape))]).T
    return float(np.linalg.norm(((one - other) @ affine @ corners)[:3], axis=0).max())


_HEAD = "#Insight Transform File V1.0"
_KINDS = ("AffineTransform_double_3_3", "AffineTransform_float_3_3", "MatrixOffsetTransformBase_double_3_3")


def write_itk(matrix: Matrix, path: Path) -> None:
    """Write a transform as an ITK text file, as ANTs, SimpleITK and 3D Slicer read it.

    ITK's transform takes positions of the fixed image to the moving one, in LPS: the inverse of `matrix`. Given to a resampling program as it
    is, it brings the moving image onto the grid of the fixed one.

    Args:
        matrix: moving RAS mm → fixed RAS mm.
        path: file to write, ending in .txt.
    """
    lps = ras_to_lps(np.asarray(np.linalg.inv(matrix), np.float64))
    numbers = " ".join(repr(float(value)) for value in (*lps[:3, :3].ravel(), *lps[:3, 3]))
    lines = [_HEAD, "#Transform 0", f"Transform: {_KINDS[0]}", f"Parameters: {numbers}", "FixedParameters: 0 0 0", ""]
    with atomic_file(path) as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")


def read_itk(path: Path) -> Matrix:
    """Read an ITK text file with one affine transform, whatever its centre: moving RAS mm → fixed RAS mm.

    Raises:
        CohortError: it is missing, or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CohortError(f"{path}: cannot be read as an ITK transform ({error})") from error
    entries = dict(re.findall(r"^(Transform|Parameters|FixedParameters): *(.*)$", text, re.MULTILINE))
    try:
        values = np.array([float(word) for word in entries.get("Parameters", "").split()])
        centre = np.array([float(word) for word in entries.get("FixedParameters", "").split()])
    except ValueError:
        values = centre = np.zeros(0)
    if not text.startswith(_HEAD) or entries.get("Transform") not in _KINDS or (values.size, centre.size) != (12, 3):
        raise CohortError(
            f"{path}: holds {entries.get('Transform', 'no transform')!r}; expected an ITK text file with one {_KINDS[0]}"
        )
    lps = np.eye(4)
    lps[:3, :3] = values[:9].reshape(3, 3)
    lps[:3, 3] = values[9:] + centre - lps[:3, :3] @ centre
    if not np.isfinite(lps).all() or abs(np.linalg.det(lps[:3, :3])) < 1e-9:
        raise CohortError(f"{path}: the transform has no inverse; export it again")
    return np.asarray(np.linalg.inv(ras_to_lps(lps)))
