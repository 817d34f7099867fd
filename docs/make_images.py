"""Draw docs/images/simulated.png: a simulated patient at 1 mm, with the outline of the lesion mask. `python docs/make_images.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from oligovox.simulate.ms import MSRecipe, SimulatedSubject, simulate_subject

HOME = Path(__file__).parent / "images"
SEED = 7
BESIDE_VENTRICLES = (15, 35)  # mm above the anterior commissure, in the template's space


def draw(person: SimulatedSubject, path: Path) -> None:
    """All sequences, in the axial slice beside the ventricles with the largest area of lesion; the patient's right is on the left."""
    low, high = (round((z - person.affine[2, 3]) / person.affine[2, 2]) for z in BESIDE_VENTRICLES)
    level = low + int(person.lesions[..., low:high].sum((0, 1)).argmax())
    rows, columns = np.where(person.brain[:, :, level].any(1))[0], np.where(person.brain[:, :, level].any(0))[0]
    box = (slice(rows[0] - 3, rows[-1] + 4), slice(columns[0] - 3, columns[-1] + 4))
    figure = Figure(figsize=(9.0, 4.0), dpi=100, facecolor="black")
    for place, (name, image) in enumerate(person.images.items()):
        axes = figure.add_axes((place / 3, 0.0, 1 / 3, 0.92))
        shown = image[..., level][box].T
        low, high = np.percentile(shown[shown > 0], (1, 99.8))
        axes.imshow(shown, cmap="gray", vmin=low, vmax=high, origin="lower", interpolation="bilinear")
        if name == "FLAIR":
            axes.contour(person.lesions[..., level][box].T, levels=[0.5], colors="#ff6a3d", linewidths=0.9)
        axes.invert_xaxis()
        axes.set_axis_off()
        axes.set_title(name, color="white", fontsize=11, pad=4)
    FigureCanvasAgg(figure).print_png(str(path))


if __name__ == "__main__":
    HOME.mkdir(exist_ok=True)
    draw(simulate_subject(MSRecipe(load_ml=(8.0, 20.0)), SEED), HOME / "simulated.png")
