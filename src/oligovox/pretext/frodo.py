"""FRODO's pretext: foretell what one stem makes of QSM from what the other makes of FLAIR.

Source: Pignedoli et al. 2026 (FRODO, arXiv 2606.16756) and its public code (veronicapignedoli/FRODO): train_ssl.py for the regression
    (`release_mode`), pretrain_selfsup.py for the target without gradient, both directions and the contrast. Hinge on the spread: Bardes et al.
    2022 (VICReg, arXiv 2105.04906).
Deviates: no gradient reaches the target, and embeddings of too little spread are punished, because the release's loss is lowest where both stems
    say nothing; on an encoder without stems, an embedding is its deepest feature with only that sequence shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Bool, Float
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from oligovox import settings as base
from oligovox.cohort.modalities import SequenceName
from oligovox.errors import SettingsError
from oligovox.losses.contrast import nt_xent
from oligovox.method import Clock, Losses, Method, Needs
from oligovox.networks.encoder import Encoder
from oligovox.networks.frodo import Frodo
from oligovox.sample.batch import Batch
from oligovox.sample.masks import spread
from oligovox.sample.turns import Turns, turned

_LEAST = 1e-4  # added to a variance before its root


class Settings(base.Settings):
    """Choices of FRODO's pretext."""

    primary: SequenceName = Field("QSM", description="sequence whose embedding is the target")
    condition: SequenceName = Field("FLAIR", description="sequence it is foretold from")
    mode: Literal["regression", "nt_xent"] = Field(
        "regression", description="foretell the embedding, or recognise it among those of the other lesions"
    )
    directions: Literal["one", "both"] = Field(
        "one", description="regression: also foretell the condition from the primary, by a second predictor"
    )
    release_mode: bool = Field(
        False, description="regression as in the release: the target is moved as well, and nothing holds the spread"
    )
    spread_weight: float = Field(0.1, gt=0, description="of the hinge on the spread of both embeddings")
    spread: float = Field(0.5, gt=0, description="standard deviation over the batch above which the hinge is silent")
    embedding: PositiveInt = Field(128, description="nt_xent: size of the embedding that is compared")
    temperature: float = Field(0.1, gt=0, description="nt_xent: of the comparison")

    @model_validator(mode="after")
    def _one_release(self) -> Settings:
        if self.release_mode and (self.mode, self.directions) != ("regression", "one"):
            raise ValueError("release_mode is a regression in one direction; leave mode and directions as they are")
        return self


@dataclass(frozen=True)
class Views:
    """Two sequences of each lesion.

    Attributes:
        first: the primary is taken from it.
        second: the same, or with nt_xent flipped and turned in another way; the condition is taken from it.
        present: acquired sequences.
        known: lesions that have both.
    """

    first: Float[Tensor, "b m x y z"]
    second: Float[Tensor, "b m x y z"]
    present: Bool[Tensor, "b m"]
    known: Bool[Tensor, " b"]


