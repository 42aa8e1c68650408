r"""How the errors of layers add up along a chain of them.

A layer of norm :math:`\|L\|` and error e, fed with what is off by E and of a norm of at most N, is off by at most

.. math:: E' = \|L\| E + e N, \qquad N' = \|L\| N + \|b\| \sqrt{\text{pixels}} ,

and what follows changes neither if it commutes with the group, keeps distances or shrinks them, and leaves zero at
zero: pointwise ReLU on fields that the group permutes, poolings over fields or blocks of pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from escnn import nn as enn
from torch import nn

from ...errors import ArgumentError, UnsupportedModuleError
from ...symmetry.equivariance.operator_norm import WORK
from ...symmetry.html_table import html_table
from ..affine import expanded
from .certificate import Certificate, certify

__all__ = ["Chain", "certify_chain"]

#: Modules that commute with the group, are 1-Lipschitz and keep zero, without conditions.
SHRINKING = (enn.ReLU, enn.GroupPooling, enn.NormPool, enn.IdentityModule, enn.LeakyReLU)


@dataclass(frozen=True)
class Chain:
    """The bound of a chain, as far as it is known.

    Attributes:
        layers: the certificates of its layers, in their order.
        error: no input of norm 1 or less has a larger equivariance error behind the last module that is known.
        size: no such input has an output of a larger norm.
        stopped: the first module that is not known and why, empty if all are.
    """

    layers: tuple[Certificate, ...]
    error: float
    size: float
    stopped: str = ""

    def __str__(self) -> str:
        end = f" (up to {self.stopped})" if self.stopped else ""
        return f"error of inputs of norm 1 up to {self.error:.2e}, outputs up to {self.size:.2e}{end}"

    def _repr_html_(self) -> str:
        rows = [
            [layer.name, f"{layer.bound:.2e}", f"{layer.relative:.2%}", f"{layer.norm.bound:.2e}"]
            for layer in self.layers
        ]
        return html_table(["layer", "error ≤", "of its norm", "norm ≤"], rows, [str(self)], words=1)


def certify_chain(model: nn.Module, input_shape: Sequence[int], work: float = WORK) -> Chain:
    """Bound the equivariance error of modules one after the other, for all inputs of norm 1 on one grid.

    Args:
        model: an escnn SequentialModule or torch Sequential, nested ones included; in evaluation mode.
        input_shape: ``(batch, channels, *space)``; biases count as often as there are pixels.
        work: as of :func:`~escnn_relax.nn.measured.certificate.certify`, for each layer.

    Raises:
        UnsupportedModuleError: no chain, or one in training mode.
        ArgumentError: a shape that the chain's first module does not take.

    >>> import torch
    >>> from escnn import gspaces
    >>> from escnn_relax.nn import RelaxedR2Conv
    >>> space = gspaces.rot2dOnR2(4)
    >>> fields = enn.FieldType(space, [space.regular_repr])
    >>> one, two = (RelaxedR2Conv(fields, fields, 3, padding=1) for _ in range(2))
    >>> chain = enn.SequentialModule(one, enn.ReLU(fields), two, enn.GroupPooling(fields)).eval()
    >>> certify_chain(chain, (1, 4, 9, 9)).error < 1e-5
    True
    >>> _ = torch.nn.init.constant_(one.weights["irrep_2"], 0.1)
    >>> broken = certify_chain(chain, (1, 4, 9, 9))
    >>> first, second = broken.layers
    >>> broken.error == first.bound * second.norm.bound + second.bound * first.norm.bound
    True
    """
    where = type(model).__name__
    if not isinstance(model, (enn.SequentialModule, nn.Sequential)):
        remedy = "certify its layers one by one, or pass a part that is a chain"
        raise UnsupportedModuleError(where, "what follows what is known of sequential modules only", remedy=remedy)
    if any(module.training for module in model.modules()):
        raise UnsupportedModuleError(where, "it is in training mode", remedy="call .eval() first")
    shape, error, size = tuple(input_shape), 0.0, 1.0
    layers: list[Certificate] = []
    for name, module in _flat(model):
        if not isinstance(module, enn.EquivariantModule):
            return Chain(tuple(layers), error, size, f"{name}: {type(module).__name__}, which has no field types")
        try:
            after = tuple(module.evaluate_output_shape(shape))
        except (AssertionError, ValueError) as refused:
            problem = f"{type(module).__name__} does not take the shape {shape}"
            raise ArgumentError(
                name, problem, remedy="pass the shape of a batch of inputs, (batch, channels, *space)"
            ) from refused
        reason = _unknown(module)
        if reason is None:
            shape = after
            continue
        try:
            certificate = certify(module, name, work)
        except UnsupportedModuleError:
            return Chain(tuple(layers), error, size, f"{name}: {reason}")
        layers.append(certificate)
        bias = expanded(module)[1]
        constant = 0.0 if bias is None else float(bias.double().norm()) * math.sqrt(math.prod(after[2:]))
        error = certificate.norm.bound * error + certificate.bound * size
        size, shape = certificate.norm.bound * size + constant, after
    return Chain(tuple(layers), error, size)


def _flat(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, module in model.named_children():
        if isinstance(module, (enn.SequentialModule, nn.Sequential)):
            yield from _flat(module, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", module


def _unknown(module: Any) -> str | None:
    """Why a module without a certificate may enlarge errors; ``None`` if it does not."""
    kind = type(module).__name__
    if isinstance(module, (enn.PointwiseDropout, enn.FieldDropout)) or type(module) in SHRINKING:
        steep = type(module) is enn.LeakyReLU and not abs(getattr(module, "negative_slope", math.inf)) <= 1
        return f"{kind} with a slope above 1" if steep else None
    if type(module) is enn.ELU:
        return None if 0 <= module.alpha <= 1 else f"{kind} with alpha outside 0 ... 1"
    if type(module) in (enn.PointwiseAvgPool2D, enn.PointwiseAvgPool3D):
        return None if not any(_numbers(module.padding)) and not module.ceil_mode else f"{kind} with padding"
    if type(module) in (enn.PointwiseMaxPool2D, enn.PointwiseMaxPool3D):
        sizes, steps = _numbers(module.kernel_size), _numbers(module.stride)
        apart = all(s >= k for k, s in zip(sizes, steps)) and set(_numbers(module.dilation)) == {1}
        return None if apart else f"{kind} whose windows overlap"
    return f"{kind}, of which no Lipschitz constant is known"


def _numbers(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (int(value),)
