"""Encoder and decoder, with and without a head: the modules that leave training."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor, nn

from oligovox.networks.decoder import Decoder
from oligovox.networks.encoder import Encoder
from oligovox.networks.heads import ClassificationHead, SegmentationHead


class EncoderDecoder(nn.Module):
    """(image, present) → features at full resolution.

    For the decoder's other levels call `decoder(encoder(image, present))`.
    """

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, image: Float[Tensor, "b m x y z"], present: Bool[Tensor, "b m"]) -> Float[Tensor, "b c x y z"]:
        """(b, m, x, y, z) → (b, decoder.channels[0], x, y, z)."""
        feature: Tensor = self.decoder(self.encoder(image, present))[0]
        return feature


class SegmentationNetwork(nn.Module):
    """(image, present) → logits at full resolution."""

    def __init__(self, encoder: Encoder, decoder: Decoder, head: SegmentationHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.head = head

    def forward(self, image: Float[Tensor, "b m x y z"], present: Bool[Tensor, "b m"]) -> Float[Tensor, "b k x y z"]:
        """(b, m, x, y, z) → (b, classes, x, y, z), background first."""
        logits: Tensor = self.head(self.decoder(self.encoder(image, present))[0])
        return logits


class ClassificationNetwork(nn.Module):
    """(image, present) → one logit a sample, from the deepest feature."""

    def __init__(self, encoder: Encoder, head: ClassificationHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, image: Float[Tensor, "b m x y z"], present: Bool[Tensor, "b m"]) -> Float[Tensor, " b"]:
        """(b, m, x, y, z) → (b,)."""
        logit: Tensor = self.head(self.encoder(image, present)[-1])
        return logit
