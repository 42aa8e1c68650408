"""Readable names of subgroups, fit to be names of parameters: no dots, no spaces.

In the plane C4, D2_45deg (its reflection axis, degrees from the x axis), D1_90deg; in space C4_x (turns about x),
D3_1_1_1, Octa, FullOcta (with the inversion), C4v (with mirrors), D4xInv, Inv, Mirror, and after Schoenflies S4, C3h,
D2d, D3h; Tetra, TetraxInv and FullTetra (with mirrors). A platonic group in another position than escnn's is followed
by the turn that takes it there (axis times degrees).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from escnn import group as g
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from .finite_groups import group_elements, group_order

__all__ = ["natural_action", "subgroup_name"]

SOLIDS = {"Tetrahedral": "Tetra", "Octahedral": "Octa", "Icosahedral": "Ico"}
WHOLE = {"SO2": "SO2", "O2": "O2", "SO3": "SO3", "O3": "O3", **SOLIDS}


def subgroup_name(subgroup: g.Group, id: object, whole: g.Group, action: Callable[..., Any] | None) -> str:
    """The name of H in G.

    Args:
        subgroup: H.
        id: its id in G.
        whole: G.
        action: element of H -> orthogonal matrix on the base space, or on the space that G is made of; None without
            one.
    """
    if group_order(subgroup) == 1:
        return "trivial"
    if action is None:
        return _abstract(subgroup, id, whole)
    size = action(subgroup.identity).shape[0]
    if size == 2:
        return _planar(subgroup, whole, action)
    if size == 3:
        return _spatial(subgroup, action)
    return _abstract(subgroup, id, whole)


def natural_action(group: g.Group) -> Callable[[g.GroupElement], NDArray[Any]] | None:
    """How groups of turns and reflections of space move it, whatever space they act on; None for other groups."""
    kind = type(group).__name__
    if kind in SOLIDS or kind == "SO3":
        return lambda e: np.asarray(e.to("MAT"), dtype=np.float64)
    if kind == "O3":
        return lambda e: np.asarray(e.to("MAT")[1], dtype=np.float64) * (-1.0) ** e.value[0]
    if isinstance(group, g.DirectProductGroup) and type(group.G2).__name__ in SOLIDS and group_order(group.G1) == 2:
        turn: Any = natural_action(group.G2)
        minus = group.G1.element(1)

        def action(e: g.GroupElement) -> NDArray[Any]:
            inversion, rotation = group.split_element(e)
            matrix: NDArray[Any] = turn(rotation) * (-1.0 if inversion == minus else 1.0)
            return matrix

        return action
    return None


def _number(x: float) -> str:
    x = round(float(x), 2) + 0.0
    text = str(int(x)) if x == int(x) else f"{x:g}"
    return text.replace("-", "m").replace(".", "p")


def _degrees(radians: float, turns: int) -> str:
    """An axis in the plane, up to the ``turns`` rotations and the axis' own half turn."""
    period = 180 / turns if turns > 0 else 180
    degrees = math.degrees(radians) % period
    return _number(0.0 if period - degrees < 1e-3 else degrees)


def _plain(group: g.Group) -> str:
    """C4, D4, SO2, ...: the abstract group."""
    kind = type(group).__name__
    if kind == "CyclicGroup":
        return f"C{group_order(group)}"
    if kind == "DihedralGroup":
        return f"D{group_order(group) // 2}"
    if isinstance(group, g.DirectProductGroup):
        return f"{_plain(group.G1)}x{_plain(group.G2)}"
    return WHOLE.get(kind, kind)


def _turns(group: g.Group) -> int:
    """The number of rotations in a planar group, -1 for all of them."""
    return group_order(group) // 2 if group_order(group) > 0 else -1


