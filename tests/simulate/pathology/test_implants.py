import dataclasses
import os

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from oligovox.errors import CohortError, GeometryError, ImageError, LabelError
from oligovox.simulate.anatomy.brain import draw_anatomy, template
from oligovox.simulate.pathology.implants import brain_frame, implant, read_donor, read_donors
from oligovox.simulate.pathology.lesion_shapes import NEIGHBOURS
from oligovox.simulate.pathology.lesions import MSLesions, grow_lesions


@pytest.fixture(scope="module")
def person():
    return draw_anatomy(np.random.default_rng(4), template(3.0))


@pytest.fixture
def files(tmp_path, person):
    """A lesion mask and a brain mask of a simulated person."""
    mask = grow_lesions(np.random.default_rng(1), person, MSLesions(load_ml=(20.0, 20.0))).mask
    return [
        write(tmp_path / f"sub-01_space-x_desc-{name}_mask.nii.gz", volume, person.affine)
        for name, volume in (("lesion", mask), ("brain", person.brain))
    ]


def write(path, volume, affine):
    nib.save(nib.Nifti1Image(volume.astype(np.uint8), affine), path)
    return path


def dice(one, other):
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


def test_a_mask_comes_back_where_it_was_in_its_own_brain(person, files):
    donor = read_donor(*files)
    mask = np.asarray(nib.load(files[0]).dataobj) > 0
    found = [implant(donor, person, np.random.default_rng(seed)) > 0.5 for seed in range(6)]
    as_it_was = [dice(mask, one) for one in found]
    assert max(as_it_was) > 0.8
    assert min(as_it_was) < 0.5  # left and right exchanged
    assert all(0.6 < np.count_nonzero(one) / np.count_nonzero(mask) < 1.1 for one in found)


def test_a_flipped_file_is_the_same_donor(person, files):
    donor = read_donor(*files)
    turned = []
    for path in files:
        image = nib.load(path)
        turn = nib.orientations.axcodes2ornt(("L", "P", "S"))
        turned.append(path.with_name(path.name.replace("sub-01", "sub-02")))
        nib.save(
            image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), turn)), turned[-1]
        )
    other = read_donor(*turned)
    np.testing.assert_array_equal(donor.mask, other.mask)
    np.testing.assert_allclose(donor.corner, other.corner)


def test_grown_lesions_take_the_place_of_the_donors(person, files):
    donor = read_donor(*files)
    grown = grow_lesions(np.random.default_rng(0), person, MSLesions(), donor=donor)
    again = grow_lesions(np.random.default_rng(0), person, MSLesions(), donor=donor, visit=2)
    load = np.count_nonzero(donor.mask)
    assert 0.5 * load < np.count_nonzero(grown.mask) < 1.2 * load
    assert ndimage.label(grown.mask, NEIGHBOURS)[1] == len(grown.rows)
    assert person.csf[grown.mask].max() <= 0.5
    assert dice(grown.mask, again.mask) > 0.6


def test_a_frame_ignores_thin_ends():
    brain = np.zeros((40, 40, 60), bool)
    brain[10:30, 10:30, 30:50] = True
    cut = brain.copy()
    brain[19:21, 19:21, 5:30] = True
    for one, other in zip(brain_frame(brain), brain_frame(cut), strict=True):
        np.testing.assert_allclose(one, other, atol=0.5)


def test_wrong_files_are_refused(tmp_path, files):
    mask, brain = files
    image = nib.load(mask)
    volume = np.asarray(image.dataobj)
    with pytest.raises(ImageError, match="cannot be read"):
        read_donor(tmp_path / "absent.nii.gz", brain)
    empty = write(tmp_path / "empty.nii.gz", np.zeros_like(volume), image.affine)
    with pytest.raises(ImageError, match="every voxel is 0"):
        read_donor(empty, brain)
    series = write(tmp_path / "series.nii.gz", np.stack([volume] * 2, -1), image.affine)
    with pytest.raises(ImageError, match="expected one 3-D mask"):
        read_donor(series, brain)
    scheme = volume.copy()
    scheme[0, 0, 0] = 7
    with pytest.raises(LabelError, match="expected a mask of 0 and 1"):
        read_donor(write(tmp_path / "scheme.nii.gz", scheme, image.affine), brain)
    with pytest.raises(GeometryError, match="differs"):
        read_donor(write(tmp_path / "small.nii.gz", volume[1:], image.affine), brain)
    holes = np.where(volume > 0, 1.0, np.nan).astype(np.float32)
    nib.save(nib.Nifti1Image(holes, image.affine), tmp_path / "holes.nii.gz")
    with pytest.raises(ImageError, match=r"holes.nii.gz: \d+ voxels are NaN or infinite; expected a mask of 0 and 1"):
        read_donor(tmp_path / "holes.nii.gz", brain)


