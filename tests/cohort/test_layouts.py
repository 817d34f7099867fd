"""Every reader on a folder in its real form, the detector, and what the readers refuse."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from oligovox.cohort import brats, layouts, nnunet
from oligovox.cohort.layouts import detect, looks, read
from oligovox.cohort.manifest import Cohort
from oligovox.cohort.reading import Asked, plain_names, who
from oligovox.errors import CohortError, SettingsError

Make = Callable[[str, Path], Path]
Volume = Callable[..., Path]

FOUR = ("FLAIR", "T1w", "T1wGd", "T2w")
EXPECTED = {
    "bids": ("bids", ["sub-01_ses-1", "sub-02_ses-1"], ("FLAIR", "T1w"), 1, {"lesion": 1}),
    "nnunet": ("nnunet", ["sub-09_ses-2", "sub-ms_001", "sub-ms_002"], ("FLAIR", "T1w"), 2, {"lesion": 1, "hole": 2}),
    "brats_old": (
        *("brats", ["sub-BraTS20_Training_001", "sub-BraTS20_Training_002"], FOUR, 2),
        {"necrotic core": 1, "oedema": 2, "enhancing tumour": 4},
    ),
    "brats": (
        *("brats", ["sub-BraTS-GLI-00005_ses-100", "sub-BraTS-GLI-00005_ses-101"], FOUR, 2),
        {"necrotic core": 1, "oedema": 2, "enhancing tumour": 3, "resection cavity": 4},
    ),
    "isbi2015": (
        *("isbi2015", [f"sub-{p}_ses-{v}" for p in ("test01", "training01") for v in ("01", "02")]),
        *(("FLAIR", "PDw", "T1w", "T2w"), 2, {"lesion": 1}),
    ),
    "msseg2016": (
        "msseg2016",
        ["sub-01-01", "sub-test-01-01"],
        ("FLAIR", "PDw", "T1w", "T1wGd", "T2w"),
        2,
        {"lesion": 1},
    ),
    "ljubljana": ("ljubljana", ["sub-patient01", "sub-patient02"], FOUR, 2, {"lesion": 1}),
    "datalist": ("datalist", ["sub-spleen_2", "sub-spleen_3", "sub-spleen_7"], ("T2w",), 2, {"spleen": 1}),
    "table": ("table", ["sub-p1", "sub-p2"], ("FLAIR",), 1, {"lesion": 1}),
}


@pytest.mark.parametrize("tree", EXPECTED)
def test_a_folder_is_known_for_what_it_is_and_read(make: Make, tmp_path: Path, tree: str) -> None:
    root = make(tree, tmp_path / "data set ü")
    before = sorted(root.rglob("*"))
    layout, names, sequences, labelled, labels = EXPECTED[tree]
    assert detect(root).layout == layout
    cohort = read(root)
    assert [case.name for case in cohort.cases] == names
    assert (cohort.modalities, len(cohort.labelled), cohort.labels) == (sequences, labelled, labels)
    assert all(path.is_file() for case in cohort.cases for path in case.images.values())
    assert not read(root, layout, Asked(mask=None)).labelled
    fits = [look.layout for look in looks(root) if look.fits]
    assert [name for name in fits if name != "named"] == [layout], "two layouts claim the same folder"
    assert sorted(root.rglob("*")) == before


def test_details_of_the_challenges(make: Make, tmp_path: Path) -> None:
    msseg = read(make("msseg2016", tmp_path / "msseg"), asked=Asked(mask="rater7"))
    assert [case.info for case in msseg.cases] == [{"centre": "01"}, {"centre": "01", "part": "test"}]
    assert read(tmp_path / "msseg" / "Testing").people == msseg.people[1:], (
        "a name does not hang on what lies beside it"
    )
    assert {case.label.name for case in msseg.labelled if case.label} == {"ManualSegmentation_7.nii.gz"}
    assert {path.parent.name for case in msseg.cases for path in case.images.values()} == {"Preprocessed_Data"}
    isbi = make("isbi2015", tmp_path / "isbi")
    one, two = (read(isbi, asked=Asked(mask=mask)).labelled[0].label for mask in ("lesion", "rater2"))
    assert one
    assert two
    assert (one.name, two.name) == ("training01_01_mask1.nii", "training01_01_mask2.nii")
    assert read(isbi).people == ("test01", "training01"), "visits belong to one person"
    assert all(case.brain for case in read(make("ljubljana", tmp_path / "lj")).cases)
    with pytest.raises(CohortError, match="no label is called 'rater3' here; did you mean 'rater"):
        read(isbi, asked=Asked(mask="rater3"))


def test_change_masks_of_the_longitudinal_set_are_no_labels(make_volume: Volume, tmp_path: Path) -> None:
    for visit in (1, 2):
        make_volume(tmp_path / "patient04" / f"study{visit}_FLAIR.nii.gz")
    make_volume(tmp_path / "patient04" / "gt.nii.gz", [1])
    cohort = read(tmp_path)
    assert [case.name for case in cohort.cases] == ["sub-patient04_ses-1", "sub-patient04_ses-2"]
    assert not cohort.labelled


def test_grades_of_brats_2018_and_values_of_2013(make_volume: Volume, tmp_path: Path) -> None:
    for grade, case in (("HGG", "Brats18_2013_2_1"), ("LGG", "Brats18_TCIA09_1_1")):
        make_volume(tmp_path / grade / case / f"{case}_flair.nii.gz")
        make_volume(tmp_path / grade / case / f"{case}_seg.nii.gz", [1, 2, 3, 4])
    cohort = read(tmp_path)
    assert [case.info["grade"] for case in cohort.cases] == ["HGG", "LGG"]
    assert cohort.labels == {"necrotic core": 1, "oedema": 2, "non-enhancing core": 3, "enhancing tumour": 4}
    assert read(tmp_path, asked=Asked(labels={"tumour": 1})).labels == {"tumour": 1}


def test_classes_of_children_are_not_those_of_adults(make_volume: Volume, tmp_path: Path) -> None:
    case = "BraTS-PED-00001-000"
    make_volume(tmp_path / case / f"{case}-t2f.nii.gz")
    make_volume(tmp_path / case / f"{case}-seg.nii.gz", [1, 2, 3, 4])
    with pytest.raises(CohortError, match=r"BraTS-PED-00001-000 is a child's, .*--labels 'cyst=3'"):
        read(tmp_path)
    assert read(tmp_path, asked=Asked(mask=None)).people == ("BraTS-PED-00001",)
    named = {"enhancing tumour": 1, "non-enhancing tumour": 2, "cyst": 3, "oedema": 4}
    assert read(tmp_path, asked=Asked(labels=named)).labels == named
    make_volume(tmp_path / case / f"{case}-seg.nii.gz", [1, 2, 3])  # as of 2023
    assert read(tmp_path).labels["enhancing tumour"] == 3


@pytest.mark.parametrize(
    ("values", "enhancing"),
    [([1, 2, 3], {"enhancing tumour": 3}), ([1, 2, 4], {"enhancing tumour": 3, "resection cavity": 4})],
)
def test_four_is_the_cavity_in_newer_names(
    make_volume: Volume, tmp_path: Path, values: list[int], enhancing: dict[str, int]
) -> None:
    case = "BraTS-GLI-02062-100"
    make_volume(tmp_path / case / f"{case}-t2f.nii.gz")
    make_volume(tmp_path / case / f"{case}-seg.nii.gz", values)
    assert read(tmp_path).labels == {"necrotic core": 1, "oedema": 2} | enhancing
    old = "BraTS20_Training_001"
    make_volume(tmp_path / old / f"{old}_flair.nii.gz")
    make_volume(tmp_path / old / f"{old}_seg.nii.gz", [1, 2, 4])
    with pytest.raises(
        CohortError, match=r"labels mean .*enhancing tumour=3.* in some and .*enhancing tumour=4 in others"
    ):
        read(tmp_path)


def test_volumes_for_radiotherapy_are_one_class(make_volume: Volume, tmp_path: Path) -> None:
    for case in ("BraTS-MEN-RT-0000-1", "BraTS-MEN-RT-0000-2", "BraTS-MEN-RT-0003-1"):
        make_volume(tmp_path / case / f"{case}_t1c.nii.gz")
    assert read(tmp_path).labels == {"gross tumour volume": 1}, "though nobody drew one yet"
    make_volume(tmp_path / case / f"{case}_gtv.nii.gz", [1])
    for mask in ("lesion", "gtv"):
        cohort = read(tmp_path, asked=Asked(mask=mask))
        assert (len(cohort.labelled), cohort.labels) == (1, {"gross tumour volume": 1})
    assert cohort.people == ("BraTS-MEN-RT-0000", "BraTS-MEN-RT-0003"), "the last number is a visit"
    make_volume(tmp_path / "BraTS-GLI-00001-000" / "BraTS-GLI-00001-000-t1c.nii.gz")
    make_volume(tmp_path / "BraTS-GLI-00001-000" / "BraTS-GLI-00001-000-seg.nii.gz", [1, 2, 3])
    with pytest.raises(CohortError, match="give folders of one kind"):
        read(tmp_path)


def _nnunet(root: Path, make: Make, **about: object) -> Path:
    content = json.loads((make("nnunet", root) / "dataset.json").read_text()) | about
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def test_regions_of_nnunet_become_classes(make: Make, tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
    cohort = read(_nnunet(tmp_path, make, labels=labels, regions_class_order=[1, 2, 3]))
    assert cohort.labels == {"whole-1": 1, "core-2": 2, "enhancing": 3}
    assert cohort.regions == {
        "whole": ("whole-1", "core-2", "enhancing"), "core": ("core-2", "enhancing"), "enhancing": ("enhancing",),
    }  # fmt: skip
    cohort.save(tmp_path / "cohort.tsv")
    assert Cohort.load(tmp_path / "cohort.tsv").regions == cohort.regions


def test_ignore_label_of_nnunet_is_where_nobody_looked(make: Make, tmp_path: Path) -> None:
    cohort = read(_nnunet(tmp_path, make, labels={"background": 0, "lesion": 1, "ignore": 2}))
    assert [(case.sparse, case.unlooked) for case in cohort.labelled] == [(True, 2), (True, 2)]
    cohort.save(tmp_path / "cohort.tsv")
    assert Cohort.load(tmp_path / "cohort.tsv").labelled == cohort.labelled


def test_the_older_form_and_a_table_of_files(make: Make, tmp_path: Path) -> None:
    old = _nnunet(
        tmp_path / "old",
        make,
        labels={"0": "background", "1": "lesion", "2": "hole"},
        modality={"0": "T1", "1": "FLAIR"},
    )
    content = json.loads((old / "dataset.json").read_text())
    del content["channel_names"]
    (old / "dataset.json").write_text(json.dumps(content))
    assert read(old).labels == {"lesion": 1, "hole": 2}
    files = {"images": [f"imagesTr/ms_001_000{n}.nii.gz" for n in (0, 1)], "label": "labelsTr/ms_001.nii.gz"}
    listed = read(_nnunet(tmp_path / "listed", make, dataset={"A B": files}))
    assert [case.name for case in listed.labelled] == ["sub-A-B"]


def test_a_channel_without_a_file_is_a_missing_sequence(make: Make, tmp_path: Path) -> None:
    (make("nnunet", tmp_path) / "imagesTr" / "ms_001_0000.nii.gz").unlink()
    assert list(read(tmp_path).cases[1].images) == ["FLAIR"]


def test_predictions_of_nnunet_are_matched_by_name(make_volume: Volume, tmp_path: Path) -> None:
    for name in ("sub-09_ses-2", "BraTS-GLI-00005-100", "ms_001"):
        make_volume(tmp_path / f"{name}.nii.gz", [1])
    (tmp_path / "plans.json").write_text("{}")
    assert set(nnunet.predictions(tmp_path)) == {("", "09", "2"), ("", "BraTS-GLI-00005", "100"), ("", "ms_001", "")}


@pytest.mark.parametrize(
    ("items", "names", "sequences"),
    [
        ([{"image": ["a_t1c.nii.gz", "a_t2f.nii.gz"]}], ["sub-a"], ("FLAIR", "T1wGd")),
        ([{"t1c": "p1/x.nii.gz", "flair": "p1/y.nii.gz", "label": "p1/s.nii.gz"}], ["sub-p1"], ("FLAIR", "T1wGd")),
        ([{"image": "a_t1c.nii.gz", "fold": 2, "subject": "sub-7", "session": "b"}], ["sub-7_ses-b"], ("T1wGd",)),
        ([{"image": "BraTS-GLI-00005-100-t2w.nii.gz"}], ["sub-BraTS-GLI-00005_ses-100"], ("T2w",)),
    ],
)
def test_datalists_in_use(
    make_volume: Volume, tmp_path: Path, items: list[dict[str, object]], names: list[str], sequences: tuple[str, ...]
) -> None:
    texts = [
        text for item in items for value in item.values() for text in (value if isinstance(value, list) else [value])
    ]
    for text in (text for text in texts if str(text).endswith(".nii.gz")):
        make_volume(tmp_path / str(text), [1])
    (tmp_path / "folds.json").write_text(json.dumps({"training": items}))
    cohort = read(tmp_path / "folds.json")
    assert ([case.name for case in cohort.cases], cohort.modalities) == (names, sequences)


def test_what_lies_elsewhere_is_read_and_said(
    make_volume: Volume, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = make_volume(tmp_path / "elsewhere" / "a_flair.nii.gz")
    (tmp_path / "list").mkdir()
    for text in (str(image), "../elsewhere/a_flair.nii.gz"):
        (tmp_path / "list" / "a.json").write_text(json.dumps({"training": [{"image": text}]}))
        assert read(tmp_path / "list").cases[0].images["FLAIR"].samefile(image)
        assert "1 of 1 files lie elsewhere" in caplog.text
        caplog.clear()
    (tmp_path / "list" / "a.json").unlink()
    (tmp_path / "list" / "a.csv").write_text(f"id,FLAIR\n1,{image}\n")
    assert read(tmp_path / "list").cases[0].images["FLAIR"] == image
    assert "lie elsewhere" in caplog.text


def test_a_sequence_that_is_called_otherwise_can_be_named(make: Make, tmp_path: Path) -> None:
    root = _nnunet(tmp_path, make, channel_names={"0": "MRI", "1": "FLAIR"})
    with pytest.raises(CohortError, match=r"'MRI' is no sequence that is known, .*--sequence 'MRI=FLAIR'"):
        read(root)
    assert read(root, asked=Asked(sequences={"mri": "T2w"})).modalities == ("FLAIR", "T2w")


def test_a_folder_that_is_nearly_one_says_what_is_missing(make: Make, make_volume: Volume, tmp_path: Path) -> None:
    (make("nnunet", tmp_path / "a" / "Dataset001_MS") / "dataset.json").unlink()
    with pytest.raises(
        CohortError, match=r"nearly nnunet \(6 images .*\), without dataset\.json with channel_names and labels"
    ):
        read(tmp_path / "a" / "Dataset001_MS")
    make("bids", tmp_path / "b" / "exams")
    with pytest.raises(CohortError, match=r"did you mean .*/exams\?"):
        read(tmp_path / "b")
    with pytest.raises(CohortError, match="no such folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(SettingsError, match="unknown layout 'nnUnet2'; did you mean 'nnunet'"):
        read(tmp_path / "a", "nnUnet2")
    make_volume(tmp_path / "c" / "scan.nii.gz")
    with pytest.raises(CohortError, match="nothing in it looks like one"):
        read(tmp_path / "c")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"channel_names": 3}, "channel_names is 3, expected names with values"),
        ({"channel_names": {"0": "T1", "1": "t1n"}}, "two channels are called T1w"),
        ({"channel_names": {"0": "T1"}}, "has the channel number 1, dataset.json names only 0"),
        ({"labels": {"lesion": "one"}}, "label 'lesion' is 'one', expected a whole number"),
        ({"labels": [1]}, r"labels is \[1\]"),
        ({"file_ending": ".nrrd"}, "file_ending is '.nrrd'; only NIfTI is read"),
        ({"dataset": {"a": {"images": ["/etc/nowhere.nii.gz"]}}}, "names the file /etc/nowhere.nii.gz, but"),
    ],
)
def test_what_nnunet_reader_refuses(make: Make, tmp_path: Path, change: dict[str, object], complaint: str) -> None:
    with pytest.raises(CohortError, match=complaint):
        read(_nnunet(tmp_path, make, **change))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("id,FLAIR\n1,a.nii.gz,x\n", "line 2 has 3 fields, expected 2"),
        ("id,FLAIR,FLAIR\n1,a,a\n", "the column 'FLAIR' twice"),
        ("id,FLAIR\n\n1,gone.nii.gz\n", r"line 3: names the file gone\.nii\.gz, but"),
        ("id,FLAIR\n", "no line; expected one for each exam"),
        ("id,age\n1,2\n", "expected a column called as a sequence"),
        ("FLAIR\na\n", "expected a column subject"),
        ("id,FLAIR\n1,\n", "line 2: names no image"),
        ("id,FLAIR\nA B,a.nii.gz\nA-B,a.nii.gz\n", "'A B' and 'A-B' would both be called 'A-B'"),
        ("id,FLAIR\n1,a.nii.gz\n1,a.nii.gz\n", "'sub-1' is listed twice"),
    ],
)
def test_what_the_table_reader_refuses(make_volume: Volume, tmp_path: Path, text: str, complaint: str) -> None:
    make_volume(tmp_path / "a.nii.gz")
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(CohortError, match=complaint):
        read(tmp_path / "t.csv")


def test_names() -> None:
    assert plain_names(["Müller", "p 01", "x..y", "山田 3"], "here") == {
        "Müller": "Muller", "p 01": "p-01", "x..y": "x..y", "山田 3": "3-" + plain_names(["山田 3"], "")["山田 3"][2:],
    }  # fmt: skip
    with pytest.raises(CohortError, match="'Müller' and 'Muller' would both be called 'Muller'"):
        plain_names(["Müller", "Muller"], "here")
    assert who("site_sub-01_ses-2") == ("site", "01", "2")
    assert who("TCGA-DU-7294-000") == ("", "TCGA-DU-7294", "000")
    assert who("la_003") == ("", "la_003", "")


def test_a_label_without_an_image_and_a_file_that_is_there_twice(
    make: Make, make_volume: Volume, tmp_path: Path
) -> None:
    make_volume(make("nnunet", tmp_path) / "labelsTr" / "ms_009.nii.gz", [1])
    with pytest.raises(CohortError, match=r"ms_009\.nii\.gz: a label without an image"):
        read(tmp_path)
    (tmp_path / "labelsTr" / "ms_009.nii.gz").unlink()
    make_volume(tmp_path / "imagesTr" / "ms_001_0000.nii")
    with pytest.raises(CohortError, match=r"is there as \.nii and as \.nii\.gz"):
        read(tmp_path)


def test_readers_are_asked_in_a_fixed_order() -> None:
    assert list(layouts.readers())[:3] == ["bids", "nnunet", "brats"]
    assert layouts.readers()["brats"] is brats


@pytest.mark.real
def test_real_folders(real_data: Path, tmp_path: Path) -> None:
    assert detect(real_data / "openms").layout == "bids"
    (untouched,) = read(real_data / "openms" / "sourcedata").cases
    assert (untouched.name, sorted(untouched.images)) == ("sub-lo12_ses-1", ["FLAIR", "T1w", "T2w"])
    tumours = read(real_data / "brats")
    assert tumours.people == ("BraTS-GLI-00001", "TCGA-DU-7294")
    assert tumours.modalities == FOUR
    assert tumours.labels == {"necrotic core": 1, "oedema": 2, "enhancing tumour": 3}
    nnunet.write(tumours, tmp_path / "Dataset001_Tumours", link=True)
    again = read(tmp_path / "Dataset001_Tumours")
    assert again.labels == tumours.labels
    for ours, theirs in zip(again.cases, tumours.cases, strict=True):
        assert (ours.name, ours.label and ours.label.resolve()) == (
            theirs.name,
            theirs.label and theirs.label.resolve(),
        )
        assert {k: p.resolve() for k, p in ours.images.items()} == {k: p.resolve() for k, p in theirs.images.items()}
    older = read(real_data / "brats13_nc", asked=Asked(mask="seg4", labels={"non-enhancing core": 3}))
    assert (len(older), older.modalities) == (5, ("FLAIR", "T1wGd"))
    assert all(case.label and case.label.name.endswith("-seg4.nii.gz") for case in older.cases)


def test_a_folder_that_may_not_be_read_is_said(
    make_phantom: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_phantom(tmp_path / "exams", subjects=2, labelled=2, side=8)
    scan = os.scandir

    def closed(folder: Path) -> object:
        if Path(folder).parts[-2:] == ("sub-02", "anat"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(CohortError, match="sub-02/anat: this folder may not be read; ask for access"):
        read(root)
