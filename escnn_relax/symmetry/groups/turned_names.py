"""Subgroups of SO(3) and O(3) about any axis: their ids, and the ids behind their printed names."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from escnn.group import Group, GroupElement, so3_group
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

__all__ = ["conjugate_id", "parse_name"]

UNITS = {"x": np.array([1.0, 0, 0]), "y": np.array([0, 1.0, 0]), "z": np.array([0, 0, 1.0])}

NUMBER = r"m?\d+(?:p\d+)?"
DIRECTION = rf"[xyz]|{NUMBER}_{NUMBER}_{NUMBER}"

#: A kind (C3, D4, C2v, ConeO2, Tetra, ...), its axis, the axis of its flips, and whether it has the inversion.
NAME = re.compile(
    rf"(?P<kind>(?:C|D|S|SO|O|ConeO)\d+[vhd]?|Mirror|Full[A-Z][a-z]+|Tetra|Octa|Ico)"
    rf"(?:_turned_(?P<turned>{NUMBER}_{NUMBER}_{NUMBER}))?"
    rf"(?:_(?P<axis>{DIRECTION})(?!deg))?(?:_(?P<degrees>{NUMBER})deg)?(?:_flip_(?P<flip>{DIRECTION}))?(?P<rest>xInv)?"
)


def conjugate_id(group: Group, id: Any, element: GroupElement) -> Any:
    """The id of A^-1 H A in SO(3) or O(3)."""
    if isinstance(id, tuple) and id[0] == "twisted":  # of subgroups of SO(3)
        turns = so3_group()
        turn = turns.element(element.value[1], element.param)
        return ("twisted", *(conjugate_id(turns, half, turn) for half in id[1:]))
    entries = id if isinstance(id, tuple) else (id,)
    return (*entries[:-1], entries[-1] @ element) if isinstance(entries[-1], GroupElement) else (*entries, element)


def parse_name(group: Group, name: str, standard: Iterable[tuple[str, Any]]) -> Any | None:
    """The id of the subgroup with this name, from the names and ids of those in escnn's position; ``None`` if there is
    none.

    The axes in a name are rounded to a hundredth of their largest coordinate.
    """
    target = NAME.fullmatch(name)
    if target is None:
        return None
    for standard_name, id in standard:
        candidate = NAME.fullmatch(standard_name)
        if candidate is None or (candidate["kind"], candidate["rest"]) != (target["kind"], target["rest"]):
            continue
        if target["turned"]:
            turn = Rotation.from_rotvec(_numbers(target["turned"]), degrees=True)
        else:
            turn = Rotation.from_matrix(_frame(target) @ _frame(candidate).T)
        quaternion = turn.inv().as_quat()
        element = group.element((0, quaternion) if type(group).__name__ == "O3" else quaternion, "Q")
        return conjugate_id(group, id, element)
    return None


def _numbers(text: str) -> NDArray[Any]:
    return np.array([float(number.replace("m", "-").replace("p", ".")) for number in text.split("_")])


def _direction(text: str | None) -> NDArray[Any]:
    name = text or "z"
    direction = UNITS[name] if name in UNITS else _numbers(name)
    return np.asarray(direction / np.linalg.norm(direction))


def _frame(name: re.Match[str]) -> NDArray[Any]:
    """Orthonormal columns: the axis of the flips, one across, the axis of the turns."""
    axis = _direction(name["axis"])
    flip = UNITS["x"]
    if name["flip"]:
        flip = _direction(name["flip"])
    elif abs(axis[2]) > 1 - 1e-9:
        mirrors = name["kind"].endswith("v")
        degrees = float(name["degrees"].replace("p", ".")) if name["degrees"] else 0.0
        angle = math.radians(degrees) - (math.pi / 2 if mirrors else 0)  # a mirror is named by a line in it
        flip = np.array([math.cos(angle), math.sin(angle), 0])
    if abs(flip @ axis) > 0.99:
        flip = UNITS["y"]
    flip = flip - (flip @ axis) * axis
    flip = flip / np.linalg.norm(flip)
    return np.stack([flip, np.cross(axis, flip), axis], axis=1)
