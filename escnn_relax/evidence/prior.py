"""Which parameters share a prior precision, which precisions are fixed, and between which bounds the others move."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from ..errors import ArgumentError, CoverageError

__all__ = ["Prior", "Ties"]

#: Log precisions stay within these bounds: beyond them nothing changes but the rounding.
BOUNDS = (-12.0, 16.0)

#: How precisions may be tied: each parameter by itself, by layer, all together, or as a table or a function says.
Ties = str | Mapping[str, str] | Callable[[str], str]


@dataclass(frozen=True)
class Prior:
    """The groups of parameters that share one prior precision.

    Attributes:
        groups: the parameters of each group.
        fixed: groups whose precision does not move.
        bounds: least and largest log precision.
    """

    groups: dict[str, tuple[str, ...]]
    fixed: frozenset[str] = field(default_factory=frozenset)
    bounds: tuple[float, float] = BOUNDS

    @classmethod
    def grouped(
        cls, names: Iterable[str], ties: Ties, fixed: Iterable[str] = (), bounds: tuple[float, float] = BOUNDS
    ) -> Prior:
        """Group parameters by name.

        Args:
            ties: ``"parameter"`` (each pathway, weight and bias by itself), ``"layer"``, ``"model"``, or a mapping or
                function from a parameter's name to its group's; names that a mapping leaves out stand alone.
            fixed: names of parameters or groups.

        Raises:
            ArgumentError: unknown ``ties``, or bounds in the wrong order.
            CoverageError: a fixed name that is neither a parameter nor a group.

        >>> Prior.grouped(["a.weights.equivariant", "a.bias", "b.weight"], "layer").groups
        {'a': ('a.weights.equivariant', 'a.bias'), 'b': ('b.weight',)}
        """
        if not bounds[0] < bounds[1]:
            remedy = "leave it out for the default"
            raise ArgumentError("bounds", expected="(least, largest) log precision", got=bounds, remedy=remedy)
        groups: dict[str, list[str]] = {}
        for name in names:
            groups.setdefault(_group(name, ties), []).append(name)
        unmoved = set()
        for name in fixed:
            meant = {g for g, members in groups.items() if name == g or name in members}
            if not meant:
                raise CoverageError("fixed", f"no parameter or group {name!r}", remedy=f"it has {', '.join(groups)}")
            unmoved |= meant
        return cls({g: tuple(members) for g, members in groups.items()}, frozenset(unmoved), bounds)

    def start(self, initial: Mapping[str, float], fixed: Mapping[str, float]) -> dict[str, float]:
        """Initial log precisions: as wanted, within the bounds; those tied like the first of them, those fixed at their
        value.

        ``ArgumentError`` for values that make no sense, or contradict each other.
        """
        for name, value in {**initial, **fixed}.items():
            if not abs(value) <= 100:
                remedy = "pass the logarithm of a precision, 0 for a prior of variance 1"
                raise ArgumentError(name, expected="a log precision between -100 and 100", got=value, remedy=remedy)
        starts = {}
        for group, members in self.groups.items():
            values = [value for name, value in fixed.items() if name == group or name in members]
            if len(set(values)) > 1:
                remedy = "give all its members one value, or tie fewer of them"
                raise ArgumentError(
                    "fixed", expected=f"one log precision for {group!r}", got=sorted(set(values)), remedy=remedy
                )
            starts.update(dict.fromkeys(members, values[0] if values else self.clip(initial[members[0]])))
        return {name: float(starts[name]) for name in initial}

    def with_fixed(self, names: Iterable[str]) -> Prior:
        """The same, where the groups of these parameters do not move either.

        >>> Prior.grouped(["a.weight", "a.bias"], "parameter").with_fixed(["a.bias"]).fixed
        frozenset({'a.bias'})
        """
        more = set(names)
        groups = {group for group, members in self.groups.items() if not more.isdisjoint(members)}
        return replace(self, fixed=self.fixed | groups)

    def clip(self, log_precision: float) -> float:
        """Back within the bounds."""
        return min(max(log_precision, self.bounds[0]), self.bounds[1])


def _group(name: str, ties: Ties) -> str:
    if callable(ties):
        return ties(name)
    if isinstance(ties, Mapping):
        return ties.get(name, name)
    layer = name.partition(".weights.")[0] if ".weights." in name else name.rpartition(".")[0]
    known = {"parameter": name, "layer": layer or name, "model": "model"}
    if ties not in known:
        remedy = "leave it out for a precision of each parameter"
        raise ArgumentError(
            "ties", expected=f"one of {sorted(known)}, a mapping or a function", got=repr(ties), remedy=remedy
        )
    return known[ties]
