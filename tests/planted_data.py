"""Data with a planted subgroup: fields filtered by a kernel, or labels drawn by one, that has exactly this symmetry.

Most of the kernel's energy has the symmetry of the whole group, a tenth that of the subgroup alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from collections.abc import Sequence

import torch
from escnn import gspaces
from escnn import nn as enn
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from escnn_relax import fit, project, restrict
from escnn_relax.evidence import CurvatureSettings, Evidence
from escnn_relax.nn import RelaxedR2Conv, RelaxedR3Conv
from escnn_relax.symmetry.groups.subgroup import Subgroup

#: Share of the energy that breaks the group (fraction).
BROKEN = 0.1

#: escnn samples kernels in float32, and a planted one is a difference of two: what is lost of it (fraction of the
#: norm).
SAMPLED = 1e-5

_OPTIONS = {
    "epochs": 50,
    "lr": 2e-2,
    "burn_in": 5,
    "refresh_every": 3,
    "curvature": CurvatureSettings(samples=8),
    "progress": False,
}


class Learned(NamedTuple):
    """A trained model of one relaxed layer, its evidence and data, and a layer of the same kind that has the planted
    kernel."""

    model: nn.Module
    evidence: Evidence
    loader: DataLoader
    exact: nn.Module


class Fields(nn.Module):
    """A layer between plain tensors; with ``flat`` its one place is a row of outputs."""

    def __init__(self, layer: enn.EquivariantModule, flat: bool = False) -> None:
        super().__init__()
        self.layer, self.flat = layer, flat

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(self.layer.in_type(x)).tensor
        return y.flatten(1) if self.flat else y


def plain(into: enn.FieldType, *args: Any, **options: Any) -> enn.EquivariantModule:
    """escnn's convolution of the space that these fields live on."""
    return (enn.R2Conv if into.gspace.dimensionality == 2 else enn.R3Conv)(into, *args, **options)


def relaxed(into: enn.FieldType, *args: Any, **options: Any) -> enn.EquivariantModule:
    """The relaxed one."""
    return (RelaxedR2Conv if into.gspace.dimensionality == 2 else RelaxedR3Conv)(into, *args, **options)


def planted_kernel(
    kept: Subgroup, into: enn.FieldType, out: enn.FieldType, size: int, broken: float = BROKEN
) -> Tensor:
    """A random kernel of norm 1 of escnn's own layer of a subgroup, of which this share of the energy breaks the
    group."""
    strict = plain(into, out, size, bias=False)
    with torch.no_grad():
        kernel = strict.expand_parameters()[0]
        kernel = kernel / kernel.norm()
        if kept.index == 1:
            return kernel
        below = restrict(strict, kept)
        below.weights.normal_()
        other = below.expand_parameters()[0]
        other = other - project(below, like=strict).expand_parameters()[0]
        if float(other.norm() / below.expand_parameters()[0].norm()) < SAMPLED:
            return kernel  # the subgroup has no kernels of its own between these fields
        return (1 - broken) ** 0.5 * kernel + broken**0.5 * other / other.norm()


def hold(layer: nn.Module, kernel: Tensor) -> None:
    """Gives a relaxed layer the coefficients of this kernel."""
    columns = []
    with torch.no_grad():
        for w in layer.weights.values():
            w.zero_()
        for w in layer.weights.values():
            for k in range(len(w)):
                w[k] = 1
                columns.append(layer.expand_parameters()[0].double().flatten())
                w[k] = 0
        basis, wanted = torch.stack(columns, dim=1), kernel.double().flatten()
        found = torch.linalg.lstsq(basis, wanted.unsqueeze(1), driver="gelsd").solution.squeeze(1)
        assert float((basis @ found - wanted).norm() / wanted.norm()) < SAMPLED, (
            "the layer has every kernel of every subgroup"
        )
        for w, values in zip(layer.weights.values(), found.split([len(w) for w in layer.weights.values()])):
            w.copy_(values)


