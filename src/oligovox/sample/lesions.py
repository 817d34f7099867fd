"""Lesions: which lesion a step sees. A pure function of (seed, step, micro-batch, slot), as patches are; see decision 0004.

Balanced, a place in the batch is Rim+ or Rim− with even chances, then any lesion of that class with the same chance: what drawing with
replacement by inverse class frequency comes to. Otherwise every lesion has the same chance, whoever's it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from oligovox.errors import CohortError, LabelError, SettingsError
from oligovox.prepare.lesion_store import SEQUENCES, LesionPlan, StoredLesion
from oligovox.sample.batch import Batch

PPB = 20.0
"""Of QSM that are 1 for a network. As with FLAIR, whose quarter of the range is 1, what is seen of lesions then has a standard deviation near 1."""


class LesionSource:
    """Micro-batches of lesions. Keeps no state: any batch can be made at any time, in any thread.

    Args:
        lesions: to draw from.
        count: lesions in a micro-batch.
        patch: side in voxels, even; the middle of what is stored.
        plan: how they were cut.
        seed: 0 or above.
        balanced: half of each class, on average.
        use_grades: False gives grade -1 everywhere: the lesions count as ungraded.

    Raises:
        SettingsError: count below 1, a negative seed, or a patch that is odd or larger than the stored ones.
        CohortError: no lesion.
        LabelError: balanced, and a class is missing or a grade unknown.
    """

    def __init__(
        self,
        lesions: Sequence[StoredLesion],
        *,
        count: int,
        patch: int,
        plan: LesionPlan,
        seed: int,
        balanced: bool = True,
        use_grades: bool = True,
    ) -> None:
        if not lesions:
            raise CohortError("no lesions to draw from; check the folds and the grades")
        if count < 1 or seed < 0:
            raise SettingsError(f"lesions: count {count}, seed {seed}; expected at least 1, and a seed of 0 or more")
        check_patch(lesions[0], patch)
        self.size, self.patch, self.plan, self.seed = count, patch, plan, seed
        self._use_grades = use_grades
        ordered = sorted(lesions, key=lambda lesion: lesion.name)  # whatever the order given
        self._pools = [tuple(ordered)]
        if balanced:
            self._pools = [tuple(lesion for lesion in ordered if lesion.grade == grade) for grade in (0, 1)]
            if not all(self._pools) or sum(map(len, self._pools)) < len(ordered):
                raise LabelError(
                    f"a balanced sampler of {len(ordered)} lesions, {len(self._pools[1])} of them Rim+ and {len(self._pools[0])} Rim−; it needs "
                    "both classes and no unknown grade, so add people, use fewer folds, or set balanced to false"
                )

    def draw(self, step: int, micro: int, slot: int) -> StoredLesion:
        """Which lesion: the same for the same (seed, step, micro, slot), on every machine.

        Args:
            step: optimiser step, from 0.
            micro: number of the micro-batch within the step, counted over all ranks.
            slot: place within the micro-batch, 0 … size - 1.
        """
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, step, micro, slot])))
        pool = self._pools[int(rng.integers(len(self._pools)))]
        return pool[int(rng.integers(len(pool)))]

    def batch(self, step: int, micro: int) -> Batch:
        """Micro-batch `micro` of step `step`, on the CPU; see `lesion_batch`."""
        drawn = [self.draw(step, micro, slot) for slot in range(self.size)]
        return lesion_batch(drawn, self.patch, self.plan, use_grades=self._use_grades)


def lesion_batch(lesions: Sequence[StoredLesion], patch: int, plan: LesionPlan, *, use_grades: bool = True) -> Batch:
    """These lesions as one batch, on the CPU.

    `image` is QSM in units of PPB and FLAIR in quarters of its range, 0 being 0 ppb and the middle of the range; `foreground` what is shown of the patch,
    `label` 1 in the lesion and 0 elsewhere, `grade` 1, 0 or -1.

    Args:
        lesions: of one store.
        patch: side in voxels, even; the middle of what is stored.
        plan: how they were cut.
        use_grades: False gives grade -1 everywhere.

    Raises:
        SettingsError: the patch is odd or larger than the stored ones.
    """
    check_patch(lesions[0], patch)
    units = torch.tensor([plan.qsm_ppb / PPB, 2.0]).view(-1, 1, 1, 1)
    start = (lesions[0].seen().shape[0] - patch) // 2
    middle = (slice(start, start + patch),) * 3
    image = np.stack([lesion.image()[(slice(None), *middle)] for lesion in lesions])
    seen = torch.from_numpy(np.stack([lesion.seen()[middle] for lesion in lesions]))
    return Batch(
        image=(2 * torch.from_numpy(image).float() - 1) * units,
        present=torch.ones(len(lesions), len(SEQUENCES), dtype=torch.bool),
        foreground=(seen > 0)[:, None] | (not plan.masked),
        spacing=torch.full((len(lesions), 3), plan.spacing),
        label=(seen == 2).long(),
        grade=torch.tensor([lesion.grade if use_grades else -1 for lesion in lesions]),
        modalities=SEQUENCES,
        cases=tuple(lesion.name for lesion in lesions),
    )


def check_patch(lesion: StoredLesion, patch: int) -> None:
    """Whether the middle of the stored patches has this side.

    Raises:
        SettingsError: it has not.
    """
    stored = lesion.seen().shape[0]
    if patch < 2 or patch % 2 or patch > stored:
        raise SettingsError(
            f"patch {patch}: expected an even side of at most the stored {stored} voxels; extract larger patches, or train on smaller ones"
        )
