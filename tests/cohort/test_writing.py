"""Writers: read-write-read is the identity, and nothing lands outside of the new folder."""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oligovox.cohort import bids_write, datalist, nnunet
from oligovox.cohort.bids import read_bids
from oligovox.cohort.layouts import detect, read
from oligovox.cohort.manifest import Case, Cohort
from oligovox.errors import CohortError, ImageError, LabelError, OutputError

Make = Callable[[str, Path], Path]
Volume = Callable[..., Path]

SEQUENCES = ("T1w", "T1wGd", "FLAIR", "QSM", "T2spir")
QUICK = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def content(cohort: Cohort) -> dict[str, Any]:
    """All that a cohort says, with voxels in place of paths, and classes in place of the values in the files."""
    names = {value: name for name, value in cohort.labels.items()}

    def voxels(path: Path | None) -> Any:
        return path and zlib.crc32(np.asanyarray(nib.load(path).dataobj).astype(np.int32).tobytes())

    def classes(case: Case) -> Any:
        known = {0: "", **names, **({case.unlooked: "nobody looked"} if case.sparse else {})}
        return case.label and "|".join(known[int(v)] for v in np.asanyarray(nib.load(case.label).dataobj).ravel()[:9])

    return {
        "labels": sorted(cohort.labels, key=lambda name: cohort.labels[name]),
        "regions": {name: set(parts) for name, parts in cohort.regions.items()},
        "cases": {
            case.name: {
                "who": (case.dataset, case.subject, case.session),
                "images": {name: voxels(path) for name, path in sorted(case.images.items())},
                "label": classes(case),
                "sparse": case.sparse,
                "brain": voxels(case.brain),
                "info": dict(case.info),
            }
            for case in cohort.cases
        },
    }


def without(found: dict[str, Any], *keys: str) -> dict[str, Any]:
    cases = {name: {k: v for k, v in case.items() if k not in keys} for name, case in found["cases"].items()}
    return {k: v for k, v in found.items() if k not in keys} | {"cases": cases}


