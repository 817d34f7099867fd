"""What a simulated cohort is like: recipes for the brain and the abdomen, and the presets that ship with the package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

import yaml
from pydantic import AfterValidator, Field, model_validator

from oligovox.cohort.annotate import Sparse
from oligovox.errors import SettingsError, nearest
from oligovox.settings import Settings, ascending, parse
from oligovox.simulate.anatomy.abdomen import Abdomen
from oligovox.simulate.anatomy.head import Head
from oligovox.simulate.pathology.confounders import Confounders
from oligovox.simulate.pathology.glioma import Glioma
from oligovox.simulate.pathology.lesions import MSLesions
from oligovox.simulate.pathology.rims import Rims
from oligovox.simulate.physics.sequences import protocol
from oligovox.simulate.physics.tissues import known_field
from oligovox.simulate.raters import Raters
from oligovox.simulate.scanner.qsm import QSMSettings
from oligovox.simulate.scanner.scan import Acquisition

_PRESETS = Path(__file__).parent / "presets"

BrainSequence: TypeAlias = Literal["T1w", "T1wGd", "T2w", "PDw", "FLAIR", "T2starw", "QSM"]
AbdomenSequence: TypeAlias = Literal["T1in", "T1out", "T2spir"]
FieldStrength: TypeAlias = Annotated[float, AfterValidator(known_field)]

Protocols: TypeAlias = dict[str, dict[str, float | tuple[float, ...] | bool]]
_OF_PROTOCOLS = "sequence → its settings (ms, degrees, Hz) that differ from the usual ones, such as {FLAIR: {ti: 2400}}; sites vary around them"


class BrainRecipe(Settings):
    """A cohort of brains; ranges are (lowest, highest), drawn anew for each person."""

    body: Literal["brain"] = "brain"
    spacing: float = Field(1.0, ge=0.8, le=4.0, description="isotropic voxel size, mm")
    fields: tuple[FieldStrength, ...] = Field(
        (3.0,), min_length=1, description="field strengths, T; site k has the k-th, from the start again"
    )
    sequences: tuple[BrainSequence, ...] = Field(("T1w", "T2w", "FLAIR"), min_length=1, description="what is acquired")
    missing: float = Field(0.0, ge=0, lt=1, description="probability that a sequence was not acquired; one always was")
    protocols: Protocols = Field({}, description=_OF_PROTOCOLS)
    age: tuple[float, float] = Field((20.0, 60.0), description="years")
    atrophy: tuple[float, float] = Field((0.0, 0.8), description="0 none, 1 severe: duration of the disease")
    head: Head | None = Field(None, description="the whole head; null: as after perfect skull stripping")
    lesions: MSLesions | None = Field(MSLesions(), description="lesions of multiple sclerosis; null: none")
    donors: str | None = Field(None, description="folder of real lesion masks to implant in place of drawn lesions")
    rims: Rims | None = Field(None, description="paramagnetic rims of these lesions; null: none")
    glioma: Glioma | None = Field(None, description="a glioma; null: none")
    confounders: Confounders = Field(Confounders(), description="what looks like a lesion and is not labelled")
    acquisition: Acquisition = Acquisition()
    qsm: QSMSettings = QSMSettings()
    raters: Raters | None = Field(None, description="labels as people draw them, beside the truth; null: none")
    sparse: Sparse | None = Field(None, description="a label of which only a part was drawn, beside the truth")
    visits: Literal[1, 2] = Field(1, description="2: each person comes again, with new, larger and smaller lesions")

    @model_validator(mode="after")
    def _possible(self) -> BrainRecipe:
        _once("sequences", self.sequences)
        ascending("age", self.age, 18.0, 95.0)
        ascending("atrophy", self.atrophy, 0.0, 1.0)
        if (self.lesions is None) == (self.glioma is None):
            raise ValueError(
                "a cohort has lesions of multiple sclerosis or a glioma: set one of lesions, glioma, and the other to null"
            )
        for name in ("rims", "donors"):
            if getattr(self, name) is not None and self.lesions is None:
                raise ValueError(f"{name} needs lesions, which is null")
        _protocols_fit(self.protocols, self.sequences, self.fields)
        if self.rims and self.visits == 2:
            raise ValueError("rims are graded at one visit; set visits to 1, or rims to null")
        if self.visits == 2 and self.lesions is None:
            raise ValueError("a second visit is simulated for lesions of multiple sclerosis only; set visits to 1")
        return self


class AbdomenRecipe(Settings):
    """A cohort of abdomens with four labelled organs, as in CHAOS."""

    body: Literal["abdomen"] = "abdomen"
    fields: tuple[FieldStrength, ...] = Field((1.5,), min_length=1, description="field strengths, T; see brain")
    sequences: tuple[AbdomenSequence, ...] = Field(("T1in", "T1out", "T2spir"), min_length=1)
    missing: float = Field(0.0, ge=0, lt=1, description="probability that a sequence was not acquired; one always was")
    protocols: Protocols = Field({}, description=_OF_PROTOCOLS)
    anatomy: Abdomen = Abdomen()
    acquisition: Acquisition = Acquisition()
    raters: Raters | None = Field(None, description="labels as people draw them, beside the truth; null: none")
    sparse: Sparse | None = Field(None, description="a label of which only a part was drawn, beside the truth")

    @model_validator(mode="after")
    def _possible(self) -> AbdomenRecipe:
        _once("sequences", self.sequences)
        _protocols_fit(self.protocols, self.sequences, self.fields)
        return self


Recipe: TypeAlias = BrainRecipe | AbdomenRecipe


def presets() -> tuple[str, ...]:
    """Names of the cohorts that ship with the package."""
    return tuple(sorted(path.stem for path in _PRESETS.glob("*.yaml")))


def read_preset(name: str) -> dict[str, Any]:
    """The plain content of a preset.

    Raises:
        SettingsError: there is none of this name; says the nearest one.
    """
    if name not in presets():
        raise SettingsError(f"unknown cohort '{name}'; {nearest(name, presets())}")
    content = yaml.safe_load((_PRESETS / f"{name}.yaml").read_text(encoding="utf-8"))
    return dict(content)


def make_recipe(preset: str, changes: Mapping[str, Any] | None = None) -> Recipe:
    """A preset with changes: nested keys and values, `{"spacing": 2.0, "lesions": {"load_ml": [1, 20]}}`.

    Raises:
        SettingsError: an unknown preset or key, or a wrong value.
    """
    content = merged(read_preset(preset), changes or {})
    body = content.get("body", "brain")
    kinds: dict[str, type[Recipe]] = {k.model_fields["body"].default: k for k in get_args(Recipe)}
    if body not in kinds:
        raise SettingsError(f"simulate {preset}: body = {body!r}; expected one of {', '.join(kinds)}")
    return parse(kinds[body], content, f"simulate {preset}")


def merged(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`content` with the changes laid over it, key by key at every depth."""
    result = dict(content)
    for key, value in changes.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result


def _protocols_fit(protocols: Protocols, sequences: tuple[str, ...], fields: tuple[float, ...]) -> None:
    for name in protocols:
        if name not in sequences:
            raise ValueError(f"protocols has {name}, which is not among the sequences {', '.join(sequences)}")
        for strength in fields:
            protocol(name, strength, protocols[name])


def _once(name: str, values: tuple[str, ...]) -> None:
    if len(set(values)) < len(values):
        raise ValueError(f"{name} {values} has a name twice; expected each once")
