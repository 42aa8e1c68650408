"""A layer's coefficients by pathway, which read as escnn's one tensor of weights does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..symmetry.kernels.pathway import EQUIVARIANT

__all__ = ["PathwayWeights"]


class PathwayWeights(nn.ParameterDict):
    """The coefficients of each pathway by its name; where a tensor is meant, those of the equivariant pathway.

    escnn's layers have one tensor ``weights``, with one coefficient for each equivariant kernel. So code written for
    them goes on working: ``weights.data``, ``weights.shape``, ``weights.grad``, ``weights[:3]``, arithmetic, and
    torch's functions act on the coefficients of the equivariant pathway, which are these very numbers. What a
    dictionary has of its own stays a dictionary's: strings as keys, ``len``, iteration, ``keys``, ``values`` and
    ``items``, and so do the names of parameters, ``weights.<pathway>``, and those methods that modules have (``to``,
    ``requires_grad_``, ...), which act on all pathways.

    >>> from escnn import gspaces, nn
    >>> from escnn_relax.nn import RelaxedR2Conv
    >>> space = gspaces.rot2dOnR2(4)
    >>> layer = RelaxedR2Conv(*(nn.FieldType(space, [space.regular_repr]),) * 2, kernel_size=3)
    >>> layer.weights.numel() == layer.basisexpansion.dimension()
    True
    >>> layer.weights.data.fill_(1.0).sum() == layer.weights["equivariant"].sum() == layer.weights.numel()
    tensor(True)
    >>> list(layer.weights)
    ['equivariant', 'irrep_1', 'irrep_2']
    """

    def _strict(self) -> Any:
        """The coefficients of the equivariant pathway: the tensor that escnn calls ``weights``."""
        return self._parameters[EQUIVARIANT.name]

    @property
    def data(self) -> Tensor:
        """The equivariant coefficients without their graph, to be written to in place."""
        return self._strict().data

    @data.setter
    def data(self, value: Tensor) -> None:
        self._strict().data = value

    @property
    def grad(self) -> Tensor | None:
        """Gradient of the equivariant coefficients."""
        return self._strict().grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        self._strict().grad = value

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and hasattr(Tensor, name) and EQUIVARIANT.name in self._parameters:
            return getattr(self._strict(), name)
        return super().__getattr__(name)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self._strict()[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(key, str):
            super().__setitem__(key, value)
        else:
            self._strict()[key] = value

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        arguments: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return function(*(_tensors(a) for a in arguments), **{k: _tensors(v) for k, v in (options or {}).items()})


def _tensors(value: Any) -> Any:
    if isinstance(value, PathwayWeights):
        return value._strict()
    return type(value)(_tensors(v) for v in value) if isinstance(value, list | tuple) else value


def _operator(name: str) -> Callable[..., Any]:
    def apply(self: PathwayWeights, *others: Any) -> Any:
        return getattr(self._strict(), name)(*(_tensors(other) for other in others))

    apply.__name__ = name
    return apply


for _name in ("add", "sub", "mul", "truediv", "matmul", "pow"):
    for _side in (f"__{_name}__", f"__r{_name}__"):
        setattr(PathwayWeights, _side, _operator(_side))
for _side in ("__neg__", "__abs__", "__array__"):
    setattr(PathwayWeights, _side, _operator(_side))
