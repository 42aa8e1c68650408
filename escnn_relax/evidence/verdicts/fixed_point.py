"""Log precisions at a fixed point of MacKay's updates, and the log evidence on the way there."""

from __future__ import annotations

from collections.abc import Callable, Mapping

__all__ = ["climb"]

#: Fixed-point steps at most, and the change of a log evidence (nats) that ends them: no verdict hangs on a hundredth of
#: one.
STEPS, SETTLED = 50, 0.01

#: Of log precisions by name the log evidence (nats), and better ones.
Update = Callable[[Mapping[str, float]], tuple[float, dict[str, float]]]


def climb(at: Update, start: Mapping[str, float], bounds: tuple[float, float] | None) -> float:
    """The best log evidence on the way of the steps; without bounds that of the start.

    >>> climb(lambda logs: (1 - abs(logs["w"] - 1.0), {"w": 1.0}), {"w": 3.0}, (-5.0, 5.0))
    1.0
    """
    logs = dict(start)
    best, better = at(logs)
    if bounds is None:
        return float(best)
    last = best
    for _ in range(STEPS):
        logs = {name: min(max(value, bounds[0]), bounds[1]) for name, value in better.items()}
        nats, better = at(logs)
        best = max(best, nats)
        if abs(nats - last) < SETTLED:
            break
        last = nats
    return float(best)