@final
class FrodoPretext(Method[Views]):
    """Encoder, of which the stems are trained where it has them, and a predictor for each direction or projectors.

    Raises:
        SettingsError: the plan lacks one of the two sequences, or the encoder has no stem for it.
    """

    needs = Needs(modalities=2)

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        self.settings, self.encoder = settings, encoder
        pair = (settings.primary, settings.condition)
        if missing := [name for name in pair if name not in encoder.modalities]:
            raise SettingsError(
                f"pretext frodo reads {' and '.join(pair)}, the plan has {', '.join(encoder.modalities)}: {', '.join(missing)} is missing; "
                "prepare it, or name another primary or condition"
            )
        width = encoder.channels[-1]
        if isinstance(encoder, Frodo):
            if stemless := [name for name in pair if name not in encoder.stems]:
                raise SettingsError(
                    f"pretext frodo: network frodo with fusion {encoder.settings.fusion} has no stem for {stemless[0]} alone; "
                    "choose another fusion, such as film, or another pretext"
                )
            encoder.requires_grad_(False)  # the rest stays as it was drawn
            encoder.stems.requires_grad_(True)
            width = encoder.stem_channels
        if settings.mode == "nt_xent":
            self.heads = nn.ModuleList(_two_layers(width, settings.embedding) for _ in pair)
        else:
            self.heads = nn.ModuleList(_two_layers(width, width) for _ in range(1 + (settings.directions == "both")))

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """The batch as it is, since augmentation has turned it; for nt_xent two turns of it, all sequences of a lesion alike."""
        apart = self.settings.mode == "nt_xent"
        first, second = (turned(batch, Turns(), rng) if apart else batch for _ in range(2))
        index = [batch.modalities.index(name) for name in (self.settings.primary, self.settings.condition)]
        return Views(first.image, second.image, batch.present, batch.present[:, index].all(1))

    def losses(self, views: Views, clock: Clock) -> Losses:
        """Regression and spread, or contrast, over the lesions that have both sequences; 0 where none has.

        Logged: mean standard deviation of each embedding over the lesions, and mean cosine of what was told and what it is compared with.
        """
        primary = self._embed(views.first, views.present, self.settings.primary)[views.known].float()
        condition = self._embed(views.second, views.present, self.settings.condition)[views.known].float()
        if self.settings.mode == "nt_xent":
            told, target = (head(z).float() for head, z in zip(self.heads, (condition, primary), strict=True))
            several = len(told) if len(told) > 1 else 0  # one alone has nothing to be told apart from
            terms = {"contrast": nt_xent(told[:several], target[:several], self.settings.temperature)}
        else:
            told, target = self.heads[0](condition).float(), primary
            terms = self._regression(told, primary, condition)
        agreement = nn.functional.cosine_similarity(told, target).sum() / max(1, len(told))
        noted = torch.stack([_deviation(primary).mean(), _deviation(condition).mean(), agreement]).tolist()
        notes = dict(zip(("spread_primary", "spread_condition", "agreement"), noted, strict=True))
        return Losses(terms, {"spread": self.settings.spread_weight} if "spread" in terms else {}, notes)

    def _regression(self, told: Tensor, primary: Tensor, condition: Tensor) -> dict[str, Tensor]:
        """Mean squared error, of both directions where chosen, and what the embeddings lack in spread."""
        if self.settings.release_mode:
            return {"foretell": _mean((told - primary).square())}
        error = _mean((told - primary.detach()).square())
        if self.settings.directions == "both":
            error = 0.5 * (error + _mean((self.heads[1](primary).float() - condition.detach()).square()))
        lack = [(self.settings.spread - _deviation(z)).clamp(min=0).mean() for z in (primary, condition)]
        return {"foretell": error, "spread": torch.stack(lack).sum()}

    def _embed(
        self, image: Float[Tensor, "b m x y z"], present: Bool[Tensor, "b m"], name: str
    ) -> Float[Tensor, "b c"]:
        """Mean over the grid of what is made of one sequence alone."""
        if isinstance(self.encoder, Frodo):
            return self.encoder.stem(name, image, present).mean(dim=(2, 3, 4))
        only = present & torch.tensor([other == name for other in self.encoder.modalities], device=present.device)
        deep: Tensor = self.encoder(image.where(spread(only), 0.0), only)[-1]
        return deep.mean(dim=(2, 3, 4))

    def export(self) -> nn.Module:
        """The encoder; predictors stay behind."""
        return nn.ModuleDict({"encoder": self.encoder})


def _two_layers(width: int, size: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, size))


def _mean(values: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """0 where there are none."""
    return values.sum() / max(1, values.numel())


def _deviation(embedding: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    """Standard deviation over the lesions, with a slope at 0."""
    centred = embedding - embedding.sum(0) / max(1, len(embedding))
    return (centred.square().sum(0) / max(1, len(embedding)) + _LEAST).sqrt()


METHOD = FrodoPretext