def test_a_brain_mask_that_is_none_is_refused(tmp_path, files):
    mask, brain = files
    image = nib.load(brain)
    whole = np.asarray(image.dataobj)
    middle = tuple(n // 2 for n in whole.shape)
    for box in (tuple(slice(m, m + 1) for m in middle), np.s_[:, :, middle[2]], np.s_[middle[0] : middle[0] + 2]):
        part = np.zeros_like(whole)
        part[box] = whole[box]
        path = write(tmp_path / "part.nii.gz", part, image.affine)
        with pytest.raises(ImageError, match=r"part.nii.gz: its brain is .* mm; expected more than 10 mm along each"):
            read_donor(mask, path)


def test_lesions_outside_the_brain_are_refused(tmp_path, files):
    brain = files[1]
    image = nib.load(brain)
    inside = np.asarray(image.dataobj) > 0
    some = np.zeros_like(inside)
    some[tuple(np.argwhere(inside)[:4].T)] = True
    outside = np.argwhere(~inside)
    some[tuple(outside[:4].T)] = True
    assert read_donor(write(tmp_path / "half.nii.gz", some, image.affine), brain).path.name == "half.nii.gz"
    some[tuple(outside[:5].T)] = True
    with pytest.raises(LabelError, match=r"most.nii.gz: 5 of 9 lesion voxels lie outside the brain mask sub-01"):
        read_donor(write(tmp_path / "most.nii.gz", some, image.affine), brain)


def test_an_implant_that_leaves_nothing_names_the_file(person, files):
    donor = read_donor(*files)
    no_room = dataclasses.replace(person, wm=0 * person.wm)
    far = dataclasses.replace(donor, corner=donor.corner + 9)
    for lost, brain in ((donor, no_room), (far, person)):
        with pytest.raises(
            ImageError, match=r"lesion_mask.nii.gz: none of its .* is left in the simulated brain; .* leave"
        ):
            implant(lost, brain, np.random.default_rng(0))


def test_donors_are_read_again_only_when_a_file_has_changed(tmp_path, files):
    mask, brain = files
    first = read_donors(tmp_path)
    assert read_donors(tmp_path) is first
    os.utime(brain, ns=(1, 1))
    assert read_donors(tmp_path) is not first
    image = nib.load(mask)
    volume = np.asarray(image.dataobj).copy()
    volume[: np.argwhere(volume)[:, 0].max()] = 0
    write(mask, volume, image.affine)
    (fewer,) = read_donors(tmp_path)
    assert np.count_nonzero(fewer.mask) == np.count_nonzero(volume) < np.count_nonzero(first[0].mask)
    mask.unlink()
    mask.symlink_to(tmp_path / "gone.nii.gz")
    with pytest.raises(ImageError, match=r"lesion_mask.nii.gz: cannot be read"):
        read_donors(tmp_path)


def test_a_folder_of_donors_is_read_in_order_and_needs_brain_masks(tmp_path, files):
    mask, brain = files
    (donor,) = read_donors(tmp_path)
    np.testing.assert_array_equal(donor.mask, read_donor(mask, brain).mask)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(CohortError, match="no \\*-lesion_mask"):
        read_donors(other)
    mask.rename(other / mask.name)
    with pytest.raises(CohortError, match="no brain mask"):
        read_donors(other)


@pytest.mark.real
def test_real_masks_are_implanted(real_data, person):
    donors = read_donors(real_data / "openms" / "lesion_masks_mni")
    assert len(donors) == 29
    largest = max(donors, key=lambda donor: np.count_nonzero(donor.mask))
    fraction = implant(largest, person, np.random.default_rng(0))
    real = np.count_nonzero(largest.mask) * largest.voxel_mm3
    assert 0.4 < np.count_nonzero(fraction > 0.5) * 27 / real < 1.5
