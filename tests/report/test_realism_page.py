from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from oligovox.cohort.bids import read_bids
from oligovox.cohort.manifest import Case, Cohort
from oligovox.errors import CohortError
from oligovox.experiment.realism import compare_cohorts, measure, realism_page
from oligovox.report.realism import Source, render_realism

HOSTILE = "\"><script>alert('x')</script><img src=http://evil.example/x onerror=y>&"


class _Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data


def safe(html: str) -> _Page:
    """The page, after checking that it cannot run or fetch anything."""
    page = _Page(html)
    for tag, attributes in page.tags:
        assert tag not in {"script", "iframe", "object", "embed", "link", "img"}
        assert not [name for name in attributes if name.startswith("on")]
        assert all(re.match("#|data:image/png;base64,", attributes[k]) for k in ("href", "src") if k in attributes)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    return page


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory, make_phantom: Callable[..., Path]) -> tuple[Path, Path]:
    """Three simulated, two real; another side, so the grids differ."""
    home = tmp_path_factory.mktemp("cohorts")
    return make_phantom(home / "ours", 3, 3), make_phantom(home / "theirs", 3, 2, side=28)


def test_page_of_two_cohorts(cohorts: tuple[Path, Path], tmp_path: Path) -> None:
    ours, theirs = cohorts
    steps: list[str] = []
    path = realism_page(ours, tmp_path, real=theirs, show=lambda title: lambda done, total, name: steps.append(name))
    assert path == tmp_path / "realism.html"
    page = safe(path.read_text(encoding="utf-8"))
    numbers = json.loads((tmp_path / "realism.json").read_text(encoding="utf-8"))
    assert steps == ["sub-01", "sub-02", "sub-03", "sub-01", "sub-02"]
    assert numbers["sources"]["real"]["cases"] == ["sub-01", "sub-02"]  # only the labelled ones
    (ring,) = [r for r in numbers["compared"] if (r["sequence"], r["quantity"]) == ("FLAIR", "ring contrast")]
    assert (len(ring["real"]), len(ring["simulated"])) == (2, 3)
    assert all(value > 1 for value in (*ring["real"], *ring["simulated"]))
    verdicts = [row["verdict"] for row in numbers["compared"]]
    assert f"Of {len(verdicts)} numbers" in page.text
    assert f"lies within the real range for {verdicts.count('inside')}." in page.text
    pictures = [a for tag, a in page.tags if tag == "svg" and a.get("role") == "img"]
    assert len(pictures) == 3 + 1 + 1 + 1 + 1  # sequences, contrasts, histograms, lesions, gallery
    assert all(a["aria-label"] for a in pictures)


def test_page_without_a_real_side(cohorts: tuple[Path, Path], tmp_path: Path) -> None:
    page = safe(realism_page(cohorts[0], tmp_path, subjects=2).read_text(encoding="utf-8"))
    assert "no real images were given" in page.text
    assert "real range" not in page.text
    numbers = json.loads((tmp_path / "realism.json").read_text(encoding="utf-8"))
    assert {row["verdict"] for row in numbers["compared"]} == {None}
    assert len(numbers["lesions"]["simulated"]) == 3  # counted in everyone, measured in two


def test_masks_alone_give_the_distributions(cohorts: tuple[Path, Path], tmp_path: Path) -> None:
    ours, theirs = cohorts
    content, _ = compare_cohorts(read_bids(ours), masks=theirs / "derivatives", subjects=1)
    assert content.real is None
    assert content.masks is not None
    assert [len(group) for group in content.lesions] == [3, 2]
    assert all(facts.to_ventricle_mm for group in content.lesions for facts in group)  # the brain masks were found
    with pytest.raises(CohortError, match="no lesion mask in it"):
        compare_cohorts(read_bids(ours), masks=tmp_path)


def test_label_maps_and_cases_without_t1w_or_label(cohorts: tuple[Path, Path]) -> None:
    case = read_bids(cohorts[0]).cases[0]
    tumour = measure(case, {"NCR": 1, "ET": 3}, simulated=True)
    assert "NCR / WM" in {row.quantity for row in tumour.rows}
    assert tumour.lesions is None
    assert set(tumour.shown.views["FLAIR"]) == {"axial", "coronal", "sagittal"}
    assert tumour.shown.views["FLAIR"]["axial"].masks[0].any()  # the slice goes through it
    flair = replace(case, images={"FLAIR": case.images["FLAIR"]})
    assert {"lesion / rest", "noise, %"} <= {row.quantity for row in measure(flair, {"lesion": 1}, simulated=True).rows}
    bare = measure(replace(case, label=None, brain=None), {"lesion": 1}, simulated=True)
    assert not [row for row in bare.rows if "lesion" in row.quantity]
    assert bare.lesions is None


def test_hostile_names_are_shown_as_they_are(cohorts: tuple[Path, Path]) -> None:
    ours = read_bids(cohorts[0])
    hostile = Cohort(cases=ours.cases[:2], labels={HOSTILE: 1}, name=HOSTILE)
    content, _ = compare_cohorts(hostile, read_bids(cohorts[1]), title=HOSTILE, subjects=2)
    bad = Source(HOSTILE, (HOSTILE,), HOSTILE)
    shown = tuple(replace(person, name=HOSTILE) for person in content.shown)
    content = replace(content, real=bad, masks=bad, shown=shown, gallery=shown, notes=(HOSTILE,))
    page = safe(render_realism(content))
    assert page.text.count(HOSTILE) > 8


def test_slices_are_turned_as_radiologists_look(tmp_path: Path) -> None:
    image, label = np.full((20, 20, 20), 10, np.int16), np.zeros((20, 20, 20), np.uint8)
    image[15:, 15:] = 90  # the patient's right, in front
    label[:5, :5, 15:] = 1  # left, behind, on top
    for name, array in {"flair": image, "label": label}.items():
        nib.save(nib.Nifti1Image(array, np.diag([1, 1, 2, 1])), tmp_path / f"{name}.nii.gz")
    case = Case(subject="01", images={"FLAIR": tmp_path / "flair.nii.gz"}, label=tmp_path / "label.nii.gz")
    views = measure(case, {"lesion": 1}, simulated=True).shown.views["FLAIR"]
    axial = views["axial"]
    assert (axial.grey[:5, :5] == 255).all()  # front on top, right on the left
    assert (axial.grey[5:, 5:] < 40).all()
    assert axial.step == (1, 1)
    follow = measure(case, {"lesion": 1, "other": 2}, simulated=True).shown.views["FLAIR"]
    assert follow["sagittal"].masks[0][:5, -5:].all()  # top on top, front on the left
    assert not follow["sagittal"].masks[0][5:].any()
    assert follow["sagittal"].step == (1, 2)
