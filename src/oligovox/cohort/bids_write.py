"""A cohort as a BIDS folder: images at the top, masks below derivatives/oligovox.

    OUT/participants.tsv                                              what is known about each person
    OUT/sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii.gz                   …_run-1_FLAIR, …_run-2_FLAIR of one that was repeated
    OUT/derivatives/oligovox/sub-01/ses-1/anat/sub-01_ses-1_label-lesion_mask.nii.gz    one class, of value 1
    OUT/derivatives/oligovox/…/…_desc-lesion_dseg.nii.gz              else, with its classes in OUT/derivatives/oligovox/desc-lesion_dseg.tsv
    OUT/derivatives/oligovox/…/…_desc-brain_mask.nii.gz
    OUT/derivatives/oligovox/desc-lesion_dseg.json                    of which classes each region is made, where there are regions

BIDS allows letters and digits in the names of people and visits; others are left out, and the old name goes to participants.tsv.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from oligovox.cohort.annotate import DECLARED, NOBODY_LOOKED
from oligovox.cohort.bids import DERIVED_SEQUENCES, REGIONS, SUFFIXES
from oligovox.cohort.manifest import Case, Cohort
from oligovox.cohort.writing import check_files, ending, new_folder, place, place_label
from oligovox.errors import CohortError
from oligovox.files import write_json, write_tsv

_PIPELINE = "oligovox"
_BIDS = "1.10.0"
_ORIGINAL = "original_name"


def write(cohort: Cohort, out: Path, *, link: bool = False) -> None:
    """Write a BIDS folder.

    Args:
        cohort: who there is.
        out: a new folder.
        link: link the files instead of copying them.

    Raises:
        CohortError: two people, or two visits of one, would get the same name.
        ImageError: a file is missing or cannot be read.
        LabelError: a label map has a value that is no class.
        OutputError: `out` is there already, or cannot be written.
    """
    check_files(cohort)
    names = _names(cohort)
    one = len(cohort.labels) == 1 and next(iter(cohort.labels.items())) == ("lesion", 1)
    label = "label-lesion_mask" if one else "desc-lesion_dseg"
    values = {value: value for value in cohort.labels.values()}
    with new_folder(out) as folder:
        derived = folder / "derivatives" / _PIPELINE
        for case in cohort.cases:
            subject, session = names[case.name]
            parts = [f"sub-{subject}", *([f"ses-{session}"] if session else [])]
            below, start = Path(*parts, "anat"), "_".join(parts)
            for name, path in case.images.items():
                home = (
                    derived if name in DERIVED_SEQUENCES and len(case.images) > 1 else folder
                )  # an exam lies at the top
                entities, _, suffix = SUFFIXES.get(name, name).rpartition("_")
                several = [path, *case.repeats.get(name, ())]
                for number, run in enumerate(several, start=1):
                    words = (start, entities, f"run-{number}" if len(several) > 1 else "", suffix)
                    place(run, home / below / f"{'_'.join(filter(None, words))}{ending(run)}", link=link)
            if case.label:
                target = derived / below / f"{start}_{label}{ending(case.label)}"
                unlooked = (case.unlooked, NOBODY_LOOKED) if case.sparse else None
                place_label(case.label, target, values, link=link, unlooked=unlooked)
                if case.sparse:
                    write_json(derived / below / f"{start}_{label}.json", {DECLARED: NOBODY_LOOKED})
            if case.brain:
                place(case.brain, derived / below / f"{start}_desc-brain_mask{ending(case.brain)}", link=link)
        _describe(folder, derived, cohort.name)
        _people(cohort, names, folder / "participants.tsv")
        if not one:
            rows = [{"index": value, "name": name} for name, value in cohort.labels.items()]
            write_tsv(derived / f"{label}.tsv", rows, ("index", "name"))
        if cohort.regions:  # BIDS has no place for them, and lets a sidecar have keys of its own
            regions = {name: list(classes) for name, classes in cohort.regions.items()}
            write_json(derived / f"{label}.json", {REGIONS: regions})


def _names(cohort: Cohort) -> dict[str, tuple[str, str]]:
    """Case name → (subject, session) in letters and digits."""
    made = {case.name: (_plain(f"{case.dataset}{case.subject}"), _plain(case.session)) for case in cohort.cases}
    persons: dict[str, str] = {}
    visits: dict[tuple[str, str], str] = {}
    for case in cohort.cases:
        subject, session = made[case.name]
        if not subject or (case.session and not session):
            raise CohortError(
                f"{case.name}: BIDS allows letters and digits in names, and none would be left; rename it"
            )
        if (
            persons.setdefault(subject, case.person) != case.person
            or visits.setdefault((subject, session), case.name) != case.name
        ):
            other = persons[subject] if persons[subject] != case.person else visits[subject, session]
            raise CohortError(f"'{other}' and '{case.person}' would both be called sub-{subject} in BIDS; rename one")
    return made


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "", name)


def _describe(folder: Path, derived: Path, name: str) -> None:
    content = {"Name": name, "BIDSVersion": _BIDS}
    write_json(folder / "dataset_description.json", content | {"DatasetType": "raw"})
    made = {"DatasetType": "derivative", "GeneratedBy": [{"Name": "oligovox", "Version": version("oligovox")}]}
    write_json(derived / "dataset_description.json", content | made | {"SourceDatasets": [{"URL": "../.."}]})


def _people(cohort: Cohort, names: Mapping[str, tuple[str, str]], table: Path) -> None:
    """One row a person, with what is known at the first visit; a name that was changed is kept."""
    first: dict[str, Case] = {}
    for case in cohort.cases:
        first.setdefault(names[case.name][0], case)
    columns = sorted({key for case in cohort.cases for key in case.info} - {"participant_id"})
    rows = [
        {"participant_id": f"sub-{subject}"}
        | {key: " ".join(value.split()) for key, value in case.info.items() if key != "participant_id"}
        | ({_ORIGINAL: case.person} if subject != case.person else {})
        for subject, case in first.items()
    ]
    changed = (
        [_ORIGINAL]
        if any(subject != case.person for subject, case in first.items()) and _ORIGINAL not in columns
        else []
    )
    write_tsv(table, rows, ["participant_id", *columns, *changed])
