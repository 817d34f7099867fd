"""Defects of files, masks and names that `check_defects.py` plants: what transfers, exports and hurried people do to a folder."""

import gzip
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from defects_voxels import Defect, Plant, Rng, alone, moved
from oligovox.cohort.manifest import Case, Cohort
from oligovox.simulate.scanner.kspace import rotation

GROUNDS = ("ms-3t", "glioma-2023")
"""They do not depend on the picture: two grounds are enough."""

Rewrite = Callable[[nib.Nifti1Image, Rng], nib.Nifti1Image]
Redraw = Callable[[np.ndarray, Rng], np.ndarray]


def drawn_image(case: Case, rng: Rng) -> tuple[str, Path]:
    name = sorted(case.images)[int(rng.integers(len(case.images)))]
    return name, case.images[name]


def opened(path: Path) -> nib.Nifti1Image:
    image = nib.load(path)
    return nib.Nifti1Image(np.squeeze(np.asarray(image.dataobj)), image.affine, image.header)


def of_file(change: Rewrite) -> Plant:
    """One image, written anew with something changed."""

    def plant(case: Case, folder: Path, rng: Rng) -> Cohort:
        name, path = drawn_image(case, rng)
        out = folder / f"rewritten_{path.name.removesuffix('.gz')}"
        nib.save(change(opened(path), rng), out)
        return alone(case, images={name: out})

    return plant


def of_one_of_two(change: Rewrite) -> Plant:
    """Two sequences, one of them written anew with something changed."""

    def plant(case: Case, folder: Path, rng: Rng) -> Cohort | None:
        if len(case.images) < 2:
            return None
        one, other = rng.permutation(sorted(case.images))[:2].tolist()
        out = folder / f"beside_{case.images[one].name.removesuffix('.gz')}"
        nib.save(change(opened(case.images[one]), rng), out)
        return alone(case, images={one: out, other: case.images[other]})

    return plant


def cut_short(case: Case, folder: Path, rng: Rng) -> Cohort:
    """A gzip file that ends early."""
    name, path = drawn_image(case, rng)
    data = path.read_bytes() if path.name.endswith(".gz") else gzip.compress(path.read_bytes())
    out = folder / f"short_{path.name.removesuffix('.gz')}.gz"
    out.write_bytes(data[: int(len(data) * rng.uniform(0.05, 0.99))])
    return alone(case, images={name: out})


def qform_elsewhere(image: nib.Nifti1Image, rng: Rng) -> nib.Nifti1Image:
    affine = image.affine.copy()
    affine[int(rng.integers(3)), 3] += rng.uniform(1, 30)
    image.set_sform(image.affine, 1)
    image.set_qform(affine, 1)
    return image


def without_forms(image: nib.Nifti1Image, rng: Rng) -> nib.Nifti1Image:
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    return image


def series(image: nib.Nifti1Image, rng: Rng) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.stack([np.asarray(image.dataobj)] * 2, -1), image.affine, image.header)


def with_nan(image: nib.Nifti1Image, rng: Rng) -> nib.Nifti1Image:
    array = np.asarray(image.dataobj, dtype=np.float32).copy()
    array.flat[rng.integers(array.size, size=int(10 ** rng.uniform(0, 4)))] = np.nan
    return nib.Nifti1Image(array, image.affine)


def hair_off(image: nib.Nifti1Image, rng: Rng) -> nib.Nifti1Image:
    """Direction cosines that differ in late digits: turned about the middle, until the furthest corner is 0.02 to 0.09 mm away."""
    half = image.affine[:3, :3] @ ((np.array(image.shape) - 1) / 2)
    axis = int(rng.integers(3))
    angles = np.zeros(3)
    angles[axis] = np.degrees(rng.uniform(0.02, 0.09) / np.linalg.norm(np.delete(half, axis)))
    world, middle = np.eye(4), half + image.affine[:3, 3]
    world[:3, :3] = rotation(tuple(angles))
    world[:3, 3] = middle - world[:3, :3] @ middle
    return nib.Nifti1Image(np.asarray(image.dataobj), world @ image.affine)


def not_ras(image: nib.Nifti1Image, rng: Rng) -> nib.Nifti1Image:
    """The same image with its axes in another order or direction."""
    while nib.aff2axcodes((made := turned(image, rng)).affine) == ("R", "A", "S"):
        pass
    return made


