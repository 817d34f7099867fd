"""Parameters of every preset, and seconds of one forward and backward pass on one thread → networks.json beside this file.

    OMP_NUM_THREADS=1 python benchmarks/networks.py

Three modalities, segmentation network with two classes, 48³ (64³ where the deepest stride is 32), batch 2. The fastest of three repetitions after one
to warm up, in CPU seconds, so that other work on the machine disturbs little.
"""

import json
import platform
import time
from pathlib import Path

import torch

from oligovox.networks import resenc, swin
from oligovox.networks.compose import SegmentationNetwork
from oligovox.networks.decoder import Decoder
from oligovox.networks.heads import SegmentationHead

MODALITIES = ("T1w", "T2w", "FLAIR")
TIMED = {
    "resenc tiny": 48,
    "resenc tiny, stem_stride 2": 48,
    "resenc S": 48,
    "resenc S, stem_stride 2": 64,
    "swin 12": 64,
}


def networks():
    """Name → how to build it."""
    for preset in resenc.PRESETS:
        for stride in (1, 2):
            name = f"resenc {preset}" + (", stem_stride 2" if stride == 2 else "")
            yield name, resenc.ResEnc, resenc.Settings(preset=preset, stem_stride=stride)
    for size in (12, 24, 48):
        yield f"swin {size}", swin.Swin, swin.Settings(feature_size=size)


def seconds(network, side, dtype):
    """CPU seconds of forward and backward."""
    image = torch.randn(2, len(MODALITIES), side, side, side)
    present = torch.ones(2, len(MODALITIES), dtype=torch.bool)
    label = torch.zeros(2, side, side, side, dtype=torch.long)
    taken = []
    for _ in range(4):
        network.zero_grad()
        start = time.process_time()
        with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            loss = torch.nn.functional.cross_entropy(network(image, present).float(), label)
        loss.backward()
        taken.append(time.process_time() - start)
    return round(min(taken[1:]), 3)


def main():
    torch.set_num_threads(1)
    rows = {}
    for name, kind, settings in networks():
        torch.manual_seed(0)
        encoder = kind(MODALITIES, settings)
        decoder = Decoder(encoder.channels, encoder.strides)
        row = {"encoder": sum(p.numel() for p in encoder.parameters())}
        row["decoder"] = sum(p.numel() for p in decoder.parameters())
        if name in TIMED:
            network = SegmentationNetwork(encoder, decoder, SegmentationHead(decoder.channels[0], 2))
            row["side"] = TIMED[name]
            row["fp32_s"] = seconds(network, TIMED[name], torch.float32)
            row["bf16_s"] = seconds(network, TIMED[name], torch.bfloat16)
            network = network.to(memory_format=torch.channels_last_3d)
            row["bf16_channels_last_s"] = seconds(network, TIMED[name], torch.bfloat16)
        rows[name] = row
        print(name, row)
    result = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__, "networks": rows}
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
