"""Implanted lesions: nothing but a relation gives a lesion away, what is there already is left alone, each part can be turned off."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from oligovox.method import Clock
from oligovox.networks.resenc import ResEnc
from oligovox.networks.resenc import Settings as ResEncSettings
from oligovox.pretext.implanted_lesions import ImplantedLesions, Settings
from oligovox.sample.batch import Batch
from oligovox.sample.bodies import Kind, Slots
from oligovox.sample.implanting import _contrasts, _relation

CLOCK = Clock(0, 1)
SEQUENCES = ("T1w", "T2w", "FLAIR")
SIDE = 24


def _method(sequences: tuple[str, ...] = SEQUENCES, **chosen: object) -> ImplantedLesions:
    torch.manual_seed(0)
    return ImplantedLesions(ResEnc(sequences, ResEncSettings(preset="nano")), Settings(**chosen))


def _rng(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _batch(samples: int = 2) -> Batch:
    """White matter with a lesion of its own, fluid along one side, air along another."""
    image = torch.tensor([0.8, -0.6, 0.2])[None, :, None, None, None].repeat(samples, 1, SIDE, SIDE, SIDE)
    image[:, :, :, :5] = torch.tensor([-2.0, 3.0, -2.0])[None, :, None, None, None]
    image[:, :, 4:9, 14:19, 14:19] = torch.tensor([-0.5, 1.0, 2.0])[None, :, None, None, None]
    image += 0.1 * torch.randn(image.shape, generator=_rng(0))
    foreground = torch.ones(samples, 1, SIDE, SIDE, SIDE, dtype=torch.bool)
    foreground[..., -3:] = False
    return Batch(
        image=image * foreground,
        present=torch.ones(samples, 3, dtype=torch.bool),
        foreground=foreground,
        spacing=torch.ones(samples, 3),
        modalities=SEQUENCES,
        cases=tuple("abcdef"[:samples]),
    )


def test_the_exam_is_changed_only_where_a_body_is_and_the_label_is_not_looked_at() -> None:
    method, batch = _method(nested=1.0, lesions=(4, 4), decoys=(4, 4)), _batch()
    views = method.views(batch, _rng())
    changed = views.image != batch.image
    assert views.lesion.any()
    assert views.decoy.any()
    assert not (views.lesion & views.decoy).any()
    assert not (changed & views.steady[:, None]).any()
    assert not (changed & ~batch.foreground).any()
    assert not (views.lesion & ~batch.foreground[:, 0]).any()
    labelled = replace(batch, label=torch.ones(2, SIDE, SIDE, SIDE, dtype=torch.int64))
    assert torch.equal(method.views(labelled, _rng()).image, views.image)


def test_a_lesion_of_the_exam_itself_is_not_counted_and_nothing_starts_in_it() -> None:
    batch = _batch()
    own = torch.zeros(2, SIDE, SIDE, SIDE, dtype=torch.bool)
    own[:, 4:9, 14:19, 14:19] = True
    views = _method().views(batch, _rng())
    assert not views.counted[own].any()
    assert views.counted.sum() > 0.9 * (
        batch.foreground.sum() - own.sum()
    )  # fluid, although as bright on T2w, is counted
    method = _method(radius=(0.8, 0.8), nested=0.0, lesions=(8, 8), decoys=(8, 8), vessel=0, cap=0, commonness=0.0)
    for seed in range(5):
        views = method.views(batch, _rng(seed))
        assert not ((views.lesion | views.decoy) & own).any()
    counted = _method(ignore=False).views(batch, _rng()).counted
    assert torch.equal(counted, batch.foreground[:, 0])


def test_no_single_sequence_tells_lesions_from_decoys_but_all_of_them_together_do() -> None:
    """The contrasts that are drawn, judged by the best threshold in each sequence and by the relation."""
    method = _method()
    batch = _batch(1)
    kinds = torch.tensor([[Kind.PLAQUE] * 1000 + [Kind.IMPOSSIBLE] * 500 + [Kind.ARTEFACT] * 500])
    slots = Slots(kinds, torch.zeros_like(kinds, dtype=torch.bool), torch.ones_like(kinds, dtype=torch.bool))
    contrast = _contrasts(batch, slots, method.settings, _rng())[0, :, 0]
    lesion = kinds[0] == Kind.PLAQUE
    for values in contrast.T:
        limits = values.sort().values
        share = ((values[None] > limits[:, None]) == lesion).float().mean(1)
        assert torch.maximum(share, 1 - share).max() < 0.8
    relation = _relation(method.settings.plaque, batch, method.settings)
    inside = ((contrast >= relation.low) & (contrast <= relation.high)).all(1)
    assert inside[lesion].all()
    assert not inside[~lesion].any()


def test_decoys_have_the_shapes_of_lesions() -> None:
    """Sizes and borders of broken lesions are those of lesions: the same numbers are drawn whatever the kind."""
    sizes = {}
    for kind in ("lesion", "decoy"):
        count = {"lesions": (6, 6), "decoys": (0, 0)} if kind == "lesion" else {"lesions": (0, 0), "decoys": (6, 6)}
        method = _method(nested=0.0, vessel=0, cap=0, blank=0, ignore=False, **count)
        found = [getattr(method.views(_batch(), _rng(seed)), kind).sum().item() for seed in range(12)]
        sizes[kind] = torch.tensor(found, dtype=torch.float).mean()
    assert 0.6 < sizes["lesion"] / sizes["decoy"] < 1.7


@pytest.mark.parametrize("kind", ["impossible", "artefact", "vessel", "cap", "blank"])
def test_each_decoy_can_stand_alone_and_none_can_be_asked_for(kind: str) -> None:
    off = dict.fromkeys(("impossible", "artefact", "vessel", "cap", "blank"), 0.0)
    alone = _method(lesions=(0, 0), decoys=(6, 6), nested=0.0, texture=0.0, replace=(0, 0), **{**off, kind: 1.0})
    views = alone.views(_batch(), _rng())
    changed = (views.image != views.before).any()
    assert changed == (kind != "blank")
    assert not views.lesion.any()
    assert kind == "cap" or views.decoy.any()
    nothing = _method(lesions=(0, 0), decoys=(6, 6), nested=0.0, **off).views(_batch(), _rng())
    assert torch.equal(nothing.image, nothing.before)


def test_lesions_of_a_sequence_the_exam_lacks_are_neither_shown_nor_relied_on() -> None:
    batch = _batch()
    present = torch.tensor([[True, False, True], [True, True, True]])
    batch = replace(batch, present=present, image=batch.image * present[:, :, None, None, None])
    views = _method(lesions=(6, 6)).views(batch, _rng())
    assert not views.image[0, 1].any()
    assert views.lesion[0].any()
    assert not views.restored[0, 1].any()


def test_compartments_lie_inside_lesions_one_in_the_other() -> None:
    method = _method(nested=1.0, lesions=(0, 0), decoys=(0, 0), ignore=False)
    found = [method.views(_batch(), _rng(seed)) for seed in range(4)]
    for views in found:
        assert not views.compartment[~views.lesion].any()
    assert {0, 1, 2} == set(torch.cat([views.compartment[views.lesion] for views in found]).tolist())
    plain = _method(nested=0.0, lesions=(4, 4))
    assert not plain.views(_batch(), _rng()).compartment.any()
    assert plain.tell is None


def test_the_losses_are_their_few_lines_and_uncounted_voxels_have_no_say() -> None:
    method = _method(lesions=(5, 5), decoys=(5, 5), nested=1.0)
    views = method.views(_batch(), _rng())
    feature = method.network(views.image, views.present)
    logit, known = method.find(feature).diff(dim=1)[:, 0], views.counted
    expected = []
    for row in range(2):
        z, t = logit[row][known[row]], views.lesion[row][known[row]].float()
        w = 1.0 + 2.0 * views.decoy[row][known[row]]
        p = z.sigmoid()
        entropy = (w * F.softplus(torch.where(t > 0, -z, z))).sum() / w.sum()
        expected.append(torch.stack([1 - 2 * (p * t).sum() / (p.sum() + t.sum()), entropy]))
    found = method.losses(views, CLOCK)
    torch.testing.assert_close(torch.stack([found.terms["dice"], found.terms["cross_entropy"]]), sum(expected) / 2)
    assert set(found.terms) == {"dice", "cross_entropy", "compartment"}
    other = replace(views, lesion=views.lesion ^ ~known)
    torch.testing.assert_close(method.losses(other, CLOCK).total, found.total)


@pytest.mark.parametrize("present", [[True, True, True], [True, False, False]])
def test_a_voxel_is_asked_for_where_some_acquired_sequence_shows_it(present: list[bool]) -> None:
    """Hidden in one sequence, it is seen in the others; a sequence that is absent hides nothing."""
    batch = _batch()
    there = torch.tensor([present, present])
    batch = replace(batch, present=there, image=batch.image * there[:, :, None, None, None])
    views = _method(hidden=0.5, ignore=False, lesions=(0, 0), decoys=(0, 0), nested=0.0).views(batch, _rng())
    shown = (views.image != 0).any(1)
    assert torch.equal(views.counted, shown & batch.foreground[:, 0])
    acquired = sum(present)
    share = views.counted.sum() / batch.foreground.sum()
    assert share.item() == pytest.approx(1 - 0.5**acquired, abs=0.06)


def test_restoration_and_distillation_are_terms_of_their_own() -> None:
    method = _method(hidden=0.3, restore_weight=1.0, distil_weight=0.5, lesions=(4, 4))
    batch = _batch()
    views = method.views(batch, _rng())
    assert torch.equal(views.before, batch.image)
    assert not (views.image != views.before)[~views.restored & views.steady[:, None]].any()
    concealed = (views.image == 0) & (views.before != 0)
    assert concealed.any()
    assert not views.counted[concealed.all(1)].any()
    losses = method.losses(views, CLOCK)
    assert {"restore", "distil"} < set(losses.terms)
    losses.total.backward()
    assert all(p.grad.any() for p in [*method.restore.parameters(), *method.predict.parameters()])
    assert all(p.grad is None for p in method.teacher.parameters())
    before = method.teacher.module.state_dict()["encoder." + next(iter(method.network.encoder.state_dict()))].clone()
    with torch.no_grad():
        for parameter in method.network.parameters():
            parameter.add_(1.0)
    method.after_step(losses, Clock(5, 10))
    after = method.teacher.module.state_dict()["encoder." + next(iter(method.network.encoder.state_dict()))]
    torch.testing.assert_close(after, before + 1 / 6)  # momentum 1 − 1 / 6 at step 5


def test_settings_speak_of_sequences_by_name_and_in_order() -> None:
    assert Settings(plaque={"t2f": (0.1, 1.0)}).plaque == {"FLAIR": (0.1, 1.0)}
    for wrong in ({"plaque": {"T9": (0, 1)}}, {"plaque": {"T1w": (1, 0)}}, {"lesions": (3, 1)}, {"radius": (0, 3)}):
        with pytest.raises(ValidationError):
            Settings(**wrong)


def test_the_head_leaves_with_the_network_and_says_where_lesions_are() -> None:
    method = _method()
    out, views = method.export(), method.views(_batch(), _rng())
    assert out.head is method.find
    share = out(views.image, views.present).softmax(1)[:, 1]
    assert share.mean().item() == pytest.approx(0.01, rel=1.0)
    called = (share >= 0.5) & views.counted
    found = method.losses(views, CLOCK).notes["found"]
    assert found == pytest.approx((called & views.lesion).sum().item() / views.lesion.sum().item())
