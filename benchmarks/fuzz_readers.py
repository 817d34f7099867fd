"""Bytes that a fuzzer makes, as every text or header a reader opens: a cohort, or one clear error, never a traceback → fuzz_readers.json.

    pip install atheris
    OMP_NUM_THREADS=1 python benchmarks/fuzz_readers.py -max_total_time=120 [CORPUS]

Arguments are those of libFuzzer. When the time is over, the counts are written: of each file of each reader the inputs that were tried, those that
became a cohort (or, of the NIfTI file, a volume), and those that got one clear error. At the first traceback libFuzzer stops, and nothing is
written; nor with --quick, ten seconds. Atheris watches which branches of `cohort/` and `doctor/` an input reaches and keeps what reaches new ones, so
it finds its way into parsers that random text does not pass. The first byte of an input says which file the rest becomes; the other files of the folder are
whole. Seeds are whole files of each kind. What breaks is written beside as crash-…; give that file as the argument to see it again.
"""

import json
import os
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import atheris

from common import QUICK, headline, write

with atheris.instrument_imports(include=["oligovox.cohort", "oligovox.doctor", "oligovox.files"]):
    import nibabel as nib
    import numpy as np

    from oligovox.cohort.layouts import looks, read
    from oligovox.cohort.manifest import Case
    from oligovox.doctor.finding import Finding
    from oligovox.doctor.scan import read_scan
    from oligovox.errors import InputError

IMAGE = nib.Nifti1Image(np.arange(27, dtype=np.int16).reshape(3, 3, 3), np.eye(4)).to_bytes()
TABLE = "subject\tsession\tFLAIR\tlabel\np\t1\ta.nii\ta.nii\n"
NNUNET = {"channel_names": {"0": "FLAIR"}, "labels": {"background": 0, "lesion": 1}, "file_ending": ".nii"}
DATALIST = {"modality": {"0": "FLAIR"}, "labels": {"1": "lesion"}, "training": [{"image": "a.nii", "label": "a.nii"}]}
SERIES = "file\tsubject\tsession\tsequence\twhy\na.nii\tp\t1\tFLAIR\tname\n"
BIDS = {"Name": "x", "BIDSVersion": "1.8.0"}
IMAGES = {
    "bids": ("sub-a/anat/sub-a_FLAIR.nii", "derivatives/m/sub-a/anat/sub-a_label-lesion_mask.nii"),
    "nnunet": ("imagesTr/c_0000.nii", "labelsTr/c.nii"),
    "datalist": ("a.nii",),
    "table": ("a.nii",),
    "series": ("a.nii",),
    "brats": ("BraTS-GLI-00001-000/BraTS-GLI-00001-000-t2f.nii",),
}
FILES = (
    ("bids", "dataset_description.json", json.dumps(BIDS)),
    ("bids", "derivatives/m/dataset_description.json", json.dumps({**BIDS, "DatasetType": "derivative"})),
    ("bids", "sub-a/anat/sub-a_FLAIR.json", json.dumps({"EchoTime": 0.1, "MagneticFieldStrength": 3})),
    ("bids", "participants.tsv", "participant_id\tage\nsub-a\t40\n"),
    ("bids", "derivatives/m/sub-a/anat/sub-a_desc-lesion_dseg.tsv", "index\tname\n1\tlesion\n"),
    ("nnunet", "dataset.json", json.dumps(NNUNET)),
    ("datalist", "list.json", json.dumps(DATALIST)),
    ("table", "exams.tsv", TABLE),
    ("series", "series.tsv", SERIES),
    ("series", "patients.tsv", "subject\tpatient\np\tx\n"),
    ("brats", "name_mapping.csv", "Grade,BraTS_2020_subject_ID\nHGG,BraTS-GLI-00001-000\n"),
)  # fmt: skip
"""Layout, the file that is made up, and what a whole one holds; one past the last is a NIfTI file."""


NAMES = (*(f"{layout}: {file}" for layout, file, _ in FILES), "header: a.nii")
COUNTS = {name: Counter(tried=0, read=0, refused=0) for name in NAMES}


def tried(root, layout):
    """Whether it became a cohort. Every look, and the reader: files inside the folder, or one of the errors that are meant, in one line."""
    try:
        looks(root)
        cohort, said = read(root, layout), ""
    except InputError as error:
        cohort, said = None, str(error)
    assert "\n" not in said
    assert all(path.is_relative_to(root) for case in (cohort.cases if cohort else ()) for path in case.files.values())
    return cohort is not None


def one_input(data):
    """Which file it is, and whether that could be read."""
    kind, content = (data[0] if data else 0) % (len(FILES) + 1), bytes(data[1:])
    with TemporaryDirectory() as home:
        root = Path(home) / "data"
        if kind == len(FILES):
            root.mkdir()
            path = root / "a.nii"
            path.write_bytes(content)
            scan = read_scan(Case(subject="a", images={"FLAIR": path}), "FLAIR", path)
            assert not isinstance(scan, Finding) or ("\n" not in scan.found and scan.remedy)
            return kind, not isinstance(scan, Finding)
        layout, file, _ = FILES[kind]
        whole = dict.fromkeys(IMAGES[layout], IMAGE) | {name: text.encode() for of, name, text in FILES if of == layout}
        for name, bytes_ in (whole | {file: content}).items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(bytes_)
        return kind, tried(root, layout)


def counted(seconds, begun):
    """What atheris calls: one input, counted; after so many seconds (0: never) the counts are written and the process ends."""

    def call(data):
        kind, could = one_input(data)
        COUNTS[NAMES[kind]].update(tried=1, read=int(could), refused=int(not could))
        if seconds and time.monotonic() - begun >= seconds:
            keep(seconds)
            os._exit(0)  # libFuzzer would go on

    return call


def keep(seconds):
    """fuzz_readers.json."""
    total = sum(COUNTS.values(), Counter())
    said = f"{total['read']} read, {total['refused']} refused with one clear error, 0 tracebacks"
    write(
        __file__,
        clock="wall for max_total_time; cpu of this process, with its imports",
        settings={"max_total_time": seconds, "atheris": version("atheris")},
        raw={"cpu_seconds": time.process_time()},
        results={"all": {**total, "tracebacks": 0}, "files": {name: dict(found) for name, found in COUNTS.items()}},
        headlines=[headline(f"{total['tried']} inputs of {len(NAMES)} files", said, "no traceback", True)],
    )
    sys.stdout.flush()


def budget():
    """Seconds of -max_total_time, which is taken from the arguments since libFuzzer would end without a word; 0 where it is not given."""
    (given,) = [a for a in sys.argv if a.startswith("-max_total_time=")][-1:] or [""]
    sys.argv = [a for a in sys.argv if not a.startswith("-max_total_time=") and a != "--quick"]
    return 10 if QUICK else int(given.partition("=")[2] or 0)


def seeds(folder):
    """A whole file of each kind."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, content in enumerate([*(text.encode() for _, _, text in FILES), IMAGE]):
        (folder / f"whole-{kind:02d}").write_bytes(bytes([kind]) + content)


def main():
    seconds = budget()
    given = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    if not given:
        seeds(Path("corpus"))
        sys.argv.append("corpus")
    atheris.Setup(sys.argv, counted(seconds, time.monotonic()))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
