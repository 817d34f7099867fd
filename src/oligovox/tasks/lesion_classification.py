"""Classify lesions one by one: binary cross-entropy, and a supervised contrast of which the weight is learned, on any encoder.

Source: FRODO (Pignedoli et al. 2026, arXiv 2606.16756; public code veronicapignedoli/FRODO) for heads, loss and weight; supervised contrast: Khosla
    et al. 2020, arXiv 2004.11362; focal loss: Lin et al. 2017, arXiv 1708.02002; class-balanced loss: Cui et al. 2019, arXiv 1901.05555; logit
    adjustment: Menon et al. 2021, arXiv 2007.07314; mixup: Zhang et al. 2018, arXiv 1710.09412.
Deviates: lesions of unknown grade count in neither term; the learned weight is not decayed, which in the release pulls it towards ln 2; where
    lesions are mixed, the contrast sees the grade of the larger share.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, PositiveInt, model_validator
from scipy.special import betaincinv
from torch import Tensor, nn
from torch.nn import functional

from oligovox import settings as base
from oligovox.errors import LabelError
from oligovox.losses.masked import masked_mean
from oligovox.method import Clock, Losses, Method, Needs
from oligovox.networks.compose import ClassificationNetwork
from oligovox.networks.encoder import Encoder
from oligovox.networks.heads import ClassificationHead, Standardised
from oligovox.sample.batch import Batch
from oligovox.sample.masks import kept_units


class Settings(base.Settings):
    """Choices of lesion classification; the defaults are FRODO's."""

    hidden: tuple[PositiveInt, ...] = Field(
        (64,),
        min_length=1,
        description="units of the linear layers; the last of them is the embedding that is compared",
    )
    grid: PositiveInt = Field(1, description="cells a side that the deepest feature is averaged in; 1: over all of it")
    dropout: float = Field(0.5, ge=0, lt=1, description="share of the embedding that is left out, drawn anew each step")
    contrast: bool = Field(True, description="also compare the embeddings of a batch with each other")
    contrast_start: float = Field(
        -2.5, description="w at the first step; the contrast has the weight softplus(w), which is learned; 0.079"
    )
    temperature: float = Field(0.1, gt=0, description="of the comparison")
    imbalance: Literal["none", "focal", "class_balanced", "logit_adjustment", "mixup"] = Field(
        "none", description="what the loss does about rare grades; none where the sampler draws both alike"
    )
    counts: tuple[PositiveInt, PositiveInt] | None = Field(
        None, description="lesions of grade 0 and 1, as they are drawn; for class_balanced and logit_adjustment"
    )
    focal_alpha: float = Field(0.8, gt=0, lt=1, description="focal: weight of grade 1; of grade 0 what is left of 1")
    focal_gamma: float = Field(2.0, ge=0, description="focal: power of the error with which easy lesions fade")
    balance: float = Field(
        0.999, gt=0, lt=1, description="class_balanced: β of the effective number; towards 1 the inverse frequency"
    )
    adjustment: float = Field(1.0, gt=0, description="logit_adjustment: factor on the log-odds of the counts")
    mixing: float = Field(0.2, gt=0, description="mixup: both parameters of the beta distribution of shares")

    @model_validator(mode="after")
    def _counted(self) -> Settings:
        if self.imbalance in ("class_balanced", "logit_adjustment") and self.counts is None:
            raise ValueError(
                f"imbalance {self.imbalance} needs counts: how many lesions of grade 0 and of grade 1 are trained on"
            )
        return self


@dataclass(frozen=True)
class Views:
    """What is shown, and what it is called.

    Attributes:
        image: patches of lesions.
        present: acquired sequences.
        target: 1 or 0; between them where lesions are mixed.
        known: lesions with a grade.
        kept: units of the embedding, 0 where left out, else such that their mean is 1.
    """

    image: Float[Tensor, "b m x y z"]
    present: Bool[Tensor, "b m"]
    target: Float[Tensor, " b"]
    known: Bool[Tensor, " b"]
    kept: Float[Tensor, "b d"]