def _abstract(subgroup: g.Group, id: object, whole: g.Group) -> str:
    kind = type(whole).__name__
    if kind in ("DihedralGroup", "O2") and isinstance(id, tuple) and id[0] is not None and id[1] != -1:
        if id[1] * 2 == group_order(whole):
            return f"D{id[1]}"
        angle = math.pi * id[0] / (group_order(whole) // 2) if kind == "DihedralGroup" else id[0] / 2
        return f"D{id[1]}_{_degrees(angle, id[1])}deg"
    if (
        isinstance(whole, g.DirectProductGroup)
        and isinstance(id, tuple)
        and group_order(subgroup) != group_order(whole)
    ):
        first, _, _ = whole.G1.subgroup(id[0])
        if group_order(first) == 1:
            return f"right_{_plain(subgroup)}"
        if group_order(subgroup) == group_order(first):
            return f"left_{_plain(subgroup)}"
    return _plain(subgroup)


def _planar(subgroup: g.Group, whole: g.Group, action: Callable[..., Any]) -> str:
    elements = list(group_elements(subgroup)) if group_order(subgroup) > 0 else list(subgroup.testing_elements())
    flips = [m for m in map(action, elements) if np.linalg.det(m) < 0]
    if not flips or type(subgroup).__name__ == "O2":
        return _plain(subgroup)
    turns = _turns(subgroup)
    if group_order(subgroup) == group_order(whole) and turns > 1:
        return f"D{turns}"
    axis = math.atan2(flips[0][1, 0], flips[0][0, 0]) / 2
    return f"D{turns}_{_degrees(axis, turns)}deg"


def _direction(axis: NDArray[Any]) -> str:
    """z (no suffix), _x, _y, or the coordinates over the largest, sign chosen so that the last nonzero is positive."""
    axis = axis / np.abs(axis).max()
    last = axis[np.nonzero(np.abs(axis) > 1e-4)[0][-1]]
    axis = axis * np.sign(last)
    for unit, label in zip(np.eye(3), ("_x", "_y", "")):
        if np.allclose(axis, unit, atol=1e-4):
            return label
    return "_" + "_".join(_number(a) for a in axis)


def _fixed_axis(matrix: NDArray[Any]) -> NDArray[Any]:
    """The axis of a rotation (or of the rotation times the inversion)."""
    turn = matrix * np.sign(np.linalg.det(matrix))
    values, vectors = np.linalg.eig(turn)
    return np.real(vectors[:, np.argmin(np.abs(values - 1))])


def _spatial(subgroup: g.Group, action: Callable[..., Any]) -> str:
    if isinstance(subgroup, g.DirectProductGroup):
        rest = subgroup.G2
        if type(rest).__name__ in ("Octahedral", "Icosahedral"):
            return "Full" + WHOLE[type(rest).__name__] + _position(rest, lambda h: action(subgroup.inclusion2(h)))
        return _spatial(rest, lambda h: action(subgroup.inclusion2(h))) + "xInv"
    kind = type(subgroup).__name__
    if kind in ("SO3", "O3"):
        return WHOLE[kind]
    if kind in SOLIDS:
        mirrors = any(np.linalg.det(action(h)) < 0 for h in group_elements(subgroup))
        return ("FullTetra" if mirrors else SOLIDS[kind]) + _position(subgroup, action)
    if kind in ("CyclicGroup", "SO2"):
        turn = action(subgroup.element(1) if kind == "CyclicGroup" else subgroup.element(1.0))
        if np.linalg.det(turn) < 0:
            order = group_order(subgroup)
            if order == 2:
                return "Inv" if np.trace(turn) < -2.5 else "Mirror" + _direction(_fixed_axis(turn))
            return (f"S{order}" if order % 4 == 0 else f"C{order // 2}h") + _direction(_fixed_axis(turn))
        return _plain(subgroup) + _direction(_fixed_axis(turn))
    turn = action(subgroup.element((0, 1) if kind == "DihedralGroup" else (0, 1.0)))
    flip = action(subgroup.element((1, 0) if kind == "DihedralGroup" else (1, 0.0)))
    turns = _turns(subgroup)
    twisted = np.linalg.det(turn) < 0
    if twisted and np.linalg.det(flip) < 0:
        flip = turn @ flip  # of these groups the half turns are named, not the mirrors between
    primary, secondary = _direction(_fixed_axis(turn)), _fixed_axis(flip)
    mirrors = np.linalg.det(flip) < 0
    if turns == -1:
        return ("ConeO2" if mirrors else "O2") + primary
    if primary == "":
        # for mirrors name the line in the mirror plane, for half turns their axis
        angle = math.atan2(secondary[1], secondary[0]) + (math.pi / 2 if mirrors else 0)
        degrees = _degrees(angle, turns // 2 if twisted else turns)
        primary = "" if degrees == "0" else f"_{degrees}deg"
    else:
        direction = _direction(secondary)
        primary += f"_flip{direction or '_z'}"
    if twisted:
        return f"D{turns // 2}{'d' if turns % 4 == 0 else 'h'}{primary}"
    return (f"C{turns}v" if mirrors else f"D{turns}") + primary


def _position(solid: g.Group, action: Callable[..., Any]) -> str:
    """The least turn that takes the solid from escnn's position to its own, nothing for none."""
    images = [(np.asarray(h.to("MAT")), action(h)) for h in group_elements(solid)]
    rotations = [(standard, image * np.sign(np.linalg.det(image))) for standard, image in images]
    rows = [np.kron(image, np.eye(3)) - np.kron(np.eye(3), standard.T) for standard, image in rotations]
    _, values, vectors = np.linalg.svd(np.concatenate(rows))
    turn = vectors[-1].reshape(3, 3)
    turn = turn / np.cbrt(np.linalg.det(turn))
    # the solid is the same after its own turns, and a tetrahedron after those of the cube around it
    around = g.octa_group() if type(solid).__name__ == "Tetrahedral" else solid
    vectors = [
        Rotation.from_matrix(turn @ np.asarray(h.to("MAT"))).as_rotvec(degrees=True) for h in group_elements(around)
    ]
    least = min(float(np.linalg.norm(v)) for v in vectors)
    if least < 5e-3:
        return ""
    nearest = [v for v in vectors if np.linalg.norm(v) < least + 1e-3]
    vector = max(nearest, key=lambda v: tuple(np.round(v[::-1], 3)))
    return "_turned_" + "_".join(_number(v) for v in vector)
