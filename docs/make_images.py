"""Draw docs/images/simulated.png (one patient) and presets.png (one subject of each preset), with labels. `python docs/make_images.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from oligovox.simulate.recipe import make_recipe, presets
from oligovox.simulate.subject import SimulatedSubject, simulate_subject

HOME = Path(__file__).parent / "images"
SEED = 7
COLOURS = ("#ff6a3d", "#39c0c8", "#f2c14e", "#b28dff")
QSM = (-100.0, 150.0)  # ppb, black to white


def draw(people: dict[str, SimulatedSubject], path: Path, width: int, dpi: int) -> None:
    """A row a subject, a column a sequence, in the axial slice with the most labelled voxels; the patient's right is on the left."""
    figure = Figure(figsize=(2.6 * width, 2.9 * len(people)), dpi=dpi, facecolor="black")
    for row, (title, person) in enumerate(people.items()):
        labels = person.truth.labels
        level = int((labels > 0).sum((0, 1)).argmax())
        inside = person.brain[:, :, level]
        rows, columns = np.where(inside.any(1))[0], np.where(inside.any(0))[0]
        box = (slice(max(rows[0] - 3, 0), rows[-1] + 4), slice(max(columns[0] - 3, 0), columns[-1] + 4))
        spacing = np.abs(np.diag(person.affine))[:3]
        for column, (name, image) in enumerate(person.images.items()):
            axes = figure.add_axes((column / width, 1 - (row + 1) / len(people), 1 / width, 0.92 / len(people)))
            shown = image[..., level][box].T
            low, high = QSM if name == "QSM" else np.percentile(shown[shown > 0], (1, 99.8))
            axes.imshow(
                shown,
                cmap="gray",
                vmin=low,
                vmax=high,
                origin="lower",
                interpolation="bilinear",
                aspect=spacing[1] / spacing[0],
            )
            if column == len(person.images) - 1:
                for value, colour in zip(person.truth.classes.values(), COLOURS, strict=False):
                    if (labels[..., level] == value).any():
                        axes.contour((labels[..., level][box] == value).T, levels=[0.5], colors=colour, linewidths=0.9)
            axes.invert_xaxis()
            axes.set_axis_off()
            axes.set_title(f"{title}  {name}" if not column else name, color="white", fontsize=9, pad=3)
    FigureCanvasAgg(figure).print_png(str(path))


if __name__ == "__main__":
    HOME.mkdir(exist_ok=True)
    patient = simulate_subject(make_recipe("ms-3t", {"lesions": {"load_ml": (8.0, 20.0)}}), SEED)
    draw({"": patient}, HOME / "simulated.png", 3, 90)
    draw({name: simulate_subject(make_recipe(name), SEED) for name in presets()}, HOME / "presets.png", 4, 42)
