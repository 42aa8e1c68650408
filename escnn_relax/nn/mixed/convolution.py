"""[G]-mixed layers: one convolution whose kernel is a weighted sum over several symmetry groups."""

from __future__ import annotations

from typing import Any

import torch
from escnn.nn import EquivariantModule
from torch import Tensor, nn

from ...errors import ArgumentError, NothingToRelaxError, layer_name, naming
from ...symmetry.equivariance.error_record import relative
from ...symmetry.groups.lattice import subgroup
from ...symmetry.kernels import kernel_cache
from ...symmetry.kernels.pathway import EQUIVARIANT
from ..steerable import SteerableConvolution
from .architecture_weights import ArchitectureWeights
from .basis import mixed_groups, mixture_basis
from .bias import coinciding, mixture_biases
from .kernel import MixtureKernel
from .mixture import Mixture
from .reduction import nearest_summands, select_summands

__all__ = ["MixedConvolution"]


class MixedConvolution(ArchitectureWeights, SteerableConvolution):
    r"""A steerable convolution whose kernel is a mixture over several groups,

    .. math:: y = \sum_H \pi_H \,\mathrm{Conv}_H(x), \qquad \pi = \mathrm{softmax}(\alpha / \tau)

    (Maile, Wilson, Forré: *Equivariance-aware architectural optimization of neural networks*, ICLR 2023). Each summand
    has its own coefficients of *all* kernels that H leaves invariant between G's field types, within the band limit
    of G's layer, and its own bias in the H-invariant vectors of the output. All H are subgroups of G acting on G's
    own channels: one embedding throughout a network. The kernels are added before the one convolution.

    The layer is linear in its coefficients, which are used as they stand. :meth:`normalise` brings every filter back to
    its initial norm, to be called after an optimiser step; morphisms, exports and the evidence read the actual weights,
    so that they are exact at any time. Under an evidence each summand's norm is what its prior precision judges: use
    one or the other.

    Attributes:
        in_type, out_type: field types of the full group; the layers around keep working.
        pathways: the summands, G's own (``"equivariant"``) first, then by size of the group.
        coinciding: subgroups left out because a larger one in the mixture has the same kernels and biases here.
        weights: coefficients of each summand by its name, each of shape ``(dimension,)``.
        bias: coefficients of all summands' biases, one after the other, or ``None``.
        alpha: architecture weights, shape ``(summands,)``, a parameter.
        norms: initial kernel norm of each summand, shape ``(summands,)``.
        log_precision, effective_dimension: set by an evidence, as in relaxed layers.
    """

    kernel: MixtureKernel
    mixture: Mixture

    _freedom = Mixture

    def _adopt(
        self, strict: EquivariantModule, freedom: Any, cutoff: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        with naming(type(self)):
            freedom.check()
        super()._adopt(strict, freedom, cutoff, dtype)
        if freedom.start == "independent":
            self._scatter()
        self.norms.copy_(self._norms())

    def _build(self, strict: EquivariantModule, freedom: Any) -> None:
        rule = mixed_groups(self.space, freedom.subgroups, self._reach())
        self.mixture = freedom
        fields = self._kernel_fields()
        with kernel_cache.announce(f"the kernels of {layer_name(type(self))}, {self.in_type} to {self.out_type}"):
            basis = mixture_basis(rule, self.band, *fields, strict.basisexpansion)
        groups = {p.name: subgroup(self.space, p.subgroup) for p in rule.residual}
        biases = mixture_biases(strict, groups)
        self.coinciding = coinciding(basis, biases, groups)
        self.pathways = tuple(p for p in rule.pathways if p.name not in self.coinciding)
        self.empty_pathways = tuple(p for p in rule.pathways if p.name in self.coinciding)
        if len(self.pathways) == 1:
            problem = f"between {self.in_type} and {self.out_type} these groups have the same kernels as G"
            raise NothingToRelaxError(type(self), problem, remedy="leave this layer as it is, or use a larger kernel")

        names = [p.name for p in self.pathways]
        basis = basis._replace(combinations={name: basis.combinations[name] for name in names})
        alpha = torch.tensor([0.0] + [-float(freedom.leaning)] * (len(names) - 1))
        self.kernel = MixtureKernel(*fields, basis, alpha, freedom.temperature).double()
        self.weights = nn.ParameterDict()
        vector = self.kernel.combine({EQUIVARIANT.name: strict.weights.detach().double().cpu()})
        for name in names:  # one by one, since a dictionary would be sorted
            self.weights[name] = nn.Parameter(
                self.kernel.read(name, vector), requires_grad=strict.weights.requires_grad
            )
        self.weights[EQUIVARIANT.name].data = strict.weights.detach().clone()
        self.bias = None
        if strict.bias is not None:
            value = biases[EQUIVARIANT.name] @ strict.bias.detach().double().cpu()
            coefficients = [strict.bias.detach().double().cpu(), *(biases[name].T @ value for name in names[1:])]
            self.bias = nn.Parameter(torch.cat(coefficients), requires_grad=strict.bias.requires_grad)
            self.bias_sizes = tuple(len(c) for c in coefficients)
            self.register_buffer("bias_basis", torch.cat([biases[name] for name in names], dim=1))
        self._begin_record(len(names))
        self.register_buffer("norms", torch.zeros(len(names)))

    def without(self, *names: str) -> MixedConvolution:
        r"""A copy without these summands. The shares of the others are renormalised: :math:`\pi` is a softmax.

        Raises:
            ArgumentError: a name that is no summand's, or all of them.

        >>> from escnn import gspaces
        >>> from escnn.nn import FieldType
        >>> from escnn_relax.nn import MixedR2Conv
        >>> space = gspaces.rot2dOnR2(4)
        >>> layer = MixedR2Conv(*2 * [FieldType(space, [space.regular_repr])], 3, subgroups=[2, 1])
        >>> layer.without("C2").shares
        {'equivariant': 0.5, 'trivial': 0.5}
        """
        known = [p.name for p in self.pathways]
        rest = [name for name in known if name not in names]
        if not rest or not set(names) <= set(known):
            remedy = "name those that are to go, and leave at least one"
            raise ArgumentError(
                type(self), expected=f"some, not all, of the summands {known}", got=list(names), remedy=remedy
            )
        reduced: MixedConvolution = select_summands(self, rest)
        return reduced

    def nearest(self, *names: str) -> MixedConvolution:
        """A copy with these summands only, whose kernel and bias are the closest to the whole mixture's that they can
        make.

        Where one group is named, they are the orthogonal projections on what this group leaves invariant. The larger
        groups of a mixture are contained in it, so that nothing of their summands is lost; :meth:`without` drops these.

        Raises:
            ArgumentError: a name that is no summand's, or none at all.

        >>> from escnn import gspaces
        >>> from escnn.nn import FieldType
        >>> from escnn_relax.nn import MixedR2Conv
        >>> space = gspaces.rot2dOnR2(4)
        >>> layer = MixedR2Conv(*2 * [FieldType(space, [space.regular_repr])], 3, subgroups=[2, 1])
        >>> layer.nearest("C2").shares
        {'C2': 1.0}
        """
        known = [p.name for p in self.pathways]
        if not names or not set(names) <= set(known):
            remedy = "name those that are to stay"
            raise ArgumentError(type(self), expected=f"some of the summands {known}", got=list(names), remedy=remedy)
        reduced: MixedConvolution = nearest_summands(self, [name for name in known if name in names])
        return reduced

    # --- filters ----------------------------------------------------------------------------------------------------

    @property
    def bias_expansion(self) -> Tensor:
        r"""The expansion of the biases, each summand's scaled by its share, shape ``(out channels, coefficients)``."""
        sizes = torch.tensor(self.bias_sizes, device=self.bias_basis.device)
        return self.bias_basis * self.kernel.shares.repeat_interleave(sizes)

    @property
    def breaking_energy(self) -> float:
        """Share of the whole kernel's energy outside the kernels that G keeps (fraction)."""
        with torch.no_grad():
            broken, total = self.kernel.breaking(dict(self.weights.items()))
        return relative(float(broken), float(total))

    def summand_parameters(self, name: str) -> tuple[Tensor, Tensor | None]:
        """Kernel and bias of one summand by itself, without its share, in the shapes of :meth:`expand_parameters`."""
        kernel, bias = self._as_filter(self.kernel.plain({name: self.weights[name]})), None
        if self.bias is not None:
            index = [p.name for p in self.pathways].index(name)
            bias = self.bias_basis.split(self.bias_sizes, 1)[index] @ self.bias.split(self.bias_sizes)[index]
        return kernel, bias

    @torch.no_grad()
    def normalise(self) -> MixedConvolution:
        """Rescale, in place, the filter of every summand to its initial norm; filters without a norm stay as they
        are."""
        for weight, now, initial in zip(self._summands(), self._norms(), self.norms):
            if now > 0 and initial > 0:
                weight.mul_(initial / now)
        return self

    def _summands(self) -> list[nn.Parameter]:
        return [self.weights[p.name] for p in self.pathways]

    @torch.no_grad()
    def _norms(self) -> Tensor:
        """The kernel norm of each summand: subgroups have orthonormal kernels, G has escnn's own."""
        norms = [self.weights[p.name].norm() for p in self.pathways]
        if EQUIVARIANT in self.pathways:
            equivariant = {EQUIVARIANT.name: self.weights[EQUIVARIANT.name]}
            norms[self.pathways.index(EQUIVARIANT)] = self.kernel.combine(equivariant).norm()
        return torch.stack(norms)

    @torch.no_grad()
    def _scatter(self) -> None:
        norm = self._norms()[0]
        for p in self.pathways[1:]:
            weight = self.weights[p.name].normal_()
            weight.mul_(norm / weight.norm())
