"""What a differentiable search found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ...deprecation import former_keyword
from .shares_history import SharesHistory

__all__ = ["GradientSearchResult"]


@dataclass(frozen=True)
class GradientSearchResult:
    """Returned by :func:`~escnn_relax.search.differentiate`.

    Attributes:
        model: the searched architecture: each mixed layer keeps its chosen summands and goes on training as such;
            :func:`escnn_relax.merge` makes plain layers of them.
        mixture: the mixed network at the end of the search.
        architecture: the groups that each layer keeps, by readable name.
        history: shares by layer and step.
        losses: loss of the mixture and of what discretising made of it, before any retraining (nats a sample; in
            evaluation mode, on the held-out data where there are some, else on the training data), ``None`` without
            discretising.

    >>> history = SharesHistory({}, (0,), {}, ())
    >>> result = GradientSearchResult(nn.Identity(), nn.Identity(), {"conv": "C2"}, history, (0.20, 0.23))
    >>> result.table().splitlines()[-1]
    'kept: C2; loss 0.2000 → 0.2300'
    """

    model: nn.Module
    mixture: nn.Module
    architecture: dict[str, str]
    history: SharesHistory
    losses: tuple[float, float] | None = None

    def table(self) -> str:
        """Shares at the start and at the end, what was kept, and what that cost."""
        return f"{self.history.table()}\n{self._end()}"

    def _end(self) -> str:
        groups = " → ".join(self.architecture.values())
        lost = "" if self.losses is None else "; loss {:.4f} → {:.4f}".format(*self.losses)
        return f"kept: {groups}{lost}"

    def _repr_html_(self) -> str:
        return self.history.to_html([self._end()])

    __str__ = table

    @former_keyword("axes", "ax")
    def plot(self, ax: Any = None) -> Any:
        """See :meth:`SharesHistory.plot`."""
        return self.history.plot(ax)
