"""Is the skull still on? Around a stripped brain there is one value, around a head there is noise; and no brain is as large as a head."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from oligovox.doctor.finding import Finding
from oligovox.doctor.seen import Seen
from oligovox.prepare.brain import ends_inside
from oligovox.prepare.geometry import spacing_of

Covering = Literal["stripped", "head"]
"""What an image shows: the brain alone, or the whole head."""

CLEAN = 0.95
"""Around a stripped brain at least this share is exactly the background's value; the air around a head has noise."""

BRAIN_ML = 2200.0
"""No brain with the fluid around it is larger; a head cut out along its skin is."""

_MARGIN_MM = 6.0  # around the foreground, left out of what is around it
_RULE = 0.7  # share of a cohort that makes a kind the rule


@dataclass(frozen=True)
class Outline:
    """What one image looks like from outside.

    Attributes:
        covering: what it shows.
        clean: share of what lies around the foreground that is exactly the background's value.
        volume_ml: the foreground, holes filled.
    """

    covering: Covering
    clean: float
    volume_ml: float


def outline(seen: Seen) -> Outline:
    """Look at one image from outside: first at what is bright, then, since a strong field darkens half a brain, at all that is not background."""
    bright = _around(seen, seen.coarse_foreground)
    if seen.background is None or bright.covering == "stripped":
        return bright
    pieces, count = ndimage.label(ndimage.binary_opening(seen.coarse.array != np.float32(seen.background)))
    if not count:
        return bright
    largest = pieces == 1 + int(np.bincount(pieces.ravel())[1:].argmax())
    whole = _around(seen, np.asarray(ndimage.binary_fill_holes(largest)))
    return whole if whole.covering == "stripped" else bright


def _around(seen: Seen, foreground: NDArray[np.bool_]) -> Outline:
    spacing = spacing_of(seen.coarse.affine)
    volume = float(foreground.sum() * np.prod(spacing) / 1000)
    if seen.background is None:
        return Outline("head", 0.0, volume)
    reach = ndimage.generate_binary_structure(3, 1)
    around = ~ndimage.binary_dilation(foreground, reach, iterations=max(1, round(_MARGIN_MM / max(spacing))))
    clean = float((seen.coarse.array[around] == np.float32(seen.background)).mean()) if around.any() else 0.0
    bare = clean >= CLEAN and volume <= BRAIN_ML and ends_inside(foreground, seen.coarse.affine)
    return Outline("stripped" if bare else "head", clean, volume)


def check_stripped(case: str, seen: Sequence[Seen], outlines: Sequence[Outline]) -> list[Finding]:
    """A warning where some sequences of a case show the head and others the brain alone.

    Args:
        case: its name.
        seen: the images of the case.
        outlines: of each image.
    """
    kinds = {one.sequence: look.covering for one, look in zip(seen, outlines, strict=True)}
    if len(set(kinds.values())) < 2:
        return []
    by = {kind: [name for name, its in kinds.items() if its == kind] for kind in ("stripped", "head")}
    return [
        Finding(
            check="stripped_differs",
            severity="warning",
            case=case,
            files=tuple(one.path for one in seen),
            found=f"the brain alone in {', '.join(by['stripped'])}, the whole head in {', '.join(by['head'])}",
            expected="all sequences of a case stripped, or none",
            remedy="strip the others too, or take the raw images of all; a brain mask beside the images does it for every sequence",
            numbers={
                one.sequence: {"clean": look.clean, "volume_ml": look.volume_ml}
                for one, look in zip(seen, outlines, strict=True)
            },
        )
    ]


def check_cohort(coverings: Mapping[str, Covering], files: Mapping[str, tuple[Path, ...]]) -> list[Finding]:
    """A note for each case that differs from most others; nothing where neither kind is the rule.

    Args:
        coverings: case → what it shows; leave out cases whose sequences disagree.
        files: case → its files.
    """
    counts = Counter(coverings.values()).most_common()
    if len(counts) < 2 or counts[0][1] < _RULE * len(coverings):
        return []
    usual, words = counts[0][0], {"stripped": "the brain alone", "head": "the whole head"}
    return [
        Finding(
            check="stripped_in_cohort",
            severity="note",
            case=case,
            files=files.get(case, ()),
            found=f"shows {words[kind]}; {counts[0][1]} of {len(coverings)} cases show {words[usual]}",
            expected="one kind in the whole cohort, or brain masks for the cases with a head",
            remedy="strip the brain in this case, or give brain masks; intensities are scaled in the foreground, and skull would count",
        )
        for case, kind in coverings.items()
        if kind != usual
    ]
