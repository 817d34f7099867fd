from __future__ import annotations

import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oligovox.errors import CheckpointError, CohortError, OutputError, SettingsError
from oligovox.report.content import Arm, CaseRow, Data, Report, ShownCase, SizeBin
from oligovox.report.page import load_report, render, write_index, write_report

HOSTILE = "\"><script>alert('x')</script><img src=http://evil.example/x onerror=y>&"


class _Page(HTMLParser):
    """Tags with their attributes, and the text of each table row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.rows: list[list[str]] = []
        self.text, self.open = "", [""]
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.text += data
        if {"td", "th"} & set(self.open[-4:]):
            self.rows[-1][-1] += data


def _changed(report: Report, **more: Any) -> Report:
    return Report.model_validate({**report.model_dump(), **more})


def _safe(html: str) -> _Page:
    """The page, after checking that it cannot run or fetch anything."""
    page = _Page(html)
    for tag, attributes in page.tags:
        assert tag not in {"script", "iframe", "object", "embed", "link", "base", "form", "img"}, tag
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("href", "xlink:href", "src", "action"):
            if name in attributes:
                assert re.match(r"#|data:image/png;base64,", attributes[name]), attributes[name]
    assert not re.search(r"url\((?!#)|@import", html)
    return page


def test_page_stands_alone_and_is_small(report: Report, tmp_path: Path) -> None:
    path = write_report(report, tmp_path)
    assert path == tmp_path / "report.html"
    html = path.read_text(encoding="utf-8")
    page = _safe(html)
    assert "http" not in html.replace("http-equiv", "")
    assert len(html) < 3_000_000
    assert "Numbers on simulated subjects" in page.text
    assert (
        "Pre-training with generative changed Dice by +0.028 [+0.006, +0.049] over 6 held-out subjects: gain shown."
        in page.text
    )
    pictures = [a for tag, a in page.tags if tag == "svg" and a.get("role") == "img"]
    assert len(pictures) == 5
    assert all(a["aria-label"] for a in pictures)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(set(ids)) == len(ids)


def test_numbers_on_the_page_are_those_of_the_json(report: Report, tmp_path: Path) -> None:
    page = _Page(write_report(report, tmp_path).read_text(encoding="utf-8"))
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert content["verdict"]["sentence"] in page.text
    assert content["verdict"]["outcome"] == "gain shown"
    by_case = {row[0]: row[1:] for row in page.rows if row[0].startswith("sub-") and len(row) == 10}
    arm = content["report"]["arms"][0]  # scratch: its table is the last one, so it overwrites the other in `by_case`
    assert len(by_case) == len(arm["cases"]) == 6
    for case in arm["cases"]:
        dice, hd95, f1, sensitivity, _, true_ml, predicted_ml, true, predicted = by_case[case["case"]]
        assert dice == f"{case['dice']:.3f}"
        assert hd95 == ("–" if case["hd95_mm"] is None else f"{case['hd95_mm']:.1f}")
        assert (f1, sensitivity) == (f"{case['lesion_f1']:.3f}", "–")
        assert (true_ml, predicted_ml) == (f"{case['volume_true_ml']:.2f}", f"{case['volume_predicted_ml']:.2f}")
        assert (true, predicted) == ("4", "3")
    assert ["≥ 1000 mm³", "1", "1", "0"] in page.rows
    assert "undefined: a score that does not exist where a mask is empty" in page.text


def test_report_comes_back_from_its_file(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    loaded = load_report(tmp_path / "report.json")
    assert loaded == report
    assert render(loaded, tmp_path) == (tmp_path / "report.html").read_text(encoding="utf-8")


def test_same_report_same_bytes(report: Report, tmp_path: Path) -> None:
    first = {p.name: p.read_bytes() for p in (write_report(report, tmp_path), tmp_path / "report.json")}
    assert {p.name: p.read_bytes() for p in (write_report(report, tmp_path), tmp_path / "report.json")} == first


def test_hostile_text_is_shown_and_never_run(report: Report, tmp_path: Path) -> None:
    def poison(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {
                HOSTILE + k
                if key in {"versions", "seeds", "splits", "preparation", "sequences", "settings"}
                else names.get(k, k): poison(v, k)
                for k, v in value.items()
            }
        if isinstance(value, list | tuple):
            return [poison(v, key) for v in value]
        return HOSTILE + value if isinstance(value, str) and key not in {"metric", "arms"} else value

    names = {arm.name: HOSTILE + arm.name for arm in report.arms}
    hostile = Report.model_validate(poison(report.model_dump()))
    page = _safe(render(hostile, tmp_path))
    assert page.text.count("<script>") > 40
    labels = [a["aria-label"] for tag, a in page.tags if tag == "svg" and "aria-label" in a]
    assert all("<script>" in label for label in labels)
    write_index([hostile], tmp_path, [f"javascript:{HOSTILE}"])
    index = _Page((tmp_path / "index.html").read_text(encoding="utf-8"))
    links = [a["href"] for tag, a in index.tags if tag == "a"]
    assert links == [link for link in links if re.fullmatch(r"[A-Za-z0-9%/._-]+", link)]
    assert len(links) == 1
    assert "script" not in {tag for tag, _ in index.tags}


def test_hostile_names_of_real_files_are_escaped_in_pictures(report: Report, tmp_path: Path) -> None:
    name = 'a"><script>b.nii.gz'
    (tmp_path / "flair.nii.gz").rename(tmp_path / name)
    shown = report.shown[0].model_copy(update={"image": name, "case": HOSTILE})
    page = _safe(render(_changed(report, shown=(shown.model_dump(),)), tmp_path))
    assert sum(tag == "image" for tag, _ in page.tags) == 3
    assert name in page.text


def _blind(report: Report) -> Report:
    rows = tuple(CaseRow(case=f"sub-{i}", volume_predicted_ml=0.5 * i, lesions_predicted=i) for i in range(3))
    shown = report.shown[0].model_copy(update={"truth": None, "lesions": ()})
    arm = Arm(name="pre-trained", start="generative", labels=3, cases=rows)
    return _changed(report, arms=(arm,), baseline="", comparisons=(), bins=(), shown=(shown.model_dump(),))


def test_predictions_without_truth(report: Report, tmp_path: Path) -> None:
    page = _safe(render(_blind(report), tmp_path))
    assert "without reference masks its quality is unknown" in page.text
    assert ["sub-2", "1.00", "2"] in page.rows
    assert "Dice" not in page.text.replace("Dice on validation subjects", "").replace("Validation Dice", "")
    assert any(tag == "path" and a.get("class") == "predicted arm-0" for tag, a in page.tags)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stages": ()}, "gain shown"),
        ({"baseline": "", "comparisons": ()}, "it was compared with no other training"),
        ({"arms": (), "main": "", "baseline": "", "comparisons": ()}, "trained no model that predicts lesions"),
        ({"data": Data(), "recipe": "", "seeds": {}, "versions": {}, "shown": ()}, "gain shown"),
        ({"bins": (SizeBin(low_mm3=0, high_mm3=10, count=0),)}, "hold no lesion"),
        ({"shown": (ShownCase(case="s", role="best", sequence="T1w", image="gone.nii"),)}, "gone.nii is not there"),
    ],
)
def test_parts_may_be_missing(report: Report, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    page = _safe(render(_changed(report, **change), tmp_path))
    assert said in page.text
    assert "None" not in page.text
    assert "nan" not in page.text


def test_undefined_scores_everywhere(report: Report, tmp_path: Path) -> None:
    nan = float("nan")
    arms = [
        arm.model_dump()
        | {
            "cases": [{"case": "sub-0", "dice": nan, "hd95_mm": nan, "volume_true_ml": 0.0}],
            "means": {"dice": {"mean": nan, "n": 0, "undefined": 1}},
        }
        for arm in report.arms
    ]
    lost = [{**report.comparisons[0].model_dump(), "mean": nan, "low": nan, "high": nan, "n": 0}]
    page = _safe(render(_changed(report, arms=arms, comparisons=lost), tmp_path))
    assert "changed Dice by – over 0 held-out subjects" in page.text
    assert ["sub-0", "–", "–", "–", "–", "–", "0.00", "–", "–", "–"] in page.rows


def test_large_cases_stay_below_the_limit(report: Report, tmp_path: Path) -> None:
    import nibabel as nib

    rng = np.random.default_rng(1)
    image, mask = rng.uniform(1, 2, (160, 190, 150)).astype(np.float32), rng.random((160, 190, 150)) < 0.02
    nib.save(nib.Nifti1Image(image, np.eye(4)), tmp_path / "noise.nii")
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), np.eye(4)), tmp_path / "specks.nii")
    files = {
        "image": "noise.nii",
        "truth": "specks.nii",
        "predictions": {"pre-trained": "specks.nii", "scratch": "specks.nii"},
    }
    shown = [
        ShownCase(case=role, role=role, sequence="FLAIR", **files).model_dump() for role in ("best", "median", "worst")
    ]  # type: ignore[arg-type]
    assert len(render(_changed(report, shown=shown), tmp_path)) < 3_000_000


def test_index_has_one_row_a_run(report: Report, tmp_path: Path) -> None:
    path = write_index([report, _blind(report)], tmp_path, ["a b/report.html"])
    page = _Page(path.read_text(encoding="utf-8"))
    first, second = page.rows[1:]
    assert first == [
        "A run (simulated)",
        "generative",
        "3",
        "6",
        "0.497 [0.412, 0.689]",
        "scratch",
        "+0.028 [+0.006, +0.049]",
        "gain shown",
    ]
    assert second[-1] == "not scored"
    assert [a["href"] for tag, a in page.tags if tag == "a"] == ["a%20b/report.html"]
    runs = json.loads((tmp_path / "index.json").read_text(encoding="utf-8"))["runs"]
    assert [run["verdict"]["outcome"] for run in runs] == ["gain shown", "not scored"]


def test_names_that_are_no_text_are_written_readably(report: Report, tmp_path: Path) -> None:
    write_report(_changed(report, command="oligovox \udcff"), tmp_path)
    assert "oligovox \\udcff" in unescape((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_errors(report: Report, tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="cannot be read as JSON"):
        load_report(tmp_path / "report.json")
    (tmp_path / "report.json").write_text('{"format": 99}')
    with pytest.raises(CheckpointError, match="not a report of format 1"):
        load_report(tmp_path / "report.json")
    (tmp_path / "report.json").write_text(
        '{"format": 1, "report": {"title": "t", "created": "c", "command": "c", "arm": []}}'
    )
    with pytest.raises(SettingsError, match="unknown key 'arm'; did you mean 'arms'"):
        load_report(tmp_path / "report.json")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        write_report(report, tmp_path / "file")
