from __future__ import annotations

import json
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest

from oligovox.errors import GeometryError, OutputError, SettingsError
from oligovox.files import read_tsv, write_json
from oligovox.infer.native import already_written, prediction_paths, write_prediction

ONE, THREE = {"lesion": 1}, {"necrosis": 1, "edema": 2, "enhancing": 4}


def write(probabilities, case, labels, out, plan, **more):
    return write_prediction(
        np.asarray(probabilities, np.float32), case, labels, out, plan=plan, model_hash="m1", **more
    )


def softmax_of(case):
    """Class 1 where the stored FLAIR is above 2."""
    lesion = np.where(case.image()[0] > 2, 0.9, 0.2).astype(np.float32)
    return np.stack([1 - lesion, lesion])


def oriented(image, axes, flips):
    """The same head with its array axes permuted and flipped, and an oblique affine to match."""
    turned = nib.Nifti1Image(image, np.array([[1, 0.1, 0, -9], [-0.1, 1, 0, 5], [0, 0, 1.5, 3], [0, 0, 0, 1]]))
    code = np.stack([np.argsort(axes), flips], axis=1)
    return turned.as_reoriented(code)


@pytest.mark.parametrize("axes", list(permutations(range(3)))[::2])
@pytest.mark.parametrize("flips", list(product((1, -1), repeat=3))[::3])
def test_every_orientation_comes_back_on_its_own_grid(tmp_path, image, plan, make_case, axes, flips):
    native = oriented(image, axes, flips)
    case = make_case(tmp_path, native, crop=1)
    paths = write(softmax_of(case), case, ONE, tmp_path / "out", plan, save_probabilities=True)
    mask = nib.load(paths["label"])
    assert np.array_equal(np.asarray(mask.dataobj), np.asarray(native.dataobj) > 2)
    probability = np.asarray(nib.load(paths["probability_lesion"]).dataobj)
    assert np.allclose(np.unique(probability), [0, 0.2, 0.9])
    assert np.array_equal(mask.affine, nib.load(case.sources["FLAIR"]).affine)


def test_header_keeps_the_grid_and_nothing_else(tmp_path, image, plan, make_case):
    native = nib.Nifti1Image(image, np.diag([1, 1, 2, 1]))
    native.set_sform(np.diag([1, 1, 2, 1]), code=4)
    native.set_qform(np.diag([-1, 1, 2, 1]), code=1)  # disagrees with the sform on purpose
    native.header.set_xyzt_units("mm", "sec")
    native.header["descrip"] = b"patient name"
    native.header.set_slope_inter(0.5, 3)
    native.header.extensions.append(nib.nifti1.Nifti1Extension(6, b"patient name"))
    case = make_case(tmp_path, native)
    mask, source = (
        nib.load(write(softmax_of(case), case, ONE, tmp_path / "out", plan)["label"]),
        nib.load(case.sources["FLAIR"]),
    )
    assert mask.get_data_dtype() == np.uint8
    assert mask.shape == source.shape
    assert (int(mask.header["sform_code"]), int(mask.header["qform_code"])) == (4, 1)
    assert np.array_equal(mask.get_sform(), source.get_sform())
    assert np.array_equal(mask.get_qform(), source.get_qform())
    assert np.array_equal(mask.header["pixdim"][:4], source.header["pixdim"][:4])
    assert mask.header.get_xyzt_units()[0] == "mm"
    assert b"patient" not in mask.header.binaryblock
    assert len(mask.header.extensions) == 0


def test_a_source_that_is_gone_is_replaced_by_the_stored_affine(tmp_path, image, plan, make_case):
    native = oriented(image, (1, 0, 2), (1, -1, 1))
    case = make_case(tmp_path, native)
    (tmp_path / "source" / "sub-01_ses-1_FLAIR.nii.gz").unlink()
    mask = nib.load(write(softmax_of(case), case, ONE, tmp_path / "out", plan)["label"])
    assert np.allclose(mask.affine, native.affine, atol=1e-5)
    assert np.array_equal(np.asarray(mask.dataobj), np.asarray(native.dataobj) > 2)


