import subprocess
import sys

import pytest
import torch

from oligovox.errors import SettingsError
from oligovox.networks.swin import Settings, Swin
from oligovox.settings import parse

SMALL = Settings(feature_size=12, depths=(2, 1, 1, 1), window=4)


def permuted(x, pattern):
    """einops.rearrange for permutations, which is all MONAI uses it for here."""
    old, new = (side.split() for side in pattern.split(" -> "))
    return x.permute(*(old.index(axis) for axis in new))


def test_features_equal_those_inside_monai(monkeypatch):
    from monai.networks.nets import swin_unetr

    monkeypatch.setattr(swin_unetr, "rearrange", permuted)
    torch.manual_seed(0)
    ours = Swin(("T1w", "FLAIR"), SMALL)
    theirs = swin_unetr.SwinUNETR(4, 2, depths=(2, 1, 1, 1), window_size=4, feature_size=12)
    theirs.swinViT.load_state_dict(ours.transformer.state_dict())
    theirs.encoder1.load_state_dict(ours.full.state_dict())
    seen = {}
    theirs.swinViT.register_forward_hook(lambda module, args, out: seen.update(hidden=out))
    theirs.encoder1.register_forward_hook(lambda module, args, out: seen.update(full=out))
    image, present = torch.randn(1, 2, 96, 32, 64), torch.tensor([[True, False]])
    with torch.no_grad():
        features = ours(image, present)
        theirs(torch.cat([image, torch.ones_like(image[:, :1]), torch.zeros_like(image[:, :1])], dim=1))
    for mine, other in zip(features, [seen["full"], *seen["hidden"]], strict=True):
        torch.testing.assert_close(mine, other)


def test_checkpointing_changes_neither_features_nor_gradients():
    torch.manual_seed(0)
    plain = Swin(("T1w",), SMALL)
    saving = Swin(("T1w",), SMALL.model_copy(update={"use_checkpoint": True}))
    saving.load_state_dict(plain.state_dict())
    image, present = torch.randn(1, 1, 32, 32, 32), torch.ones(1, 1, dtype=torch.bool)
    for network in (plain, saving):
        sum(f.square().mean() for f in network(image, present)[1:4]).backward()
    name = "transformer.layers1.0.blocks.0.attn.qkv.weight"
    torch.testing.assert_close(saving.get_parameter(name).grad, plain.get_parameter(name).grad)


def test_availability_reaches_the_first_hidden_state_everywhere():
    torch.manual_seed(0)
    encoder = Swin(("T1w", "FLAIR"), SMALL)
    image = torch.randn(1, 2, 32, 32, 32)
    image[:, 1] = 0
    both, one = (encoder(image, torch.tensor([[True, seen]]))[1] for seen in (True, False))
    assert (both - one).abs().amax(dim=1).min() > 0.01


def test_heads_must_divide_the_channels():
    with pytest.raises(SettingsError, match="stage 1: 2 blocks of 5 heads for 24 channels"):
        parse(Settings, {"feature_size": 12, "heads": (3, 5, 12, 24)}, "swin")


def test_importing_the_module_does_not_import_monai():
    code = "import sys, oligovox.networks.swin; sys.exit('monai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
