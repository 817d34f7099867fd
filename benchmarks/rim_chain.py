"""From a patient's images to rims: what predicted lesion masks lose against true ones, and how long a patient takes → rim_chain.json beside this file.

    OMP_NUM_THREADS=2 python benchmarks/rim_chain.py --rims FOLDER_OF_STUDY_RIMS --out FOLDER [--together]

--together only asks whether five classifiers with the mean of their thresholds are better than each of them alone, on the lesions of the people for
development, of whom no classifier has learned.

Needs `study_rims.py --cohort shape` with its people for development (who teach where lesions are) and its arm FRODO (which says what they are). The
patients are others of the same kind, of seed 1713, all with a propensity to rims. Simulated people; nothing here is clinical.
"""

import argparse
import time
from pathlib import Path

import nibabel as nib
import numpy as np

from common import machine, progress, versions
from oligovox.engine.fit import Training
from oligovox.engine.runtime import Hardware
from oligovox.experiment import classify_extract, classify_predict
from oligovox.experiment.classification_scores import classify_evaluate
from oligovox.experiment.recipe import Finetune, NetworkChoice, Predict
from oligovox.experiment.training import load_network
from oligovox.experiment.verbs import finetune, prepare, simulate
from oligovox.files import read_json, read_tsv, write_json
from oligovox.infer.calibration import Calibration
from oligovox.infer.lesions import Mirrored, predict_lesions
from oligovox.metrics.protocols.prl import MAIN, Settings, lesion_intervals
from oligovox.prepare.lesion_store import LesionPlan, LesionStore
from study_rims import GROUNDS

RESULT = Path(__file__).with_suffix(".json")
PATIENTS, SEED = 12, 1713
SEQUENCES = ("FLAIR", "QSM")
LEAST_MM3 = LesionPlan().lesions.min_volume_mm3
STEPS, LR, PATCH = 1000, 9e-3, (32, 32, 32)
WINDOWS, THREADS = Predict(overlap=0.25), 2
SIMULATED = ("sequences=[FLAIR,QSM]", "rims.people=1", "rims.share=[0.15,0.35]", *GROUNDS["shape"].changes)
"""All of them have a propensity to rims: of eight people of the preset two had rims, seven in all, which says nothing."""


def segmenter(rims, out):
    """Where lesions are, from the people for development."""
    assert len(list((rims / "tune_people").glob("sub-*"))) == GROUNDS["shape"].people["tune"]
    prepare(rims / "tune_people", out / "store", modalities=SEQUENCES, spacing=(1.0, 1.0, 1.0), workers=2)
    training = Training(steps=STEPS, lr=LR, threads=1, channels_last=True, tensorboard="off")
    network = NetworkChoice(name="resenc", settings={"preset": "tiny"})
    return finetune(out / "store", out / "segmenter", stage=Finetune(patch=PATCH, training=training), network=network)


def asked(run, people, out, *, masks_from=None):
    """Classify every patient, one by one as a clinic would, on two cores; seconds of each."""
    seconds = []
    for number in range(1, PATIENTS + 1):
        begun = time.perf_counter()
        classify_predict(
            run, people, out / f"{number:03d}",
            segmenter=masks_from, people=[f"{number:03d}"], page=False, workers=1, options=WINDOWS, hardware=Hardware(threads=THREADS),
        )  # fmt: skip
        seconds.append(round(time.perf_counter() - begun, 2))
    return seconds


def found(run, people, out, segment):
    """Scores of all patients with these masks, and what of their rims the masks miss."""
    said = classify_predict(run, people, out / "all", segmenter=segment, page=False, workers=1, options=WINDOWS)
    masks = out / "all" / "segmentation" if segment else None
    cut = classify_extract(people, out / "graded", masks=masks, workers=1)
    classify_evaluate(out / "all", out / "scores", lesions=out / "graded")
    scores = read_json(out / "scores" / "scores.json")
    rows = read_tsv(out / "all" / "predictions.tsv")
    return {
        "lesions": len(rows), "called": said["called"], "rim_plus": cut["rim_plus"], "rim_minus": cut["rim_minus"],
        "rims_without_lesion": scores["missed_rims"], "true_rims": true_rims(people, out / "all"), "scores": {metric: scores["scores"]["lesion"][metric] for metric in MAIN},
    }  # fmt: skip


