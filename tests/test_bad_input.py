"""What a user can give that cannot be used: one clear line, exit code 2, nothing written."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from oligovox import cli, experiment
from oligovox.cohort.bids import read_bids
from oligovox.cohort.splits import Split
from oligovox.engine.fit import Training
from oligovox.errors import CheckpointError
from oligovox.experiment.recipe import Finetune, NetworkChoice, Pretrain

TINY = Path(__file__).parent / "tiny.yaml"
NANO = NetworkChoice.named("resenc", "nano")
ONE_STEP = {"patch": (16, 16, 16), "training": Training(steps=1, threads=1, tensorboard="off")}
Fails = Callable[..., str]


@pytest.fixture(scope="module")
def made(make_phantom: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bids (four people, the fourth unlabelled), store, start (pre-trained), run (fine-tuned), predictions. Not to be changed."""
    root = tmp_path_factory.mktemp("made")
    make_phantom(root / "bids", subjects=4, labelled=3)
    experiment.prepare(root / "bids", root / "store", workers=1)
    experiment.pretrain(root / "store", root / "start", stage=Pretrain(**ONE_STEP), network=NANO)
    experiment.finetune(root / "store", root / "run", stage=Finetune(**ONE_STEP), network=NANO)
    experiment.predict(root / "run", root / "bids", root / "predictions", workers=1)
    return root


@pytest.fixture
def bids(make_phantom: Callable[..., Path], tmp_path: Path) -> Path:
    """Two labelled people, to be spoiled."""
    return make_phantom(tmp_path / "bids", subjects=2, labelled=2)


@pytest.fixture
def fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Fails:
    """The one line that a command line fails with; `unwritten` must not exist afterwards."""

    def call(*arguments: object, unwritten: Path) -> str:
        monkeypatch.setattr(sys, "argv", ["oligovox", *map(str, arguments)])
        capsys.readouterr()
        caplog.clear()
        with caplog.at_level(logging.INFO, "oligovox"), pytest.raises(SystemExit) as left:
            cli.main()
        printed = capsys.readouterr()
        lines = [record.getMessage() for record in caplog.records] + printed.err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        assert left.value.code == 2
        assert printed.out == ""
        assert not unwritten.exists()
        assert not list(unwritten.parent.glob(".tmp-*"))
        return lines[0]

    return call


def flair(bids: Path, subject: str = "sub-01") -> Path:
    return bids / subject / "anat" / f"{subject}_FLAIR.nii.gz"


def mask(bids: Path, kind: str = "label-lesion", subject: str = "sub-01") -> Path:
    return bids / "derivatives" / "manual" / subject / "anat" / f"{subject}_{kind}_mask.nii.gz"


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray], shift: float = 0.0) -> None:
    """The same file with other voxels, moved by `shift` mm."""
    image = nib.load(path)
    array, affine = change(image.get_fdata(dtype=np.float32)), image.affine.copy()
    affine[0, 3] += shift
    nib.save(nib.Nifti1Image(array, affine), path)


