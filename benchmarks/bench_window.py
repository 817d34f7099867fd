"""Sliding-window prediction of one case: `infer.predict_case`, which visits the box around the foreground, against MONAI on the whole volume.

Same network (random weights), window, overlap, blending and precision. The volume is 182 × 218 × 182 voxels, the head in it fills
140 × 172 × 140: the gain is that of the box and grows with the air around a head.
"""

import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference

from common import QUICK, alternate, headline, progress, ratio, spread, table, write
from oligovox.engine.runtime import Runtime
from oligovox.infer.window import predict_case
from oligovox.networks.compose import SegmentationNetwork
from oligovox.networks.decoder import Decoder
from oligovox.networks.heads import SegmentationHead
from oligovox.networks.resenc import ResEnc, Settings
from oligovox.prepare.geometry import Placement
from oligovox.prepare.store import Plan, StoredCase

MODALITIES, SHAPE, HEAD = ("T1w", "T2w", "FLAIR"), (182, 218, 182), (140, 172, 140)
PATCH, OVERLAP, BATCH = (64,) * 3 if QUICK else (96,) * 3, 0.0 if QUICK else 0.5, 2


def write_case(folder):
    axes = [np.arange(side) - (side - 1) / 2 for side in SHAPE]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    inside = (x / HEAD[0] * 2) ** 2 + (y / HEAD[1] * 2) ** 2 + (z / HEAD[2] * 2) ** 2 <= 1
    image = np.random.default_rng(0).standard_normal((len(MODALITIES), *SHAPE)) * inside
    np.save(folder / "image.npy", image.astype(np.float16))
    np.save(folder / "foreground.npy", inside)
    return StoredCase(
        folder=folder, name="case", person="case", dataset="", present=(True,) * len(MODALITIES), shape=SHAPE, spacing=(1.0, 1.0, 1.0),
        labelled=False, lesion_voxels=0, placement=Placement(SHAPE, np.eye(4), SHAPE, np.eye(4)), sources={},
    )  # fmt: skip


def whole(network, case, precision):
    image, present = torch.from_numpy(case.image().astype(np.float32))[None], torch.ones(1, len(MODALITIES), dtype=bool)

    def probabilities(windows):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            return network(windows, present.expand(len(windows), -1)).float().softmax(1)

    with torch.inference_mode():
        return sliding_window_inference(image, PATCH, BATCH, probabilities, OVERLAP, "gaussian")


def main():
    runtime = Runtime()
    torch.manual_seed(0)
    encoder = ResEnc(MODALITIES, Settings(preset="tiny"))
    decoder = Decoder(encoder.channels, encoder.strides)
    network = SegmentationNetwork(encoder, decoder, SegmentationHead(decoder.channels[0], 2)).eval()
    runtime.place(network)
    voxels = dict.fromkeys(("box", "whole"), 0)
    with tempfile.TemporaryDirectory() as folder:
        case, plan = write_case(Path(folder)), Plan(modalities=MODALITIES)
        predict = {
            "box": lambda net: predict_case(
                net, case, plan, patch=PATCH, overlap=OVERLAP, batch=BATCH, precision=runtime.precision
            ),
            "whole": lambda net: whole(net, case, runtime.precision),
        }
        for arm, run in predict.items():  # how much goes through the network

            def counting(image, present, arm=arm):
                voxels[arm] += image[:, 0].numel()
                return torch.zeros(len(image), 2, *image.shape[2:])

            run(counting)
        progress("windows counted")
        times = alternate({arm: lambda run=run: run(network) for arm, run in predict.items()}, 3, warm=0)
    gain = {clock: ratio(times["whole"][clock], times["box"][clock]) for clock in ("wall", "cpu")}
    seconds = {arm: spread(clocks["wall"], 2) for arm, clocks in times.items()}
    windows = {arm: count // int(np.prod(PATCH)) for arm, count in voxels.items()}
    table(["arm", "windows", "s, wall", "s, CPU"],
          [[arm, windows[arm], f"{seconds[arm]['median']:.1f}", f"{median(times[arm]['cpu']):.1f}"] for arm in times])  # fmt: skip
    value = "{ratio:.2f} ({low:.2f} … {high:.2f}) × faster".format(**gain["wall"])
    value += f", {seconds['box']['median']:.0f} s, {windows['box']} of {windows['whole']} windows"
    settings = {"network": "resenc tiny", "volume": SHAPE, "head": HEAD, "window": PATCH, "overlap": OVERLAP, "batch": BATCH,
                "precision": runtime.precision, "threads": torch.get_num_threads()}  # fmt: skip
    write(
        __file__,
        clock="wall; ratio of the medians, lowest and highest round; cpu beside it",
        settings=settings,
        raw=times,
        results={"whole_over_box": gain, "seconds": seconds, "windows": windows},
        headlines=[headline("prediction in the foreground's box against the whole volume", value)],
    )


if __name__ == "__main__":
    main()
