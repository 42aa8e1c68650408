"""Three loops, one result: fit, a loop of your own, and Lightning's hooks
=======================================================================

``escnn_relax.fit`` is a convenience. All it does is done by an ``Evidence`` beside the model: ``loss`` adds the penalty
of the prior to the loss of a batch, ``refresh`` looks at the curvature, ``step`` moves the precisions. So it fits into
any framework whose loop has a hook at the end of an epoch. Of Lightning's, ``training_step`` returns
``evidence.loss(...)``, ``on_train_epoch_end`` refreshes and steps, and ``on_save_checkpoint`` and
``on_load_checkpoint`` carry ``evidence.state_dict()``; other frameworks call them otherwise. The class below has that
shape but needs no Lightning: eight lines stand in for its trainer. All three loops end with the same weights and
precisions, to the last bit. About 20 seconds on a core.

    python examples/plot_training_loops.py [--out examples/output] [--epochs 12]
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from digits import DigitNet, task
from torch import Tensor, nn

import escnn_relax

FIRST, EVERY, ADAM = 4, 2, partial(torch.optim.Adam, lr=5e-3)
SAMPLED = escnn_relax.CurvatureSettings(samples=1)


# %%
# By fit
# ------
# The loop that comes with the package.


def by_fit(model: nn.Module, loader, evidence_loader, epochs: int):
    """The evidence and the penalised loss of each epoch."""
    evidence = escnn_relax.Evidence(model, num_data=len(loader.dataset), curvature=SAMPLED)
    options = {"burn_in": FIRST, "refresh_every": EVERY, "share": 1.0, "progress": False, "evidence": evidence}
    options |= {"optimizer": ADAM, "scheduler": partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0)}
    history = escnn_relax.fit(model, loader, epochs=epochs, evidence_loader=evidence_loader, **options)
    return evidence, history.losses


# %%
# By hand
# -------
# The same in a loop of one's own: an ``Evidence`` beside the model adds its penalty to the loss, and looks at the
# curvature now and then.


def by_hand(model: nn.Module, loader, evidence_loader, epochs: int):
    """In a loop of one's own."""
    evidence = escnn_relax.Evidence(model, num_data=len(loader.dataset), curvature=SAMPLED)
    optimiser, losses = ADAM(model.parameters()), []
    for epoch in range(epochs):
        total = 0.0
        for x, y in loader:
            loss = evidence.loss(model(x), y)  # or cross_entropy(model(x), y) + evidence.penalty()
            optimiser.zero_grad(), loss.backward(), optimiser.step()
            total += float(loss.detach()) * len(y)
        losses.append(total / len(loader.dataset))
        if epoch >= FIRST and (epoch - FIRST) % EVERY == 0:
            evidence.refresh(evidence_loader)
            evidence.step(6)
    evidence.refresh(evidence_loader), evidence.learned and evidence.step(6)  # at the trained weights, for the report
    return evidence, losses


# %%
# By hooks
# --------
# In the shape of a ``LightningModule``. What it holds for the evidence goes into checkpoints with it.


class RelaxedModule(nn.Module):
    """In the shape of a ``LightningModule``; with Lightning installed, let it inherit from that instead."""

    current_epoch = 0

    def __init__(self, model: nn.Module, num_data: int, evidence_loader) -> None:
        super().__init__()
        self.model, self.evidence_loader = model, evidence_loader
        self.evidence = escnn_relax.Evidence(model, num_data=num_data, curvature=SAMPLED)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return self.evidence.loss(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return ADAM(self.model.parameters())

    def on_train_epoch_end(self) -> None:
        if self.current_epoch >= FIRST and (self.current_epoch - FIRST) % EVERY == 0:
            self.evidence.refresh(self.evidence_loader)
            self.evidence.step(6)

    def on_train_end(self) -> None:
        self.evidence.refresh(self.evidence_loader), self.evidence.learned and self.evidence.step(6)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["evidence"] = self.evidence.state_dict()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.evidence.load_state_dict(checkpoint["evidence"])


# %%
# A trainer for it
# ----------------
# Eight lines that call the hooks in the order in which Lightning does.


def by_hooks(model: nn.Module, loader, evidence_loader, epochs: int):
    """A trainer that knows nothing of the evidence."""
    module, losses = RelaxedModule(model, len(loader.dataset), evidence_loader), []
    optimiser = module.configure_optimizers()
    for module.current_epoch in range(epochs):
        total = 0.0
        for index, batch in enumerate(loader):
            loss = module.training_step(batch, index)
            optimiser.zero_grad(), loss.backward(), optimiser.step()
            total += float(loss.detach()) * len(batch[1])
        losses.append(total / len(loader.dataset))
        module.on_train_epoch_end()
    module.on_train_end()
    return module.evidence, losses


# %%
# The claim
# ---------
# What was said above, as assertions: the script fails where one of them does not hold.


def check(results: dict) -> None:
    """The claims; AssertionError with the first that does not hold."""
    (first, losses), *others = results.values()
    assert losses[-1] < 0.7 * losses[0], f"the network learns: {losses}"
    moved = max(abs(now - 3.0) for name, now in first.log_precision.items() if "irrep" in name)
    assert moved > 0.1, "the precisions move"
    for evidence, own in others:
        assert own == losses, "the losses are the same"
        assert evidence.log_precision == first.log_precision, "so are the precisions"
        pairs = zip(first.model.parameters(), evidence.model.parameters())
        assert all(torch.equal(a, b) for a, b in pairs), "and the weights, to the last bit"


# %%
# The figure
# ----------
# Three losses, one on top of the other.


def draw(results: dict, path: Path) -> None:
    """Losses of the three, one on top of the other."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
    looks = (("#BBBBBB", "-", 9), ("#0072B2", "--", 4), ("#000000", ":", 1.5))
    for (name, (_, losses)), (colour, style, width) in zip(results.items(), looks):
        axes.plot(range(1, len(losses) + 1), losses, style, color=colour, linewidth=width, label=name)
    axes.set(xlabel="epoch", ylabel="penalised loss (nats a digit)")
    axes.set_title("Three loops, one result: equal to the last bit")
    axes.legend()
    figure.savefig(path, dpi=110)


# %%
# Run it
# ------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("examples/output"))
    parser.add_argument("--epochs", type=int, default=12)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    results = {}
    for name, loop in {"fit(model, loader)": by_fit, "own loop": by_hand, "Lightning's hooks": by_hooks}.items():
        torch.manual_seed(0)
        data = task("upright", 0)
        model = escnn_relax.relax(DigitNet(data.classes, fields=3))
        evidence, losses = results[name] = loop(model, data.loader(), data.evidence_loader(), given.epochs)
        print(f"{name}: last loss {losses[-1]:.4f}, log evidence {evidence.terms().total:.2f} nats", flush=True)
    draw(results, given.out / "training_loops.png")
    check(results)


if __name__ == "__main__":
    main()