def with_one(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[12, 12, 12] = value
        return array

    return change


# --- images and masks ----------------------------------------------------------------------------------------------------------


def cut(bids: Path) -> Path:
    flair(bids).write_bytes(flair(bids).read_bytes()[:-900])
    return flair(bids)


def cut_header(bids: Path) -> Path:
    flair(bids).write_bytes(flair(bids).read_bytes()[:60])
    return flair(bids)


def empty_file(bids: Path) -> Path:
    flair(bids).write_bytes(b"")
    return flair(bids)


def not_a_number(bids: Path) -> Path:
    rewrite(flair(bids), with_one(np.nan))
    return flair(bids)


def infinite(bids: Path) -> Path:
    rewrite(flair(bids), with_one(np.inf))
    return flair(bids)


def other_shape(bids: Path) -> Path:
    rewrite(mask(bids), lambda array: array[:-1])
    return mask(bids)


def other_place(bids: Path) -> Path:
    rewrite(mask(bids), lambda array: array, shift=2.0)
    return mask(bids)


def brain_elsewhere(bids: Path) -> Path:
    rewrite(mask(bids, "desc-brain"), lambda array: array, shift=2.0)
    return mask(bids, "desc-brain")


def four_axes(bids: Path) -> Path:
    rewrite(flair(bids), lambda array: np.stack([array, array], axis=-1))
    return flair(bids)


def only_zeros(bids: Path) -> Path:
    rewrite(flair(bids), np.zeros_like)
    return flair(bids)


def unknown_value(bids: Path) -> Path:
    rewrite(mask(bids), with_one(7))
    return mask(bids)


def no_brain(bids: Path) -> Path:
    rewrite(mask(bids, "desc-brain"), np.zeros_like)
    return mask(bids, "desc-brain")


def mask_without_image(bids: Path) -> Path:
    shutil.rmtree(bids / "sub-01" / "anat")
    return mask(bids)


def link_to_nowhere(bids: Path) -> Path:
    flair(bids).unlink()
    flair(bids).symlink_to(bids / "moved.nii.gz")
    return flair(bids)


@pytest.mark.parametrize(
    ("spoil", "found", "todo"),
    [
        (cut, "truncated or damaged", "copy it again"),
        (cut_header, "truncated or damaged", "copy it again"),
        (empty_file, "truncated or damaged", "copy it again"),
        (not_a_number, "1 voxels are NaN or infinite", "expected finite"),
        (infinite, "1 voxels are NaN or infinite", "expected finite"),
        (other_shape, "mask of shape (23, 24, 24)", "FLAIR (24, 24, 24)"),
        (other_place, "FLAIR (24, 24, 24), 2 mm apart", "draw or resample it"),
        (brain_elsewhere, "2 mm apart", "draw or resample it"),
        (four_axes, "has shape (24, 24, 24, 2)", "expected one 3-D volume"),
        (only_zeros, "every voxel is 0", "leave this image out"),
        (unknown_value, "has the values 7", "expected 0 = background, 1 = lesion"),
        (no_brain, "the brain mask is empty", "mend it, or leave it out"),
        (mask_without_image, "has no image beside it", "bring the image back"),
        (link_to_nowhere, "missing (or is a link to nowhere)", "bring it back"),
    ],
)
def test_a_file_that_is_no_image_or_mask(
    bids: Path, tmp_path: Path, fails: Fails, spoil: Callable[[Path], Path], found: str, todo: str
) -> None:
    file = spoil(bids)
    line = fails("prepare", bids, tmp_path / "store", "--workers", 1, unwritten=tmp_path / "store")
    assert str(file) in line
    assert found in line
    assert todo in line


def test_a_file_that_is_no_image_stops_a_recipe_before_it_begins(
    bids: Path, tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHANTOM", str(bids))
    cut(bids)
    small = ["--set", "split.test=1", "--set", "split.validation=0", "--set", "split.labels=1", "--set", "workers=1"]
    assert "damaged" in fails("run", TINY, "--out", tmp_path / "run", *small, unwritten=tmp_path / "run")


@pytest.mark.parametrize("gone", [flair, mask])
def test_a_file_of_the_table_is_gone(bids: Path, tmp_path: Path, fails: Fails, gone: Callable[[Path], Path]) -> None:
    table = tmp_path / "cohort.tsv"
    read_bids(bids).save(table)
    gone(bids).unlink()
    line = fails("prepare", table, tmp_path / "store", unwritten=tmp_path / "store")
    assert str(gone(bids)) in line
    assert "is listed but is not there" in line


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("subject\tsession\n01\n", "line 2 has 1 columns, expected 2"),
        ("person\n01\n", "lacks 'subject'"),
        ("", "the table is empty"),
    ],
)
def test_a_table_that_is_none(bids: Path, tmp_path: Path, fails: Fails, content: str, found: str) -> None:
    table = tmp_path / "cohort.tsv"
    read_bids(bids).save(table)
    table.write_text(content)
    line = fails("prepare", table, tmp_path / "store", unwritten=tmp_path / "store")
    assert str(table) in line
    assert found in line


@pytest.mark.parametrize(
    ("name", "hint"), [("FLAIRE", "did you mean 'FLAIR'?"), ("bold", "known are: FLAIR, PDw, QSM, T1in")]
)
def test_a_sequence_nobody_knows(bids: Path, tmp_path: Path, fails: Fails, name: str, hint: str) -> None:
    line = fails("prepare", bids, tmp_path / "store", "--modalities", f"T1w,{name}", unwritten=tmp_path / "store")
    assert f"unknown modality '{name}'" in line
    assert hint in line


def test_a_sequence_nobody_has(bids: Path, tmp_path: Path, fails: Fails) -> None:
    line = fails("prepare", bids, tmp_path / "store", "--modalities", "QSM", unwritten=tmp_path / "store")
    assert "sub-01: has FLAIR, T1w, T2w, none of the plan's QSM" in line


@pytest.mark.parametrize("spacing", ["1,1", "0,1,1", "a,b,c", "nan,1,1"])
def test_a_voxel_size_that_is_none(bids: Path, tmp_path: Path, fails: Fails, spacing: str) -> None:
    assert "spacing" in fails("prepare", bids, tmp_path / "store", "--spacing", spacing, unwritten=tmp_path / "store")


