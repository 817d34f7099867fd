"""Bytes that a fuzzer makes, as every text or header a reader opens: a cohort, or one clear error, never a traceback → counts on stdout.

    pip install atheris
    python benchmarks/fuzz_readers.py -max_total_time=300 [CORPUS]

Arguments are those of libFuzzer. Atheris watches which branches of `cohort/` and `doctor/` an input reaches and keeps what reaches new ones, so it
finds its way into parsers that random text does not pass. The first byte of an input says which file the rest becomes; the other files of the folder are
whole. Seeds are whole files of each kind. What breaks is written beside as crash-…; give that file as the argument to see it again.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import atheris

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


def tried(root, layout):
    """Every look, and the reader: files inside the folder, or one of the errors that are meant, in one line."""
    try:
        looks(root)
        cohort, said = read(root, layout), ""
    except InputError as error:
        cohort, said = None, str(error)
    assert "\n" not in said
    assert all(path.is_relative_to(root) for case in (cohort.cases if cohort else ()) for path in case.files.values())


def one_input(data):
    """What atheris calls."""
    kind, content = (data[0] if data else 0) % (len(FILES) + 1), bytes(data[1:])
    with TemporaryDirectory() as home:
        root = Path(home) / "data"
        if kind == len(FILES):
            root.mkdir()
            path = root / "a.nii"
            path.write_bytes(content)
            scan = read_scan(Case(subject="a", images={"FLAIR": path}), "FLAIR", path)
            assert not isinstance(scan, Finding) or ("\n" not in scan.found and scan.remedy)
            return
        layout, file, _ = FILES[kind]
        for name in (*IMAGES[layout], file):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content if name == file else IMAGE)
        tried(root, layout)


def seeds(folder):
    """A whole file of each kind."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, content in enumerate([*(text.encode() for _, _, text in FILES), IMAGE]):
        (folder / f"whole-{kind:02d}").write_bytes(bytes([kind]) + content)


def main():
    given = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    if not given:
        seeds(Path("corpus"))
        sys.argv.append("corpus")
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