def true_rims(people, said):
    """Of the lesions that were made with a rim and are large enough: how many a lesion of these masks touches, and how many such a lesion is called; and
    how many called lesions touch no rim. Each true rim counts once, whatever the masks make of it."""
    found = {"rims": 0, "touched": 0, "called": 0, "called_lesions_without_rim": 0}
    for tsv in sorted((people / "derivatives").rglob("*_desc-instances_dseg.tsv")):
        exam = tsv.name.removesuffix("_desc-instances_dseg.tsv")
        made = np.asarray(nib.load(tsv.with_suffix(".nii.gz")).dataobj)
        numbers = np.asarray(nib.load(said / "lesions" / "cases" / exam / "lesions.nii.gz").dataobj)
        called = [
            int(row["number"])
            for row in read_tsv(said / "predictions.tsv")
            if row["exam"] == exam and row["called"] == "1"
        ]
        rims = [int(row["id"]) for row in read_tsv(tsv) if row["rim"] == "1" and float(row["volume_mm3"]) >= LEAST_MM3]
        touching = [set(np.unique(numbers[made == rim]).tolist()) - {0} for rim in rims]
        found["rims"] += len(rims)
        found["touched"] += sum(bool(there) for there in touching)
        found["called"] += sum(bool(there & {*called}) for there in touching)
        every = np.isin(made, [int(row["id"]) for row in read_tsv(tsv) if row["rim"] == "1"])
        found["called_lesions_without_rim"] += len({*called} - {*np.unique(numbers[every]).tolist()})
    return found


def together(rims):
    """Scores of the five classifiers of FRODO and of what they say together, on the same lesions."""
    store, run = LesionStore.open(rims / "tune_lesions"), rims / "runs" / "FRODO"
    lesions, said, limits = store.graded, [], []
    truth, people = [lesion.grade for lesion in lesions], [lesion.person for lesion in lesions]
    for fold in range(1, 6):
        about = read_json(run / f"fold-{fold}" / "fold.json")
        network, _ = load_network(run / f"fold-{fold}" / "train" / "model")
        answer = predict_lesions(Mirrored(network), lesions, patch=32, plan=store.plan)
        said.append(Calibration(**about["calibration"])(answer))
        limits.append(about["threshold"])
    arms = [*zip(said, limits, strict=True), (np.mean(said, axis=0), np.mean(limits))]
    found = [lesion_intervals(p, truth, people, Settings(threshold=float(t)), seed=0)["lesion"] for p, t in arms]
    rows = [
        {metric: scores[metric].as_row() for metric in ("pr_auc", "f1", "sensitivity", "specificity")}
        for scores in found
    ]
    return {
        "people": len(set(people)),
        "rim_plus": sum(truth),
        "rim_minus": len(truth) - sum(truth),
        "alone": rows[:-1],
        "together": rows[-1],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rims", type=Path, required=True, help="folder of study_rims.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--together", action="store_true", help="only this, beside what the file holds")
    chosen = parser.parse_args()
    if chosen.together:
        write_json(RESULT, read_json(RESULT) | {"five": together(chosen.rims.resolve())})
        return
    out, run = chosen.out.resolve(), chosen.rims.resolve() / "runs" / "FRODO"
    out.mkdir(parents=True, exist_ok=True)
    people = out / "patients"
    simulate(people, preset="rim", subjects=PATIENTS, seed=SEED, changes=SIMULATED, workers=1)
    model = segmenter(chosen.rims.resolve(), out)
    progress("masks")
    result = {
        "command": "OMP_NUM_THREADS=2 python benchmarks/rim_chain.py --rims FOLDER --out FOLDER", "machine": machine(), "versions": versions(), "patients": PATIENTS, "overlap": WINDOWS.overlap, "threads": THREADS,
        "true_masks": found(run, people, out / "true", None), "predicted_masks": found(run, people, out / "predicted", model),
    }  # fmt: skip
    for name, masks in (("true_masks", None), ("predicted_masks", model)):
        seconds = asked(run, people, out / f"{name}_one_by_one", masks_from=masks)
        result[name]["seconds_a_patient"] = {"median": float(np.median(seconds)), "highest": max(seconds)}
    result["five"] = together(chosen.rims.resolve())
    write_json(RESULT, result)
    progress(str(result))


if __name__ == "__main__":
    main()
