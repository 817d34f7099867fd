"""QSMRim-Net: a convolutional branch and a branch of radiomic numbers, summed; rare rims are multiplied where the two have met.

Source: Zhang et al. 2022 (QSMRim-Net, NeuroImage: Clinical 34:102979) and its public code (tinymilky/QSMRim-Net): branches, sizes, sum, and a
    layer after DeepSMOTE (Dablain et al. 2021, arXiv 2105.02340). The encoder of the paper is `resnet18`.
Deviates: sixty radiomic numbers of our own instead of 527 of PyRadiomics, their logarithms standardised by running means; layer norm where the
    paper has batch norm, which lets samples see each other; widths follow the encoder's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from oligovox import settings as base
from oligovox.cohort.modalities import SequenceName
from oligovox.errors import LabelError, SettingsError
from oligovox.losses.masked import masked_mean
from oligovox.method import Clock, Losses, Method, Needs
from oligovox.networks.encoder import Encoder
from oligovox.prepare.radiomics import FEATURES, radiomics
from oligovox.sample.batch import Batch
from oligovox.sample.masks import kept_units

_SLOWEST = 0.01  # share that the newest batch has in the running means, once there were a hundred
_LEAST = 1e-8  # variance: some numbers differ by thousandths only
_CLASSIFIER = 128  # units


class Settings(base.Settings):
    """Choices of QSMRim-Net."""

    primary: SequenceName = Field("QSM", description="sequence of which the radiomic numbers are")
    bin_width: float = Field(1.25, gt=0, description="of grey levels, in units of the image, which are 20 ppb: 25 ppb")
    fusion: Literal["sum", "concat"] = Field("sum", description="of the two branches; the paper's text has concat")
    neighbours: PositiveInt = Field(
        3,
        description="new samples for each rim, each towards one of so many nearest rims, the first of them itself; 1 only copies",
    )
    oversample: bool = Field(True, description="multiply the rims of a batch that has more than two")
    dropout: float = Field(0.5, ge=0, lt=1, description="in the classifier")
    radiomic_dropout: float = Field(0.3, ge=0, lt=1, description="in the radiomic branch")


@dataclass(frozen=True)
class Views:
    """What is shown, and what it is called.

    Attributes:
        image: patches of lesions.
        present: acquired sequences.
        radiomic: the sixty numbers of each lesion, see `prepare.radiomics`, lengths in voxels; 0 where there is no lesion.
        grade: 1, 0, or -1 where unknown.
        along: how far a new sample lies between a rim and its neighbour, in [0, 1].
        kept_radiomic: units of the radiomic branch, as a factor.
        kept: units of the classifier, as a factor, with rows for the new samples.
    """

    image: Float[Tensor, "b m x y z"]
    present: Bool[Tensor, "b m"]
    radiomic: Float[Tensor, "b f"]
    grade: Int[Tensor, " b"]
    along: Float[Tensor, ""]
    kept_radiomic: Float[Tensor, "b h"]
    kept: Float[Tensor, "r k"]


class Layer(nn.Sequential):
    """Linear, layer norm, Swish."""

    def __init__(self, units_in: int, units_out: int) -> None:
        super().__init__(nn.Linear(units_in, units_out, bias=False), nn.LayerNorm(units_out), nn.SiLU())


class RadiomicHead(nn.Module):
    """Radiomic branch, fusion, latent layers and classifier.

    Args:
        channels: of the encoder's deepest feature, w: 512 in the paper. The radiomic branch has 2 w and w units.
        fusion: of the branches.
    """

    mean: Tensor
    square: Tensor
    batches: Tensor

    def __init__(self, channels: int, fusion: str) -> None:
        super().__init__()
        width = channels if fusion == "sum" else 2 * channels
        self.fusion, self.units = fusion, 2 * channels
        self.first, self.second = Layer(len(FEATURES), self.units), Layer(self.units, channels)
        self.mix = nn.Sequential(Layer(width, width), Layer(width, width))
        self.classify = nn.Sequential(nn.Linear(width, _CLASSIFIER), nn.SiLU())
        self.score = nn.Linear(_CLASSIFIER, 1)
        self.register_buffer("mean", torch.zeros(len(FEATURES)))
        self.register_buffer("square", torch.ones(len(FEATURES)))
        self.register_buffer("batches", torch.zeros(()))

    def latent(
        self,
        feature: Float[Tensor, "b c x y z"],
        radiomic: Float[Tensor, "b f"],
        kept: Float[Tensor, "b h"] | None = None,
    ) -> Float[Tensor, "b w"]:
        """Where the branches have met, and rims are multiplied."""
        known = self.first((compressed(radiomic) - self.mean) / self.deviation)
        branch = self.second(known if kept is None else known * kept)
        pooled = feature.mean(dim=(2, 3, 4))
        mixed: Tensor = self.mix(pooled + branch if self.fusion == "sum" else torch.cat([pooled, branch], dim=1))
        return mixed

    def logit(self, latent: Float[Tensor, "r w"], kept: Float[Tensor, "r k"] | None = None) -> Float[Tensor, " r"]:
        """(r, w) → (r,)."""
        units = self.classify(latent)
        logit: Tensor = self.score(units if kept is None else units * kept)[:, 0]
        return logit

    @property
    def deviation(self) -> Float[Tensor, " f"]:
        """Standard deviation of each compressed number over the lesions seen."""
        return (self.square - self.mean.square()).clamp(min=_LEAST).sqrt()

    def follow(self, radiomic: Float[Tensor, "b f"]) -> None:
        """Let the running means follow a batch: all batches alike at first, then with a hundredth for the newest."""
        self.batches += 1
        share, values = (1 / self.batches).clamp(min=_SLOWEST), compressed(radiomic)
        self.mean.lerp_(values.mean(0), share)
        self.square.lerp_(values.square().mean(0), share)


class QSMRimNetwork(nn.Module):
    """(image, present, lesion) → one logit a sample.

    Attributes:
        reads_lesion: it has to be told where the lesion is.
    """

    reads_lesion = True

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = RadiomicHead(encoder.channels[-1], settings.fusion)
        self._channel, self._bin_width = encoder.modalities.index(settings.primary), settings.bin_width

    def radiomic(self, image: Float[Tensor, "b m x y z"], lesion: Bool[Tensor, "b x y z"]) -> Float[Tensor, "b f"]:
        """The sixty numbers of each lesion; 0 where there is none."""
        values, masks = image[:, self._channel].double().cpu().numpy(), lesion.cpu().numpy()
        rows = [
            radiomics(value, mask, (1.0, 1.0, 1.0), self._bin_width) if mask.any() else np.zeros(len(FEATURES))
            for value, mask in zip(values, masks, strict=True)
        ]
        return torch.from_numpy(np.stack(rows)).to(image.device, torch.float32)

    def forward(
        self, image: Float[Tensor, "b m x y z"], present: Bool[Tensor, "b m"], lesion: Bool[Tensor, "b x y z"]
    ) -> Float[Tensor, " b"]:
        """(b, m, x, y, z), its sequences and its lesion masks → (b,)."""
        feature = self.encoder(image, present)[-1]
        logit: Tensor = self.head.logit(self.head.latent(feature, self.radiomic(image.detach(), lesion)))
        return logit


@final
class QSMRimNet(Method[Views]):
    """The network, trained by binary cross-entropy on the lesions of a batch and on new ones between its rims.

    Raises:
        SettingsError: the plan lacks the sequence of the radiomic numbers.
    """

    needs = Needs(labels=True)

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        super().__init__()
        if settings.primary not in encoder.modalities:
            raise SettingsError(
                f"qsmrim_net measures {settings.primary}, the plan has {', '.join(encoder.modalities)}; prepare it, or name another primary"
            )
        self.settings = settings
        self.network = QSMRimNetwork(encoder, settings)

    def views(self, batch: Batch, rng: torch.Generator) -> Views:
        """Measure the lesions; draw what is left out, and how far new samples lie from old ones.

        Raises:
            LabelError: the batch carries no grade, or no lesion masks.
        """
        if batch.grade is None or batch.label is None:
            raise LabelError(
                f"qsmrim_net: {'no grade' if batch.grade is None else 'no lesion mask'} in the batch of {', '.join(batch.cases)}; "
                "mark unknown grades with -1, lesions with 1"
            )
        b, chosen = len(batch), self.settings
        rows = b * (1 + chosen.neighbours) if chosen.oversample else b
        return Views(
            image=batch.image,
            present=batch.present,
            radiomic=self.network.radiomic(batch.image, batch.label == 1),
            grade=batch.grade,
            along=torch.rand((), generator=rng, device=rng.device),
            kept_radiomic=kept_units((b, self.network.head.units), chosen.radiomic_dropout, rng),
            kept=kept_units((rows, _CLASSIFIER), chosen.dropout, rng),
        )

    def losses(self, views: Views, clock: Clock) -> Losses:
        """Mean cross-entropy of the lesions with a grade and of the new rims; 0 where there are none."""
        head = self.network.head
        latent = head.latent(self.network.encoder(views.image, views.present)[-1], views.radiomic, views.kept_radiomic)
        target = views.grade.clamp(0, 1).float()
        if self.settings.oversample:
            new = between(latent[views.grade > 0], views.along, self.settings.neighbours)
            latent, target = torch.cat([latent, new]), torch.cat([target, target.new_ones(len(new))])
        known = torch.cat([views.grade >= 0, views.grade.new_ones(len(latent) - len(views.grade), dtype=torch.bool)])
        logit = head.logit(latent, views.kept[: len(latent)]).float()
        error = functional.binary_cross_entropy_with_logits(logit, target, reduction="none")
        return Losses({"cross_entropy": masked_mean(error, known)}, carry={"radiomic": views.radiomic})

    def after_step(self, losses: Losses, clock: Clock) -> None:
        """Let the running means of the radiomic numbers follow."""
        self.network.head.follow(losses.carry["radiomic"])

    def export(self) -> nn.Module:
        """(image, present, lesion) → logit."""
        return self.network


def between(rims: Float[Tensor, "n w"], along: Float[Tensor, ""], neighbours: int) -> Float[Tensor, "k w"]:
    """New samples: r + along · (neighbour - r), for each rim r and its nearest ones, r itself the first; none of two rims or fewer.

    Args:
        rims: latent vectors.
        along: one share for all, in [0, 1].
        neighbours: how many of the nearest, in Euclidean distance.

    Returns:
        k = n · min(neighbours, n) rows, those of the first rim first.
    """
    if len(rims) <= 2:
        return rims[:0]
    with torch.no_grad():
        apart = (rims[:, None] - rims).float().square().sum(2)
        nearest = apart.argsort(dim=1, stable=True)[:, :neighbours]
    return torch.lerp(rims[:, None].expand(-1, nearest.shape[1], -1), rims[nearest], along.to(rims)).flatten(0, 1)


def compressed(radiomic: Float[Tensor, "b f"]) -> Float[Tensor, "b f"]:
    """sign(x) log(1 + |x|): the numbers differ by orders of magnitude, and so do lesions."""
    return radiomic.sign() * radiomic.abs().log1p()


METHOD = QSMRimNet