@pytest.fixture(scope="session")
def stock(make_volume: Volume, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Images to make cohorts of; masks with the values 2 and 5, one with 255 where nobody looked."""
    home = tmp_path_factory.mktemp("stock")
    files = {name: make_volume(home / f"{name}{'x' * n}.nii.gz") for n, name in enumerate(SEQUENCES)}
    files["FLAIR"] = make_volume(home / "flair.nii")
    files["label"] = make_volume(home / "label.nii.gz", [2, 5, 5])
    files["sparse"] = make_volume(home / "part.nii.gz", [2, 255])
    files["sparse"].with_name("part.json").write_text('{"Unlabelled": 255}')
    files["brain"] = make_volume(home / "brain.nii", [1, 1])
    return files


@st.composite
def cohorts(draw: st.DrawFn, stock: Mapping[str, Path], names: str, info: str) -> Cohort:
    """Some people with some visits, sequences and masks; `names` and `info` are what their names and tables may be made of."""
    word = st.text(names, min_size=1, max_size=8).filter(
        lambda text: text[0] not in ".-" and not text.startswith("sub-")
    )
    people = draw(st.lists(word, min_size=1, max_size=3, unique_by=str.lower))
    cases = []
    for person in people:
        about = draw(
            st.dictionaries(
                st.sampled_from(["age", "site", "unlooked"]), st.text(info, min_size=1, max_size=5), max_size=2
            )
        )
        visits = draw(st.sampled_from([[""], ["1"], ["1", "2b"]]))
        for visit in visits:
            chosen = draw(st.sets(st.sampled_from(SEQUENCES), min_size=1))
            mask = draw(st.sampled_from([None, "label", "sparse"]))
            cases.append(
                Case(
                    subject=person, session=visit, info=about,
                    images={name: stock[name] for name in sorted(chosen)},
                    label=stock[mask] if mask else None, sparse=mask == "sparse",
                    brain=stock["brain"] if draw(st.booleans()) else None,
                )
            )  # fmt: skip
    regions = draw(st.sampled_from([{}, {"all": ("lesion", "hole"), "hole only": ("hole",)}]))
    return Cohort(cases=tuple(cases), labels={"lesion": 2, "hole": 5}, regions=regions)


FREE, PLAIN = "abz019+-_.", "abz019"
TEXT = "abc 12,;ü'"


@QUICK
@given(data=st.data())
def test_datalists_lose_nothing(stock: Mapping[str, Path], data: st.DataObject) -> None:
    cohort = data.draw(cohorts(stock, FREE, TEXT))
    with tempfile.TemporaryDirectory() as home:
        datalist.write(cohort, Path(home) / "list.json")
        again = read(Path(home) / "list.json")
        assert content(again) == content(cohort)
        assert again.labels == cohort.labels
        assert [case.images for case in again.cases] == [case.images for case in cohort.cases], (
            "files stay where they are"
        )


@QUICK
@given(data=st.data(), link=st.booleans())
def test_nnunet_keeps_all_that_it_has_a_place_for(stock: Mapping[str, Path], data: st.DataObject, link: bool) -> None:
    cohort = data.draw(cohorts(stock, FREE, TEXT))
    with tempfile.TemporaryDirectory() as home:
        once, twice = Path(home) / "Dataset001_A", Path(home) / "Dataset002_B"
        nnunet.write(cohort, once, incomplete="keep", link=link)
        assert detect(once).layout == "nnunet"
        first = read(once)
        assert without(content(first), "brain") == without(content(cohort), "brain")
        assert list(first.labels.values()) == [1, 2], "nnU-Net wants consecutive values"
        nnunet.write(first, twice, incomplete="keep")
        assert content(read(twice)) == content(first)
        assert not [path for path in Path(home).iterdir() if path not in (once, twice)]


@QUICK
@given(data=st.data(), link=st.booleans())
def test_bids_keeps_all(stock: Mapping[str, Path], data: st.DataObject, link: bool) -> None:
    cohort = data.draw(cohorts(stock, PLAIN, TEXT.replace("\t", "")))
    info = {case.subject: {key: " ".join(value.split()) for key, value in case.info.items()} for case in cohort.cases}
    known = {who: {key: value for key, value in about.items() if value} for who, about in info.items()}
    expected = replace(cohort, cases=tuple(replace(c, info=known[c.subject]) for c in cohort.cases))
    with tempfile.TemporaryDirectory() as home:
        bids_write.write(cohort, Path(home) / "out", link=link)
        again = read(Path(home) / "out")
        assert content(again) == content(expected)
        assert (again.labels, again.regions) == (cohort.labels, cohort.regions)


REGIONS = {"background": 0, "whole": [1, 2], "core": [2]}


def overlapping(make: Make, root: Path) -> Path:
    """An nnU-Net folder of regions."""
    make("nnunet", root)
    about = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps(about | {"labels": REGIONS, "regions_class_order": [1, 2]}))
    return root


def test_regions_survive_bids(make: Make, tmp_path: Path) -> None:
    data = overlapping(make, tmp_path / "Dataset001_X")
    bids_write.write(read(data), tmp_path / "bids")
    again = read(tmp_path / "bids")
    assert again.labels == {"whole-1": 1, "core": 2}
    assert again.regions == {"whole": ("whole-1", "core"), "core": ("core",)}
    nnunet.write(again, tmp_path / "Dataset002_X")
    about = json.loads((tmp_path / "Dataset002_X" / "dataset.json").read_text())
    assert about["labels"] == {"background": 0, "whole": [1, 2], "core": 2}
    assert read_bids(tmp_path / "bids", labels={"a": 1, "b": 2}).regions == {}, "classes that were said have no regions"


def test_regions_of_one_lesion_class_survive_bids(stock: Mapping[str, Path], tmp_path: Path) -> None:
    case = Case(subject="a", images={"FLAIR": stock["FLAIR"]})
    cohort = Cohort(cases=(case,), labels={"lesion": 1}, regions={"all": ("lesion",)})
    bids_write.write(cohort, tmp_path / "out")
    again = read(tmp_path / "out")
    assert (again.labels, again.regions) == (cohort.labels, cohort.regions)


@pytest.mark.parametrize(
    "given", [["whole"], {"whole": "core"}, {"whole": []}, {"whole": ["gone"]}, {"whole": [[1]]}, 3]
)
def test_regions_that_cannot_be_are_one_line(make: Make, tmp_path: Path, given: object) -> None:
    bids_write.write(read(overlapping(make, tmp_path / "Dataset001_X")), tmp_path / "bids")
    sidecar = tmp_path / "bids" / "derivatives" / "oligovox" / "desc-lesion_dseg.json"
    sidecar.write_text(json.dumps({"Regions": given}))
    with pytest.raises(
        CohortError, match=r"desc-lesion_dseg.json: Regions is .*, of the classes whole-1, core"
    ) as caught:
        read(tmp_path / "bids")
    assert "\n" not in str(caught.value)
    sidecar.write_text(json.dumps({"Manual": True}))
    assert read(tmp_path / "bids").regions == {}


def test_the_command_keeps_regions(make: Make, tmp_path: Path, oligovox: Callable[..., object]) -> None:
    oligovox("cohort", "write", overlapping(make, tmp_path / "Dataset001_X"), tmp_path / "bids")
    assert read(tmp_path / "bids").regions == read(tmp_path / "Dataset001_X").regions


@pytest.mark.parametrize("tree", ["bids", "nnunet", "brats", "isbi2015", "msseg2016", "ljubljana", "datalist", "table"])
def test_every_layout_becomes_every_other(make: Make, tmp_path: Path, tree: str) -> None:
    cohort = read(make(tree, tmp_path / "data"))
    expected = without(content(cohort), "info", "who")
    datalist.write(cohort, tmp_path / "list.json")
    nnunet.write(cohort, tmp_path / "Dataset001_X", incomplete="keep")
    bids_write.write(cohort, tmp_path / "bids")
    assert content(read(tmp_path / "list.json")) == content(cohort)
    assert without(content(read(tmp_path / "Dataset001_X")), "info", "who", "brain") == without(expected, "brain")
    by_bids = list(without(content(read_bids(tmp_path / "bids")), "info", "who")["cases"].values())
    assert sorted(map(str, by_bids)) == sorted(map(str, expected["cases"].values()))


def test_names_that_bids_does_not_allow_are_kept_in_a_column(make: Make, tmp_path: Path) -> None:
    bids_write.write(read(make("brats", tmp_path / "data")), tmp_path / "out")
    cases = read(tmp_path / "out").cases
    assert {(case.subject, case.session) for case in cases} == {("BraTSGLI00005", "100"), ("BraTSGLI00005", "101")}
    assert cases[0].info["original_name"] == "BraTS-GLI-00005"


def test_two_people_never_become_one(stock: Mapping[str, Path], tmp_path: Path) -> None:
    cases = tuple(Case(subject=name, images={"FLAIR": stock["FLAIR"]}) for name in ("a-b", "ab"))
    with pytest.raises(CohortError, match="'a-b' and 'ab' would both be called sub-ab"):
        bids_write.write(Cohort(cases=cases), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_nnunet_cannot_use_is_said_before_anything_is_written(
    stock: Mapping[str, Path], make_volume: Volume, tmp_path: Path
) -> None:
    two = Case(subject="a", images={name: stock[name] for name in ("T1w", "FLAIR")})
    cohort = Cohort(cases=(two, Case(subject="b", images={"FLAIR": stock["FLAIR"]})))
    out = tmp_path / "out"
    with pytest.raises(CohortError, match="1 of 2 cases lack a sequence, first sub-b without T1w"):
        nnunet.write(cohort, out)
    nnunet.write(cohort, out, incomplete="leave out")
    assert read(out).people == ("a",)
    flat = tmp_path / "flat.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((6, 6, 6), np.int16), np.diag([1, 1, 2.01, 1])), flat)
    apart = replace(two, images={"T1w": flat, "FLAIR": stock["FLAIR"]})
    with pytest.raises(CohortError, match="lie on different grids, and nnU-Net needs one"):
        nnunet.write(Cohort(cases=(apart,)), tmp_path / "grids")
    with pytest.raises(ImageError, match="a file of sub-a is missing"):
        nnunet.write(Cohort(cases=(replace(two, label=tmp_path / "gone.nii.gz"),)), tmp_path / "gone")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "flat.nii.gz"}


@pytest.mark.parametrize("link", [True, False])
def test_a_value_that_is_no_class_never_becomes_one(make_volume: Volume, tmp_path: Path, link: bool) -> None:
    def case(name: str, values: list[int], **more: Any) -> Case:
        label = make_volume(tmp_path / "data" / f"{name}_label.nii.gz", values)
        return Case(
            subject=name, images={"FLAIR": make_volume(tmp_path / "data" / f"{name}.nii.gz")}, label=label, **more
        )

    part, full = case("part", [1, 255], sparse=True), case("full", [1, 2])
    refused = [
        (nnunet, Cohort(cases=(case("a", [1, 2, 4]),), labels={"a": 2, "b": 4}), "values 1; expected 0, 2, 4; name"),
        (nnunet, Cohort(cases=(part, full)), "full_label.*values 2; expected 0, 1; name"),  # 2 is what nobody looked at becomes
        (bids_write, Cohort(cases=(case("c", [1, 2, 255], sparse=True, unlooked=2),)), "values 255; expected 0, 1, 2; name"),
        (bids_write, Cohort(cases=(case("d", [5, 2], sparse=True, unlooked=2),), labels={"x": 5, "y": 255}), "a class as well"),
    ]  # fmt: skip
    for layout, cohort, complaint in refused:
        with pytest.raises(LabelError, match=complaint):
            layout.write(cohort, tmp_path / "out", link=link)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_regions_are_painted_from_the_largest_to_the_smallest(stock: Mapping[str, Path], tmp_path: Path) -> None:
    case = Case(subject="a", images={"FLAIR": stock["FLAIR"]})
    regions = {"ET": ("enhancing",), "TC": ("core", "enhancing"), "WT": ("core", "oedema", "enhancing")}
    nnunet.write(
        Cohort(cases=(case,), labels={"core": 1, "oedema": 2, "enhancing": 4}, regions=regions), tmp_path / "o"
    )
    about = json.loads((tmp_path / "o" / "dataset.json").read_text())
    assert list(about["labels"].items()) == [("background", 0), ("WT", [1, 2, 3]), ("TC", [1, 3]), ("ET", 3)]
    assert about["regions_class_order"] == [2, 1, 3]  # the order of BraTS in nnU-Net's own documentation
    assert about["numTraining"] == 0


@pytest.mark.parametrize("what", ["full folder", "file", "link"])
def test_nothing_that_is_there_is_written_over(
    make: Make, stock: Mapping[str, Path], tmp_path: Path, what: str
) -> None:
    cohort = Cohort(cases=(Case(subject="a", images={"FLAIR": stock["FLAIR"]}),))
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    if what == "full folder":
        (out / "mine").mkdir(parents=True)
    elif what == "file":
        out.write_text("mine")
    else:
        out.symlink_to(elsewhere)
    for write in (bids_write.write, nnunet.write, datalist.write):
        if write is datalist.write and what == "full folder":
            continue
        with pytest.raises(OutputError, match="is there already"):
            write(cohort, out)
    assert list(elsewhere.iterdir()) == []


def test_linked_files_lead_to_the_originals(make: Make, tmp_path: Path) -> None:
    cohort = read(make("nnunet", tmp_path / "data"))
    bids_write.write(cohort, tmp_path / "out", link=True)
    links = list((tmp_path / "out").rglob("*.nii.gz"))
    assert links
    assert all(path.is_symlink() and os.path.isabs(os.readlink(path)) for path in links)