# --- labels of a part ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kind", "scribble"], "unknown kind 'scribble'; did you mean 'scribbles'?"),
        (
            ["--kind", "largest", "--set", "slices=25"],
            "sub-01: 25 slices to be labelled, the volume has 24; ask for fewer",
        ),
        (["--set", "evry=8"], "annotate slices: unknown key 'evry'; did you mean 'every'?"),
        (["--set", "every=0"], "every = 0: Input should be greater than or equal to 1"),
        (["--kind", "full", "--set", "every=8"], "annotate full: unknown key 'every'"),
        (
            ["--kind", "boxes", "--set", "stroke_mm=5"],
            "annotate boxes: stroke_mm = 5.0 has no effect on boxes, it is for scribbles; leave it out, or choose another kind",
        ),
        (["--set", "kind=boxes"], "annotate slices: kind = 'boxes' among the settings; name one kind, by --kind only"),
        (["--people", "07"], "no subject '07'"),
        (["--kind", "none", "--picture"], "leaves no label to draw"),
        (["--kind", "rater"], "no mask is called 'rater1', but masks are there called lesion"),
        (["--mask", "wmh"], "no mask is called 'wmh', but masks are there called lesion"),
    ],
)
def test_a_label_of_a_part_that_cannot_be_made(
    bids: Path, tmp_path: Path, fails: Fails, options: list[str], message: str
) -> None:
    assert message in fails("cohort", "annotate", bids, tmp_path / "out", *options, unwritten=tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--annotate", "boxes:stroke_mm=5"], "sparse: stroke_mm = 5.0 has no effect on boxes"),
        (["--annotate", "slices:kind=boxes"], "--annotate slices: sparse.kind=boxes among the settings; name one kind"),
        (["--annotate", "slices", "--set", "sparse.kind=boxes"], "--annotate slices: sparse.kind=boxes among the settings"),
    ],
)  # fmt: skip
def test_a_label_of_a_part_that_cannot_be_simulated(
    tmp_path: Path, fails: Fails, options: list[str], message: str
) -> None:
    assert message in fails("simulate", "ms-3t", tmp_path / "out", *options, unwritten=tmp_path / "out")


def test_no_lesion_to_draw(bids: Path, tmp_path: Path, fails: Fails) -> None:
    rewrite(mask(bids, subject="sub-02"), np.zeros_like)
    line = fails("cohort", "annotate", bids, tmp_path / "out", "--kind", "lesions", unwritten=tmp_path / "out")
    assert "sub-02: " in line
    assert "has no lesion, so nothing of it would be labelled as lesions" in line
    boxes = experiment.annotate(bids, tmp_path / "boxes", kind="boxes")
    assert boxes["annotated"] == 2
    empty = next((tmp_path / "boxes" / "sub-02").rglob("*.nii.gz"))
    assert not np.asarray(nib.load(empty).dataobj).any(), "a box with nothing in it is no box: all of it is background"


def test_255_is_said_and_never_guessed(bids: Path, tmp_path: Path, fails: Fails) -> None:
    rewrite(mask(bids), lambda array: np.where(np.arange(24) % 8 == 3, array, 255).astype(np.uint8))
    line = fails("prepare", bids, tmp_path / "store", "--workers", 1, unwritten=tmp_path / "store")
    assert f"{mask(bids)}: has the values 255; expected 0 = background, 1 = lesion" in line
    assert '"Unlabelled": 255 in its .json' in line
    line = fails("cohort", "annotate", bids, tmp_path / "out", unwritten=tmp_path / "out")
    assert f"{mask(bids)}: has values from 0 to 255; expected whole numbers from 0 to 127" in line
    sidecar = mask(bids).with_name("sub-01_label-lesion_mask.json")
    sidecar.write_text('{"Unlabelled": 255}')
    line = fails("cohort", "annotate", bids, tmp_path / "out", unwritten=tmp_path / "out")
    assert "sub-01: only a part of it is labelled already" in line
    sidecar.write_text('{"Unlabelled": -1}')
    line = fails("prepare", bids, tmp_path / "store", unwritten=tmp_path / "store")
    assert f"{sidecar}: Unlabelled is -1, expected 255" in line