def thick(image: nib.Nifti1Image, rng: Rng) -> nib.Nifti1Image:
    """Three to five slices averaged into one."""
    axis, count = int(rng.integers(3)), int(rng.integers(3, 6))
    array = np.moveaxis(np.asarray(image.dataobj, dtype=np.float32), axis, 0)
    slices = len(array) // count
    array = array[: slices * count].reshape(slices, count, *array.shape[1:]).mean(1)
    scale, move = np.eye(4), np.eye(4)
    scale[axis, axis], move[axis, 3] = count, (count - 1) / 2
    return nib.Nifti1Image(np.moveaxis(array, 0, axis), image.affine @ move @ scale)


def said_to_be_microns(image: nib.Nifti1Image, rng: Rng) -> nib.Nifti1Image:
    image.header.set_xyzt_units("micron")
    return image


def in_metres(image: nib.Nifti1Image, rng: Rng) -> nib.Nifti1Image:
    made = nib.Nifti1Image(np.asarray(image.dataobj), np.diag([0.001, 0.001, 0.001, 1]) @ image.affine)
    made.header.set_xyzt_units("meter")
    return made


def of_label(change: Redraw, scheme: dict[str, int], place: Callable[[np.ndarray], np.ndarray] = lambda a: a) -> Plant:
    """One image with its masks; the label redrawn, or put elsewhere."""

    def plant(case: Case, folder: Path, rng: Rng) -> Cohort | None:
        if case.label is None:
            return None
        image = nib.load(case.label)
        array = (np.asarray(image.dataobj) > 0).astype(np.uint8)
        if array.sum() < 30:
            return None
        out = folder / "label.nii"
        nib.save(nib.Nifti1Image(change(array, rng), place(image.affine)), out)
        images = dict([drawn_image(case, rng)])
        return Cohort(cases=(replace(case, images=images, label=out),), labels=scheme)

    return plant


def same(mask: np.ndarray, rng: Rng) -> np.ndarray:
    return mask


def halved(mask: np.ndarray, rng: Rng) -> np.ndarray:
    return mask.repeat(2, 0).repeat(2, 1).repeat(2, 2)


def half_voxels(affine: np.ndarray) -> np.ndarray:
    change = np.diag([0.5, 0.5, 0.5, 1.0])
    change[:3, 3] = -0.25
    return affine @ change


def parted(values: tuple[int, ...]) -> Redraw:
    """The mask in as many parts as there are values, by depth."""

    def change(mask: np.ndarray, rng: Rng) -> np.ndarray:
        depth = ndimage.distance_transform_edt(mask)[mask > 0]
        parts = np.argsort(np.argsort(depth)) * len(values) // depth.size
        mask[mask > 0] = np.array(values, np.uint8)[parts]
        return mask

    return change


def blurred(mask: np.ndarray, rng: Rng) -> np.ndarray:
    return ndimage.shift(mask.astype(np.float32), rng.uniform(0.2, 0.8, 3), order=1)


def specks(mask: np.ndarray, rng: Rng) -> np.ndarray:
    """One voxel each, far from what is drawn; what was as small before is gone."""
    pieces, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(pieces.ravel())
    mask = mask * (sizes > 4)[pieces]
    around = np.argwhere(ndimage.distance_transform_edt(mask == 0) > 6)
    for at in rng.permutation(around)[: int(rng.integers(1, 6))]:
        mask[tuple(at)] = 1
    return mask.astype(np.uint8)


def elsewhere(mask: np.ndarray, rng: Rng) -> np.ndarray:
    """Moved along one axis by a fifth to two fifths of the field of view."""
    axis = int(rng.integers(3))
    by = int(mask.shape[axis] * rng.uniform(0.2, 0.4)) * int(rng.choice([-1, 1]))
    return np.roll(mask, by, axis)


def of_two(change: Rewrite | None, folders: tuple[str, str] = ("a", "b"), label: bool = False) -> Plant:
    """A case and somebody else who has one image (or the mask) of it, as it is or changed."""

    def plant(case: Case, folder: Path, rng: Rng) -> Cohort | None:
        if label and case.label is None:
            return None
        name, path = drawn_image(case, rng)
        files = []
        for place in folders:
            (folder / place).mkdir(exist_ok=True)
            files.append(folder / place / f"{name}.nii")
        nib.save(opened(path), files[0])
        nib.save(change(opened(path), rng) if change else opened(path), files[1])
        mask = case.label if label else None
        other = replace(case, subject="other", images={name: files[1]}, brain=None, label=mask)
        return Cohort(cases=(replace(case, images={name: files[0]}, brain=None, label=mask), other))

    return plant


