"""The training loop of the layer-wise-equivariance paper, beside which ``escnn_relax.fit`` can be set.

Van der Ouderaa, Immer, van der Wilk, *Learning layer-wise equivariances automatically using gradients*, NeurIPS 2023:
stochastic gradient descent with momentum, and from the tenth epoch on, after every fifth, the exact curvature of all
the data and twenty steps of Adam on the log prior precisions.
"""

from __future__ import annotations

from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader

from escnn_relax import Evidence

BURN_IN, EVERY, HYPERSTEPS, RATE = 10, 5, 20, 0.1


def train_as_published(
    model: nn.Module, loader: DataLoader, evidence: Evidence, epochs: int, learns: bool = True
) -> None:
    """Train in place; without ``learns`` the precisions stay as they are, which is the paper's MAP."""
    descent = SGD(model.parameters(), lr=0.01, momentum=0.9)
    schedule = CosineAnnealingLR(descent, max(epochs, 1), eta_min=1e-6)
    for epoch in range(epochs):
        model.train()
        for x, y in loader:
            descent.zero_grad()
            evidence.loss(model(x), y).backward()
            descent.step()
        schedule.step()
        last = epoch == epochs - 1
        if learns and (last or epoch >= BURN_IN and (epoch - BURN_IN) % EVERY == 0):
            evidence.refresh(loader)
            evidence.step(HYPERSTEPS, method="gradient", rate=RATE)