def test_nothing_is_scored_against_a_label_of_a_part(made: Path, bids: Path, tmp_path: Path, fails: Fails) -> None:
    mask(bids).with_name("sub-01_label-lesion_mask.json").write_text('{"Unlabelled": 255}')
    options = ["--people", "01,02", "--out", tmp_path / "scores"]
    shutil.copytree(made / "predictions", tmp_path / "predictions")
    for other in ("03", "04"):
        shutil.rmtree(tmp_path / "predictions" / f"sub-{other}")
    line = fails("evaluate", tmp_path / "predictions", bids, *options, unwritten=tmp_path / "scores")
    assert f"sub-01: only a part of it is labelled ({mask(bids)}), so it cannot be scored" in line
    plain = tmp_path / "plain"
    plain.mkdir()
    for file in (mask(bids), mask(bids).with_name("sub-01_label-lesion_mask.json")):
        shutil.copy(file, plain)
    shutil.rmtree(tmp_path / "predictions" / "sub-02")
    line = fails(
        "evaluate", tmp_path / "predictions", plain, "--out", tmp_path / "scores", unwritten=tmp_path / "scores"
    )
    assert "sub-01_label-lesion_mask: only a part of it is labelled" in line


# --- splits, budgets, recipes ----------------------------------------------------------------------------------------------------


def test_a_split_with_a_person_on_both_sides(made: Path, tmp_path: Path, fails: Fails) -> None:
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"seed": 0, "train": ["01", "02"], "validation": [], "test": ["02"]}))
    for option in (["finetune", made / "store", "--split", split], ["pretrain", made / "store", "--exclude", split]):
        line = fails(*option, "--out", tmp_path / "run", unwritten=tmp_path / "run")
        assert str(split) in line
        assert "'02' is in train and in test; everyone belongs to one group only" in line


@pytest.mark.parametrize(
    "content", ["", "[]", '{"train": ["01"]}', '{"seed": 0, "train": "01", "validation": [], "test": []}']
)
def test_a_split_that_is_none(made: Path, tmp_path: Path, fails: Fails, content: str) -> None:
    split = tmp_path / "split.json"
    split.write_text(content)
    line = fails("finetune", made / "store", "--split", split, "--out", tmp_path / "run", unwritten=tmp_path / "run")
    assert str(split) in line


def test_a_split_of_other_people(made: Path, tmp_path: Path, fails: Fails) -> None:
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"seed": 0, "train": ["01"], "validation": ["77"], "test": []}))
    line = fails("finetune", made / "store", "--split", split, "--out", tmp_path / "run", unwritten=tmp_path / "run")
    assert "no person '77'" in line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["split.test=['01']", "split.labels=['01','02']"], "'01' is in train and in test"),
        (["split.test=['01','01']", "split.labels=['02']"], "'01' is in test"),
        (["split.test=['01']", "split.validation=['01']"], "'01' is in validation and in test"),
        (["split.test=['nobody']"], "no subject 'nobody'"),
        (["split.test=9"], "lower the numbers"),
        (["prepair.margin=3"], "unknown key 'prepair'; did you mean 'prepare'?"),
        (["finetune.training.stepz=7"], "finetune.training: unknown key 'stepz'; did you mean 'steps'?"),
        (["prepare.modalities=[T1w,FLAIRR]"], "did you mean 'FLAIR'?"),
        (["pretrain.method=generativ"], "unknown method 'generativ'; did you mean 'generative'?"),
        (["network.name=swim"], "unknown network 'swim'; did you mean 'swin'?"),
        (["network.settings.preset=huge"], "preset = 'huge'"),
        (["cohorts.phantom.bids=/nowhere"], "/nowhere: no such folder"),
        (["cohorts={}"], "at least one cohort"),
        (["finetune.patch=[15,16,16]"], "15 is not a multiple of 4, as network resenc needs; try 16"),
        (["finetune.training.steps"], "expected key=value"),
        (["finetune.training.steps=[1"], "cannot be read as YAML"),
        (["name.first=x"], "name is a value"),
    ],
)
def test_a_recipe_that_cannot_be_done(
    made: Path, tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch, changes: list[str], message: str
) -> None:
    monkeypatch.setenv("PHANTOM", str(made / "bids"))
    sized = ["split.test=1", "split.validation=0", "split.labels=1", *changes]
    options = [part for change in sized for part in ("--set", change)]
    assert message in fails("run", TINY, "--out", tmp_path / "run", *options, unwritten=tmp_path / "run")


