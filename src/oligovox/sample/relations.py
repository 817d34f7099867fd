"""Relations: how a lesion differs from the tissue around it in all sequences at once, and how a decoy breaks that.

A relation is a range [low, high] of differences for each sequence. A range on one side of 0 tells the sign; one that excludes 0 says
that the sequence must show the lesion; one around 0 says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Relation:
    """Ranges of differences.

    Attributes:
        low: smallest difference in each sequence.
        high: largest.
    """

    low: Float[Tensor, " m"]
    high: Float[Tensor, " m"]

    @property
    def side(self) -> Float[Tensor, " m"]:
        """+1 or −1 where the sign is known, else 0."""
        return ((self.low >= 0) & (self.high > 0)).float() - ((self.high <= 0) & (self.low < 0)).float()

    @property
    def sure(self) -> Bool[Tensor, " m"]:
        """Sequences that must show it."""
        return (self.low > 0) | (self.high < 0)

    def draw(self, severity: Float[Tensor, "*n 1"], coherence: float, rng: torch.Generator) -> Float[Tensor, "*n m"]:
        """Differences inside the ranges; small ones more often, as the square of a uniform number runs.

        Args:
            severity: in [0, 1], how far from 0 each lesion lies in its ranges.
            coherence: share of that in every sequence's place in its range; 0 draws each sequence by itself.
            rng: random numbers.
        """
        shape = (*severity.shape[:-1], len(self.low))
        own = torch.rand(shape, generator=rng, device=rng.device)
        place = torch.where(self.side == 0, own, coherence * severity + (1.0 - coherence) * own)
        near, far = torch.where(self.side < 0, self.high, self.low), torch.where(self.side < 0, self.low, self.high)
        return near + (far - near) * torch.where(self.side == 0, place, place.square())


def at_least(
    difference: Float[Tensor, "*n m"], present: Bool[Tensor, "*n m"], faintest: float
) -> Float[Tensor, "*n m"]:
    """Scaled up where no acquired sequence shows at least `faintest`."""
    strongest = difference.abs().where(present, 0.0).amax(-1, keepdim=True)
    return difference * (faintest / strongest.clamp(min=1e-3)).clamp(min=1.0)


def one_flipped(
    difference: Float[Tensor, "b n l m"],
    relation: Relation,
    present: Bool[Tensor, "b m"],
    faintest: float,
    rng: torch.Generator,
) -> Float[Tensor, "b n l m"]:
    """The sign of one acquired sequence is wrong, by at least `faintest`; nothing is left where no sign is known."""
    known = ((relation.side != 0) & present)[:, None].expand(difference.shape[0], difference.shape[1], -1)
    flip = _one_of(known, rng)[:, :, None]
    wrong = -relation.side * difference.abs().clamp(min=faintest)
    return torch.where(flip, wrong, difference) * known.any(-1)[:, :, None, None]


def one_kept(
    difference: Float[Tensor, "b n l m"],
    relation: Relation,
    present: Bool[Tensor, "b m"],
    faintest: float,
    rng: torch.Generator,
) -> tuple[Float[Tensor, "b n l m"], Bool[Tensor, "b 1"]]:
    """Only one acquired sequence shows it, by at least `faintest`, though another one would have to.

    Returns:
        The differences, and False for samples in which no choice of a sequence contradicts the relation.
    """
    sure = (relation.sure & present).long()
    possible = present & (sure.sum(1, keepdim=True) > sure)
    kept = _one_of(possible[:, None].expand(difference.shape[0], difference.shape[1], -1), rng)[:, :, None]
    sign = torch.where(relation.side == 0, difference.sign(), relation.side)
    return sign * difference.abs().clamp(min=faintest) * kept, possible.any(1, keepdim=True)


def _one_of(flags: Bool[Tensor, "b n m"], rng: torch.Generator) -> Bool[Tensor, "b n m"]:
    """One True at random among those of the last axis; none where there is none."""
    draw = torch.rand(flags.shape, generator=rng, device=rng.device).where(flags, -1.0)
    return flags & (draw == draw.amax(-1, keepdim=True))
