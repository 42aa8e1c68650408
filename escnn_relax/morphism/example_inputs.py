"""Inputs on which a network can be tried: what its first layer's type promises, and a user's, read for a result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from escnn.nn import EquivariantModule, FieldType, GeometricTensor
from torch import nn

from ..nn.translation.relaxed_translation import RelaxedTranslation

__all__ = ["first_type", "fitted", "promised_inputs"]

#: Sides of the images that are tried where no example is given, the cheapest first: enough for a few halvings, odd ones
#: for strides that want them, and those of common data sets for networks that end in a linear layer of one size.
SIDES = {0: (1,), 1: (16, 33), 2: (16, 33, 32, 28, 29, 64), 3: (8, 17, 16)}


def first_type(model: nn.Module) -> Any:
    """The input type of a network, or of the first of its parts that has one; ``None`` where there is none."""
    for submodule in model.modules():
        types = getattr(submodule, "in_type", None)
        for type in types if isinstance(types, tuple | list) else (types,):
            if isinstance(type, FieldType):
                return type
    return None


def fitted(example: Any, model: nn.Module) -> Any:
    """The example for a morphism's result: a GeometricTensor is read as the result's ``in_type`` where that has its
    size."""
    in_type = getattr(model, "in_type", None)
    values = example if isinstance(example, tuple) else (example,)
    read = tuple(
        (
            GeometricTensor(v.tensor, in_type, v.coords)
            if isinstance(v, GeometricTensor) and isinstance(in_type, FieldType) and in_type.size == v.type.size
            else v
        )
        for v in values
    )
    return read if isinstance(example, tuple) else read[0]


def promised_inputs(model: nn.Module) -> Iterator[Any]:
    """Inputs of the type of a network's first layer, one after the other."""
    in_type = first_type(model)
    if in_type is None:
        return
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    d = in_type.gspace.dimensionality
    known = [submodule.in_shape for submodule in model.modules() if isinstance(submodule, RelaxedTranslation)][:1]
    generator = torch.Generator(device="cpu").manual_seed(0)
    for shape in (*known, *((side,) * d for side in SIDES.get(d, ()))):
        values = torch.randn(2, in_type.size, *shape, generator=generator, device="cpu", dtype=torch.float32)
        values = values.to(device=like.device, dtype=like.dtype)
        if isinstance(model, EquivariantModule):
            yield GeometricTensor(values, in_type)
        yield values
