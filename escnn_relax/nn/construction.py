"""Construction as escnn's: the arguments of the escnn class and a few more, or from a layer of that class."""

from __future__ import annotations

import dataclasses
import inspect
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from escnn.nn import EquivariantModule, FieldType

from .. import _escnn
from ..deprecation import former_where
from ..errors import ArgumentError, EmptyBasisError, naming
from ..symmetry.groups.irreps import highest_frequency, instantiate
from ..symmetry.kernels.sampling import Band, FiberBand, layer_band
from .field_types import check_types

__all__ = ["EscnnConstruction"]


class EscnnConstruction(EquivariantModule):
    """A steerable layer that is built as the layer of escnn that it stands for, and takes over its weights.

    Attributes:
        in_type, out_type, space: field types of the full group, and their G-space.
        d: dimensions of the base space; 0 for linear layers.
        band: where the kernels are sampled and up to which frequency.
    """

    in_type: FieldType
    out_type: FieldType
    space: Any
    d: int
    band: Band | FiberBand

    _strict: type  # the escnn class
    _gspace: type  # the G-spaces it lives on
    _freedom: type  # a dataclass: the arguments it takes besides those of the escnn class
    _geometry: tuple[str, ...]  # the attributes that it has in common with the escnn class

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Show the signature of the escnn class, with what these layers take besides."""
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "_strict") and hasattr(cls, "_freedom"):
            signature = inspect.signature(cls._strict)
            freedom = inspect.signature(cls._freedom).parameters.values()
            extra = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in freedom]
            cls.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *extra])

    def __init__(self, in_type: FieldType, out_type: FieldType, *arguments: Any, **options: Any) -> None:
        self._begin()
        chosen = {f.name: options.pop(f.name) for f in dataclasses.fields(self._freedom) if f.name in options}
        self._construct(in_type, out_type, self._freedom(**chosen), **self._options(arguments, options))

    def _begin(self) -> None:
        EquivariantModule.__init__(self)
        self._cache: tuple[Any, ...] | None = None
        self._expansion: Any = None

    @classmethod
    @former_where
    def from_strict(cls, convolution: EquivariantModule, **freedom: Any) -> Any:
        """A layer with the function and weights of an escnn convolution, which is left alone, and more freedom.

        Args:
            freedom: what a new layer takes besides the arguments of the escnn class.
        """
        layer = cls.__new__(cls)
        layer._begin()
        layer._adopt(convolution, cls._freedom(**freedom))
        return layer

    def _construct(self, in_type: FieldType, out_type: FieldType, freedom: Any, **options: Any) -> None:
        """Build the escnn layer with ``options`` and adopt that."""
        check_types(in_type, out_type, self._gspace, options.get("groups", 1), type(self))
        group = in_type.fibergroup
        if group.continuous:
            instantiate(group, sum(highest_frequency(t.representations) for t in (in_type, out_type)))
        initialize = options.pop("initialize", True)
        try:
            with _escnn.single_precision():
                strict = self._strict(in_type, out_type, **options, initialize=False)
                if initialize:
                    _escnn.initialise(strict)
        except (ValueError, TypeError, ArithmeticError, IndexError, AssertionError) as error:
            if "basis for the steerable filter is empty" in str(error):
                raise EmptyBasisError(
                    type(self),
                    f"no equivariant kernel of size {options.get('kernel_size')} from {in_type} to {out_type}",
                    remedy="allow higher frequencies, a larger kernel or other fields",
                ) from error
            raise ArgumentError(
                type(self),
                f"{self._strict.__name__} refuses these arguments ({type(error).__name__}: {error})",
                got=options,
                remedy=f"pass what escnn.nn.{self._strict.__name__} takes",
            ) from error
        self._adopt(strict, freedom, options.get("frequencies_cutoff"), torch.get_default_dtype())

    def _options(self, arguments: Sequence[Any], options: dict[str, Any]) -> dict[str, Any]:
        """What the caller passed after the field types, by the names that the escnn class has for it."""
        try:
            bound = inspect.signature(self._strict).bind_partial(None, None, *arguments, **options).arguments
        except TypeError as error:
            name = f"escnn.nn.{self._strict.__name__}"
            raise ArgumentError(type(self), str(error), remedy=f"pass what {name} takes") from error
        return {name: value for name, value in bound.items() if name not in ("in_type", "out_type")}

    def _adopt(
        self,
        strict: EquivariantModule,
        freedom: Any,
        cutoff: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Take over an escnn layer's geometry, weights, device, mode and, unless another is given, precision."""
        with naming(type(self)):
            self.band = layer_band(strict, cutoff=cutoff)
            self._take_geometry(strict)
            self._build(strict, freedom)
        self.to(device=strict.weights.device, dtype=dtype or strict.weights.dtype)
        self.train(strict.training)

    def _take_geometry(self, strict: EquivariantModule) -> None:
        self.space, self.d = strict.space, getattr(strict, "d", 0)
        self.in_type, self.out_type = strict.in_type, strict.out_type
        for name in self._geometry:
            setattr(self, name, getattr(strict, name))

    def _reach(self) -> int | None:
        """The highest frequency of kernels between the field types, for a continuous group."""
        if not self.space.fibergroup.continuous:
            return None
        return self.band.highest + sum(highest_frequency(t.representations) for t in (self.in_type, self.out_type))

    @abstractmethod
    def _build(self, strict: EquivariantModule, freedom: Any) -> None:
        """Set pathways, kernel, weights, bias and records; errors that do not know the layer are named outside."""
