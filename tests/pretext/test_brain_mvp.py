"""BrainMVP: one sequence in its own channel, two fillings, nothing hidden leaks, the schedule of the paper."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from oligovox.losses.outliers import contrast_slope
from oligovox.method import Clock
from oligovox.networks.resenc import ResEnc
from oligovox.networks.resenc import Settings as ResEncSettings
from oligovox.pretext.brain_mvp import BrainMVP, Settings, Views
from oligovox.sample.batch import Batch

SEQUENCES = ("T1w", "T2w", "FLAIR")
SIDE = 16
EARLY, MIDDLE, LATE = (Clock(step, 100) for step in (0, 50, 90))


def _method(**chosen: object) -> BrainMVP:
    torch.manual_seed(0)
    method = BrainMVP(ResEnc(SEQUENCES, ResEncSettings(preset="nano")), Settings(block=4, **chosen))
    torch.nn.init.normal_(method.template.stored)
    return method


def _batch() -> Batch:
    """The last sample has one sequence of three."""
    rng = torch.Generator().manual_seed(0)
    foreground = torch.rand(3, 1, SIDE, SIDE, SIDE, generator=rng) < 0.8
    present = torch.tensor([[True, True, True], [True, True, True], [False, True, False]])
    image = torch.randn(3, 3, SIDE, SIDE, SIDE, generator=rng)
    return Batch(
        image=image * foreground * present[:, :, None, None, None],
        present=present,
        foreground=foreground,
        spacing=torch.ones(3, 3),
        modalities=SEQUENCES,
        cases=("a", "b", "c"),
    )


def _views(method: BrainMVP, batch: Batch, seed: int = 1) -> Views:
    return method.views(batch, torch.Generator().manual_seed(seed))


def test_two_acquired_sequences_are_drawn_the_same_for_all_who_have_them() -> None:
    """Otherwise the contrast could tell samples apart by their sequence."""
    method, batch, drawn = _method(), _batch(), set()
    for seed in range(30):
        views = _views(method, batch, seed)
        other = [next(m for m in range(3) if torch.equal(views.other[0, 0], batch.image[0, m]))]
        drawn.add((int(views.which[0]), *other))
        assert views.which.tolist() == [int(views.which[0])] * 2 + [1]
        assert torch.equal(views.target[:, 0], batch.image[torch.arange(3), views.which])
        assert views.has_other.tolist() == [True, True, False]
    assert drawn == {(a, b) for a in range(3) for b in range(3) if a != b}


def test_the_hidden_is_filled_by_the_template_then_by_the_other_sequence_where_there_is_one() -> None:
    method, batch = _method(), _batch()
    views = _views(method, batch)
    template = method.template((SIDE,) * 3)[views.which]
    for clock in (EARLY, MIDDLE):
        filled = method.fill(views, clock)
        for sample in range(3):
            hidden = views.hidden[sample]
            exchanged = clock is MIDDLE and views.has_other[sample]
            fillings = (template[sample], views.other[sample, 0] if exchanged else template[sample])
            for view, filling in enumerate(fillings):
                assert torch.equal(filled[sample, view][hidden[view]], filling[hidden[view]])
                assert torch.equal(filled[sample, view][~hidden[view]], views.target[sample, 0][~hidden[view]])


@pytest.mark.parametrize("clock", [EARLY, LATE])
def test_what_is_hidden_does_not_leak_but_is_asked_for(clock: Clock) -> None:
    method, batch = _method(), _batch()
    views = _views(method, batch)
    for view, term in enumerate(("template", "exchange")):
        changed = replace(views, target=views.target + 5.0 * (views.hidden & views.counted)[:, view : view + 1])
        assert torch.equal(method.fill(changed, clock)[:, view], method.fill(views, clock)[:, view])
        assert method.losses(changed, clock).terms[term] > method.losses(views, clock).terms[term]


@pytest.mark.parametrize("counted", ["all", "hidden"])
def test_the_losses_by_hand(counted: str) -> None:
    method, batch = _method(counted=counted), _batch()
    views = _views(method, batch)
    losses = method.losses(views, LATE)
    shown = torch.nn.functional.one_hot(views.which, 3).bool()
    deepest = []
    for view, term in enumerate(("template", "exchange")):
        image = torch.zeros_like(batch.image)
        image[torch.arange(3), views.which] = method.fill(views, LATE)[:, view]
        asked = batch.foreground & (views.hidden[:, view : view + 1] | (counted == "all"))
        error = (method.restore(method.network(image, shown)) - views.target)[asked].square().mean()
        torch.testing.assert_close(losses.terms[term], error)
        deepest.append(torch.nn.functional.normalize(method.network.encoder(image, shown)[-1].flatten(1)))
    cosines = deepest[0] @ deepest[1].T
    contrast = -(cosines.log_softmax(0).diagonal() + cosines.log_softmax(1).diagonal()).mean() / 2
    torch.testing.assert_close(losses.terms["contrast"], contrast)
    total = 10 * losses.terms["template"] + losses.terms["exchange"] + contrast
    torch.testing.assert_close(losses.total, total)


def test_the_contrast_counts_only_late() -> None:
    method = _method()
    views = _views(method, _batch())
    assert [method.losses(views, clock).weights["contrast"] for clock in (EARLY, MIDDLE, LATE)] == [0.0, 0.0, 1.0]


def test_air_and_what_was_not_acquired_are_not_asked_for() -> None:
    method, batch = _method(), _batch()
    none = replace(batch, image=torch.zeros_like(batch.image), present=torch.zeros_like(batch.present))
    assert not _views(method, none).counted.any()
    views = _views(method, batch)
    air = views.hidden.all(1, keepdim=True) & ~batch.foreground
    assert air.any()
    elsewhere = replace(views, target=torch.where(air, 1e6, views.target))
    assert torch.equal(method.losses(elsewhere, LATE).total, method.losses(views, LATE).total)


def test_one_sequence_alone_is_filled_by_its_template_which_learns() -> None:
    torch.manual_seed(0)
    method = BrainMVP(ResEnc(("T1w",), ResEncSettings(preset="nano")), Settings(block=4))
    batch = _batch()
    batch = replace(batch, image=batch.image[:, 1:2], present=batch.present[:, 1:2], modalities=("T1w",))
    views = _views(method, batch)
    assert not views.has_other.any()
    method.losses(views, LATE).total.backward()
    assert method.template.stored.grad.any()
    assert "template" not in "".join(method.export().state_dict())


def test_the_slope_of_hidden_flair_is_noted_where_flair_was_drawn() -> None:
    method, restored = _method(), []
    method.restore.register_forward_hook(lambda _module, _given, made: restored.append(made))
    views = method.views(_batch(), torch.Generator().manual_seed(1))
    for which in (0, 2):
        views = replace(views, which=torch.full_like(views.which, which))
        restored.clear()
        found = method.losses(views, Clock(0, 1)).notes
        made, hidden = restored[0].chunk(2)[0][:, 0], (views.counted & views.hidden)[:, 0]
        slope = contrast_slope(made, views.target[:, 0], hidden)
        assert found == ({"lesion_slope": pytest.approx(slope.item())} if which == 2 else {})
