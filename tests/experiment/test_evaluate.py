"""`evaluate`: nothing is matched silently, and the tables say what a few lines of their own say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from oligovox import experiment
from oligovox.errors import CohortError, GeometryError, LabelError, SettingsError
from oligovox.experiment.matching import match
from oligovox.experiment.pairs import Pair, strata
from oligovox.experiment.summary import headlines
from oligovox.files import read_json, read_tsv
from oligovox.metrics.judge import load_protocol, protocol_names, protocol_settings

BOX = (14, 12, 10)


def write(path: Path, *bars: tuple[int, int, int], affine: np.ndarray | None = None) -> Path:
    """A label map with bars along x, each (voxels, row, value)."""
    array = np.zeros(BOX, np.uint8)
    for voxels, row, value in bars:
        array[1 : 1 + voxels, row, 4:6] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0]) if affine is None else affine), path)
    return path


def bids(root: Path, sessions: dict[str, tuple[str, ...]]) -> Path:
    """Exams with masks of one bar of 8 x 2 voxels; a session 'x-unlabelled' has no mask."""
    for subject, visits in sessions.items():
        for visit in visits:
            place, _, unlabelled = visit.partition("-")
            name = f"sub-{subject}" + (f"_ses-{place}" if place else "")
            write(root / f"sub-{subject}" / "anat" / f"{name}_FLAIR.nii.gz", (9, 3, 7))
            if not unlabelled:
                mask = f"{name}_label-lesion_mask.nii.gz"
                write(root / "derivatives" / "m" / f"sub-{subject}" / "anat" / mask, (8, 4, 1))
    return root


def predicted(root: Path, name: str, voxels: int, value: int = 1) -> Path:
    return write(root / name.split("_")[0] / "anat" / f"{name}_label-lesion_mask.nii.gz", (voxels, 4, value))


@pytest.fixture
def cohort(tmp_path: Path) -> tuple[Path, Path]:
    """(predictions, truth): 01 at two visits, 02, 03; Dice 1, 2/3, 2/3 and 0; site and age in participants.tsv."""
    truth = bids(tmp_path / "bids", {"01": ("a", "b"), "02": ("",), "03": ("",)})
    table = "participant_id\tsite\tage\nsub-01\tA\t30\nsub-02\tB\t40\nsub-03\tA\tn/a\n"
    (truth / "participants.tsv").write_text(table)
    for name, voxels in {"sub-01_ses-a": 8, "sub-01_ses-b": 4, "sub-02": 4, "sub-03": 0}.items():
        predicted(tmp_path / "predictions", name, voxels)
    return tmp_path / "predictions", truth


# --- what the tables say -------------------------------------------------------------------------------------------------------


def test_means_are_over_people_in_all_and_by_group(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    found = experiment.evaluate(*cohort, tmp_path / "out", by=["site", "age"], workers=1)
    dice = found["mean"]["lesion"]["dice"]
    assert (found["cases"], found["people"], dice["n"]) == (4, 3, 3)
    assert dice["mean"] == pytest.approx(((1 + 2 / 3) / 2 + 2 / 3 + 0) / 3)
    by = found["by"]
    assert {group: part["people"] for group, part in by["site"].items()} == {"A": 2, "B": 1}
    assert by["site"]["A"]["mean"]["lesion"]["dice"]["mean"] == pytest.approx((1 + 2 / 3) / 4)
    assert {group: part["cases"] for group, part in by["age"].items()} == {"30": 2, "40": 1, "n/a": 1}


def test_the_files_agree_with_each_other(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = experiment.evaluate(*cohort, out, by=["site"], workers=1)
    assert found == {"scores": str(out), **read_json(out / "summary.json")}
    rows, scores = read_tsv(out / "scores.tsv"), read_json(out / "scores.json")
    assert [row["case"] for row in rows] == ["sub-01_ses-a", "sub-01_ses-b", "sub-02", "sub-03"]
    assert [row["site"] for row in rows] == ["A", "A", "B", "A"]
    assert [row["dice"] for row in rows] == [str(row["dice"]) for row in scores["cases"]]
    table = read_tsv(out / "summary.tsv")
    assert table[0] | {"by": "", "group": "", "region": "lesion", "metric": "dice", "best": "high"} == table[0]
    for row in table:
        part = found["by"][row["by"]][row["group"]] if row["by"] else found
        value = part["cohort"].get(row["metric"]) if row["region"] == "whole cohort" else None
        value = value if row["region"] == "whole cohort" else part["mean"][row["region"]][row["metric"]]["mean"]
        assert row["mean"] == ("" if value is None else str(value))
    assert {row["metric"] for row in table if row["region"] == "whole cohort"} == set(found["cohort"]) != set()
    lesions = read_tsv(out / "lesions.tsv")
    assert sum(row["side"] == "reference" for row in lesions) == 4
    assert [row["outcome"] for row in lesions if row["case"] == "sub-03"] == ["missed"]


def test_a_terminal_shows_the_main_metrics_and_the_groups(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    lines = headlines(experiment.evaluate(*cohort, tmp_path / "out", by=["site"], workers=1))
    assert lines["lesion dice"].startswith("0.500 [")
    assert lines["lesion dice"].endswith("], 3 people")
    assert lines["site B: lesion dice"] == "0.667, 1 person"


def test_workers_change_nothing(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    for workers in (1, 2):
        experiment.evaluate(*cohort, tmp_path / str(workers), by=["site"], workers=workers)
    for name in ("scores.tsv", "lesions.tsv", "scores.json", "summary.tsv", "summary.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


@pytest.mark.parametrize("protocol", protocol_names())
def test_every_protocol_scores_two_folders_of_files(tmp_path: Path, protocol: str) -> None:
    """The reference against itself has the best main score there is; a missed case makes it worse."""
    files = {f"case{n}.nii.gz": ((6 + n, 2, 1), (7, 5, 2), (6, 8, 3)) for n in range(3)}
    for name, bars in files.items():
        write(tmp_path / "truth" / name, *bars)
        write(tmp_path / "same" / name, *bars)
        write(tmp_path / "worse" / name, *(bars if name != "case1.nii.gz" else ()))
    same, worse = (
        experiment.evaluate(tmp_path / side, tmp_path / "truth", tmp_path / f"out-{side}", protocol=protocol, workers=1)
        for side in ("same", "worse")
    )
    rules = load_protocol(protocol)
    first = next(metric for metric in rules.MAIN if metric in rules.BEST)
    for region, metrics in same["mean"].items():
        perfect, poorer = metrics[first]["mean"], worse["mean"][region][first]["mean"]
        if perfect is not None and poorer is not None:
            assert perfect >= poorer if rules.BEST[first] == "high" else perfect <= poorer
    assert any(worse["mean"][r][first]["mean"] != m[first]["mean"] for r, m in same["mean"].items())


def test_settings_of_a_protocol_are_used_and_checked(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    found = experiment.evaluate(*cohort, tmp_path / "out", changes=["rule.min_overlap=0.6"], workers=1)
    assert found["settings"]["rule"]["min_overlap"] == 0.6
    assert found["mean"]["lesion"]["lesions_found"]["mean"] == pytest.approx(0.5 / 3)  # half is not 60 %
    with pytest.raises(SettingsError, match=r"protocol generic: unknown key 'clases'; did you mean 'classes'\?"):
        experiment.evaluate(*cohort, tmp_path / "no", changes=["clases=1"])
    with pytest.raises(SettingsError, match=r"unknown protocol 'msseg'; did you mean 'msseg2016'\?"):
        experiment.evaluate(*cohort, tmp_path / "no", protocol="msseg")
    assert not (tmp_path / "no").exists()


def test_several_classes_are_scored_one_by_one_and_together() -> None:
    labels = {"edema": 2, "core": 4}
    settings = protocol_settings("generic", {}, labels)
    assert settings.model_dump()["classes"] == {"any": (2, 4), "edema": (2,), "core": (4,)}
    named = protocol_settings("generic", {"classes": {"core": [4]}}, labels)
    assert named.model_dump()["classes"] == {"core": (4,)}
    assert protocol_settings("generic", {}, {"lesion": 1}) == load_protocol("generic").Settings()


# --- what is refused -------------------------------------------------------------------------------------------------------------


def test_predictions_of_people_nobody_knows_are_refused(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    stray = predicted(cohort[0], "sub-09", 3)
    with pytest.raises(CohortError, match=r"1 predictions belong to nobody in .*sub-09_label-lesion_mask"):
        experiment.evaluate(*cohort, tmp_path / "out")
    stray.rename(stray.with_name("sub-02_ses-b_label-lesion_mask.nii.gz"))  # a visit that does not exist
    with pytest.raises(CohortError, match="belong to nobody"):
        experiment.evaluate(*cohort, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_visit_is_not_taken_for_an_exam_without_visits(tmp_path: Path) -> None:
    truth = bids(tmp_path / "bids", {"01": ("", "b")})
    predicted(tmp_path / "predictions", "sub-01_ses-b", 8)
    with pytest.raises(CohortError, match="1 of 2 predictions are missing, first sub-01 "):
        match(tmp_path / "predictions", truth)


def test_unlabelled_exams_are_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = bids(tmp_path / "bids", {"01": ("",), "02": ("-unlabelled",)})
    for name in ("sub-01", "sub-02"):
        predicted(tmp_path / "predictions", name, 8)
    found = experiment.evaluate(tmp_path / "predictions", truth, tmp_path / "out", workers=1)
    assert (found["cases"], found["without_reference"]) == (1, ["sub-02"])
    assert "1 predicted cases have no reference and are not scored, first sub-02" in capsys.readouterr().err


def test_only_the_people_named_need_a_prediction(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    next(cohort[0].glob("sub-02/**/*.nii.gz")).unlink()
    with pytest.raises(CohortError, match=r"1 of 4 predictions are missing, first sub-02 .*name the people to score"):
        experiment.evaluate(*cohort, tmp_path / "out")
    found = experiment.evaluate(*cohort, tmp_path / "out", people=["01"], workers=1)
    assert (found["cases"], found["people"]) == (2, 1)
    with pytest.raises(CohortError, match="no subject '04'"):
        experiment.evaluate(*cohort, tmp_path / "out", people=["04"])


def test_two_predictions_of_one_exam_are_refused(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    write(cohort[0] / "sub-02" / "anat" / "sub-02_dseg.nii.gz")
    with pytest.raises(CohortError, match=r"sub-02: 2 predictions in .*keep one"):
        experiment.evaluate(*cohort, tmp_path / "out")


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda p: write(p, (3, 4, 9)), LabelError, "holds the label 9, the protocol brats2023 knows 1, 2, 3"),
        (lambda p: write(p, (3, 4, 1), affine=np.eye(4)), GeometryError, "or their affines differ; expected one grid"),
        (
            lambda p: nib.save(nib.Nifti1Image(np.full(BOX, 0.3, np.float32), np.diag([1.0, 1.0, 2.0, 1.0])), p),
            LabelError,
            "values between whole numbers.*threshold it first",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(
    cohort: tuple[Path, Path], tmp_path: Path, spoil: Callable[[Path], object], error: type[Exception], message: str
) -> None:
    spoil(next(cohort[0].glob("sub-02/**/*.nii.gz")))
    with pytest.raises(error, match=message) as caught:
        experiment.evaluate(*cohort, tmp_path / "out", protocol="brats2023", workers=1)
    assert str(caught.value).startswith("sub-02: ")
    assert not (tmp_path / "out").exists()


def test_plain_files_are_matched_by_name(tmp_path: Path) -> None:
    for name in ("sub-1_ses-a", "sub-1_ses-b", "patient7"):
        write(tmp_path / "truth" / f"{name}.nii.gz", (6, 4, 1))
        write(tmp_path / "predictions" / "fold0" / f"{name}.nii", (6, 4, 1))
    (tmp_path / "truth" / "participants.tsv").write_text("participant_id\tsite\nsub-1\tA\npatient7\tB\n")
    found = match(tmp_path / "predictions", tmp_path / "truth")
    people = {pair.case: (pair.person, pair.info["site"]) for pair in found.pairs}
    assert people == {"patient7": ("patient7", "B"), "sub-1_ses-a": ("1", "A"), "sub-1_ses-b": ("1", "A")}
    assert len(match(tmp_path / "predictions", tmp_path / "truth", people=["1"]).pairs) == 2
    with pytest.raises(CohortError, match="no reference of '2'"):
        match(tmp_path / "predictions", tmp_path / "truth", people=["2"])
    shutil.copy(tmp_path / "predictions" / "fold0" / "patient7.nii", tmp_path / "predictions")
    with pytest.raises(CohortError, match="patient7: 2 predictions"):
        match(tmp_path / "predictions", tmp_path / "truth")
    (tmp_path / "predictions" / "patient7.nii").rename(tmp_path / "predictions" / "patient8.nii")
    with pytest.raises(CohortError, match="belong to nobody"):
        match(tmp_path / "predictions", tmp_path / "truth")
    (tmp_path / "predictions" / "patient8.nii").unlink()
    (tmp_path / "predictions" / "fold0" / "patient7.nii").unlink()
    with pytest.raises(CohortError, match="1 of 3 predictions are missing, first patient7"):
        match(tmp_path / "predictions", tmp_path / "truth")
    write(tmp_path / "truth" / "patient7.nii")
    with pytest.raises(CohortError, match="patient7: 2 references"):
        match(tmp_path / "predictions", tmp_path / "truth")


def test_folders_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CohortError, match="no such folder; expected the predictions"):
        match(tmp_path / "nowhere", tmp_path / "empty")
    with pytest.raises(CohortError, match=r"no layout that is known"):
        match(tmp_path / "empty", tmp_path / "empty")


# --- groups ----------------------------------------------------------------------------------------------------------------------


def pairs(column: str, values: dict[str, str]) -> list[Pair]:
    """One pair a case; the person is what stands before the slash."""
    return [Pair(c, c.split("/")[0], Path(), Path(), {column: v} if v else {}) for c, v in values.items()]


def test_numbers_are_split_at_the_tertiles_of_the_people() -> None:
    ages = {f"{n}": str(20 + n) for n in range(9)}
    visits = {f"8/{visit}": "28" for visit in "abcdef"}  # one person however often seen
    groups = strata(pairs("age", ages | visits), "age")
    assert [len({case.split("/")[0] for case in cases}) for cases in groups.values()] == [3, 3, 3]
    assert list(groups) == ["≤ 22.6667", "> 22.6667, ≤ 25.3333", "> 25.3333"]
    assert len(groups["> 25.3333"]) == 9
    assert sorted(case for cases in groups.values() for case in cases) == sorted(ages | visits)


def test_few_numbers_and_words_are_groups_of_their_own() -> None:
    assert list(strata(pairs("field", {"a": "7", "b": "3", "c": "1.5", "d": ""}), "field")) == ["1.5", "3", "7", "n/a"]
    assert list(strata(pairs("site", {c: f"s{c}" for c in "gfedcba"} | {"h": "12"}), "site"))[:2] == ["12", "sa"]


def test_visits_of_one_person_may_fall_into_different_groups() -> None:
    groups = strata(pairs("sequences", {"p/1": "FLAIR", "p/2": "FLAIR+T1w"}), "sequences")
    assert groups == {"FLAIR": ["p/1"], "FLAIR+T1w": ["p/2"]}


def test_a_column_nobody_has_is_refused() -> None:
    with pytest.raises(CohortError, match=r"cannot group by 'cite': no case has it; did you mean 'site'\?"):
        strata(pairs("site", {"a": "A"}), "cite")
    with pytest.raises(CohortError, match="no column at all"):
        strata(pairs("site", {"a": ""}), "site")


def test_sequences_of_the_exam_are_a_column(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    found = experiment.evaluate(*cohort, tmp_path / "out", by=["sequences"], workers=1)
    assert list(found["by"]["sequences"]) == ["FLAIR"]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["by"] == found["by"]
