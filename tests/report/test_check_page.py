"""The page of `oligovox check`: counts, tables, pictures, and text from files that stays text."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from oligovox.cohort.bids import read_bids
from oligovox.cohort.manifest import Cohort
from oligovox.doctor.finding import Finding
from oligovox.report.check import headline, render_check, write_check_page
from oligovox.report.check_pictures import thumbnails


@pytest.fixture
def cohort(phantom: Path) -> Cohort:
    return read_bids(phantom)


def finding(case: str = "sub-01", sequence: str = "FLAIR", severity: str = "error", **more: object) -> Finding:
    told = {"check": "empty_slices", "found": "3 of 24 slices", "expected": "none", "remedy": "export again"} | more
    return Finding(case=case, sequence=sequence, severity=severity, **told)  # type: ignore[arg-type]


def test_the_headline_counts_errors_files_and_warnings(cohort: Cohort) -> None:
    bad = Path("a/flair.nii.gz")
    found = [finding(files=(bad,)), finding(files=(bad,), check="clipped"), *[finding(severity="warning")] * 3]
    assert headline(found, cohort) == "6 cases; 2 errors in 1 file, 3 warnings."
    assert headline([], cohort) == "6 cases; nothing was found that is wrong."


def test_findings_are_listed_worst_first_with_their_repair(cohort: Cohort) -> None:
    found = [finding("sub-02", severity="note", found="a note"), finding("sub-03", found="an error", repair="header")]
    page = render_check(found, cohort, "oligovox check data")
    assert page.index("an error") < page.index("a note")
    assert "rewrites the header" in page
    assert "1 finding can be mended" in page
    assert "oligovox check data" in page


def test_the_table_has_every_case_and_what_is_missing(cohort: Cohort) -> None:
    cohort = replace(cohort, cases=(replace(cohort.cases[0], label=None), *cohort.cases[1:]))
    page = render_check([finding("sub-02")], cohort, "")
    rows = re.findall(r'<tr><th scope="row">(sub-\d\d)</th>(.*?)</tr>', page[page.index("Cases and files") :])
    cells = {name: re.sub(r"<[^>]+>", "|", line) for name, line in rows[:6]}
    assert list(cells) == [case.name for case in cohort.cases]
    assert "no file" in cells["sub-01"]
    assert "1 error" in cells["sub-02"]
    assert "error" not in cells["sub-03"]


def test_a_case_with_findings_has_a_picture_of_each_sequence(cohort: Cohort) -> None:
    case = cohort.cases[0]
    pictures = thumbnails(case, [finding(numbers={"axis": 2, "slices": (4, 5)})])
    assert [picture.caption.split()[:2] for picture in pictures] == [
        ["FLAIR,", "sagittal"],
        ["T1w,", "axial"],
        ["T2w,", "axial"],
    ]
    assert all(picture.png and picture.png.startswith(b"\x89PNG") for picture in pictures)
    page = render_check([finding()], cohort, "")
    assert page.count("data:image/png") == 3


def test_a_file_that_cannot_be_read_has_no_picture_and_the_page_is_written(cohort: Cohort, tmp_path: Path) -> None:
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"nothing")
    case = cohort.cases[0]
    cohort = replace(cohort, cases=(replace(case, images={**case.images, "FLAIR": bad}), *cohort.cases[1:]))
    out = write_check_page([finding()], cohort, tmp_path / "check.html", command="oligovox check x")
    assert "FLAIR: cannot be read" in out.read_text()


def test_text_from_files_stays_text(cohort: Cohort) -> None:
    evil = "<script>alert(1)</script>"
    found = [finding(found=evil, expected=evil, remedy=evil, check=evil, sequence=evil, files=(Path(evil),))]
    page = render_check(found, replace(cohort, name=evil), evil)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert re.search(r"(src|href)=\"(?!data:)", page) is None


def test_a_finding_about_the_cohort_needs_no_case(cohort: Cohort) -> None:
    page = render_check([finding(case="", sequence="", severity="warning")], cohort, "")
    assert '<th scope="row">cohort</th>' in page
    assert "data:image" not in page
