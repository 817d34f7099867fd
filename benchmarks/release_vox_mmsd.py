"""Vox-MMSD beside its public release (HiLab-git/Vox-MMSD): the same losses from the same tensors, the same draws, and the time of a step.

Run as `python benchmarks/release_vox_mmsd.py --release CLONE`, where CLONE is a checkout of the release. Nothing of it is copied: its classes are
imported and its own `training()` takes its steps. It needs one package that ours does not, batchgenerators (`pip install --no-deps
batchgenerators`, in an environment of its own); packages that it imports for other things than this method are replaced by empty ones.

Its network stands in ours behind the Encoder contract, so that both have the same layers and weights. Three things are changed in it: calls to
`.cuda()` stay on the CPU, dropout is off (our teacher has none), and the crop of 96³ and the 1024 pairs written into it are 48³ and 128, for volumes
of 2 mm instead of 1 mm: the same places of the head, an eighth of the voxels. Blocks stay six along each side.
"""

import contextlib
import io
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from functools import reduce
from importlib import import_module
from pathlib import Path
from unittest.mock import MagicMock, patch

import numpy as np
import torch
from torch import nn

from common import QUICK, alternate, headline, progress, ratio, table, write
from oligovox.cohort.bids import read_bids
from oligovox.engine.fit import Training, build_optimizer
from oligovox.engine.runtime import Runtime
from oligovox.losses.dino import dino_loss
from oligovox.method import Clock
from oligovox.networks.encoder import Encoder
from oligovox.networks.teacher import Teacher
from oligovox.prepare.pipeline import prepare
from oligovox.prepare.store import Plan
from oligovox.pretext.vox_mmsd import Settings, Views, VoxMMSD
from oligovox.sample.masks import thrown_blocks
from oligovox.sample.patches import PatchSource, Stream
from oligovox.simulate.recipe import make_recipe
from oligovox.simulate.write import simulate_cohort

SEQUENCES = ("T1w", "T1wGd", "T2w", "FLAIR")
SIDE, PATCH, PAIRS, BATCH, SPACING = 48, 64, 128, 2, 2.0
ROUNDS, VIEW_ROUNDS = 3, 5
EPOCHS = 300  # an epoch of the release, of 200 steps, is one step here
RELEASE = {"overlap": 0, "even_blocks": False, "input_scale": "min_max", "projection": 512, "restore_over": "all",
           "freeze_heads": True}  # fmt: skip
UNUSED = ("torchvision", "torchvision.transforms", "torchvision.models", "tensorboardX", "imops", "SimpleITK", "skimage",
          "skimage.feature", "skimage.transform", "timm", "timm.models", "timm.models.layers", "ml_collections", "einops",
          "h5py")  # fmt: skip
TOLERANCE = 1e-4


