"""The command line as its user meets it: a process of its own, its exit code and what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

import pytest

VERBS = (
    "demo",
    "run",
    "simulate",
    "check",
    "ready",
    "back",
    "plan",
    "cohort annotate",
    "prepare",
    "pretrain",
    "finetune",
    "predict",
    "evaluate",
    "classify extract",
    "classify train",
    "classify predict",
    "classify evaluate",
    "budget",
    "report",
    "methods",
)
Call = Callable[..., "subprocess.CompletedProcess[str]"]


def processor_seconds(run: Callable[[], "subprocess.CompletedProcess[str]"]) -> float:
    before = getrusage(RUSAGE_CHILDREN)
    assert "Usage" in run().stdout
    after = getrusage(RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_answers_at_once(fresh_oligovox: Call, verb: str) -> None:
    """Beside the libraries that draw it, loaded alone in the same moment (0.2 s): the best of five of each."""
    alone = [sys.executable, "-c", "import typer.main, rich.markdown; print('Usage')"]
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(5):
        ours.append(processor_seconds(lambda: fresh_oligovox(*verb.split(), "--help")))
        theirs.append(processor_seconds(lambda: subprocess.run(alone, capture_output=True, text=True, check=True)))
        if min(ours) < 2.5 * min(theirs):
            return
    pytest.fail(f"{min(ours):.2f} s, the libraries alone {min(theirs):.2f} s")


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, oligovox.cli; print([m for m in ('torch', 'monai', 'numpy', 'nibabel', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_verbs_one_after_the_other(oligovox: Call, phantom: Path, tmp_path: Path) -> None:
    """prepare → pretrain → finetune → predict → evaluate, as the README says it, with --json."""
    store, start, run, out, scores = (tmp_path / name for name in ("store", "pre", "run", "out", "scores"))
    fast = ["--set", "patch=[16,16,16]", "--set", "training.threads=1", "--json"]
    prepared = json.loads(oligovox("prepare", phantom, store, "--json").stdout)
    assert prepared["cases"] == 6
    oligovox("pretrain", store, "--out", start, "--preset", "nano", "--steps", 2, *fast)
    oligovox("finetune", store, "--out", run, "--from", start, "--labels", 2, "--steps", 2, *fast)
    predicted = json.loads(oligovox("predict", run, phantom, out, "--json").stdout)
    assert sorted(predicted["files"]) == [f"sub-{n:02d}" for n in range(1, 7)]
    found = json.loads(oligovox("evaluate", out, phantom, "--out", scores, "--json").stdout)
    assert found["mean"]["lesion"]["dice"]["n"] == 6
    assert (scores / "lesions.tsv").read_text().startswith("case\tperson\tregion\tside\tnumber\tvolume_mm3")
    error = oligovox("predict", start, phantom, tmp_path / "no", check=2)
    assert "fine-tune it first" in error.stderr


def test_methods_are_listed(oligovox: Call) -> None:
    found = {entry["name"]: entry for entry in json.loads(oligovox("methods", "--json").stdout)["methods"]}
    assert {"generative", "masked_reconstruction", "segmentation"} <= set(found)
    assert found["generative"]["room"] == "pretext"
    assert all(entry["source"] and entry["deviates"] for entry in found.values())
    assert "generative" in oligovox("methods").stdout


def test_errors_are_one_line_and_exit_with_two(oligovox: Call, phantom: Path, tmp_path: Path) -> None:
    done = oligovox("prepare", tmp_path / "nowhere", tmp_path / "store", check=2)
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
    assert not (tmp_path / "store").exists()
    done = oligovox("prepare", tmp_path / "nowhere", tmp_path / "store", "--json", check=2)
    assert json.loads(done.stdout)["error"] == "CohortError"
    assert (
        oligovox("prepare", phantom, tmp_path / "store", "--modalities", "T1w,FLAIRE", check=2).stderr.count("\n") == 1
    )
    assert not (tmp_path / "store").exists()
    assert oligovox("simulate", "ms3t", tmp_path / "x", check=2).stderr.strip().endswith("did you mean 'ms-3t'?")
    assert oligovox("prepare", phantom, check=2).returncode == 2


def test_a_recipe_is_given_no_option_of_a_folder(oligovox: Call, tmp_path: Path) -> None:
    """An option that would change nothing is refused."""
    for option in (("--workers", "2"), ("--hours", "0"), ("--fix",)):
        refused = oligovox("run", tmp_path / "recipe.yaml", tmp_path / "out", *option, check=2)
        assert "a recipe says itself what to do" in refused.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [("plan", "gone"), ("run", "gone", "out", "--task", "lesion")])
def test_a_folder_that_is_not_there_is_refused_before_torch_is_loaded(words: tuple[str, ...], tmp_path: Path) -> None:
    code = "import atexit, sys; from oligovox.cli import main; atexit.register(lambda: print('torch' in sys.modules)); main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert "gone: no such folder" in done.stderr
