"""Patches: which part of which case a step sees. A pure function of (seed, step, micro-batch, slot); see decision 0004."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from oligovox.errors import CohortError, LabelError, SettingsError
from oligovox.prepare.store import Plan, StoredCase
from oligovox.sample.batch import Batch

Triple = tuple[int, int, int]
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Stream:
    """Cases that fill a fixed number of places in every micro-batch, such as the labelled half and the unlabelled half.

    Attributes:
        cases: drawn uniformly by person, then by session of that person.
        count: samples per micro-batch.
        policy: where patches lie. "uniform": anywhere in the volume; "foreground": around a random foreground voxel;
            "lesion": a share of them around a random lesion voxel, the rest as "foreground"; of cases labelled in part the rest lie around a
            random voxel that somebody looked at, so that every patch holds one.
        lesion_share: that share, in [0, 1]; only used by "lesion".
        use_labels: False gives label -1 everywhere: the cases count as unlabelled.

    Raises:
        SettingsError: count below 1, or lesion_share outside [0, 1].
        CohortError: no cases.
        LabelError: policy "lesion" without a single lesion voxel that may be used.
    """

    cases: tuple[StoredCase, ...]
    count: int
    policy: Literal["uniform", "foreground", "lesion"] = "foreground"
    lesion_share: float = 0.5
    use_labels: bool = True

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.lesion_share <= 1:
            raise SettingsError(
                f"stream: count {self.count}, lesion_share {self.lesion_share}; expected count ≥ 1 and a share in [0, 1]"
            )
        if not self.cases:
            raise CohortError("stream: no cases to draw from; check the split and the label budget")
        if self.policy == "lesion" and not (self.use_labels and any(case.lesion_voxels for case in self.cases)):
            labelled = sum(case.labelled for case in self.cases) if self.use_labels else 0
            raise LabelError(
                f"stream: policy 'lesion' with {labelled} labelled of {len(self.cases)} cases and no lesion voxel in them; "
                "add labelled cases with lesions or use policy 'foreground'"
            )


@dataclass(frozen=True)
class Patch:
    """One cut.

    Attributes:
        case: where from.
        corner: first voxel of the patch in the case's volume; negative where the volume is smaller than the patch.
        use_labels: as in its stream.
    """

    case: StoredCase
    corner: Triple
    use_labels: bool


class PatchSource:
    """Cuts micro-batches from stored cases. Keeps no state: any batch can be made at any time, in any thread.

    Args:
        plan: the store's; its modalities are the channels.
        streams: fill the places of a micro-batch in this order.
        patch: sides in voxels.
        seed: 0 or above.
        apart: the places of a step, over all its micro-batches, go to different people, as far as there are so many; else each is drawn alone.

    Attributes:
        size: samples per micro-batch, the sum of the streams' counts.

    Raises:
        SettingsError: no streams, a side below 1, or a negative seed.
        CohortError: a case was prepared with another number of sequences than the plan has.
    """

    def __init__(self, plan: Plan, streams: Sequence[Stream], patch: Triple, seed: int, *, apart: bool = False) -> None:
        if not streams or min(patch) < 1 or seed < 0:
            raise SettingsError(
                f"patches: {len(streams)} streams, patch {patch}, seed {seed}; "
                "expected at least one stream, sides ≥ 1 voxel and a seed ≥ 0"
            )
        for case in (case for stream in streams for case in stream.cases):
            if len(case.present) != len(plan.modalities):
                raise CohortError(
                    f"{case.folder}: prepared with {len(case.present)} sequences, the plan has {len(plan.modalities)} "
                    f"({', '.join(plan.modalities)}); prepare all cases with one plan"
                )
        self.plan, self.patch, self.seed, self.apart = plan, patch, seed, apart
        self.size = sum(stream.count for stream in streams)
        self._slots = [pools for stream in streams for pools in [_Pools.of(stream)] * stream.count]

    def draw(self, step: int, micro: int, slot: int) -> Patch:
        """Which case and which corner: the same for the same (seed, step, micro, slot), on every machine.

        Args:
            step: optimiser step, from 0.
            micro: number of the micro-batch within the step, counted over all ranks (rank · accumulate + a).
            slot: place within the micro-batch, 0 … size - 1.
        """
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, step, micro, slot])))
        pools = self._slots[slot]
        stream = pools.stream
        if stream.policy == "lesion" and rng.random() < stream.lesion_share:
            case = _any_session(pools.with_lesion, rng)
            corner = self._around(_any_voxel(case.lesion_voxels_index(), rng), case, rng)
        else:
            several = (self._in_turn(pools.all, step, micro * self.size + slot),) if self.apart else pools.all
            case = _any_session(several, rng)
            if stream.policy == "uniform":
                room = np.maximum(np.subtract(case.shape, self.patch), 0)
                corner = self._fitted(rng.integers(0, room + 1), case)
            else:
                looked = stream.policy == "lesion" and case.sparse
                voxels = case.looked_voxels() if looked else case.foreground_voxels()
                corner = self._around(_any_voxel(voxels, rng), case, rng)
        return Patch(case, corner, stream.use_labels)

    def _in_turn(self, pool: Pool, step: int, place: int) -> tuple[StoredCase, ...]:
        """Sessions of the person whose turn it is: everybody once in random order, then everybody once more in another."""
        turn, index = divmod(place, len(pool))
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, step, turn])))
        return pool[rng.permutation(len(pool))[index]]

    def batch(self, step: int, micro: int) -> Batch:
        """Micro-batch `micro` of step `step`, on the CPU. Outside the volume: image 0, foreground False, label -1."""
        shape = (self.size, len(self.plan.modalities), *self.patch)
        image = torch.zeros(shape)
        present = torch.zeros(shape[:2], dtype=torch.bool)
        foreground = torch.zeros((self.size, 1, *self.patch), dtype=torch.bool)
        label = torch.full((self.size, *self.patch), -1)
        cuts = [self.draw(step, micro, slot) for slot in range(self.size)]
        for slot, cut in enumerate(cuts):
            case = cut.case
            inside, (x, y, z) = _overlap(cut.corner, self.patch, case.shape)
            present[slot] = torch.tensor(case.present)
            channels = [channel for channel, there in enumerate(case.present) if there]
            for channel, values in zip(channels, case.image(), strict=True):  # widened on the way
                image[slot, channel, x, y, z] = _read(values, inside)
            foreground[slot, 0, x, y, z] = _read(case.foreground(), inside)
            known = case.known_label() if cut.use_labels else None
            if known is not None:
                label[slot, x, y, z] = _read(known, inside)
        return Batch(
            image=image,
            present=present,
            foreground=foreground,
            spacing=torch.tensor([cut.case.spacing for cut in cuts], dtype=torch.float32),
            modalities=self.plan.modalities,
            cases=tuple(cut.case.name for cut in cuts),
            label=label,
        )

    def _around(self, voxel: np.ndarray, case: StoredCase, rng: np.random.Generator) -> Triple:
        """A patch that contains `voxel`, in its central half where the volume leaves room."""
        jitter = [rng.integers(-(side // 4), side // 4 + 1) for side in self.patch]
        return self._fitted(voxel - np.floor_divide(self.patch, 2) + jitter, case)

    def _fitted(self, corner: np.ndarray, case: StoredCase) -> Triple:
        """The nearest corner whose patch lies in the volume; along axes that are too short, the volume is centred."""
        room = np.subtract(case.shape, self.patch)
        fitted = np.where(room >= 0, np.clip(corner, 0, np.maximum(room, 0)), room // 2)
        return (int(fitted[0]), int(fitted[1]), int(fitted[2]))


Pool = tuple[tuple[StoredCase, ...], ...]
"""Sessions of each person."""


@dataclass(frozen=True)
class _Pools:
    stream: Stream
    all: Pool
    with_lesion: Pool

    @classmethod
    def of(cls, stream: Stream) -> _Pools:
        return cls(stream, _by_person(stream.cases), _by_person([case for case in stream.cases if case.lesion_voxels]))


def _by_person(cases: Sequence[StoredCase]) -> Pool:
    """In a fixed order, whatever the order of the cases."""
    people: dict[str, list[StoredCase]] = {}
    for case in sorted(cases, key=lambda case: (case.person, case.name)):
        people.setdefault(case.person, []).append(case)
    return tuple(tuple(sessions) for sessions in people.values())


def _any_session(pool: Pool, rng: np.random.Generator) -> StoredCase:
    sessions = pool[rng.integers(len(pool))]
    return sessions[rng.integers(len(sessions))]


def _any_voxel(voxels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(voxels[rng.integers(len(voxels))], dtype=np.int64)


def _overlap(corner: Triple, patch: Triple, shape: Triple) -> tuple[Box, Box]:
    """The same box in the volume's voxels and in the patch's."""
    axes = list(zip(corner, patch, shape, strict=True))
    x, y, z = (slice(max(start, 0), min(start + side, size)) for start, side, size in axes)
    u, v, w = (slice(max(-start, 0), min(size - start, side)) for start, side, size in axes)
    return (x, y, z), (u, v, w)


def _read(array: np.ndarray, box: Box) -> Tensor:
    """Read only this box of a memory-mapped array; widened later by torch, which is faster than numpy at it."""
    x, y, z = box
    return torch.from_numpy(np.array(array[..., x, y, z]))
