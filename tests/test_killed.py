"""kill -9 at any moment: what stands under its real name is whole, and the same command goes on to the same end.

Each test starts this file as a script. The script imports oligovox once and forks a child for every command, which it may kill.

python test_killed.py SCENARIO ROOT
"""

from __future__ import annotations

import filecmp
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from oligovox.files import sweep

MANY = {"subjects": 10, "labelled": 8, "side": 36}
TINY = Path(__file__).parent / "tiny.yaml"
FAST = ["--set", "patch=[16,16,16]", "--set", "training.threads=1", "--set", "training.tensorboard=off"]


@pytest.mark.parametrize("scenario", ["training", "preparing", "predicting", "a_recipe", "classifying"])
def test_killed_and_started_again(scenario: str, make_phantom: Callable[..., Path], tmp_path: Path) -> None:
    make_phantom(tmp_path / "phantom", **MANY if scenario == "preparing" else {})
    done = subprocess.run([sys.executable, __file__, scenario, tmp_path], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


def test_leftovers_of_a_process_that_nobody_waited_for_are_removed(tmp_path: Path) -> None:
    """In a container the first process may never wait for orphans; they keep their number for ever."""
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        leftover = tmp_path / f".tmp-{child.pid}-sub-01"
        leftover.mkdir()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is still there
        sweep(tmp_path)
    assert not leftover.exists()


# --- scenarios, in the script ------------------------------------------------------------------------------------------------------


def training(root: Path) -> None:
    """pretrain is killed three times, finetune once; weights, descriptions and logs are those of runs that were left alone."""
    finish("prepare", root / "phantom", root / "store", "--workers", 1)
    options = [*FAST, "--preset", "nano", "--steps", 24, "--set", "training.checkpoint_every=3"]
    pretrain = ["pretrain", root / "store", *options, "--out"]
    finish(*pretrain, root / "whole")
    for rows in (2, 10, 17):
        kill(*pretrain, root / "killed", when=lambda rows=rows: rows_of(root / "killed") >= rows, within=0.15)
    finish(*pretrain, root / "killed")
    same_run(root / "whole", root / "killed", steps=24)

    (root / "split.json").write_text('{"seed": 0, "train": ["01", "02", "03"], "validation": ["04"], "test": ["05"]}')
    options = [*FAST, "--from", root / "whole", "--split", root / "split.json", "--steps", 12]
    options += ["--set", "training.checkpoint_every=3", "--set", "training.validate_every=4"]
    finetune = ["finetune", root / "store", *options, "--out"]
    finish(*finetune, root / "tuned")
    kill(*finetune, root / "tuned_killed", when=lambda: rows_of(root / "tuned_killed") >= 5, within=0.1)
    finish(*finetune, root / "tuned_killed")
    same_run(root / "tuned", root / "tuned_killed", steps=12)


def preparing(root: Path) -> None:
    """prepare is killed with its workers at work; each case that is there is whole, and no worker stays behind."""
    finish("prepare", root / "phantom", root / "whole")
    command = ["prepare", root / "phantom", root / "store"]
    cases = root / "store" / "cases"
    for count in (1, 4):
        kill(*command, when=lambda count=count: len(list(cases.glob("sub-*"))) >= count)
        wait_until(lambda: not workers_left(), "the workers of a killed process are still there")
        for folder in cases.glob("sub-*"):
            same_files(root / "whole" / "cases" / folder.name, folder)
        error = finish("pretrain", root / "store", "--out", root / "no", code=2)
        assert "preparing was not finished" in error, error
    before = {path: path.stat().st_mtime_ns for path in cases.glob("sub-*/*")}
    assert 4 <= len({path.parent for path in before}) < 10, "the kill came too late for this test to say anything"
    finish(*command)
    assert before == {path: path.stat().st_mtime_ns for path in before}, "a finished case was prepared again"
    same_files(root / "whole", root / "store")


def predicting(root: Path) -> None:
    """predict is killed after its first case; masks can be read, finished ones are not made again."""
    finish("prepare", root / "phantom", root / "store", "--workers", 1)
    finish("finetune", root / "store", "--out", root / "run", "--preset", "nano", "--steps", 1, *FAST)
    command = ["predict", root / "run", root / "store"]
    finish(*command, root / "whole", "--probabilities")
    out = root / "out"
    for count in (1, 3):
        kill(
            *command, out, "--probabilities", when=lambda count=count: len(list(out.rglob("sub-*_mask.json"))) >= count
        )
        for path in out.rglob("sub-*.nii.gz"):
            same_image(root / "whole" / path.relative_to(out), path)
    finished = [path.parent for path in out.rglob("sub-*_mask.json")]
    before = {path: path.stat().st_mtime_ns for folder in finished for path in folder.glob("sub-*")}
    assert 3 <= len(finished) < 6, "the kill came too late for this test to say anything"
    finish(*command, out, "--probabilities")
    assert before == {path: path.stat().st_mtime_ns for path in before}, "a finished prediction was made again"
    same_files(root / "whole", out)


def a_recipe(root: Path) -> None:
    """run is killed in pre-training, in the second arm and while it predicts; the page comes out with the same numbers."""
    os.environ["PHANTOM"] = str(root / "phantom")
    command = ["run", TINY, "--set", "workers=1", "--set", "pretrain.training.steps=8", "--out"]
    finish(*command, root / "whole")
    run, arms = root / "run", root / "run" / "arms"
    kill(*command, run, when=lambda: rows_of(run / "pretrain") >= 3)
    kill(*command, run, when=lambda: rows_of(arms / "scratch") >= 2)
    kill(*command, run, when=lambda: bool(list((arms / "pretrained" / "predictions").rglob("sub-*_mask.nii.gz"))))
    assert not (run / "report.html").exists()
    finish(*command, run)
    assert (run / "report.html").read_text().rstrip().endswith("</html>")
    assert (run / "report.json").is_file()
    same_run(root / "whole" / "pretrain", run / "pretrain", steps=8)
    for arm in ("scratch", "pretrained"):
        same_run(root / "whole" / "arms" / arm, arms / arm, steps=6)
        assert filecmp.cmp(root / "whole" / "arms" / arm / "scores.tsv", arms / arm / "scores.tsv", shallow=False)


def classifying(root: Path) -> None:
    """classify extract is killed between exams, train in the start of the first fold and in the second fold; scores are those of runs left alone."""
    rims = ["rims.people=1", "rims.partial=0", "rims.share=[0.4,0.6]", "sequences=[FLAIR,QSM]", "spacing=4"]
    finish("simulate", "rim", root / "people", "--subjects", 5, "--workers", 1, *sets(*rims))
    extract = ["classify", "extract", root / "people"]
    cut = ["--workers", 1, *sets("spacing=4", "patch=16")]
    finish(*extract, root / "lesions", *cut)
    killed = root / "lesions_killed"
    kill(*extract, killed, *cut, when=lambda: len(list(killed.glob("cases/sub-*"))) >= 2)
    assert len(list(killed.glob("cases/sub-*"))) < 5, "the kill came too late for this test to say anything"
    finish(*extract, killed, *cut)
    same_files(root / "lesions", killed)

    options = ["--preset", "nano", "--folds", 2, "--pretext", "frodo", "--steps", 6]
    few = ["patch=16", "batch=4", "pretrain.batch=4", "pretrain.training.steps=6", "training.validate_every=2"]
    train = [
        "classify",
        "train",
        root / "lesions",
        *options,
        *sets(*few, "training.threads=1", "training.tensorboard=off"),
        "--out",
    ]
    finish(*train, root / "whole")
    run = root / "run"
    kill(*train, run, when=lambda: rows_of(run / "fold-1" / "pretrain") >= 3)
    kill(*train, run, when=lambda: rows_of(run / "fold-2" / "train") >= 2)
    assert (run / "fold-1" / "fold.json").is_file()
    assert not (run / "classify.html").exists()
    finish(*train, run)
    for name in ("predictions.tsv", "scores.json", "scores.tsv"):
        assert filecmp.cmp(root / "whole" / name, run / name, shallow=False), name
    assert (run / "classify.html").read_text().rstrip().endswith("</html>")
    assert not list(run.glob("**/.tmp-*"))


def sets(*changes: str) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


# --- what scenarios are made of ----------------------------------------------------------------------------------------------------


def start(*arguments: object) -> tuple[int, Path]:
    """A child that runs this command line; its number, and the file that gets what it says."""
    said = ROOT / "said.txt"
    if child := os.fork():
        return child, said
    code = 1
    try:
        with said.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.argv = ["oligovox", *map(str, arguments)]
        cli.main()
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    finally:
        sys.stderr.flush()
        os._exit(code)


def finish(*arguments: object, code: int = 0) -> str:
    """Run a command to its end; what it said."""
    child, said = start(*arguments)
    found = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert found == code, f"{arguments}: exit code {found}, expected {code}\n{said.read_text()}"
    return said.read_text()


def kill(*arguments: object, when: Callable[[], bool], within: float = 0.0) -> None:
    """Run a command and kill it as soon as `when` says so, or at a random moment in the seconds after."""
    child, said = start(*arguments)
    begun = time.monotonic()
    while not when():
        gone, status = os.waitpid(child, os.WNOHANG)
        assert not gone, f"{arguments}: ended by itself with {os.waitstatus_to_exitcode(status)}\n{said.read_text()}"
        assert time.monotonic() - begun < 60, f"{arguments}: is not where it should be\n{said.read_text()}"
        time.sleep(0.0005)
    time.sleep(CHANCE.uniform(0, within))
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, "it ended before it was killed"


def wait_until(true: Callable[[], bool], message: str) -> None:
    begun = time.monotonic()
    while not true():
        assert time.monotonic() - begun < 20, message
        time.sleep(0.01)


def workers_left() -> list[int]:
    """Worker processes that a command of this script started (they are in its process group)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            group = os.getpgid(int(entry.name))
            words = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if group == os.getpgrp() and b"spawn_main" in words:
            found.append(int(entry.name))
    return found


def rows_of(run: Path) -> int:
    log = run / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def same_run(whole: Path, killed: Path, steps: int) -> None:
    same_files(whole / "model", killed / "model")
    logs = [
        [(row["step"], row["terms"], row.get("validation")) for row in read_log(run / "log.jsonl")]
        for run in (whole, killed)
    ]
    assert logs[0] == logs[1]
    assert [row[0] for row in logs[0]] == list(range(steps))
    assert not list(killed.glob("**/.tmp-*"))


def same_files(whole: Path, other: Path) -> None:
    """The same names and bytes below two folders; images by content, tables that hold a path by name only."""
    names = [{path.relative_to(folder) for path in folder.rglob("*") if path.is_file()} for folder in (whole, other)]
    assert names[0] == names[1], names[0] ^ names[1]
    for name in names[0]:
        if name.suffix == ".gz":
            same_image(whole / name, other / name)
        elif name.suffix == ".npy":
            np.testing.assert_array_equal(np.load(whole / name), np.load(other / name), err_msg=str(name))
        else:
            assert filecmp.cmp(whole / name, other / name, shallow=False), name


def same_image(whole: Path, other: Path) -> None:
    one, two = nib.load(whole), nib.load(other)
    np.testing.assert_array_equal(one.affine, two.affine)
    np.testing.assert_array_equal(np.asarray(one.dataobj), np.asarray(two.dataobj), err_msg=str(other))


if __name__ == "__main__":
    import torch

    from oligovox import cli
    from oligovox.engine.log import read_log
    from warm import import_all

    os.setpgrp()
    import_all()  # before the forks, since it takes seconds
    torch.set_num_threads(1)
    CHANCE = random.Random()
    ROOT = Path(sys.argv[2])
    {f.__name__: f for f in (training, preparing, predicting, a_recipe, classifying)}[sys.argv[1]](ROOT)