def test_a_mask_that_somebody_drew_is_never_written_over(tmp_path, case, plan):
    drawn = prediction_paths(case, tmp_path / "manual", ONE)["label"]
    drawn.parent.mkdir(parents=True)
    drawn.write_text("drawn by hand")
    with pytest.raises(OutputError, match="so that no mask is lost"):
        write(softmax_of(case), case, ONE, tmp_path / "manual", plan)
    assert drawn.read_text() == "drawn by hand"
    paths = write(softmax_of(case), case, ONE, tmp_path / "out", plan)
    paths["sidecar"].unlink()  # killed while it was written again
    write(softmax_of(case), case, ONE, tmp_path / "out", plan)


def test_names_and_sidecar_are_bids(tmp_path, case, plan):
    out = tmp_path / "out"
    paths = write(softmax_of(case), case, ONE, out, plan, save_probabilities=True, details={"Overlap": 0.5})
    assert {key: path.relative_to(out).as_posix() for key, path in paths.items()} == {
        "label": "sub-01/ses-1/anat/sub-01_ses-1_label-lesion_mask.nii.gz",
        "probability_lesion": "sub-01/ses-1/anat/sub-01_ses-1_label-lesion_probseg.nii.gz",
        "sidecar": "sub-01/ses-1/anat/sub-01_ses-1_label-lesion_mask.json",
    }
    assert paths == prediction_paths(case, out, ONE, probabilities=["lesion"])
    sidecar = json.loads(paths["sidecar"].read_text())
    assert sidecar["SequencesPresent"] == ["FLAIR", "T2w"]
    assert sidecar["SequencesMissing"] == ["T1w"]
    assert sidecar["Sources"] == [case.sources["FLAIR"], case.sources["T2w"]]
    assert (sidecar["ModelHash"], sidecar["Overlap"]) == ("m1", 0.5)
    about = json.loads((out / "dataset_description.json").read_text())
    assert (about["DatasetType"], about["GeneratedBy"][0]["Name"]) == ("derivative", "oligovox")


def test_two_datasets_with_the_same_subject_do_not_meet(tmp_path, image, plan, make_case):
    native = nib.Nifti1Image(image, np.eye(4))
    case = make_case(tmp_path, native, name="site_b_sub-01", person="site_b_01", dataset="site_b")
    path = prediction_paths(case, tmp_path, ONE)["label"]
    assert path.relative_to(tmp_path).as_posix() == "site_b/sub-01/anat/sub-01_label-lesion_mask.nii.gz"


def test_several_classes_take_the_largest_and_the_values_of_the_scheme(tmp_path, case, plan):
    probabilities = np.zeros((4, *case.shape))
    probabilities[0] = 0.4
    probabilities[2, 5:9], probabilities[3, 7:11] = 0.5, 0.6
    probabilities[1, 0] = 0.4  # a tie is background
    paths = write(probabilities, case, THREE, tmp_path / "out", plan)
    assert paths["label"].name == "sub-01_ses-1_dseg.nii.gz"
    value = np.asarray(nib.load(paths["label"]).dataobj)
    assert value[:, 5, 5].tolist() == [0] * 5 + [2] * 2 + [4] * 4 + [0] * 9
    table = read_tsv(paths["table"])
    assert table == [{"index": str(v), "name": n} for n, v in THREE.items()]


def test_regions_are_painted_in_order_each_with_its_own_class(tmp_path, case, plan):
    regions = {"whole": (1, 2, 3), "core": (1, 3), "enhancing": (3,)}
    probabilities = np.zeros((3, *case.shape))
    probabilities[0, 2:10], probabilities[1, 4:8], probabilities[2, 6:12] = 0.9, 0.6, 0.7
    probabilities[0, 15] = 0.5  # not above 0.5
    paths = write(probabilities, case, THREE, tmp_path / "out", plan, regions=regions)
    value = np.asarray(nib.load(paths["label"]).dataobj)[:, 5, 5]
    assert value.tolist() == [0] * 2 + [2] * 2 + [1] * 2 + [4] * 6 + [0] * 8


