"""Translation and rotation are given up independently
===================================================

Four questions about an 8×8 digit on a 16×16 canvas whose borders meet. Each needs another symmetry to be broken: of
quarter turns, of translations, of both, or of none. One small C4 network answers all four. Its last layer has four ways
to leave the equivariant convolution: kernels that break C4 (the irreps), a map between whole images that keeps C4 about
the centre, and one that keeps nothing. The evidence chooses. One to two minutes on two CPU cores.

    python examples/plot_translation_or_rotation.py [--out examples/output] [--epochs 40]
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import digits
import matplotlib.pyplot as plt
import numpy as np
import torch
import escnn_relax  # noqa: E402, F401, I001  # before escnn, which may need what it brings
from escnn import gspaces
from escnn import nn as enn
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


#: What is asked; whether turns and translations matter; number of classes.
QUESTIONS = {
    "which digit?": (False, False, 10),
    "turned by how much?": (True, False, 4),
    "in the middle?": (False, True, 2),
    "in which quadrant?": (True, True, 4),
}
#: The parts of the last layer's energy.
PARTS = {
    "nothing": "breaks nothing",
    "turns": "breaks turns (irreps of C4)",
    "translations": "breaks translations (factored, C4)",
    "both": "breaks both (factored, free)",
}
#: A part with more than this share of the energy counts (fraction).
ALIVE = 0.002


# %%
# Four questions
# --------------
# One digit on a canvas whose borders meet. Which digit it is needs no symmetry broken, how it is turned needs quarter
# turns broken, whether it stands in the middle needs translations broken, and in which quadrant it stands needs both.


def data(question: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (count, 1, 16, 16) and labels."""
    archive = np.load(Path(digits.__file__).parent / "data" / "digits8.npz", allow_pickle=False)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(archive["x"]), generator=generator)[:count]
    x, y = torch.from_numpy(archive["x"]).float()[order], torch.from_numpy(archive["y"]).long()[order]
    x = x / x.std()
    turns, places = (torch.randint(n, (count,), generator=generator) for n in (4, 4))
    shifts = torch.randint(16, (count, 2), generator=generator)
    middle = torch.randint(2, (count,), generator=generator)
    canvas = torch.zeros(count, 1, 16, 16)
    for n, image in enumerate(x):
        row, column = 8 * (int(places[n]) // 2), 8 * (int(places[n]) % 2)
        if question == "in the middle?" and middle[n]:
            row = column = 4
        canvas[n, 0, row : row + 8, column : column + 8] = torch.rot90(image, int(turns[n]))
        if not QUESTIONS[question][1]:
            canvas[n] = canvas[n].roll(tuple(shifts[n].tolist()), (1, 2))
    return canvas, dict(zip(QUESTIONS, (y, turns, middle, places)))[question]


# %%
# One network
# -----------
# Three convolutions on a torus, blind to quarter turns and to translations. Its last layer gets pathways for both.


class Net(nn.Module):
    """Three convolutions on a torus, invariant under C4 and translations."""

    def __init__(self, classes: int, fields: int = 4) -> None:
        super().__init__()
        space = gspaces.rot2dOnR2(4)
        self.gray = enn.FieldType(space, [space.trivial_repr])
        hidden = enn.FieldType(space, fields * [space.regular_repr])
        wrap = {"padding": 2, "padding_mode": "circular"}
        first = (enn.R2Conv(self.gray, hidden, 5, **wrap), enn.InnerBatchNorm(hidden), enn.ReLU(hidden))
        second = (enn.R2Conv(hidden, hidden, 5, **wrap), enn.InnerBatchNorm(hidden), enn.ReLU(hidden))
        self.features = enn.SequentialModule(*first, enn.PointwiseAvgPool2D(hidden, 2), *second)
        self.last = enn.R2Conv(hidden, hidden, 5, **wrap)
        self.end = enn.SequentialModule(enn.ReLU(hidden), enn.GroupPooling(hidden))
        self.linear = nn.Linear(fields, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.end(self.last(self.features(self.gray(x)))).tensor.mean((-2, -1)))


# %%
# Train it on one question
# ------------------------
# The energy of the last layer is split by what each of its pathways breaks.


def learn(job: tuple) -> dict:
    """Accuracy, and the share of the last layer's energy by what it breaks."""
    question, epochs = job
    torch.set_num_threads(1)
    torch.manual_seed(0)
    train, test = data(question, 1000, 0), data(question, 500, 1)
    strict = Net(QUESTIONS[question][2])
    model = escnn_relax.relax_translation(
        escnn_relax.relax(strict, layers="last"), train[0][:2], ["factored", ("factored", "free")], layers="last"
    )
    loader = DataLoader(TensorDataset(*train), 100, shuffle=True, generator=torch.Generator().manual_seed(0))
    options = {"curvature": escnn_relax.CurvatureSettings(samples=1), "share": 0.5, "lr": 1e-2, "progress": False}
    escnn_relax.fit(model, loader, epochs=epochs, **options)
    model.eval()
    with torch.no_grad():
        right = float((model(test[0]).argmax(1) == test[1]).float().mean())
    summands, kernels = model.last.energies(), model.last.convolution.energies()
    inside, strict = summands["convolution"], kernels["equivariant"]
    shares = {"nothing": inside * strict, "turns": inside * (1 - strict)}
    return {"accuracy": right, **shares, "translations": summands["factored_C4"], "both": summands["factored_free"]}


# %%
# The claim
# ---------
# What was said above, as assertions: the script fails where one of them does not hold.


def check(results: dict[str, dict]) -> None:
    """A symmetry is broken where the question needs it, and by the pathway that breaks nothing else."""
    for question, (turns, translations, _) in QUESTIONS.items():
        found = results[question]
        assert found["accuracy"] > 0.7, (question, found)
        assert (found["turns"] + found["both"] > ALIVE) == turns, (question, found)
        assert (found["translations"] + found["both"] > ALIVE) == translations, (question, found)


# %%
# The figure
# ----------
# For each question the accuracy, and the parts of the last layer.


def draw(results: dict[str, dict], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
    left = np.zeros(len(results))
    for (part, title), colour in zip(PARTS.items(), ("#bbbbbb", "#e69f00", "#0072b2", "#222222")):
        width = np.array([100 * r[part] for r in results.values()])
        axes.barh(list(results), width, left=left, color=colour, label=title)
        left += width
    for row, result in enumerate(results.values()):
        axes.text(101, row, f"{100 * result['accuracy']:.0f} % right", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="energy of the last layer, %", xlim=(0, 100), title="What breaks which symmetry")
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.25), ncols=2, frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


# %%
# Run it
# ------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("examples/output"))
    parser.add_argument("--epochs", type=int, default=40)
    given = parser.parse_args()
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        results = dict(zip(QUESTIONS, pool.map(learn, [(question, given.epochs) for question in QUESTIONS])))
    for question, result in results.items():
        print(f"{question:20s}", *(f"{name} {value:.4f}" for name, value in result.items()))
    given.out.mkdir(parents=True, exist_ok=True)
    draw(results, given.out / "translation_or_rotation.png")
    check(results)


if __name__ == "__main__":
    main()
