"""Two files and the name of a protocol → scores. What runs in a worker process, so nothing here imports torch.

The name is the file in `metrics/protocols`, no list is edited: a file there is a protocol if it has a function `score`; the others hold
what several protocols share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from oligovox import settings as base
from oligovox.errors import GeometryError, LabelError, SettingsError, nearest
from oligovox.metrics import protocols
from oligovox.metrics.protocols.result import CaseResult
from oligovox.prepare.geometry import Volume, read_volume, same_grid, spacing_of

DEFAULT = "generic"
"""What scores where nobody names a protocol, in a run for example."""

ANY = "any"
"""Region of all classes together."""

Direction = Literal["high", "low"]

_ROUNDING = 1e-3  # what the scale factors of a header may leave beside a whole number


class ScoringProtocol(Protocol):
    """What each file offers. A protocol with numbers of a whole cohort also has `over_cohort(results, settings)`."""

    Settings: type[base.Settings]
    MAIN: tuple[str, ...]
    BEST: Mapping[str, Direction]

    def score(
        self, prediction: NDArray[Any], truth: NDArray[Any], spacing_mm: Sequence[float], settings: Any
    ) -> CaseResult:
        """Scores of two label maps (x, y, z) on one grid."""
        ...

    def known_labels(self, settings: Any) -> frozenset[int] | None:
        """Label values the protocol knows; None: every value above 0 is lesion."""
        ...


def protocol_names() -> tuple[str, ...]:
    """Every protocol, in alphabetical order."""
    found = (module.name for module in iter_modules(protocols.__path__))
    return tuple(sorted(name for name in found if hasattr(_module(name), "score")))


def load_protocol(name: str) -> ScoringProtocol:
    """The protocol of this name.

    Raises:
        SettingsError: no such protocol; says the nearest one.
    """
    if name not in (known := protocol_names()):
        raise SettingsError(f"unknown protocol '{name}'; {nearest(name, known)}")
    return cast(ScoringProtocol, _module(name))


def protocol_settings(name: str, given: Mapping[str, Any], labels: Mapping[str, int] | None = None) -> base.Settings:
    """Settings of a protocol: the challenge's, but for what is given.

    Args:
        name: of the protocol.
        given: keys and values.
        labels: class → value of the references. Where a protocol scores whatever classes are named, and none are, these are taken if there are
            several, with all of them together as `ANY` before them.

    Raises:
        SettingsError: no such protocol or setting, or a wrong value.
    """
    kind = load_protocol(name).Settings
    if labels and len(labels) > 1 and "classes" in kind.model_fields and "classes" not in given:
        classes = {ANY: tuple(labels.values())} | {key: (value,) for key, value in labels.items()}
        given = {**given, "classes": classes}
    return base.parse(kind, given, f"protocol {name}")


def score_files(files: tuple[Path, Path], protocol: str, settings: base.Settings) -> CaseResult:
    """Read two label maps, check that they can be compared, and score them.

    Args:
        files: prediction and reference, NIfTI on one grid.
        protocol: name of a file in `metrics/protocols`.
        settings: of the protocol.

    Raises:
        ImageError: a file that cannot be read.
        GeometryError: shapes or affines differ.
        LabelError: values that are no labels, or a label that the protocol does not know.
    """
    rules, (prediction, truth) = load_protocol(protocol), files
    ours, theirs = (read_volume(path, empty_ok=True) for path in files)
    if not same_grid(ours, theirs):
        raise GeometryError(
            f"{prediction} has shape {ours.array.shape}, {truth} has {theirs.array.shape}, or their affines differ; "
            "expected one grid, as `oligovox predict` writes it"
        )
    first, second = _labels(prediction, ours), _labels(truth, theirs)
    if (known := rules.known_labels(settings)) is not None:
        for path, labels in zip(files, (first, second), strict=True):
            _refuse_unknown(path, labels, known, protocol)
    return rules.score(first, second, spacing_of(theirs.affine), settings)


def over_cohort(protocol: str, results: Mapping[str, CaseResult], settings: base.Settings) -> dict[str, float | None]:
    """The protocol's numbers of all cases together; empty where it has none."""
    compute = getattr(load_protocol(protocol), "over_cohort", None)
    return dict(compute(results, settings)) if compute else {}


def _labels(path: Path, volume: Volume) -> NDArray[np.int32]:
    """(x, y, z) as whole numbers."""
    labels: NDArray[np.int32] = np.rint(volume.array).astype(np.int32)
    if np.abs(volume.array - labels).max() > _ROUNDING:
        raise LabelError(
            f"{path}: holds values between whole numbers, as a probability map or an image does; expected a label map, "
            "so threshold it first"
        )
    return labels


def _refuse_unknown(path: Path, labels: NDArray[np.int32], known: frozenset[int], protocol: str) -> None:
    if unknown := set(np.unique(labels[labels != 0]).tolist()) - known:
        raise LabelError(
            f"{path}: holds the label {min(unknown)}, the protocol {protocol} knows {', '.join(map(str, sorted(known - {0})))}; "
            "convert the labels, or choose another protocol or setting"
        )


def _module(name: str) -> Any:
    return import_module(f"{protocols.__name__}.{name}")