def test_a_region_without_a_class_of_its_own_is_refused(tmp_path, case, plan):
    with pytest.raises(SettingsError, match=r"'enhancing'.*larger regions before"):
        write(np.zeros((2, *case.shape)), case, THREE, tmp_path, plan, regions={"enhancing": (3,), "core": (1, 3)})


def test_resampled_probabilities_stay_in_range_and_keep_the_volume(tmp_path, plan, make_case):
    """Prepared at 1 mm, native at 1 x 1 x 3 mm: a ball comes back with its volume."""
    native = nib.Nifti1Image(np.ones((24, 24, 8), dtype=np.float32), np.diag([1, 1, 3, 1]))
    case = make_case(tmp_path, native)
    affine = np.diag([1.0, 1, 1, 1])
    affine[2, 3] = -1
    placement = type(case.placement)(native.shape, native.affine, (24, 24, 24), affine)
    object.__setattr__(case, "placement", placement)
    ball = (np.square(np.indices((24, 24, 24)) - 11.5).sum(axis=0) < 64).astype(np.float32)
    paths = write(np.stack([1 - ball, ball]), case, ONE, tmp_path / "out", plan, save_probabilities=True)
    probability = np.asarray(nib.load(paths["probability_lesion"]).dataobj)
    assert probability.min() >= 0
    assert probability.max() <= 1
    volume = np.asarray(nib.load(paths["label"]).dataobj).sum(dtype=float) * 3
    assert volume == pytest.approx(ball.sum(), rel=0.05)


def test_wrong_shape_is_refused(tmp_path, case, plan):
    with pytest.raises(GeometryError, match=r"\(3, 20, 18, 16\), expected \(2, 20, 18, 16\)"):
        write(np.zeros((3, *case.shape)), case, ONE, tmp_path / "out", plan)
    assert not (tmp_path / "out").exists()


def test_finished_means_same_model_same_case_and_all_files(tmp_path, case, plan):
    out = tmp_path / "out"
    assert not already_written(case, out, "m1")
    paths = write(softmax_of(case), case, ONE, out, plan)
    assert already_written(case, out, "m1")
    assert not already_written(case, out, "m2")
    write_json(case.folder / "case.json", {"content": "prepared from another scan"})
    assert not already_written(case, out, "m1")
    write(softmax_of(case), case, ONE, out, plan)
    assert already_written(case, out, "m1")
    paths["label"].unlink()
    assert not already_written(case, out, "m1")


@pytest.mark.parametrize("broken", ["lesion_probseg", "lesion_mask"])
def test_stopped_while_writing_leaves_no_half_file(tmp_path, case, plan, monkeypatch, broken):
    out, save = tmp_path / "out", nib.save
    write_prediction(softmax_of(case), case, ONE, out, plan=plan, model_hash="older")

    def half(image, path):
        if broken in str(path):
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        save(image, path)

    monkeypatch.setattr("oligovox.infer.native.nib.save", half)
    with pytest.raises(KeyboardInterrupt):
        write(softmax_of(case), case, ONE, out, plan, save_probabilities=True)
    left = [path for path in out.rglob("*") if path.is_file() and path.name != "dataset_description.json"]
    assert len(left) == 1 + (broken == "lesion_mask")
    assert all(np.isfinite(nib.load(path).get_fdata()).all() for path in left)
    assert not already_written(case, out, "m1")
    assert not already_written(case, out, "older")
    monkeypatch.undo()
    write(softmax_of(case), case, ONE, out, plan, save_probabilities=True)
    assert already_written(case, out, "m1")


def test_files_of_a_killed_process_are_swept(tmp_path, case, plan):
    paths = prediction_paths(case, tmp_path, ONE)
    paths["label"].parent.mkdir(parents=True)
    leftover = paths["label"].with_name(f".tmp-999999999-{paths['label'].name}")
    leftover.write_bytes(b"half")
    write(softmax_of(case), case, ONE, tmp_path, plan)
    assert not leftover.exists()