@pytest.mark.parametrize("content", ["name: [", "- 1\n- 2\n", "", "\x00"])
def test_a_recipe_that_is_none(tmp_path: Path, fails: Fails, content: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(content)
    assert str(recipe) in fails("run", recipe, "--out", tmp_path / "run", unwritten=tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.stepz=3", "did you mean 'steps'?"),
        ("trainin.steps=3", "did you mean 'training'?"),
        ("training.steps", "expected key=value"),
        ("training.steps=many", "steps = 'many'"),
        ("training=3", "training = 3"),
        ("training.lr=.nan", "lr"),
        ("=3", "unknown key ''"),
        ("patch=[15,16,16]", "15 is not a multiple of 4, as network resenc needs; try 16"),
        ("patch=[4,4,4]", "patch (4, 4, 4) is too small for network resenc: image of 4 × 4 × 4 voxels"),
        ("patch=[16,16]", "patch"),
        ("settings.blok=8", "did you mean 'block'?"),
        ("settings=8", "settings = 8"),
        ("method=generativ", "unknown method 'generativ'; did you mean 'generative'?"),
        ("method=segmentation", "needs labelled cases"),
    ],
)
def test_a_change_with_a_slip(made: Path, tmp_path: Path, fails: Fails, change: str, message: str) -> None:
    line = fails(
        "pretrain", made / "store", "--preset", "nano", "--out", tmp_path / "run", "--set", change,
        unwritten=tmp_path / "run",
    )  # fmt: skip
    assert message in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(made: Path, tmp_path: Path, fails: Fails) -> None:
    for verb in ("pretrain", "finetune"):
        options = ["--preset", "nano", "--out", tmp_path / "run", "--set", "training.device=cuda"]
        line = fails(verb, made / "store", *options, unwritten=tmp_path / "run")
        assert "sees no GPU here; set device: cpu (or auto)" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--encoder", "resnec"], "unknown network 'resnec'; did you mean 'resenc'?"),
        (["--preset", "enormous"], "preset = 'enormous'"),
        (["--method", "generativ"], "did you mean 'generative'?"),
        (["--encoder", "swin", "--preset", "S"], "preset S is a size of resenc"),
    ],
)
def test_a_network_or_method_nobody_knows(
    made: Path, tmp_path: Path, fails: Fails, options: list[str], message: str
) -> None:
    assert message in fails("pretrain", made / "store", "--out", tmp_path / "run", *options, unwritten=tmp_path / "run")


def test_a_start_brings_its_own_network(made: Path, tmp_path: Path, fails: Fails) -> None:
    options = ["--from", tmp_path / "pre", "--preset", "S", "--out", tmp_path / "run"]
    assert "leave out --encoder" in fails("finetune", made / "store", *options, unwritten=tmp_path / "run")


# --- stores and labels -------------------------------------------------------------------------------------------------------------


def test_no_labels_where_labels_are_needed(bids: Path, tmp_path: Path, fails: Fails) -> None:
    for subject in ("sub-01", "sub-02"):
        mask(bids, subject=subject).unlink()
    experiment.prepare(bids, tmp_path / "store", workers=1)
    line = fails("finetune", tmp_path / "store", "--out", tmp_path / "run", unwritten=tmp_path / "run")
    assert f"{tmp_path / 'store'}: 0 people with a label may be used, at least 1 wanted; label more cases" in line


def test_masks_without_a_lesion(bids: Path, tmp_path: Path, fails: Fails) -> None:
    for subject in ("sub-01", "sub-02"):
        rewrite(mask(bids, subject=subject), np.zeros_like)
    experiment.prepare(bids, tmp_path / "store", workers=1)
    line = fails("finetune", tmp_path / "store", "--out", tmp_path / "run", unwritten=tmp_path / "run")
    assert "no lesion voxel" in line


def test_more_labels_than_there_are(made: Path, tmp_path: Path, fails: Fails) -> None:
    line = fails("finetune", made / "store", "--labels", 4, "--out", tmp_path / "run", unwritten=tmp_path / "run")
    assert "3 people with a label may be used, 4 wanted" in line


def spoiled_store(made: Path, root: Path, **changes: object) -> Path:
    shutil.copytree(made / "store", root / "store")
    table = root / "store" / "store.json"
    table.write_text(json.dumps(json.loads(table.read_text()) | changes))
    return root / "store"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"finished": False}, "preparing was not finished (4 of 4 case folders are there); run the same `prepare`"),
        ({"format": 99}, "store format 99, expected"),
        ({"cases": ["sub-77"]}, "sub-77/case.json"),
        ({"plan": {"modality": []}}, "store.json"),
        ({"cases": None}, "store.json"),
    ],
)
def test_a_store_that_is_not_finished_or_not_ours(
    made: Path, tmp_path: Path, fails: Fails, changes: dict[str, object], message: str
) -> None:
    store = spoiled_store(made, tmp_path, **changes)
    for verb in ("pretrain", "finetune"):
        assert message in fails(verb, store, "--out", tmp_path / "run", unwritten=tmp_path / "run")


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_store_whose_table_is_garbage(made: Path, tmp_path: Path, fails: Fails, content: str) -> None:
    store = spoiled_store(made, tmp_path)
    (store / "store.json").write_text(content)
    assert "store.json" in fails("pretrain", store, "--out", tmp_path / "run", unwritten=tmp_path / "run")