class TheRelease:
    """Its agent on the CPU, and its views of volumes that are in memory.

    Args:
        clone: a checkout.
        volumes: (4, x, y, z) each, 0 outside the head; a batch is drawn from all of them.
    """

    def __init__(self, clone, volumes):
        sys.path.insert(0, str(clone / "PyMIC-dev"))
        absent = [name for name in UNUSED if name not in sys.modules]
        sys.modules.update({name: MagicMock() for name in absent})
        module = import_module("pymic.net_run.self_sup.self_voxmmsd")
        transforms = import_module("pymic.transform.trans_dict").TransformDict
        parse = import_module("pymic.util.parse_config")
        self.views_of = import_module("pymic.transform.view_generator").ContrastiveLearningViewGeneratorVoxMMSD
        self.select, self.volumes = module.select_from_pyramid, volumes
        for name in absent:
            del sys.modules[name]
        config = parse.synchronize_config(parse.parse_config(clone / "BraTS-GLI" / "config" / "unet3d_voxmmsd.cfg"))
        config["network"]["dropout"] = [0.0] * 5
        config["training"] |= {"iter_max": EPOCHS, "iter_valid": 1, "warmup_iter": 0}  # the last is missing in its file
        config["dataset"] |= {"task": config["dataset"]["task_type"], "masked_size": SIDE // 6}
        still = {"cuda": lambda module, *_: module, "to": lambda module, *_: module}
        with patch.multiple(nn.Module, **still):
            self.agent = module.SelfSupVoxMMSD(config)
            self.agent.create_network()
        self.agent.create_loss_calculator()
        self.agent.create_optimizer(self.agent.get_parameters_to_update())
        for number, group in enumerate(self.agent.optimizer.param_groups):  # as its train_valid() does
            group["lr"] = self.agent.scheduler[0]
            group["weight_decay"] = 0.0 if number else self.agent.wd_schedule[0]
        self.agent.device, self.agent.glob_it = torch.device("cpu"), 0
        chosen = config["dataset"]
        self.mask, self.norm = module.VoxMMSDMaskedImage(chosen), module.NormalizeWithMinMax(chosen)
        self.disturbances = [transforms[name](chosen) for name in chosen["train_transform"]]
        code = self.views_of.__call__.__code__
        sides = tuple((4, *[SIDE] * 3) if value == (4, 96, 96, 96) else value for value in code.co_consts)
        if sides == code.co_consts:
            sys.exit(f"--release {clone}: its view generator has no crop of 96³; this is another version of the release")
        self.views_of.__call__.__code__ = code.replace(co_consts=sides)

    def views(self, volume, pairs=PAIRS, disturbed=True):
        """Its dictionary of one sample: two images, two labels, two tables of voxels."""
        steps = self.disturbances if disturbed else ()
        generator = self.views_of(lambda x: reduce(lambda y, step: step(y), steps, x), self.mask, self.norm, pairs)
        return generator({"image": volume, "names": SEQUENCES})

    def batch(self):
        """As its loader stacks samples, without reading files."""
        chosen = torch.randint(len(self.volumes), (BATCH,)).tolist()
        return torch.utils.data.default_collate([self.views(self.volumes[number]) for number in chosen])

    def step(self, batch):
        """Its own optimiser step; the two losses."""
        self.agent.trainIter = iter([batch])
        scalars, _ = self.agent.training()
        self.agent.glob_it += 1
        return {"distil": scalars["con_loss"], "restore": scalars["rec_loss"]}


class TheirEncoder(Encoder):
    """The release's encoder behind our contract. Batch norm looks at the batch at hand, as it does in the release's training."""

    def __init__(self, net):
        super().__init__()
        self.modalities, self.modality_weights = SEQUENCES, {}
        self.channels, self.strides = tuple(net.encoder.ft_chns), (1, 2, 4, 8, 16)
        self.body = of_the_batch(net.encoder)

    def forward(self, image, present):
        return tuple(self.body(image))


class TheirDecoder(nn.Module):
    """The release's decoder in the place of ours."""

    def __init__(self, net):
        super().__init__()
        self.channels, self.strides = tuple(net.decoder.ft_chns[:-1]), (1, 2, 4, 8)
        self.body = of_the_batch(net.decoder)

    def forward(self, features):
        return tuple(self.body(features))


def of_the_batch(body):
    copy = __import__("copy").deepcopy(body)
    for layer in copy.modules():
        if isinstance(layer, nn.BatchNorm3d):
            layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None
    return copy


def ours_with(agent, **chosen):
    """Our method with the release's network, projector, restoration head, and its first centre."""
    method = VoxMMSD(TheirEncoder(agent.net), Settings(**(RELEASE | {"pairs": PAIRS} | chosen)))
    method.student.network.decoder = TheirDecoder(agent.net)
    for mine, theirs in zip(method.student.projector, agent.proj_head, strict=False):  # theirs ends with the unit length
        weights = theirs.state_dict()  # with a bias in front of each batch norm, where it has no effect; ours has none
        mine.load_state_dict({name: weights[name] for name in mine.state_dict()})
    method.restore.load_state_dict(agent.out_conv.state_dict())
    method.teacher = Teacher(method.student)
    method.centre.copy_(agent.dino_loss.center[0])
    method.centred.fill_(1.0)
    return method
