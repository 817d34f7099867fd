"""Whose exam it is, and what its mask misses, where no lesion can say so."""

from __future__ import annotations

from pathlib import Path

import pytest

from oligovox.cohort.manifest import Case
from oligovox.files import write_json
from oligovox.prepare.lesion_store import FORMAT, LesionStore, person_of


@pytest.mark.parametrize("dataset", ["", "basel", "sub-x", "a_b"])
@pytest.mark.parametrize("session", ["", "1", "m06"])
@pytest.mark.parametrize("subject", ["01", "PAT-7", "a_b"])
def test_the_name_of_an_exam_says_whose_it_is(dataset: str, session: str, subject: str) -> None:
    case = Case(subject=subject, session=session, dataset=dataset, images={"FLAIR": Path("a.nii.gz")})
    assert person_of(case.name) == case.person


def test_what_masks_miss_is_known_by_exam_or_not_at_all(tmp_path: Path) -> None:
    exams = ("sub-01", "sub-02")
    write_json(tmp_path / "lesions.json", {"format": FORMAT, "finished": True, "plan": {}, "exams": exams,
                                           "content": "", "simulated": False})  # fmt: skip
    for exam, missed in zip(exams, (2, 0), strict=True):
        write_json(tmp_path / "cases" / exam / "case.json", {"lesions": [], "rims_without_lesion": missed})
    store = LesionStore.open(tmp_path)
    assert store.missed_by_exam == {"sub-01": 2, "sub-02": 0}
    assert store.missed_rims == 2
    write_json(tmp_path / "cases" / "sub-02" / "case.json", {"lesions": []})  # cut before this was counted
    assert (store.missed_by_exam, store.missed_rims) == (None, None)