def test_a_folder_that_is_no_store(made: Path, tmp_path: Path, fails: Fails) -> None:
    for data in (made / "bids", tmp_path / "nowhere"):
        line = fails("pretrain", data, "--out", tmp_path / "run", unwritten=tmp_path / "run")
        assert "this is not a store; make one with `oligovox prepare`" in line


# --- checkpoints and models --------------------------------------------------------------------------------------------------------


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize(
    "network", [NetworkChoice(name="swin", settings={"feature_size": 12}), NetworkChoice.named("resenc", "S")]
)
def test_a_start_of_another_architecture(made: Path, tmp_path: Path, network: NetworkChoice) -> None:
    """From Python; on the command line the start brings its network along."""
    stage = Finetune(patch=(32, 32, 32), training=ONE_STEP["training"])
    with pytest.raises(CheckpointError, match="build the network with the settings the weights were trained with") as e:
        experiment.finetune(made / "store", tmp_path / "run", stage=stage, network=network, start=made / "start")
    assert str(made / "start") in str(e.value)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "run").exists()


def test_a_run_with_other_people_or_patches_is_not_gone_on_with(made: Path, tmp_path: Path) -> None:
    """Pre-training has seen everyone, so that `trained_on` cannot tell whose labels were used."""

    def finetune(labels: int = 1, split: Split | None = None, **stage: object) -> Path:
        chosen = Finetune(**ONE_STEP, **stage)
        return experiment.finetune(
            made / "store", tmp_path / "run", stage=chosen, start=made / "start", labels=labels, split=split
        )

    finetune()
    finetune()  # the same again is a run that is finished
    watched = Split(train=("02", "03"), validation=("01",), test=(), seed=0)
    for asked, named in (
        ({"labels": 2}, "streams.0.cases"),
        ({"lesion_share": 0.1}, "streams.0.lesion_share"),
        ({"norm_reset": True}, "norm_reset"),
        ({"parts": ("encoder",)}, "parts"),
        ({"split": watched}, "watched"),
    ):
        with pytest.raises(CheckpointError, match=rf"{named} = .*asked for"):
            finetune(**asked)


def test_a_run_of_another_network_or_method_is_not_gone_on_with(made: Path, tmp_path: Path, fails: Fails) -> None:
    shutil.copytree(made / "start", tmp_path / "start")
    before = {path: path.read_bytes() for path in (tmp_path / "start").rglob("*") if path.is_file()}
    common = ["pretrain", made / "store", "--out", tmp_path / "start", "--set", "patch=[16,16,16]", "--steps", 1]
    for options, found in (
        (["--preset", "tiny"], 'network_settings.preset = "nano", asked for "tiny"'),
        (["--preset", "nano", "--method", "masked_reconstruction"], 'method = "generative"'),
        (["--preset", "nano", "--set", "training.seed=1"], "training.seed = 0, asked for 1"),
    ):
        line = fails(*common, *options, unwritten=tmp_path / "never")
        assert str(tmp_path / "start") in line
        assert found in line
        assert "or another output folder to start anew" in line
    assert before == {path: path.read_bytes() for path in (tmp_path / "start").rglob("*") if path.is_file()}


def cut_weights(model: Path) -> str:
    weights = model / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return str(weights)


def changed_weights(model: Path) -> str:
    weights = model / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    return str(weights)


def pickled_weights(model: Path) -> str:
    (model / "weights.safetensors").write_bytes(pickle.dumps(Bomb(model.parent / "boom")))
    return str(model / "weights.safetensors")


def torch_weights(model: Path) -> str:
    torch.save({"bomb": Bomb(model.parent / "boom")}, model / "weights.safetensors")
    return str(model / "weights.safetensors")


def no_weights(model: Path) -> str:
    (model / "weights.safetensors").rename(model / "weights.pt")
    return str(model / "weights.safetensors")


def garbage(model: Path) -> str:
    (model / "model.json").write_text("{'kind':")
    return str(model / "model.json")


def pickled_description(model: Path) -> str:
    (model / "model.json").write_bytes(pickle.dumps(Bomb(model.parent / "boom")))
    return str(model / "model.json")


def foreign(model: Path) -> str:
    (model / "model.json").write_text('{"architectures": ["BertModel"]}')
    return str(model / "model.json")


def redescribed(**changes: object) -> Callable[[Path], str]:
    def spoil(model: Path) -> str:
        path = model / "model.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return str(model)

    return spoil


