"""Gauss-Newton matrices by brute force, sharing no code with the package: whole Jacobians, explicit rows and
columns."""

from __future__ import annotations

import pytest
import torch
from escnn.nn.modules.basismanager import basisexpansion_singleblock as shared
from nonempty import each
from torch import Tensor, nn
from torch.nn import functional as F


@pytest.fixture(autouse=True)
def own_filters():
    """escnn's layers share their bases, so that ``.double()`` on one changes others: put aside those of other tests."""
    aside = dict(shared._stored_filters)
    shared._stored_filters.clear()
    yield
    shared._stored_filters.clear()
    shared._stored_filters.update(aside)


class Tensors(nn.Module):
    """Feeds an escnn network with tensors, and flattens what comes out to ``(N, outputs)``."""

    def __init__(self, net: nn.Module, in_type=None) -> None:
        super().__init__()
        self.net, self.in_type = net, in_type

    def forward(self, x: Tensor) -> Tensor:
        out = self.net(x if self.in_type is None else self.in_type(x))
        return getattr(out, "tensor", out).flatten(1)


def dense_ggn(model: nn.Module, data: list, likelihood: str) -> dict[str, Tensor]:
    """For each parameter its diagonal block of the Gauss-Newton matrix, summed over the data; by ``torch.func``."""
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    values = {n: p.detach().clone() for n, p in model.named_parameters() if n in names}
    aliases = {alias: n for alias, n in _aliases(model).items() if n in names}
    blocks = {n: torch.zeros(values[n].numel(), values[n].numel(), dtype=torch.float64) for n in names}
    for x, _ in data:
        for one in x.split(1):

            def outputs(parameters):
                everywhere = {alias: parameters[name] for alias, name in aliases.items()}
                return torch.func.functional_call(model, everywhere, (one,), tie_weights=False)[0]

            f, pull = torch.func.vjp(outputs, values)
            J = torch.func.vmap(pull)(torch.eye(len(f), dtype=f.dtype))[0]
            hessian = torch.eye(len(f), dtype=f.dtype)
            if likelihood == "categorical":
                p = f.detach().softmax(0)
                hessian = torch.diag(p) - torch.outer(p, p)
            for n in names:
                Jn = J[n].reshape(len(f), -1)
                blocks[n] += Jn.T @ hessian @ Jn
    return blocks


def _aliases(model: nn.Module) -> dict[str, str]:
    """All names of each parameter, one for each module that holds it, with its first name."""
    first = {id(p): n for n, p in model.named_parameters()}
    places: dict[tuple, str] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        owner, _, own = name.rpartition(".")
        places.setdefault((id(model.get_submodule(owner)), own), name)
    return {name: first[id(model.get_parameter(name))] for name in places.values()}


def assembled(factors, size: int, positions) -> Tensor:
    """The factors of one parameter as one matrix, given which weights each block holds."""
    H = torch.zeros(size, size, dtype=torch.float64)
    assert len(factors) == len(positions)
    for factor, where in zip(factors, positions):
        H[where.unsqueeze(1), where] = factor.dense()
    return H


def fields(layer: nn.Module) -> list[Tensor]:
    """Output channels of each output field of an escnn or relaxed layer."""
    sizes = [r.size for r in layer.out_type.representations]
    return list(torch.arange(sum(sizes)).split(sizes))


def owners(layer: nn.Module, parameter: nn.Parameter) -> list[int]:
    """The output field that each weight acts on, found by trying it alone."""
    field_of = torch.cat([torch.full((len(c),), f) for f, c in enumerate(fields(layer))])
    found = []
    for kernel in each(unit_kernels(layer, parameter, range(parameter.numel()))):
        touched = field_of[kernel.flatten(1).abs().sum(1) > 1e-6].unique()
        assert len(touched) == 1
        found.append(int(touched))
    return found


def unit_kernels(layer: nn.Module, parameter: nn.Parameter, indices) -> list[Tensor]:
    """The layer's kernel with one weight of one parameter at 1 and all others at 0."""
    saved, kernels = {n: p.detach().clone() for n, p in layer.named_parameters()}, []
    with torch.no_grad():
        for index in indices:
            for p in layer.parameters():
                p.zero_()
            parameter.view(-1)[index] = 1
            kernels.append(layer.expand_parameters()[0].clone())
        for n, p in layer.named_parameters():
            p.copy_(saved[n])
    return kernels


def block_positions(layer: nn.Module, parameter: nn.Parameter) -> list[Tensor]:
    """Which weights make up each block: one block a representation of the output field and convolution group."""
    names = [r.name for r in layer.out_type.representations]
    per_group = len(names) // layer.groups
    of_field: dict[int, list[int]] = {}
    for index, field in enumerate(owners(layer, parameter)):
        of_field.setdefault(field, []).append(index)
    blocks: dict[tuple, list[int]] = {}
    for name in dict.fromkeys(names):
        for field in sorted(of_field):
            if names[field] == name:
                blocks.setdefault((name, field // per_group), []).extend(of_field[field])
    return [torch.tensor(block) for block in blocks.values()]


def rows_and_columns(layer, parameter: nn.Parameter, where: Tensor, input: Tensor, gradient: Tensor):
    """Explicit rows ``(N, R, D)`` and columns ``(C, N, R, O)`` of one block of a steerable convolution.

    Args:
        where: the weights of the block, field by field.
        gradient: of the layer's output, shape ``(C, N, channels, *space)``.
    """
    owner = owners(layer, parameter)
    involved = list(dict.fromkeys(owner[index] for index in where.tolist()))
    first = where[: len(where) // len(involved)].tolist()
    geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
    rows = [
        F.conv2d(input, kernel, None, *geometry)[:, fields(layer)[involved[0]]].flatten(1)
        for kernel in unit_kernels(layer, parameter, first)
    ]
    columns = torch.stack([gradient[:, :, fields(layer)[f]].flatten(2) for f in involved], dim=-1)
    return torch.stack(rows, dim=-1), columns


def central_difference(evidence, data, weight, index, step=1e-5):
    """Derivative of the log evidence in one entry of a weight, by refreshing on either side of it."""
    ends = []
    for move in (step, -step):
        with torch.no_grad():
            weight.view(-1)[index] += move
        ends.append(evidence.refresh(data).total)
        with torch.no_grad():
            weight.view(-1)[index] -= move
    return (ends[0] - ends[1]) / (2 * step)
