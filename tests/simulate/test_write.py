import os
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest

from oligovox.cohort.bids import read_bids
from oligovox.errors import InputError, OutputError, SettingsError, WorkerError
from oligovox.files import read_json, read_tsv
from oligovox.simulate import write
from oligovox.simulate.recipe import make_recipe
from oligovox.simulate.write import simulate_cohort

TINY = make_recipe("ms-3t", {"spacing": 4.0, "lesions": {"load_ml": [5.0, 30.0]}})


def _bytes(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def _derived(root, name):
    return root / "derivatives" / "oligovox-simulate" / name / "anat"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return simulate_cohort(tmp_path_factory.mktemp("ms") / "out", TINY, subjects=3, seed=1, labelled=2, workers=1)


def test_the_layout_is_bids(cohort):
    for name in ("sub-001", "sub-002", "sub-003"):
        assert {p.name for p in (cohort / name / "anat").glob("*.nii.gz")} == {
            f"{name}_{m}.nii.gz" for m in ("T1w", "T2w", "FLAIR")
        }
        assert (_derived(cohort, name) / f"{name}_desc-brain_mask.nii.gz").is_file()
    labels = sorted(p.name for p in cohort.rglob("*_label-lesion_mask.nii.gz"))
    assert labels == ["sub-001_label-lesion_mask.nii.gz", "sub-002_label-lesion_mask.nii.gz"]
    assert read_json(cohort / "dataset_description.json")["DatasetType"] == "raw"
    assert read_json(cohort / "derivatives/oligovox-simulate/dataset_description.json")["DatasetType"] == "derivative"
    rows = read_tsv(cohort / "participants.tsv")
    assert [row["labelled"] for row in rows] == ["yes", "yes", "no"]
    assert rows[2]["lesion_mL"] == ""
    assert read_json(cohort / "sub-001/anat/sub-001_FLAIR.json")["InversionTime"] == pytest.approx(2.5, rel=0.2)


def test_files_hold_what_they_should(cohort):
    image = nib.load(cohort / "sub-001/anat/sub-001_T2w.nii.gz")
    label = nib.load(_derived(cohort, "sub-001") / "sub-001_label-lesion_mask.nii.gz")
    assert image.get_data_dtype() == np.int16
    assert label.get_data_dtype() == np.uint8
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    np.testing.assert_array_equal(image.affine, label.affine)
    np.testing.assert_allclose(image.header.get_zooms(), 4.0)
    load = float(read_tsv(cohort / "participants.tsv")[0]["lesion_mL"])
    assert np.asarray(label.dataobj).sum() * 0.064 == pytest.approx(load, abs=0.001)
    assert 4.5 < load < 31


def test_a_subject_does_not_depend_on_the_number_of_subjects_or_workers(cohort, tmp_path):
    other = simulate_cohort(tmp_path / "other", TINY, subjects=2, seed=1, workers=2)
    assert _bytes(other / "sub-002") == _bytes(cohort / "sub-002")
    assert _bytes(_derived(other, "sub-001")) == _bytes(_derived(cohort, "sub-001"))


def test_resume_makes_only_what_is_gone(tmp_path, monkeypatch):
    out = simulate_cohort(tmp_path / "out", TINY, subjects=2, seed=3, workers=1)
    before = _bytes(out)
    (out / "sub-002/anat/sub-002_T1w.nii.gz").unlink()
    made, make = [], write._make
    monkeypatch.setattr(write, "_make", lambda job: (made.append(job.name), make(job)))
    calls = []
    simulate_cohort(out, TINY, subjects=2, seed=3, workers=1, progress=lambda *call: calls.append(call))
    assert made == ["sub-002"]
    assert calls == [(1, 2, "sub-001"), (2, 2, "sub-002")]
    assert _bytes(out) == before
    (out / "sub-001/anat/sub-001_FLAIR.json").unlink()
    _derived(out, "sub-002").joinpath("sub-002_desc-simulation.json").write_text("[]")
    simulate_cohort(out, TINY, subjects=2, seed=3, workers=1)
    assert made == ["sub-002", "sub-001", "sub-002"]
    assert _bytes(out) == before


@pytest.mark.parametrize(("other", "seed", "what"), [({}, 4, "seed"), ({"sequences": ("FLAIR",)}, 3, "recipe")])
def test_a_folder_with_another_cohort_is_refused(tmp_path, other, seed, what):
    out = simulate_cohort(tmp_path / "out", TINY, subjects=1, seed=3, workers=1)
    before = _bytes(out)
    with pytest.raises(OutputError, match=f"another {what}; choose another folder"):
        simulate_cohort(out, TINY.model_copy(update=other), subjects=1, seed=seed, workers=1)
    assert _bytes(out) == before


def test_a_label_that_is_no_longer_told_is_gone(tmp_path):
    out = simulate_cohort(tmp_path / "out", TINY, subjects=1, seed=3, workers=1)
    simulate_cohort(out, TINY, subjects=1, seed=3, labelled=0, workers=1)
    assert not list(out.rglob("*_label-lesion_mask.nii.gz"))
    note = _derived(out, "sub-001") / "sub-001_desc-simulation.json"
    assert not {"lesion_mL", "lesions"} & set(read_json(note)["facts"])
    assert "lesion_mL" not in read_tsv(out / "participants.tsv")[0]


def test_a_killed_writer_leaves_no_half_file_and_the_next_run_ends_the_same(tmp_path):
    code = (
        "import sys; from pathlib import Path; from oligovox.simulate.recipe import make_recipe;"
        "from oligovox.simulate.write import simulate_cohort;"
        "simulate_cohort(Path(sys.argv[1]), make_recipe('ms-3t', {'spacing': 4.0, 'lesions': {'load_ml': [5.0, 30.0]}}), subjects=9, seed=9, workers=1)"
    )
    out = tmp_path / "out"
    child = subprocess.Popen([sys.executable, "-c", code, str(out)])
    end = time.monotonic() + 60
    while not (out / "sub-003").exists():
        assert time.monotonic() < end
        assert child.poll() is None
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    for file in out.rglob("*.nii.gz"):
        if not file.name.startswith(".tmp-"):
            assert np.asarray(nib.load(file).dataobj).any()
    simulate_cohort(out, TINY, subjects=9, seed=9, workers=1)
    clean = simulate_cohort(tmp_path / "clean", TINY, subjects=9, seed=9, workers=1)
    assert _bytes(out) == _bytes(clean)


def test_a_folder_with_other_subjects_is_refused(cohort):
    with pytest.raises(OutputError, match="has sub-003"):
        simulate_cohort(cohort, TINY, subjects=2, seed=1)


def test_a_folder_that_was_not_simulated_is_left_alone(tmp_path):
    image = tmp_path / "study" / "sub-001" / "anat" / "sub-001_T1w.nii.gz"
    image.parent.mkdir(parents=True)
    image.write_text("irreplaceable")
    for description in (None, '{"Name": "our study"}'):
        if description:
            (tmp_path / "study" / "dataset_description.json").write_text(description)
        with pytest.raises(OutputError, match="were not simulated here"):
            simulate_cohort(tmp_path / "study", TINY, subjects=1, seed=1, workers=1)
    assert image.read_text() == "irreplaceable"


def test_a_failing_subject_is_named(tmp_path, monkeypatch):
    def fail(recipe, seed, visit):
        raise ZeroDivisionError("no brain today")

    monkeypatch.setattr(write, "simulate_subject", fail)
    with pytest.raises(WorkerError, match="sub-001: ZeroDivisionError: no brain today"):
        simulate_cohort(tmp_path / "out", TINY, subjects=2, seed=1, workers=1)


@pytest.mark.parametrize("wrong", [{"subjects": 0}, {"seed": -1}, {"labelled": -1}, {"workers": 0}])
def test_numbers_out_of_range_are_refused_before_anything_is_written(tmp_path, wrong):
    with pytest.raises(SettingsError, match=f"{next(iter(wrong))} = "):
        simulate_cohort(tmp_path / "out", TINY, **{"subjects": 1, "seed": 0, **wrong})
    assert not (tmp_path / "out").exists()
    assert issubclass(SettingsError, InputError)


@pytest.fixture(scope="module")
def rims(tmp_path_factory):
    recipe = make_recipe("rim", {"spacing": 3.0, "raters": {}, "sparse": {"kind": "every", "every": 4}})
    return simulate_cohort(tmp_path_factory.mktemp("rim") / "out", recipe, subjects=1, seed=2, workers=1)


def test_every_sidecar_says_units_and_field_strength(rims):
    images = [
        p
        for p in rims.rglob("*.nii.gz")
        if p.name.split("_")[-1].split(".")[0] in ("T1w", "FLAIR", "T2starw", "Chimap")
    ]
    assert len(images) == 5  # magnitude, phase and susceptibility of one gradient echo
    for image in images:
        sidecar = read_json(image.with_name(image.name.removesuffix(".nii.gz") + ".json"))
        assert sidecar["MagneticFieldStrength"] == 3.0
        assert np.all(np.array(sidecar["EchoTime"]) < 0.2)  # seconds
        assert sidecar["Simulated"]
        assert ("Chimap" not in image.name) or sidecar["Units"] == "ppb"
        assert ("phase" not in image.name) or sidecar["Units"] == "rad"
    units = read_json(rims / "participants.json")
    assert {units[c]["Units"] for c in ("age", "field_T", "brain_mL")} == {"year", "T", "mL"}
    phase = np.asarray(nib.load(next(rims.rglob("*phase_T2starw.nii.gz"))).dataobj)
    assert -np.pi <= phase.min() < -1 < 1 < phase.max() <= np.pi + 1e-5


def test_tables_and_maps_on_disk_agree(rims):
    derived = _derived(rims, "sub-001")

    def load(name):
        return np.asarray(nib.load(derived / f"sub-001_{name}.nii.gz").dataobj)

    instances, lesion = load("desc-instances_dseg"), load("label-lesion_mask")
    rows = read_tsv(derived / "sub-001_desc-instances_dseg.tsv")
    volumes = np.bincount(instances.ravel())[1:] * 27
    np.testing.assert_allclose([float(row["volume_mm3"]) for row in rows], volumes, rtol=1e-3)
    np.testing.assert_array_equal(instances > 0, lesion > 0)
    assert {"rim", "coverage", "strength_ppb", "mimic"} <= set(rows[0])
    rimmed = [int(row["id"]) for row in rows if row["rim"] == "1"]
    np.testing.assert_array_equal(load("desc-rims_dseg"), np.where(np.isin(instances, rimmed), 2, lesion))
    assert read_bids(rims, mask="rims").labels == {"lesion": 1, "rim": 2}
    assert read_bids(rims, mask="sparse").labels == {"lesion": 1}
    sparse = load("desc-sparse_dseg")
    looked = (sparse != 255).any((0, 1))
    np.testing.assert_array_equal(sparse[..., looked], lesion[..., looked])
    assert looked.sum() == pytest.approx(lesion.shape[2] / 4, abs=1)
    raters = np.stack([load(f"desc-rater{k}_mask") for k in (1, 2, 3)])
    np.testing.assert_array_equal(load("desc-consensus_mask"), raters.sum(0) >= 2)


def test_two_visits_are_two_sessions(tmp_path):
    recipe = TINY.model_copy(update={"visits": 2, "sequences": ("FLAIR",)})
    out = simulate_cohort(tmp_path / "out", recipe, subjects=1, seed=3, workers=2)
    assert [case.name for case in read_bids(out).cases] == ["sub-001_ses-1", "sub-001_ses-2"]
    changes = [p.name for p in out.rglob("*desc-change_dseg.nii.gz")]
    assert changes == ["sub-001_ses-2_desc-change_dseg.nii.gz"]


def test_classes_of_a_cohort_are_written_where_the_reader_finds_them(tmp_path):
    changes = {"spacing": 4.0, "sequences": ["FLAIR"], "sparse": {"kind": "scribbles"}}
    out = simulate_cohort(tmp_path / "out", make_recipe("glioma-2024", changes), subjects=1, seed=2, workers=1)
    cohort, part = (read_bids(out, mask=mask) for mask in ("tumour", "sparse"))
    assert cohort.labels == part.labels == {"NETC": 1, "SNFH": 2, "ET": 3, "RC": 4}
    assert [cohort.cases[0].sparse, part.cases[0].sparse] == [False, True]
    whole = np.asarray(nib.load(read_bids(out).cases[0].label).dataobj)
    labels = np.asarray(nib.load(cohort.cases[0].label).dataobj)
    np.testing.assert_array_equal(whole > 0, np.isin(labels, (1, 2, 3)))