def _batches(x: Tensor, y: Tensor, seed: int, size: int) -> DataLoader:
    return DataLoader(TensorDataset(x, y), size, shuffle=True, generator=torch.Generator().manual_seed(seed))


def filtered(
    kept: Subgroup,
    into: enn.FieldType,
    out: enn.FieldType,
    size: int,
    seed: int,
    samples: int,
    noise: float,
    batch: int = 20,
    places: int | None = None,
    gates: bool = False,
    **options: Any,
) -> Learned:
    """Fields on a torus are filtered by a planted kernel, with Gaussian noise on them: a regression."""
    torch.manual_seed(seed)
    d = kept.gspace.dimensionality
    places = places or (7 if d == 2 else 5)
    padding = {"padding": size // 2, "padding_mode": "circular"}
    kernel = planted_kernel(kept, into, out, size)
    x = torch.randn(samples, into.size, *(d * (places,)))
    with torch.no_grad():
        padded = torch.nn.functional.pad(x, 2 * d * (size // 2,), "circular")
        y = (torch.nn.functional.conv2d if d == 2 else torch.nn.functional.conv3d)(padded, 2 * kernel)
        y = y + noise * torch.randn_like(y)
    exact = relaxed(into, out, size, bias=False, **padding)
    hold(exact, kernel)
    model, loader = Fields(relaxed(into, out, size, **padding)), _batches(x, y, seed, batch)
    history = fit(model, loader, likelihood="gaussian", gates=gates, **{**_OPTIONS, **options})
    return Learned(model, history.evidence, loader, exact)


def labelled(
    kept: Subgroup,
    into: enn.FieldType,
    size: int,
    seed: int,
    samples: int,
    classes: int = 2,
    clear: float = 2.0,
    **options: Any,
) -> Learned:
    """Images of one kernel's size; a planted kernel gives each class a number, by which a label is drawn: a classifier.

    Args:
        clear: standard deviation of these numbers; the larger, the clearer the labels.
    """
    torch.manual_seed(seed)
    d, space = kept.gspace.dimensionality, kept.gspace
    out = enn.FieldType(space, classes * [space.trivial_repr])
    kernel = planted_kernel(kept, into, out, size)
    x = torch.randn(samples, into.size, *(d * (size,)))
    logits = clear * classes**0.5 * torch.einsum("oi...,ni...->no", kernel, x)
    y = torch.distributions.Categorical(logits=logits).sample()
    exact = relaxed(into, out, size, bias=False)
    hold(exact, kernel)
    model, loader = Fields(relaxed(into, out, size), flat=True), _batches(x, y, seed, len(x) // 8)
    history = fit(model, loader, likelihood="categorical", **{**_OPTIONS, **options})
    return Learned(model, history.evidence, loader, exact)


def space_of(name: str) -> gspaces.GSpace:
    """By the names in the tables: C8, D3, SO(2), O(2), octahedral, SO(3), O(3)."""
    known = {
        "SO(2)": lambda: gspaces.rot2dOnR2(-1, maximum_frequency=6),
        "O(2)": lambda: gspaces.flipRot2dOnR2(-1, maximum_frequency=6),
        "octahedral": gspaces.octaOnR3,
        "SO(3)": gspaces.rot3dOnR3,
        "O(3)": gspaces.flipRot3dOnR3,
    }
    if name in known:
        return known[name]()
    return (gspaces.rot2dOnR2 if name[0] == "C" else gspaces.flipRot2dOnR2)(int(name[1:]))


def plane_type(space: gspaces.GSpace, frequencies: Sequence[int] = (0, 1)) -> enn.FieldType:
    """A field of each frequency; the highest of C_2n and D_n flips by half a turn."""
    one = space.fibergroup.name[0] in "DO"
    return enn.FieldType(
        space, [space.trivial_repr if k == 0 else space.irrep(*((1, k) if one else (k,))) for k in frequencies]
    )
