"""Cases and cohorts: names, tables, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from oligovox.cohort.manifest import Case, Cohort, merge
from oligovox.errors import CohortError, SettingsError
from oligovox.files import read_tsv


def _file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    one = Case(
        subject="01",
        session="a",
        images={"t2f": _file(tmp_path / "in" / "flair.nii.gz"), "T1": _file(tmp_path / "in" / "t1.nii.gz")},
        label=_file(tmp_path / "in" / "label.nii.gz"),
        info={"age": "40", "label": "yes", "FLAIR": "good"},
    )
    two = Case(subject="007", images={"T1w": _file(tmp_path / "elsewhere" / "t1.nii.gz")}, info={"age": "51"})
    return Cohort(cases=(two, one), labels={"core": 4, "edema": 2}, name="both")


def test_names_are_canonical_and_cases_sorted(cohort: Cohort) -> None:
    assert [case.name for case in cohort.cases] == ["sub-007", "sub-01_ses-a"]
    assert set(cohort.cases[1].images) == {"FLAIR", "T1w"}
    assert cohort.people == ("007", "01")
    assert cohort.modalities == ("FLAIR", "T1w")
    assert [case.subject for case in cohort.labelled] == ["01"]


def test_a_table_brings_everything_back(cohort: Cohort, tmp_path: Path) -> None:
    table = tmp_path / "in" / "cohort.tsv"
    cohort.save(table)
    assert Cohort.load(table) == cohort  # also info columns that are called like our own


def test_repeats_go_through_a_table_and_only_with_their_sequence(cohort: Cohort, tmp_path: Path) -> None:
    again = {"flair": tuple(_file(tmp_path / "in" / f"again_{n}.nii.gz") for n in (2, 3)), "T1w": ()}
    one, two = cohort.cases
    several = replace(cohort, cases=(one, replace(two, repeats=again)))
    several.save(tmp_path / "in" / "cohort.tsv")
    assert Cohort.load(tmp_path / "in" / "cohort.tsv") == several
    assert read_tsv(tmp_path / "in" / "cohort.tsv")[1]["FLAIR_run-3"] == "again_3.nii.gz"
    assert several.cases[1].repeats == {"FLAIR": again["flair"]}
    assert not replace(several.cases[1], images={"T1w": two.images["T1w"]}).repeats
    cohort.save(tmp_path / "in" / "cohort.tsv")
    assert not [column for column in read_tsv(tmp_path / "in" / "cohort.tsv")[0] if "run" in column]


def test_paths_below_the_table_are_relative_and_move_with_it(cohort: Cohort, tmp_path: Path) -> None:
    cohort.save(tmp_path / "in" / "cohort.tsv")
    assert read_tsv(tmp_path / "in" / "cohort.tsv")[1]["FLAIR"] == "flair.nii.gz"
    (tmp_path / "in").rename(tmp_path / "moved")
    assert Cohort.load(tmp_path / "moved" / "cohort.tsv").cases[1].label == tmp_path / "moved" / "label.nii.gz"


def test_a_listed_file_must_be_there(cohort: Cohort, tmp_path: Path) -> None:
    cohort.save(tmp_path / "in" / "cohort.tsv")
    (tmp_path / "in" / "label.nii.gz").unlink()
    with pytest.raises(CohortError, match=r"label\.nii\.gz is listed but is not there"):
        Cohort.load(tmp_path / "in" / "cohort.tsv")


def test_a_foreign_sidecar_is_refused(cohort: Cohort, tmp_path: Path) -> None:
    cohort.save(tmp_path / "cohort.tsv")
    (tmp_path / "cohort.json").write_text("{}")
    with pytest.raises(CohortError, match="Modalities"):
        Cohort.load(tmp_path / "cohort.tsv")


def test_merging_keeps_people_of_the_same_name_apart(cohort: Cohort) -> None:
    both = merge({"A": cohort, "B": cohort})
    assert len(both) == 4
    assert both.people == ("A_007", "A_01", "B_007", "B_01")
    assert [case.name for case in both.of(["B_01"])] == ["B_sub-01_ses-a"]
    other = Cohort(cases=cohort.cases, labels={"lesion": 1})
    with pytest.raises(CohortError, match="must be the same"):
        merge({"A": cohort, "B": other})


def test_impossible_cases_are_refused(tmp_path: Path) -> None:
    image = tmp_path / "x.nii.gz"
    with pytest.raises(CohortError, match="no image"):
        Case(subject="01", images={})
    with pytest.raises(CohortError, match="cannot be a subject"):
        Case(subject="../01", images={"T1w": image})
    with pytest.raises(CohortError, match="twice"):
        Case(subject="01", images={"T1w": image, "t1": image})
    with pytest.raises(SettingsError, match="did you mean 'FLAIR'"):
        Case(subject="01", images={"FLAIRE": image})
    case = Case(subject="01", images={"T1w": image})
    with pytest.raises(CohortError, match="listed twice"):
        Cohort(cases=(case, case))
    with pytest.raises(CohortError, match="no case"):
        Cohort(cases=())
    with pytest.raises(CohortError, match="no subject '02'"):
        Cohort(cases=(case,)).of(["02"])
