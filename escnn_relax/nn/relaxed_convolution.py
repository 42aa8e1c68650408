"""What all relaxed convolutions share: pathways, expansion, cache, export; the dimension is the subclass's."""

from __future__ import annotations

import dataclasses
import inspect
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from escnn.group import Representation
from escnn.nn import EquivariantModule, FieldType, GeometricTensor
from torch import Tensor, nn

from .. import _escnn
from ..errors import ArgumentError, DataError, EmptyBasisError, NothingToRelaxError
from ..symmetry.groups.irreps import highest_frequency, instantiate
from ..symmetry.kernels import kernel_cache
from ..symmetry.kernels.irrep_pairs import Kernels
from ..symmetry.kernels.pathway import EQUIVARIANT, Pathway
from ..symmetry.kernels.plan import Freedom, plan
from ..symmetry.kernels.relaxation import Relaxation
from ..symmetry.kernels.sampling import Band, FiberBand, layer_band
from .escnn_surface import EscnnSurface
from .evidence_record import Recorded
from .field_types import PlainLayer, check_input, check_types
from .gates import Gated
from .kernels.pathway_sum import PathwayKernel
from .pathway_weights import PathwayWeights
from .strict_state import VERSION, read_strict_state

__all__ = ["RelaxedConvolution"]


