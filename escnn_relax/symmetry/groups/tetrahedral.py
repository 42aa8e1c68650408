"""The rotations of a tetrahedron as a group of escnn, which documents this group but does not have it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from escnn import group as g

from ... import _escnn

__all__ = ["Tetrahedral", "tetrahedral_group"]

ATOL = 1e-6


def is_even(matrix: np.ndarray[Any, Any]) -> bool:
    """Whether a rotation of the cube permutes the axes evenly: then it maps each of the two tetrahedra in it to
    itself."""
    return bool(np.linalg.det(np.abs(matrix)) > 0.5)


class Tetrahedral(g.Octahedral):
    """T, the 12 rotations of a tetrahedron on four corners of a cube with edges along the axes; made by
    :func:`tetrahedral_group`.

    Its real irreps are the trivial one ``(0,)``, ``(1,)`` by which space turns, both of real type, and ``(2,)`` of
    complex type and size 2.

    Of the subgroups it builds those that :class:`escnn.group.Octahedral` does, by the same ids.
    """

    def __init__(self) -> None:
        octahedral = g.octa_group()
        g.Group.__init__(self, "Tetrahedral", False, False)
        self._elements = [
            self.element(e.value, e.param) for e in octahedral.elements if is_even(np.asarray(e.to("MAT")))
        ]
        self._identity = self.element(octahedral.identity.value, octahedral.identity.param)
        third = next(e for e in self._elements if abs(np.trace(e.to("MAT"))) < ATOL)
        half = next(e for e in self._elements if abs(np.trace(e.to("MAT")) + 1) < ATOL)
        self._generators = [third, half]
        self.representations.update({psi.name: psi for psi in (self.irrep(l) for l in (0, 1, 2))})
        self.representations["regular"] = self.regular_representation

    def _is_element(self, element: Any, param: str = g.Octahedral.PARAM, verbose: bool = False) -> bool:
        if not super()._is_element(element, param, verbose):
            return False
        return is_even(np.asarray(self._change_param(element, param, "MAT")))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tetrahedral)

    __hash__ = None  # type: ignore[assignment]  # as escnn's groups are

    def sample(self, param: str = g.Octahedral.PARAM) -> g.GroupElement:
        return self._elements[np.random.randint(self.order())]

    @property
    def subgroup_trivial_id(self) -> Any:
        return (False, 1)

    @property
    def subgroup_self_id(self) -> Any:
        return "tetra"

    def _process_subgroup_id(self, id: Any) -> Any:
        id = super()._process_subgroup_id(id)
        if id[0] not in ("tetra", False) or id[0] is False and id[1] not in (1, 2, 3):
            raise ValueError(f"{self.name} has no subgroup {id}")
        return id

    def _subgroup(self, id: Any) -> Any:
        if id[0] == "tetra":
            return self, lambda e: e, lambda e: e
        return super()._subgroup(id)

    def irrep(self, l: int) -> g.IrreducibleRepresentation:
        """The irreps 0 (trivial), 1 (of size 3) and 2 (of size 2, complex type): those of the octahedral group
        restricted."""
        id = (int(l),)
        if id not in ((0,), (1,), (2,)):
            raise ValueError(f"the irreps of {self.name} are 0, 1 and 2, not {l}")
        if id not in self._irreps:
            wider = g.octa_group().irrep(id[0])
            self._irreps[id] = g.IrreducibleRepresentation(
                self,
                id,
                f"irrep_{l}",
                {e: wider(g.octa_group().element(e.value, e.param)) for e in self._elements},
                wider.size,
                "C" if l == 2 else "R",
                supported_nonlinearities=["pointwise", "norm", "gated", "gate"] if l == 0 else ["norm", "gated"],
            )
        return self._irreps[id]

    _instance: Tetrahedral | None = None

    @classmethod
    def _generator(cls) -> Tetrahedral:
        if cls._instance is None:
            cls._instance = cls()
        return cls._instance

    def __reduce__(self) -> tuple[Any, ...]:
        return tetrahedral_group, ()


@lru_cache(maxsize=1)
def tetrahedral_group() -> Tetrahedral:
    """The group T of order 12, one and the same object always.

    >>> group = tetrahedral_group()
    >>> group.order(), [psi.size for psi in group.irreps()], group.regular_representation.size
    (12, [1, 3, 2], 12)
    """
    _escnn.register_group(Tetrahedral)
    return Tetrahedral._generator()