def gone(model: Path) -> str:
    shutil.rmtree(model)
    return str(model.parent)


@pytest.mark.parametrize(
    "spoil",
    [
        cut_weights,
        changed_weights,
        pickled_weights,
        torch_weights,
        no_weights,
        garbage,
        pickled_description,
        foreign,
        redescribed(extra=1),
        redescribed(modalities=["T1w"]),
        redescribed(labels={"a": 1, "b": 2}, settings={"labels": {"a": 1, "b": 2}}),
        redescribed(network_settings={"preset": "tiny"}),
        redescribed(method="generative"),
        gone,
    ],
)
def test_a_model_that_cannot_be_read(made: Path, tmp_path: Path, fails: Fails, spoil: Callable[[Path], str]) -> None:
    shutil.copytree(made / "run" / "model", tmp_path / "run" / "model")
    file = spoil(tmp_path / "run" / "model")
    line = fails("predict", tmp_path / "run", made / "bids", tmp_path / "out", unwritten=tmp_path / "out")
    assert file in line
    assert not (tmp_path / "run" / "boom").exists()


@pytest.mark.parametrize("spoil", [cut_weights, pickled_weights, garbage, redescribed(modalities=["T1w"]), gone])
def test_a_start_that_cannot_be_read(made: Path, tmp_path: Path, fails: Fails, spoil: Callable[[Path], str]) -> None:
    shutil.copytree(made / "start" / "model", tmp_path / "start" / "model")
    file = spoil(tmp_path / "start" / "model")
    line = fails(
        "finetune", made / "store", "--from", tmp_path / "start", "--out", tmp_path / "run",
        "--set", "patch=[16,16,16]", unwritten=tmp_path / "run",
    )  # fmt: skip
    assert file in line
    assert not (tmp_path / "start" / "boom").exists()


def test_a_pickle_beside_the_weights_is_left_alone(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "start" / "model", tmp_path / "model")
    for name in ("weights.pt", "model.pkl", "pytorch_model.bin"):
        (tmp_path / "model" / name).write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    experiment.finetune(made / "store", tmp_path / "run", stage=Finetune(**ONE_STEP), start=tmp_path / "model")
    assert not (tmp_path / "boom").exists()
    pickle.loads((tmp_path / "model" / "model.pkl").read_bytes())
    assert (tmp_path / "boom").exists(), "the pickle of this test would have said that it was opened"


