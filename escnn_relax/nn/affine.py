"""Convolutions of every class as affine maps: the parameters they are linear in, their kernel, what their bias can
say."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModuleError
from .merged import MergedConvolution

__all__ = ["linear_parameters", "expanded", "constant_part", "add_constant", "divide"]


def linear_parameters(convolution: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters in which kernel and bias are linear, by name: not a mixture's architecture weights nor a length
    scale.

    Raises:
        UnsupportedModuleError: no weights known, as of a class of one's own.

    >>> from escnn import gspaces
    >>> from escnn.nn import FieldType, R2Conv
    >>> from escnn_relax.nn import SparseR2Conv
    >>> space = gspaces.rot2dOnR2(4)
    >>> one = FieldType(space, [space.trivial_repr])
    >>> [sorted(linear_parameters(c)) for c in (R2Conv(one, one, 3), SparseR2Conv(one, one, 3, learn_omega=True))]
    [['bias', 'weights'], ['bias', 'weights']]
    """
    inside = {"convolution"} if isinstance(convolution, MergedConvolution) else {"weights", "bias"}
    parameters = {name: p for name, p in convolution.named_parameters() if name.split(".")[0] in inside}
    if all(name.endswith("bias") for name in parameters):
        raise UnsupportedModuleError(
            type(convolution),
            f"the weights of a {type(convolution).__name__} are not known",
            remedy="use a convolution of escnn or of escnn_relax",
        )
    return parameters


def expanded(convolution: Any) -> tuple[Tensor, Tensor | None]:
    """The kernel of the present weights, ``(out channels, in channels / groups, *size)``, and the bias, without a
    graph."""
    with torch.no_grad():
        training = convolution.training
        try:  # in eval mode escnn's layers keep their filter, which may be of other weights
            convolution.train()
            kernel, bias = convolution.expand_parameters()
            return kernel, bias
        finally:
            convolution.train(training)


def constant_part(convolution: Any, constant: Tensor) -> Tensor:
    """The part of a constant signal ``(channels, *shape)`` that the convolution's bias can say, ``(channels,)``,
    float64.

    The orthogonal projection: of the average over all places, what lies in the span of the biases.
    """
    average = constant.double().flatten(1).mean(1)
    vectors = _biases(convolution).to(average)
    said: Tensor = vectors @ (torch.linalg.pinv(vectors) @ average)
    return said


def add_constant(convolution: Any, value: Tensor) -> None:
    """Add to the bias, in place, what it can say of ``value``, shape ``(channels,)``."""
    vectors = _biases(convolution).double()
    if not vectors.shape[1]:
        return
    bias: Any = convolution.convolution.bias if isinstance(convolution, MergedConvolution) else convolution.bias
    with torch.no_grad():
        bias.add_((torch.linalg.pinv(vectors) @ value.to(vectors)).to(bias))
        _renew(convolution)


def divide(convolution: Any, divisor: float) -> None:
    """Divide kernel and bias, in place."""
    with torch.no_grad():
        for parameter in linear_parameters(convolution).values():
            parameter.div_(divisor)
        if hasattr(convolution, "norms"):  # to which a mixture may be rescaled
            convolution.norms.div_(divisor)
        _renew(convolution)


def _biases(convolution: Any) -> Tensor:
    """The constants that the bias adds up, in columns, shape ``(channels, coefficients)``."""
    if isinstance(convolution, MergedConvolution):
        bias = convolution.convolution.bias
        return torch.zeros(convolution.out_type.size, 0) if bias is None else torch.eye(len(bias)).to(bias)
    if convolution.bias is None:
        return torch.zeros(convolution.out_type.size, 0)
    vectors: Tensor = convolution.bias_expansion
    return vectors.detach()


def _renew(convolution: nn.Module) -> None:
    """Drop what the layer keeps in eval mode."""
    training = convolution.training
    convolution.train().train(training)