def flipped(image: nib.Nifti1Image, rng: Rng) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.flip(np.asarray(image.dataobj), int(rng.integers(3))).copy(), image.affine)


def turned(image: nib.Nifti1Image, rng: Rng) -> nib.Nifti1Image:
    return image.as_reoriented(np.stack([rng.permutation(3), rng.choice([-1, 1], 3)], 1))


def as_bytes(image: nib.Nifti1Image, rng: Rng) -> nib.Nifti1Image:
    array = np.asarray(image.dataobj, dtype=np.float32)
    return nib.Nifti1Image((array / array.max() * 255).round().astype(np.uint8), image.affine)


def scanned_again(image: nib.Nifti1Image, rng: Rng) -> nib.Nifti1Image:
    """The same head a little elsewhere, with other noise: no voxel is equal."""
    array = np.asarray(image.dataobj, dtype=np.float32)
    array = moved(array, image.affine, rng.uniform(-4, 4, 3), rng.uniform(-4, 4, 3))
    noise = rng.normal(0, 0.05 * np.percentile(array, 95), array.shape)
    return nib.Nifti1Image(np.float32(np.abs(array + noise * (array > 0))), image.affine)


LESION, TUMOUR = {"lesion": 1}, {"necrotic core": 1, "oedema": 2, "enhancing tumour": 3}
WITH_A_GAP = TUMOUR | {"enhancing tumour": 4}
APART = ("imagesTr", "imagesTs")

OF_FILES = (
    Defect("qform 1 to 30 mm off the sform", "sform_qform", of_file(qform_elsewhere), GROUNDS),
    Defect("both form codes 0", "no_form", of_file(without_forms), GROUNDS),
    Defect("gzip file cut at 5 to 99 %", "truncated", cut_short, GROUNDS),
    Defect("a series (4-D)", "four_d", of_file(series), GROUNDS),
    Defect("1 to 10 000 voxels NaN", "not_finite", of_file(with_nan), GROUNDS),
    Defect("unit micron, sizes in mm", "units", of_file(said_to_be_microns), GROUNDS),
    Defect("sizes in metres", "voxel_size", of_file(in_metres), GROUNDS),
    Defect("cosines off by a hair (0.02 to 0.09 mm)", "near_equal_grid", of_one_of_two(hair_off), GROUNDS),
    Defect("axes that are not RAS", "orientation", of_file(not_ras), GROUNDS),
    Defect("axes of one of two that are not RAS", "mixed_orientation", of_one_of_two(not_ras), GROUNDS),
    Defect("slices 3 to 5 times as thick", "anisotropy", of_file(thick), GROUNDS),
    Defect("mask without its header", "mask_grid", of_label(same, LESION, lambda affine: np.eye(4)), GROUNDS),
    Defect("mask on half voxels", "mask_grid", of_label(halved, LESION, half_voxels), GROUNDS),
    Defect("mask of 255", "label_values", of_label(parted((255,)), LESION), GROUNDS),
    Defect("values 1, 2, 4 for 1, 2, 3", "label_values", of_label(parted((2, 1, 4)), TUMOUR), GROUNDS),
    Defect("a scheme of 1, 2, 4", "label_gaps", of_label(parted((2, 1, 4)), WITH_A_GAP), GROUNDS),
    Defect("mask resampled linearly", "label_fractions", of_label(blurred, LESION), GROUNDS),
    Defect("empty mask", "empty_label", of_label(lambda mask, rng: mask * 0, LESION), GROUNDS),
    Defect("1 to 5 specks of one voxel", "tiny_lesions", of_label(specks, LESION), GROUNDS),
    Defect("mask 20 to 40 % of the field off", "lesion_outside", of_label(elsewhere, LESION), GROUNDS),
    Defect("another person's mask", "same_mask", of_two(scanned_again, label=True), GROUNDS),
    Defect("the same voxels under two names", "duplicate_image", of_two(None), GROUNDS),
    Defect("the same, mirrored", "duplicate_image", of_two(flipped), GROUNDS),
    Defect("the same, axes in another order", "duplicate_image", of_two(turned), GROUNDS),
    Defect("the same, in 255 steps", "duplicate_image", of_two(as_bytes), GROUNDS),
    Defect("the same voxels in training and test", "train_test", of_two(turned, APART), GROUNDS),
    Defect("one head again, moved and with noise", "same_person", of_two(scanned_again), GROUNDS),
    Defect("one head again, one in training and one in test", "same_person", of_two(scanned_again, APART), GROUNDS),
)