def test_a_checkpoint_that_is_damaged(made: Path, tmp_path: Path, fails: Fails) -> None:
    shutil.copytree(made / "start", tmp_path / "start")
    (weights,) = (tmp_path / "start" / "checkpoints").glob("step-*/weights.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    options = ["--preset", "nano", "--set", "patch=[16,16,16]", "--set", "training.threads=1", "--steps", 1]
    options += ["--set", "training.tensorboard=off"]
    line = fails("pretrain", made / "store", "--out", tmp_path / "start", *options, unwritten=tmp_path / "never")
    assert str(weights) in line
    assert "restore it from a copy" in line


# --- predict and evaluate ----------------------------------------------------------------------------------------------------------


def test_predict_without_a_sequence_the_model_knows(made: Path, tmp_path: Path, fails: Fails) -> None:
    for subject in ("sub-01", "sub-02"):
        path = tmp_path / "bids" / subject / "anat" / f"{subject}_PDw.nii.gz"
        path.parent.mkdir(parents=True)
        shutil.copy(flair(made / "bids"), path)
    line = fails("predict", made / "run", tmp_path / "bids", tmp_path / "out", unwritten=tmp_path / "out")
    assert f"{tmp_path / 'bids'}: no case has a sequence that the model knows (FLAIR, T1w, T2w)" in line


def test_predict_people_who_are_not_there(made: Path, tmp_path: Path, fails: Fails) -> None:
    for data in (made / "bids", made / "store"):
        line = fails("predict", made / "run", data, tmp_path / "out", "--people", "01,77", unwritten=tmp_path / "out")
        assert "'77'" in line


def test_predict_from_a_store_of_another_plan(made: Path, tmp_path: Path, fails: Fails) -> None:
    plan = json.loads((made / "store" / "store.json").read_text())["plan"]
    store = spoiled_store(made, tmp_path, plan=plan | {"margin": 9})
    line = fails("predict", made / "run", store, tmp_path / "out", unwritten=tmp_path / "out")
    assert "prepared by another plan than the model's" in line


def test_predict_a_damaged_image(made: Path, bids: Path, tmp_path: Path, fails: Fails) -> None:
    cut(bids)
    line = fails("predict", made / "run", bids, tmp_path / "out", unwritten=tmp_path / "out")
    assert str(flair(bids)) in line


def prediction(folder: Path, subject: str = "sub-02") -> Path:
    (found,) = folder.glob(f"{subject}/**/*_mask.nii.gz")
    return found


@pytest.fixture
def predictions(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "predictions", tmp_path / "predictions")
    return tmp_path / "predictions"


def test_evaluate_with_a_missing_prediction(made: Path, predictions: Path, tmp_path: Path, fails: Fails) -> None:
    prediction(predictions).unlink()
    line = fails("evaluate", predictions, made / "bids", "--out", tmp_path / "out", unwritten=tmp_path / "out")
    assert "1 of 3 predictions are missing, first sub-02" in line
    assert "predict these cases first" in line


@pytest.mark.parametrize(("change", "shift"), [(lambda array: array[1:], 0.0), (lambda array: array, 0.5)])
def test_evaluate_on_another_grid(
    made: Path,
    predictions: Path,
    tmp_path: Path,
    fails: Fails,
    change: Callable[[np.ndarray], np.ndarray],
    shift: float,
) -> None:
    rewrite(prediction(predictions), change, shift)
    line = fails("evaluate", predictions, made / "bids", "--out", tmp_path / "out", unwritten=tmp_path / "out")
    assert str(prediction(predictions)) in line
    assert "expected one grid" in line


def test_evaluate_a_damaged_prediction_or_without_truth(
    made: Path, predictions: Path, tmp_path: Path, fails: Fails
) -> None:
    out = tmp_path / "out"
    line = fails("evaluate", predictions, made / "bids", "--mask", "tumour", "--out", out, unwritten=out)
    assert "no mask is called 'tumour', but masks are there called lesion" in line
    prediction(predictions).write_bytes(prediction(predictions).read_bytes()[:-50])
    line = fails("evaluate", predictions, made / "bids", "--out", out, unwritten=out)
    assert str(prediction(predictions)) in line


def test_a_report_of_a_folder_that_is_no_run(made: Path, tmp_path: Path, fails: Fails) -> None:
    assert "report.json" in fails("report", made / "start", "--out", tmp_path / "out", unwritten=tmp_path / "out")


# --- where to write ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["prepare", "pretrain", "finetune", "predict", "evaluate", "simulate", "run"])
@pytest.mark.parametrize("inside", ["/dev/null", "file"])
def test_a_folder_that_cannot_be_written(
    made: Path, tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch, verb: str, inside: str
) -> None:
    """The tests may run as root, who may write everywhere but below a file."""
    monkeypatch.setenv("PHANTOM", str(made / "bids"))
    (tmp_path / "file").write_text("mine")
    out = (tmp_path / inside) / "out"
    sized = ["--set", "split.test=1", "--set", "split.validation=0", "--set", "split.labels=1"]
    arguments = {
        "prepare": [made / "bids", out],
        "pretrain": [made / "store", "--out", out, "--preset", "nano"],
        "finetune": [made / "store", "--out", out, "--preset", "nano"],
        "predict": [made / "run", made / "bids", out],
        "evaluate": [made / "predictions", made / "bids", "--out", out],
        "simulate": ["ms-3t", out, "--subjects", 1],
        "run": [TINY, "--out", out, *sized],
    }
    line = fails(verb, *arguments[verb], unwritten=out)
    assert f"{out}: {out.parent} is a file, expected a folder; choose another output folder" in line
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("verb", ["prepare", "run"])
def test_a_folder_with_something_else_in_it(
    made: Path, tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setenv("PHANTOM", str(made / "bids"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("mine")
    arguments = {"prepare": [made / "bids", tmp_path / "home"], "run": [TINY, "--out", tmp_path / "home"]}
    line = fails(verb, *arguments[verb], unwritten=tmp_path / "home" / "store.json")
    assert str(tmp_path / "home") in line
    assert "choose a" in line
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["thesis.txt"]


# --- the same through a process of its own -----------------------------------------------------------------------------------------


def test_one_line_from_a_process_of_its_own(
    fresh_oligovox: Callable[..., subprocess.CompletedProcess[str]], made: Path, bids: Path, tmp_path: Path
) -> None:
    """With worker processes, and with every line that the libraries around us may print."""
    cut(bids)
    shutil.copytree(made / "run" / "model", tmp_path / "run" / "model")
    pickled_weights(tmp_path / "run" / "model")
    out = tmp_path / "out"
    for command in (
        ["prepare", bids, out],
        ["finetune", made / "store", "--from", tmp_path / "run", "--out", out],
    ):
        done = fresh_oligovox(*command, check=2)
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1, done.stderr
        assert done.stdout == ""
        assert not out.exists()
