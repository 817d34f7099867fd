"""Tables and datalists: columns that mean the same, encodings, and folders with none or several of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from oligovox.cohort.layouts import detect, looks, read
from oligovox.errors import CohortError

Volume = Callable[..., Path]


def test_two_columns_of_one_sequence(make_volume: Volume, tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_volume(tmp_path / f"{name}.nii.gz")
    (tmp_path / "t.csv").write_text("id,T1,mprage\n1,a.nii.gz,\n2,a.nii.gz,b.nii.gz\n")
    with pytest.raises(CohortError, match="line 3: T1 and mprage are both T1w; keep one of each sequence"):
        read(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("id,T1,mprage\n1,a.nii.gz,\n2,,b.nii.gz\n")
    assert [case.images["T1w"].name for case in read(tmp_path / "t.csv").cases] == ["a.nii.gz", "b.nii.gz"]


def test_a_column_of_a_further_acquisition(make_volume: Volume, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        make_volume(tmp_path / f"{name}.nii.gz")
    (tmp_path / "t.csv").write_text(
        "id,flair_run-3,FLAIR,FLAIR_run-2,T2_run-2\n1,c.nii.gz,a.nii.gz,b.nii.gz,c.nii.gz\n2,,a.nii.gz,,\n"
    )
    first, second = read(tmp_path / "t.csv").cases
    assert {name: path.name for name, path in first.acquisitions.items()} == {
        "FLAIR": "a.nii.gz", "FLAIR_run-2": "b.nii.gz", "FLAIR_run-3": "c.nii.gz",
    }  # fmt: skip
    assert not second.repeats
    assert set(first.info) == {"T2_run-2"}, "there is no T2 that it could repeat"


def test_a_table_in_another_encoding_says_so(make_volume: Volume, tmp_path: Path) -> None:
    make_volume(tmp_path / "a.nii.gz")
    file = tmp_path / "ward.csv"
    file.write_bytes("Patient;FLAIR;Größe\nMüller;a.nii.gz;3\n".encode("cp1252"))
    for look in (looks, detect, read):
        with pytest.raises(CohortError, match=r"ward\.csv: cannot be read as a table .*expected CSV or TSV in UTF-8"):
            look(file)
    with pytest.raises(CohortError, match=r"nearly table \(a table ward\.csv\), without a table that can be read"):
        detect(tmp_path)


@pytest.mark.parametrize(("layout", "what"), [("datalist", "list of cases"), ("table", "table")])
def test_a_folder_without_or_with_several_lists(make_volume: Volume, tmp_path: Path, layout: str, what: str) -> None:
    with pytest.raises(CohortError, match=f"no {what} in it, expected one .*give the path of a"):
        read(tmp_path, layout)
    make_volume(tmp_path / "flair.nii.gz")
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text('{"test": ["flair.nii.gz"]}')
        (tmp_path / f"{name}.csv").write_text("id,FLAIR\n1,flair.nii.gz\n")
    with pytest.raises(CohortError, match=r"several .* in it \(a\..*, b\..*\), expected one"):
        read(tmp_path, layout)
