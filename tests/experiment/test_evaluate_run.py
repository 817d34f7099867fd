"""A recipe with several classes is scored class by class, and its page says so; the command line asks for what the functions give."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from oligovox import cli, experiment
from oligovox.files import read_json

TINY = Path(__file__).parents[1] / "tiny.yaml"


def test_a_run_with_classes(phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in phantom.glob("derivatives/manual/sub-*/anat/*_label-lesion_mask.nii.gz"):
        image = nib.load(path)
        label = np.asarray(image.dataobj).astype(np.uint8)
        label[12:][label[12:] > 0] = 2
        nib.save(nib.Nifti1Image(label, image.affine), path)
    monkeypatch.setenv("PHANTOM", str(phantom))
    classes = ["cohorts.phantom.labels={left: 1, right: 2}", "workers=1"]
    experiment.run(TINY, tmp_path / "run", classes)
    summary = read_json(tmp_path / "run" / "arms" / "scratch" / "summary.json")
    assert list(summary["mean"]) == ["any", "left", "right"]
    report = read_json(tmp_path / "run" / "report.json")["report"]
    arm = next(arm for arm in report["arms"] if arm["name"] == "scratch")
    for region, means in {"any": arm["means"], **arm["classes"]}.items():
        for metric, found in means.items():
            assert found["mean"] == summary["mean"][region][metric]["mean"]
    assert list(arm["classes"]) == ["left", "right"]
    scores = read_json(tmp_path / "run" / "arms" / "scratch" / "scores.json")["cases"]
    whole = {row["case"]: row["dice"] for row in scores if row["region"] == "any"}
    assert {row["case"]: row["dice"] for row in arm["cases"]} == whole
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("Scores of each class") == 1
    assert len(report["shown"]) == 2
    shown = report["shown"][0]
    number = {row["case"]: row["lesions_reference"] for row in scores if row["region"] == "any"}[shown["case"]]
    assert len(shown["lesions"]) == number, "lesions are those of all classes together"


def test_the_command_line_hands_everything_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = np.zeros((10, 8, 8), np.uint8)
    bar[2:8, 3:5, 3:5] = 1
    for n, site in enumerate("ABA"):
        for side in ("truth", "pred"):
            (tmp_path / side).mkdir(exist_ok=True)
            nib.save(
                nib.Nifti1Image(np.roll(bar, n * (side == "pred"), axis=0), np.eye(4)), tmp_path / side / f"p{n}.nii.gz"
            )
        with (tmp_path / "truth" / "participants.tsv").open("a") as table:
            table.write(("participant_id\tsite\n" if n == 0 else "") + f"p{n}\t{site}\n")

    def call(*arguments: str) -> str:
        command = [
            "oligovox",
            "evaluate",
            str(tmp_path / "pred"),
            str(tmp_path / "truth"),
            "--out",
            str(tmp_path / "out"),
        ]
        monkeypatch.setattr(sys, "argv", [*command, *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert left.value.code in (0, None)
        return capsys.readouterr().out

    options = ["--protocol", "msseg2016", "--set", "min_overlap=0.2", "--by", "site", "--workers", "1"]
    found = json.loads(call(*options, "--json"))
    assert (found["protocol"], found["settings"]["min_overlap"], found["people"]) == ("msseg2016", 0.2, 3)
    assert {group: part["people"] for group, part in found["by"]["site"].items()} == {"A": 2, "B": 1}
    assert json.loads(call(*options, "--people", "p1", "--json"))["people"] == 1
    text = call(*options)
    assert f"scores: {tmp_path / 'out'}\n" in text
    assert "protocol: msseg2016\n" in text
    assert "site A: lesion " in text