class RelaxedConvolution(Gated, Recorded, EscnnSurface, EquivariantModule):
    r"""A steerable convolution whose kernel may leave the equivariant ones, by a learned amount and in named ways.

    .. math:: W = \Phi_0 w_0 + \sum_p \Phi_p w_p

    with :math:`\Phi_0` escnn's own equivariant basis and :math:`\Phi_p` orthonormal kernels orthogonal to it, one set
    for each pathway. All :math:`w_p`, p > 0, start at zero: a new layer is exactly the equivariant one. The bias stays
    equivariant.

    Attributes:
        in_type, out_type: field types of the full group; the layers around keep working.
        pathways: the equivariant pathway, then the residual ones that have kernels here.
        empty_pathways: residual pathways without any kernel between these field types.
        weights: coefficients of each pathway, by its name, each of shape ``(dimension,)``; where a tensor is meant,
            those of the equivariant one (:class:`~escnn_relax.nn.pathway_weights.PathwayWeights`).
        bias: coefficients of the bias in the trivial irreps of ``out_type``, or ``None``.
        log_precision, effective_dimension: see :class:`~escnn_relax.nn.evidence_record.Recorded`.
    """

    kernel: PathwayKernel
    _version = VERSION

    _strict: type  # the escnn class
    _gspace: type  # the G-spaces it lives on
    _freedom: type = Freedom  # the arguments it takes besides those of the escnn class
    _geometry: tuple[str, ...] = ("kernel_size", "stride", "padding", "dilation", "groups")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Show the signature of the escnn class, with what relaxed layers take besides."""
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "_strict"):
            own = inspect.signature(cls._strict)
            ours = inspect.signature(cls._freedom).parameters.values()
            extra = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in ours]
            cls.__signature__ = own.replace(parameters=[*own.parameters.values(), *extra])

    def __init__(self, in_type: FieldType, out_type: FieldType, *arguments: Any, **options: Any) -> None:
        self._begin()
        chosen = {f.name: options.pop(f.name) for f in dataclasses.fields(self._freedom) if f.name in options}
        self._construct(in_type, out_type, self._freedom(**chosen), **self._options(arguments, options))

    def _begin(self) -> None:
        EquivariantModule.__init__(self)
        self._cache: tuple[Any, ...] | None = None
        self._expansion: Any = None

    @classmethod
    def from_strict(cls, convolution: EquivariantModule, *, where: str = "", **freedom: Any) -> RelaxedConvolution:
        """Relax an escnn convolution: same function, same weights, more freedom. The given layer is left alone.

        Args:
            where: the layer's name, for error messages.
            freedom: ``relaxation``, ``subgroups``, ``basis``, ``frequencies``, ``irreps``, as for a new layer.
        """
        layer = cls.__new__(cls)
        layer._begin()
        layer._adopt(convolution, cls._freedom(**freedom), where)
        return layer

    def _construct(self, in_type: FieldType, out_type: FieldType, freedom: Freedom, **options: Any) -> None:
        """Build the escnn layer with ``options`` and relax that."""
        name = type(self).__name__
        check_types(in_type, out_type, self._gspace, options.get("groups", 1), name)
        group = in_type.fibergroup
        if group.continuous:
            instantiate(group, sum(highest_frequency(t.representations) for t in (in_type, out_type)))
        wanted = options.pop("initialize", True)
        try:
            with _escnn.single_precision():
                strict = self._strict(in_type, out_type, **options, initialize=False)
                if wanted:
                    _escnn.initialise(strict)
        except (ValueError, TypeError, ArithmeticError, IndexError, AssertionError) as error:
            if "basis for the steerable filter is empty" in str(error):
                raise EmptyBasisError(
                    name,
                    f"no equivariant kernel of size {options.get('kernel_size')} from {in_type} to {out_type}",
                    remedy="allow higher frequencies, a larger kernel or other fields",
                ) from error
            raise ArgumentError(
                name,
                f"{self._strict.__name__} refuses these arguments ({type(error).__name__}: {error})",
                got=options,
                remedy=f"pass what escnn.nn.{self._strict.__name__} takes",
            ) from error
        cutoff = options.get("frequencies_cutoff")
        self._adopt(strict, freedom, name, cutoff, torch.get_default_dtype())

    def _options(self, arguments: Sequence[Any], options: dict[str, Any]) -> dict[str, Any]:
        """What the caller passed after the field types, by the names that the escnn class has for it."""
        try:
            bound = inspect.signature(self._strict).bind_partial(None, None, *arguments, **options).arguments
        except TypeError as error:
            name = f"escnn.nn.{self._strict.__name__}"
            raise ArgumentError(type(self).__name__, str(error), remedy=f"pass what {name} takes") from error
        return {name: value for name, value in bound.items() if name not in ("in_type", "out_type")}

    def _adopt(
        self,
        strict: EquivariantModule,
        freedom: Any,
        where: str,
        cutoff: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        where = where or type(self).__name__
        band = layer_band(strict, where, cutoff)
        reach = None
        if strict.space.fibergroup.continuous:
            reach = band.highest + sum(highest_frequency(t.representations) for t in (strict.in_type, strict.out_type))
            reach = max(reach, 1)  # not even an irrep to ask for would be an error of another kind
        rule = plan(strict.space, where=where, reach=reach, **vars(freedom))
        self.space, self.d = strict.space, getattr(strict, "d", 0)
        self.in_type, self.out_type = strict.in_type, strict.out_type
        for name in self._geometry:
            setattr(self, name, getattr(strict, name))
        self.band, self.relaxation = band, rule

        in_reprs, out_reprs = self._kernel_fields()
        with kernel_cache.announce(f"the kernels of {where}, {self.in_type} to {self.out_type}"):
            bases = _bases(rule, band, in_reprs, out_reprs, strict.basisexpansion)
        dimensions = {p.name: sum(len(b) for b in bases[p.name].values()) for p in rule.pathways}
        self.pathways: tuple[Pathway, ...] = tuple(p for p in rule.pathways if dimensions[p.name])
        self.empty_pathways = tuple(p for p in rule.pathways if not dimensions[p.name])
        self._refuse_empty(where)
        self.kernel = PathwayKernel(in_reprs, out_reprs, {p.name: bases[p.name] for p in self.pathways})
        self.weights = PathwayWeights()
        for p in self.pathways:  # one by one, since a dictionary would be sorted
            self.weights[p.name] = nn.Parameter(torch.zeros(self.kernel.dimensions[p.name]))
        self.weights[EQUIVARIANT.name] = _copy(strict.weights)
        self.bias = None
        if strict.bias is not None:
            self.bias = _copy(strict.bias)
            self.register_buffer("bias_expansion", strict.bias_expansion.detach().clone())
        self._begin_record(len(self.pathways))
        self.to(device=strict.weights.device, dtype=dtype or strict.weights.dtype)
        self.train(strict.training)

    def _refuse_empty(self, where: str) -> None:
        nothing = not any(p.breaks for p in self.pathways)
        named = [p for p in self.empty_pathways if p.kind == "subgroup"]
        if named:
            raise (NothingToRelaxError if nothing else EmptyBasisError)(
                where,
                f"the pathway of subgroup {named[0].subgroup!r} has no kernel that larger pathways do not already have",
                remedy="leave it out, choose a smaller subgroup, or use a larger kernel or basis='pixel'",
            )
        if nothing and not self.relaxation.unbreakable:
            size = f" of size {self.kernel_size}" if self.d else ""
            raise NothingToRelaxError(
                where,
                f"no kernel{size} from {self.in_type} to {self.out_type} breaks the symmetry",
                remedy="leave this layer as it is",
            )

    def _kernel_fields(self) -> tuple[Sequence[Representation], Sequence[Representation]]:
        """Representations of the fields between which the kernel maps: one group's input to all the output."""
        return self.in_type.representations[: len(self.in_type) // self.groups], self.out_type.representations

    def pathway_weights(self) -> dict[str, tuple[str, ...]]:
        """The name of each pathway's weights."""
        return {p.name: (f"weights.{p.name}",) for p in self.pathways}

    def breaking_weights(self) -> tuple[str, ...]:
        """The names of the weights that break the symmetry."""
        return tuple(f"weights.{p.name}" for p in self.pathways if p.breaks)

    def expand_parameters(self) -> tuple[Tensor, Tensor | None]:
        """The kernel, in the shape that torch's own layer of this kind has it, and the bias ``(out channels,)``."""
        kernel = self.kernel(self.open_weights())
        return self._as_filter(kernel), None if self.bias is None else self.bias_expansion @ self.bias

    def _as_filter(self, kernel: Tensor) -> Tensor:
        return kernel.contiguous().view(*kernel.shape[:2], *(self.kernel_size,) * self.d)

    def pathway_kernel(self, name: str) -> Tensor:
        """The part of the kernel that one pathway contributes, in the shape of the whole kernel."""
        return self._as_filter(self.kernel({name: self.weights[name]}))

    def energies(self, where: str = "") -> dict[str, float]:
        r"""Share of the kernel's energy in each pathway, :math:`|W_p|^2 / \sum_q |W_q|^2` (fractions that sum to 1).

        Raises:
            DataError: NaN or infinite weights; ``where`` names the layer.
        """
        with torch.no_grad():
            squares = {p.name: float(self.pathway_kernel(p.name).double().square().sum()) for p in self.pathways}
        for name, square in squares.items():
            if not math.isfinite(square):
                raise DataError(
                    where or type(self).__name__,
                    f"NaN or infinite weights in the pathway {name!r}",
                    remedy="go back to a checkpoint with finite weights",
                )
        total = sum(squares.values())
        return {name: square / total if total > 0 else 0.0 for name, square in squares.items()}

    @property
    def breaking_energy(self) -> float:
        r""":math:`|residual|^2 / |W|^2`, the share of the kernel's energy that breaks the symmetry (fraction)."""
        energies = self.energies()
        return sum(energies[p.name] for p in self.pathways if p.breaks)

    def forward(self, input: GeometricTensor) -> GeometricTensor:
        """Convolve; raises :class:`~escnn_relax.errors.FieldTypeError` for an input of another type."""
        check_input(input, self.in_type, type(self).__name__)
        kernel, bias = self._expanded()
        return GeometricTensor(self._convolve(input.tensor, kernel, bias), self.out_type, coords=None)

    @abstractmethod
    def _convolve(self, input: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        """One convolution, with padding."""

    def _expanded(self) -> tuple[Tensor, Tensor | None]:
        """Expanded parameters; in eval mode without gradients kept until a weight has another value.

        Values are compared, not versions, so that no way of writing to a weight leaves a stale kernel behind; of the
        kernels, which are constants and can be large, identities and versions. Nothing is kept of what
        ``functional_call`` puts in the place of the parameters, which ``vmap`` may have batched, nor of the lower
        precision that autocast expands to.
        """
        own = list(self.parameters())
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.expand_parameters()
        if not all(isinstance(p, nn.Parameter) for p in own):
            return self.expand_parameters()
        current = own + ([] if self.bias is None else [self.bias_expansion])
        constants = [*self.kernel.buffers()]
        versions = [None if t.is_inference() else t._version for t in constants]
        if self._cache is not None:
            previous, kept, before, expanded = self._cache
            if (
                versions == before
                and all(a is b for a, b in zip(constants, kept))
                and all(
                    a.dtype == b.dtype and a.device == b.device and torch.equal(a, b) for a, b in zip(current, previous)
                )
            ):
                return expanded
        expanded = self.expand_parameters()
        if expanded[0].dtype == own[0].dtype:
            self._cache = ([p.detach().clone() for p in current], constants, versions, expanded)
        return expanded

    def evaluate_output_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the output for an input ``(batch, channels, *space)``, as the convolution itself finds it."""
        if len(input_shape) != 2 + self.d or input_shape[1] != self.in_type.size:
            raise ArgumentError(
                type(self).__name__,
                expected=f"a shape (batch, {self.in_type.size}, *{self.d} dimensions)",
                got=input_shape,
                remedy="pass the shape of a batch of inputs",
            )
        with torch.no_grad():
            kernel = self._as_filter(self.kernel(self.weights)).to("meta")
        return tuple(
            self._convolve(torch.empty(tuple(input_shape), device="meta", dtype=kernel.dtype), kernel, None).shape
        )

    def export(self) -> PlainLayer:
        """A plain torch layer in eval mode that computes the same, padding mode included."""
        with torch.no_grad():
            kernel, bias = self.expand_parameters()
            layer = self._plain(bias is not None).to(kernel)
            layer.weight.copy_(kernel)
            if bias is not None and layer.bias is not None:
                layer.bias.copy_(bias)
        return layer.eval()

    @abstractmethod
    def _plain(self, bias: bool) -> PlainLayer:
        """The torch layer of the same shape."""

    def extra_repr(self) -> str:
        names = ", ".join(f"{p.name}: {self.kernel.dimensions[p.name]}" for p in self.pathways)
        text = f"{self.in_type} -> {self.out_type}"
        defaults = {"kernel_size": 0, "stride": 1, "padding": 0, "dilation": 1, "groups": 1, "padding_mode": "zeros"}
        for name, default in defaults.items():
            if getattr(self, name, default) != default:
                text += f", {name}={getattr(self, name)}"
        return f"{text}{'' if self.bias is not None else ', bias=False'}, pathways=({names})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None, "_expansion": None, "_silent": {}}

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Take what a relaxed layer wrote, or what the escnn layer did: then residual weights become zero."""
        written = local_metadata.get("version") or 0
        if written > VERSION and f"{prefix}weights" not in state_dict:
            error_msgs.append(
                f"{prefix or 'layer'}: written by a later escnn_relax (layout {written}, known: {VERSION}); update it"
            )
        problem = read_strict_state(self, state_dict, prefix, missing_keys)
        if problem is not None:
            error_msgs.append(problem)
        self._expansion = None
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def _copy(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)


def _bases(
    rule: Relaxation,
    band: Band | FiberBand,
    in_reprs: Sequence[Representation],
    out_reprs: Sequence[Representation],
    expansion: Any,
) -> dict[str, dict[tuple[str, str], Kernels]]:
    """For each pathway and pair of representation names the sampled kernels."""
    equivariant = {(i, o): kernels for i, o, kernels, _ in _escnn.blocks(expansion)}
    bases: dict[str, dict[tuple[str, str], Kernels]] = {p.name: {} for p in rule.pathways}
    for i in dict.fromkeys(in_reprs):
        for o in dict.fromkeys(out_reprs):
            own = equivariant.get((i.name, o.name))
            if own is None:
                own = torch.zeros(0, o.size, i.size, len(band.points))
            for name, kernels in rule.bases(band, i, o, own).items():
                bases[name][i.name, o.name] = kernels
    return bases
