"""Parameters of every network, and seconds of one forward and backward pass on one thread, in three precisions.

Three modalities, segmentation network with two classes, batch 2, 48³ (64³ where the deepest stride is 32). The faster of two passes is quoted,
so that other work on the machine disturbs little.
"""

from functools import partial

import torch

from common import QUICK, alternate, headline, progress, ratio, table, write
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
PRECISIONS = ("fp32", "bf16", "bf16, channels last")


def networks():
    """Name → how to build it."""
    for preset in resenc.PRESETS:
        for stride in (1, 2):
            name = f"resenc {preset}" + (", stem_stride 2" if stride == 2 else "")
            yield name, resenc.ResEnc, resenc.Settings(preset=preset, stem_stride=stride)
    for size in (12, 24, 48):
        yield f"swin {size}", swin.Swin, swin.Settings(feature_size=size)


def build(kind, settings):
    torch.manual_seed(0)
    encoder = kind(MODALITIES, settings)
    decoder = Decoder(encoder.channels, encoder.strides)
    return SegmentationNetwork(encoder, decoder, SegmentationHead(decoder.channels[0], 2))


def one_pass(network, side, dtype):
    """Forward and backward."""
    image = torch.randn(2, len(MODALITIES), side, side, side, generator=torch.Generator().manual_seed(0))
    present = torch.ones(2, len(MODALITIES), dtype=torch.bool)
    network.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
        logits = network(image, present)
    torch.nn.functional.cross_entropy(logits.float(), torch.zeros(2, side, side, side, dtype=torch.long)).backward()


def timed_passes(kind, settings, side):
    plain, last = build(kind, settings), build(kind, settings).to(memory_format=torch.channels_last_3d)
    arms = zip(PRECISIONS, (plain, plain, last), (torch.float32, torch.bfloat16, torch.bfloat16), strict=True)
    return alternate({name: partial(one_pass, net, side, dtype) for name, net, dtype in arms}, 2)


def main():
    torch.set_num_threads(1)
    raw, results, rows = {}, {}, []
    for name, kind, settings in networks():
        with torch.device("meta"):
            network = build(kind, settings)
        row = {part: sum(p.numel() for p in getattr(network, part).parameters()) for part in ("encoder", "decoder")}
        if name in TIMED and not (QUICK and "swin" in name):
            times = timed_passes(kind, settings, TIMED[name])
            raw[name], row["side"] = times, TIMED[name]
            row["seconds"] = {arm: round(min(clocks["cpu"]), 3) for arm, clocks in times.items()}
            row["fp32_over_bf16_channels_last"] = ratio(times["fp32"]["cpu"], times[PRECISIONS[2]]["cpu"])
            progress(name)
        results[name] = row
        seconds = row.get("seconds", {})
        rows.append([name, f"{row['encoder'] / 1e6:.2f} M", f"{row['decoder'] / 1e6:.2f} M", row.get("side", ""),
                     *(seconds.get(arm, "") for arm in PRECISIONS)])  # fmt: skip
    table(["network", "encoder", "decoder", "side", *PRECISIONS], rows)
    lines = [
        headline(f"{name}, {row['side']}³ × 3, batch 2, a forward and backward pass",
                 ", ".join(f"{value} s {arm}" for arm, value in row["seconds"].items()))
        for name, row in results.items() if "seconds" in row
    ]  # fmt: skip
    settings = {"modalities": len(MODALITIES), "batch": 2, "threads": 1, "passes": 2}
    clock = "cpu of one thread; the faster pass (seconds), the medians (ratio)"
    write(__file__, clock=clock, settings=settings, raw=raw, results=results, headlines=lines)


if __name__ == "__main__":
    main()
