"""Regular octahedral fields in space: a network of voxels relaxed, and its evidence refreshed."""

import pytest
import torch
from escnn import gspaces, nn
from nonempty import each

from escnn_relax import Evidence, relax

SIDE = 9


def blobs(count):
    """Voxels with two blobs near the centre, labelled by whether the line between them points along an axis."""
    axis = torch.linspace(-1, 1, SIDE)
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    labels = torch.arange(count) % 2
    pictures = []
    for label in labels:
        k = int(torch.randint(3, (1,)))
        shift = torch.eye(3)[k] if label else torch.ones(3).sub(torch.eye(3)[k]) / 2**0.5
        shift = 0.6 * shift * torch.randint(2, (3,)).mul(2).sub(1)
        squares = [(x - s * shift[0]) ** 2 + (y - s * shift[1]) ** 2 + (z - s * shift[2]) ** 2 for s in (0, 1)]
        pictures.append(sum(torch.exp(-square / 0.08) for square in squares))
    return torch.stack(pictures)[:, None] + 0.05 * torch.randn(count, 1, SIDE, SIDE, SIDE), labels


class Net(torch.nn.Module):
    def __init__(self, space, fields, deep):
        super().__init__()
        self.density = nn.FieldType(space, [space.trivial_repr])
        logits = nn.FieldType(space, 2 * [space.trivial_repr])
        options = {"initialize": False, "recompute": True}
        self.first = nn.R3Conv(self.density, fields, 3, stride=2, padding=1, **options)
        self.act = nn.ELU(fields)
        self.middle = nn.R3Conv(fields, fields, 3, padding=1, **options) if deep else None
        self.last = nn.R3Conv(fields, logits, 3, **options)
        for conv in self.steerable():
            torch.nn.init.normal_(conv.weights, std=0.2)

    def steerable(self):
        return [layer for layer in (self.first, self.middle, self.last) if layer is not None]

    def forward(self, x):
        x = self.act(self.first(self.density(x)))
        if self.middle is not None:
            x = self.act(self.middle(x))
        return self.last(x).tensor.mean((2, 3, 4))


def check(space, fields, steps, deep=False):
    strict = Net(space, fields, deep)
    relaxed = relax(strict)
    x, y = blobs(12)
    with torch.no_grad():
        assert torch.allclose(strict(x), relaxed(x), atol=1e-4)
    evidence = Evidence(relaxed, num_data=len(x))
    descent = torch.optim.Adam(relaxed.parameters(), lr=1e-2)
    before = float(evidence.loss(relaxed(x), y))
    for _ in range(steps):
        loss = evidence.loss(relaxed(x), y)
        descent.zero_grad()
        loss.backward()
        descent.step()
    assert float(loss) < before
    evidence.refresh([(x, y)])
    started = {name: float(value) for name, value in evidence.log_precision.items()}
    evidence.step()
    moved = {name: float(value) for name, value in evidence.log_precision.items()}
    assert moved != started and all(torch.isfinite(torch.tensor(v)) for v in moved.values())
    for layer in each(relaxed.steerable()):
        assert 0 <= layer.breaking_energy < 1
        fractions = layer.effective_dimension / torch.tensor([layer.kernel.dimensions[p.name] for p in layer.pathways])
        assert bool(((fractions >= 0) & (fractions <= 1)).all())


def test_quotient_fields():
    space = gspaces.octaOnR3()
    check(space, nn.FieldType(space, [space.quotient_repr((False, 4))]), 20)


@pytest.mark.slow
def test_regular_fields():
    space = gspaces.octaOnR3()
    check(space, nn.FieldType(space, [space.regular_repr]), 20, deep=True)
