"""G-spaces, representations and field types of G seen by a subgroup H, with one embedding H -> G for all of them.

escnn's own ``gspace.restrict`` fails for the octahedral, icosahedral and several axial groups; here the G-space of H is
found from the matrices by which H moves points, or made of them where escnn has none
(:mod:`escnn_relax.symmetry.groups.embedded_space`), and representations are decomposed numerically, so that every
representation of G keeps its channels and their order.

For a group that escnn adds: its ids in :mod:`~escnn_relax.symmetry.groups.subgroup_ids`, their embeddings in
:mod:`~escnn_relax.symmetry.groups.subgroup_embedding`, the list of its subgroups in
:mod:`~escnn_relax.symmetry.groups.subgroup_list`, their names in :mod:`~escnn_relax.symmetry.groups.subgroup_names`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from escnn import group as g
from escnn import gspaces
from escnn.nn import FieldType
from numpy.typing import NDArray

from ...errors import FieldTypeError, SubgroupError
from .decomposition import decompose, generating_elements
from .embedded_space import EmbeddedGSpace
from .finite_groups import group_elements
from .subgroup import Subgroup

__all__ = ["Restriction", "restriction"]

#: Agreement of the base-space actions of H, as a subgroup of G and as the symmetry of its own G-space.
ACTION_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Restriction:
    """What is needed to look at G-equivariant things as H-equivariant ones; made by :func:`restriction`.

    Attributes:
        subgroup: H in G.
        gspace: the G-space of H, acting on the same points.
    """

    subgroup: Subgroup
    gspace: gspaces.GSpace
    _representations: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def embed(self, element: g.GroupElement) -> g.GroupElement:
        """An element of ``self.gspace.fibergroup`` as an element of G."""
        group = self.subgroup.group
        return self.subgroup.embed(element if element.group is group else group.element(element.value, element.param))

    def representation(self, representation: g.Representation) -> g.Representation:
        """The representation restricted to H: the same matrices, known to be one of H.

        Raises:
            FieldTypeError: it is no representation of G.
        """
        if representation.group != self.subgroup.gspace.fibergroup:
            raise FieldTypeError(
                representation.name,
                expected=f"a representation of {self.subgroup.gspace.fibergroup.name}",
                got=f"one of {representation.group.name}",
                remedy="restrict representations of the group that the subgroup is of",
            )
        entry = self._representations.get(representation.name)
        if entry is None or entry[0] is not representation:
            entry = representation, self._restrict(representation)
            self._representations[representation.name] = entry
        return entry[1]

    def _restrict(self, representation: g.Representation) -> g.Representation:
        group = self.gspace.fibergroup
        # by name: other representations may be trivial too, and fields that differ must keep different blocks
        if representation.name == representation.group.trivial_representation.name:
            return group.trivial_representation
        ids, change = decompose(group, lambda h: representation(self.embed(h)))
        whole = representation.group.name
        return g.Representation(
            group,
            f"{whole}:{representation.name}|{self.subgroup.name}",
            ids,
            change,
            set(representation.supported_nonlinearities),
            change_of_basis_inv=np.linalg.inv(change),
        )

    def field_type(self, type: FieldType) -> FieldType:
        """The field type with every representation restricted."""
        if type.gspace.fibergroup != self.subgroup.gspace.fibergroup:
            remedy = "make the field type on the subgroup's own G-space"
            raise FieldTypeError(expected=f"a field type of {self.subgroup.gspace}", got=str(type), remedy=remedy)
        return FieldType(self.gspace, [self.representation(r) for r in type.representations])


_RESTRICTIONS: list[Restriction] = []


def restriction(subgroup: Subgroup) -> Restriction:
    """The restriction to H; the same object for the same subgroup, since escnn keeps kernel bases on the G-space.

    Raises:
        SubgroupError: no G-space of escnn has this symmetry.

    >>> from escnn import gspaces
    >>> from escnn_relax.symmetry.groups.lattice import subgroup
    >>> space = gspaces.octaOnR3()
    >>> to_turns = restriction(subgroup(space, (False, 3)))
    >>> to_turns.gspace.fibergroup.name, to_turns.representation(space.regular_repr).size
    ('C3', 24)
    """
    for entry in _RESTRICTIONS:
        if entry.subgroup.gspace is subgroup.gspace and entry.subgroup.id == subgroup.id:
            return entry
    for entry in _RESTRICTIONS:
        if entry.subgroup == subgroup:
            result = Restriction(subgroup, entry.gspace, entry._representations)
            break
    else:
        result = Restriction(subgroup, _gspace(subgroup))
    _RESTRICTIONS.append(result)
    return result


def _gspace(subgroup: Subgroup) -> gspaces.GSpace:
    whole, group = subgroup.gspace, subgroup.group
    if isinstance(whole, gspaces.GSpace0D):
        return gspaces.no_base_space(group)
    if group == whole.fibergroup and all(h == subgroup.embed(h) for h in generating_elements(group)):
        return whole
    action: Any = lambda h: np.asarray(whole.basespace_action(subgroup.embed(h)), dtype=np.float64)
    frequency = getattr(whole.fibergroup, "_maximum_frequency", None)
    options = {} if frequency is None or group.order() > 0 else {"maximum_frequency": frequency}
    if whole.dimensionality == 2:
        space = gspaces.GSpace2D(_planar_id(group, action), **options)
        if _agree(space, group, action):
            return space
    elif whole.dimensionality == 3:
        for id in _spatial_ids(group):
            adjoint = _conjugation(gspaces.GSpace3D(id, **options), group, action)
            if adjoint is None:
                continue
            space = gspaces.GSpace3D(id if adjoint is True else (*id, adjoint), **options)
            if _agree(space, group, action):
                return space
        if group.order() > 0:
            matrices = np.stack([action(h) for h in group_elements(group)])
            return EmbeddedGSpace(group, matrices, subgroup.name)
    remedy = "choose a larger subgroup, or one in standard position"
    raise SubgroupError(subgroup.name, f"escnn has no G-space for {subgroup} of {whole}", remedy=remedy)


def _action_matrix(space: gspaces.GSpace, h: g.GroupElement) -> NDArray[Any]:
    group = space.fibergroup
    return np.asarray(space.basespace_action(group.element(h.value, h.param)), dtype=np.float64)


def _agree(space: gspaces.GSpace, group: g.Group, action: Callable[..., Any]) -> bool:
    return space.fibergroup == group and all(
        np.abs(_action_matrix(space, h) - action(h)).max() < ACTION_TOLERANCE for h in generating_elements(group)
    )


def _planar_id(group: g.Group, action: Callable[..., Any]) -> tuple[Any, ...]:
    """The id in O(2): number of turns and, for reflections, the angle of the first one."""
    kind = type(group).__name__
    turns = {"DihedralGroup": group.order() // 2, "CyclicGroup": group.order()}.get(kind, -1)
    if kind == "SO2":
        return None, -1
    flip = group.element((1, 0)) if kind == "DihedralGroup" else group.element((1, 0.0)) if kind == "O2" else None
    if kind == "CyclicGroup" and group.order() == 2 and np.linalg.det(action(group.element(1))) < 0:
        flip, turns = group.element(1), 1
    if flip is None:
        return None, turns
    matrix = action(flip)
    angle = math.atan2(matrix[1, 0], matrix[0, 0]) % (2 * math.pi)
    steps = angle / math.pi * 360
    if abs(steps - round(steps)) < 1e-6:  # so that equal axes give equal ids, whatever the rounding
        angle = (round(steps) % 720) / 360 * math.pi
    return angle, turns


def _spatial_ids(group: g.Group) -> list[Any]:
    """Ids in O(3) of the subgroups isomorphic to ``group``, up to conjugation."""
    kind, order = type(group).__name__, group.order()
    if kind == "CyclicGroup":
        return [(False, False, order)] + ([(True, False, 1), ("cone", 1)] if order == 2 else [])
    if kind == "DihedralGroup":
        return [(False, True, order // 2), ("cone", order // 2)]
    if isinstance(group, g.DirectProductGroup):
        rest = type(group.G2).__name__
        turns = {"CyclicGroup": group.G2.order(), "DihedralGroup": group.G2.order() // 2}.get(rest, -1)
        if rest == "Tetrahedral":
            return []
        solids: dict[str, tuple[Any, ...]] = {
            "Octahedral": (True, "octa"),
            "Icosahedral": (True, "ico"),
            "SO3": ("o3",),
        }
        return [solids.get(rest, (True, rest in ("DihedralGroup", "O2"), turns))]
    if kind == "Tetrahedral":
        return []
    standard_ids: dict[str, Any] = {
        "Octahedral": (False, "octa"),
        "Icosahedral": (False, "ico"),
        "SO3": ("so3",),
        "O3": ("o3",),
    }
    smooth: dict[str, list[Any]] = {"SO2": [(False, False, -1)], "O2": [(False, True, -1), ("cone", -1)]}
    return smooth.get(kind, [standard_ids.get(kind)])


def _conjugation(space: gspaces.GSpace, group: g.Group, action: Callable[..., Any]) -> g.GroupElement | bool | None:
    """The element A of O(3) with action(h) = A^-1 space(h) A for all h; True for the identity, None without one."""
    if space.fibergroup != group:
        return None
    pairs = [(_action_matrix(space, h), action(h)) for h in generating_elements(group)]
    if all(np.abs(a - b).max() < ACTION_TOLERANCE for a, b in pairs):
        return True
    rows = [np.kron(a, np.eye(3)) - np.kron(np.eye(3), b.T) for a, b in pairs]
    _, values, vectors = np.linalg.svd(np.concatenate(rows))
    solutions = vectors[values < ACTION_TOLERANCE]
    # near the identity if possible; the further starts are fixed and arbitrary
    for start in (
        np.eye(3),
        np.random.default_rng(0).normal(size=(3, 3)),
        np.random.default_rng(1).normal(size=(3, 3)),
    ):
        candidate = np.einsum("ki,kj,j->i", solutions, solutions, start.ravel()).reshape(3, 3)
        U, sizes, Vt = np.linalg.svd(candidate)
        if sizes[-1] > 1e-3 * max(sizes[0], 1e-12):
            rotation = U @ Vt  # the polar factor of an intertwiner of orthogonal actions intertwines them
            rotation = rotation * np.sign(np.linalg.det(rotation))
            return g.o3_group().element((0, rotation), "MAT")
    return None