@final
class LesionClassification(Method[Views]):
    """Encoder, linear layers on its deepest feature, one logit; and w."""

    needs = Needs(labels=True)

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        head = ClassificationHead(encoder.channels[-1], settings.hidden, settings.grid, standardised=encoder.flat_mean)
        self.network = ClassificationNetwork(encoder, head)
        if settings.contrast:
            self.contrast = nn.Parameter(torch.tensor(settings.contrast_start))

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """The batch as it is, or mixed; augmentation happened before.

        Raises:
            LabelError: the batch carries no grade at all.
        """
        if (grade := batch.grade) is None:
            raise LabelError(
                f"lesion_classification: no grade in the batch of {', '.join(batch.cases)}; mark unknown grades with -1"
            )
        kept = kept_units((len(batch), self.settings.hidden[-1]), self.settings.dropout, rng)
        views = Views(batch.image, batch.present, grade.clamp(0, 1).float(), grade >= 0, kept)
        return self._mixed(views, rng) if self.settings.imbalance == "mixup" else views

    def _mixed(self, views: Views, rng: torch.Generator) -> Views:
        """Each lesion with a smaller share of another one; not where a grade or a sequence is missing in one of the two."""
        other = torch.randperm(len(views.target), generator=rng, device=rng.device)
        alike = (views.present == views.present[other]).all(1) & views.known & views.known[other]
        level = torch.rand(len(other), generator=rng, device=rng.device).double().cpu().numpy()
        drawn = torch.from_numpy(betaincinv(self.settings.mixing, self.settings.mixing, level)).to(views.target)
        share = torch.minimum(drawn, 1 - drawn).where(alike, 0.0)
        image = torch.lerp(views.image, views.image[other], share[:, None, None, None, None].to(views.image))
        return replace(views, image=image, target=torch.lerp(views.target, views.target[other], share))

    def losses(self, views: Views, clock: Clock) -> Losses:
        """Cross-entropy over the lesions with a grade, and softplus(w) times their contrast; 0 where no lesion has a grade."""
        head, chosen = self.network.head, self.settings
        pooled = head.pooled(self.network.encoder(views.image, views.present)[-1])
        embedding = head.embedding(pooled) * views.kept
        error = self._error(head.score(embedding)[:, 0].float(), views.target)
        terms = {"cross_entropy": masked_mean(error, views.known)}
        carry = {"pooled": Standardised.seen(pooled)}
        if not chosen.contrast:
            return Losses(terms, carry=carry)
        grade = torch.where(views.known, (views.target > 0.5).long(), -1)
        weight = functional.softplus(self.contrast)
        terms["contrast"] = weight * supervised_contrast(embedding, grade, chosen.temperature)
        return Losses(terms, notes={"contrast_weight": weight.item()}, carry=carry)

    def after_step(self, losses: Losses, clock: Clock) -> None:
        """Remember what was pooled, where that is standardised."""
        if isinstance(standard := self.network.head.standard, Standardised):
            standard.follow(losses.carry["pooled"])

    def _error(self, logit: Float[Tensor, " b"], target: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Of each lesion, in nats."""
        chosen = self.settings
        if chosen.imbalance == "logit_adjustment":
            negatives, positives = chosen.counts or (1, 1)
            logit = logit + chosen.adjustment * log(positives / negatives)
        error = functional.binary_cross_entropy_with_logits(logit, target, reduction="none")
        if chosen.imbalance == "class_balanced":
            negative, positive = (1 / (1 - chosen.balance**count) for count in chosen.counts or (1, 1))
            error = error * torch.lerp(logit.new_tensor(negative), logit.new_tensor(positive), target)
            error = error * 2 / (negative + positive)
        if chosen.imbalance == "focal":
            missed = (target - logit.sigmoid()).abs()
            weight = torch.lerp(logit.new_tensor(1 - chosen.focal_alpha), logit.new_tensor(chosen.focal_alpha), target)
            error = weight * missed**chosen.focal_gamma * error
        return error

    def export(self) -> nn.Module:
        """(image, present) → logit, without w."""
        return self.network


def supervised_contrast(
    embedding: Float[Tensor, "b d"], grade: Int[Tensor, " b"], temperature: float
) -> Float[Tensor, ""]:
    """Mean over anchors of - 1/|P| Σ_P log(exp(s_p) / Σ exp(s_a)), s cosines / temperature, a all others, P those of the anchor's grade.

    Source: Khosla et al. 2020, "Supervised contrastive learning", arXiv 2004.11362, the sum outside the logarithm. Of one process.

    Args:
        embedding: of any length, cosines are compared.
        grade: -1 is nobody's partner and no candidate.
        temperature: above 0.

    Returns:
        In nats, ≥ 0; 0, with a gradient of 0, where no lesion has a partner. The others do not count.
    """
    unit = functional.normalize(embedding.float(), dim=1)
    with torch.autocast(unit.device.type, enabled=False):  # a temperature of 0.1 makes logits of bfloat16's rounding
        logits = unit @ unit.T / temperature
    others = ~torch.eye(len(grade), dtype=torch.bool, device=grade.device) & (grade >= 0)
    partners = others & (grade[:, None] == grade)
    share = logits - logits.masked_fill(~others, -1e9).logsumexp(1, keepdim=True)
    return masked_mean(masked_mean(-share, partners, dim=(1,)), partners.any(1))


METHOD = LesionClassification
