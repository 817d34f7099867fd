"""Folders whose files are called by their sequence: what is taken for what, what is said, and what is not guessed."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oligovox import experiment
from oligovox.cohort.layouts import detect, read
from oligovox.cohort.manifest import Cohort
from oligovox.cohort.modalities import ALIASES
from oligovox.cohort.reading import Asked
from oligovox.errors import CohortError

Volume = Callable[..., Path]


def _tree(root: Path, *names: str) -> Path:
    for name in names:
        path = root / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def _files(cohort: Cohort) -> dict[str, dict[str, str]]:
    return {case.name: {what: path.name.split(".")[0] for what, path in case.files.items()} for case in cohort.cases}


def test_a_folder_a_person(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = _tree(
        tmp_path / "ward 7",
        *(
            "Pat 1/FLAIR",
            "Pat 1/3D T1 MPRAGE",
            "Pat 1/lesion_mask",
            "Pat 1/brain_mask",
            "Pat 1/bold",
            "Pat 1/old/FLAIR",
        ),
        *(
            "Müller/Müller_t2_flair_sag",
            "Müller/Müller_t1_mprage_gd",
            "Müller/Müller_FLAIR_lesion",
            "Müller/Müller-T1-map",
        ),
        *("docs/lesion_FLAIR", "MS_03/t2s", "MS_03/t1c_sag", "MS_03/brainmask", "MS_03/wm_seg"),
    )
    for name in ("notes.txt", "Pat 1/report.pdf", "Pat 1/._FLAIR.nii.gz", "Pat 1/FLAIR.json", "ages.csv"):
        (root / name).write_text("x")
    assert detect(root).layout == "named"
    assert _files(read(root)) == {
        "sub-MS_03": {"T2starw": "t2s", "T1wGd": "t1c_sag", "brain": "brainmask"},
        "sub-Muller": {"FLAIR": "Müller_t2_flair_sag", "T1wGd": "Müller_t1_mprage_gd", "label": "Müller_FLAIR_lesion"},
        "sub-Pat-1": {"FLAIR": "FLAIR", "T1w": "3D T1 MPRAGE", "label": "lesion_mask", "brain": "brain_mask"},
    }
    (line,) = caplog.messages
    assert "3 people (MS_03, Müller, Pat 1)" in line
    assert "T1wGd from Müller_t1_mprage_gd.nii.gz, t1c_sag.nii.gz" in line
    unused = "not used: MS_03/wm_seg.nii.gz, Müller/Müller-T1-map.nii.gz, Pat 1/bold.nii.gz, Pat 1/old/FLAIR.nii.gz and 1 more"
    assert unused in line
    assert f"oligovox cohort write '{root}' exams.tsv --to table" in line


def test_all_in_one_folder(tmp_path: Path) -> None:
    root = _tree(
        tmp_path / "all",
        *("Pat1_FLAIR", "Pat1_T1", "Pat1_lesion", "Pat1_brain_mask", "Pat2-flair", "Pat2-lesion-mask"),
        *("山田 t1_post", "Postma_T1", "Aslan_FLAIR", "sub-04_ses-2_T2w"),
    )
    names = {subject: images for subject, images in _files(read(root)).items() if "T1wGd" not in images}
    assert names == {
        "sub-Pat1": {"FLAIR": "Pat1_FLAIR", "T1w": "Pat1_T1", "label": "Pat1_lesion", "brain": "Pat1_brain_mask"},
        "sub-Pat2": {"FLAIR": "Pat2-flair", "label": "Pat2-lesion-mask"},
        "sub-Postma": {"T1w": "Postma_T1"},
        "sub-Aslan": {"FLAIR": "Aslan_FLAIR"},
        "sub-04_ses-2": {"T2w": "sub-04_ses-2_T2w"},
    }
    assert len(read(root)) == 6
    assert _files(read(_tree(tmp_path / "one", "FLAIR", "T1"))) == {"sub-one": {"FLAIR": "FLAIR", "T1w": "T1"}}


def test_masks_and_sequences_are_chosen_by_name(tmp_path: Path) -> None:
    root = _tree(tmp_path, "P/FLAIR", "P/lesion_rater1", "P/lesion_rater2", "P/MRI", "Q/FLAIR", "Q/seg")
    assert [case.label and case.label.name for case in read(root).cases] == [None, "seg.nii.gz"]
    asked = Asked(mask="rater2", sequences={"mri": "T2w"}, labels={"plaque": 1})
    cohort = read(root, asked=asked)
    assert _files(cohort)["sub-P"] == {"FLAIR": "FLAIR", "T2w": "MRI", "label": "lesion_rater2"}
    assert (len(cohort.labelled), cohort.labels) == (1, {"plaque": 1})
    assert not read(root, asked=Asked(mask=None)).labelled
    with pytest.raises(CohortError, match="no mask has a name that ends in 'rater3'"):
        read(root, asked=Asked(mask="rater3"))


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (
            ("P/FLAIR", "P/FLAIR_bet"),
            r"FLAIR\.nii\.gz and FLAIR_bet\.nii\.gz are both FLAIR; keep one, or list the files",
        ),
        (
            ("P/v1_FLAIR", "P/v2_T1"),
            "images of 'v1' and of 'v2', expected those of one exam; list the files in a table",
        ),
        (("P/FLAIR", "P/lesion", "P/seg"), "both masks of lesions"),
        (("P/FLAIR", "P/brainmask", "P/brain_mask"), "both brain masks"),
        (("2019/Ho_FLAIR", "2020/Ho_T1"), "files called 'Ho…' as .*2019 has; if that is one person"),
        (("P/FLAIR", "images/T1"), "a folder 'images' is no person's"),
        (("P/FLAIR", "FLAIR/P_FLAIR"), "a folder 'FLAIR' is no person's"),
        (("P/FLAIR", "Q_FLAIR"), "has images and folders with images"),
        (("P_FLAIR", "Q_lesion"), r"Q_lesion\.nii\.gz: a mask without an image of 'Q'"),
        (("P_FLAIR", "P_raw_T1"), "'P' and 'P_raw' may be one person"),
        (("P_FLAIR", "p_T1"), "'P' and 'p' may be one person"),
        (("P_FLAIR", "T1"), r"with and without a name before the sequence \('P'\)"),
        (("Müller/FLAIR", "Muller/FLAIR"), "would both be called 'Muller'"),
    ],
)
def test_what_could_mean_two_things_is_refused(tmp_path: Path, names: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(CohortError, match=complaint) as refused:
        read(_tree(tmp_path, *names))
    assert "\n" not in str(refused.value)


def test_visits_below_a_person_are_not_taken_for_people(tmp_path: Path) -> None:
    root = _tree(tmp_path, "P/2019/FLAIR", "P/2020/FLAIR", "images/Q_FLAIR", "masks/Q_lesion")
    with pytest.raises(CohortError, match="mend the folder, or list its files in a table"):
        read(root)
    with pytest.raises(CohortError, match="no file is called by its sequence"):
        read(_tree(tmp_path / "other", "P/2019/FLAIR"), "named")


def test_links(tmp_path: Path) -> None:
    root = _tree(tmp_path / "data", "P/FLAIR")
    (root / "P" / "T1.nii.gz").symlink_to(_tree(tmp_path / "elsewhere", "x") / "x.nii.gz")
    assert _files(read(root))["sub-P"] == {"FLAIR": "FLAIR", "T1w": "T1"}
    (root / "now").symlink_to(root / "P", target_is_directory=True)
    with pytest.raises(CohortError, match="'P' and 'now' have the same file"):
        read(root)
    (root / "now").unlink()
    (root / "P" / "T2.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    with pytest.raises(CohortError, match=r"T2\.nii\.gz: is a link to nowhere"):
        read(root)


def test_the_table_that_it_offers_gives_the_same_cohort(make_volume: Volume, tmp_path: Path) -> None:
    root = tmp_path / "ward ü"
    for person in ("Ann B", "山田"):
        for name, values in (("FLAIR", ()), ("t1_mprage_gd", ()), ("lesion_mask", [1]), ("brain_mask", [1])):
            make_volume(root / person / f"{name}.nii.gz", values)
    result = experiment.write_cohort(root, tmp_path / "exams.tsv", to="table", layout="named")
    assert (result["cases"], result["labelled"]) == (2, 2)
    ours, theirs = read(root), read(tmp_path / "exams.tsv")
    assert (theirs.cases, theirs.labels) == (ours.cases, ours.labels)
    assert experiment.look_at(root)["because"] == ["4 files called by a sequence, such as Ann B/FLAIR.nii.gz"]


@given(
    st.sampled_from(sorted({alias for aliases in ALIASES.values() for alias in aliases})),
    st.sampled_from(["{}", "{}_sag", "P_{}"]),
)
def test_every_spelling_of_a_sequence_is_understood(spelling: str, form: str) -> None:
    (expected,) = (name for name, aliases in ALIASES.items() if spelling in aliases)
    from oligovox.cohort.named_files import _read_name
    from oligovox.cohort.reading import AS_IT_IS

    _, what = _read_name(Path(f"P/{form.format(spelling)}.nii.gz"), "P", AS_IT_IS)
    assert what == expected or (what == "" and form.endswith("_sag")), "never another one"


def test_masks_of_hospitals_are_not_taken_for_those_of_a_database(
    make_volume: Volume, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    for name in ("FLAIR", "T1W"):
        make_volume(tmp_path / "patient01" / f"{name}.nii.gz")
    mask = make_volume(tmp_path / "patient01" / "lesion_mask.nii.gz", [1])
    assert detect(tmp_path).layout == "named"
    assert read(tmp_path).cases[0].label == mask
    shutil.move(mask, mask.with_name("consensus_gt.nii.gz"))
    assert detect(tmp_path).layout == "ljubljana"
    assert read(tmp_path).cases[0].label == mask.with_name("consensus_gt.nii.gz")
    make_volume(tmp_path / "tumours" / "p1" / "p1_flair.nii.gz")
    lesion = make_volume(tmp_path / "tumours" / "p1" / "p1_lesion.nii.gz", [1])
    assert read(tmp_path / "tumours").cases[0].label == lesion, "nothing in it is called as BraTS alone does"
