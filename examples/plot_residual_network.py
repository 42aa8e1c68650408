"""A residual network on three groups, from a strict checkpoint to an export
=========================================================================

Does a noisy image get lighter upwards or downwards? A residual network on D4 says the same of an image and of its
mirror image, so it answers by chance. From its checkpoint goes a network that keeps D4 in the first stage, C4 in the
second and C2 in the third, the same function at first. Relaxed, each stage may break what it has; hardened and
exported, plain layers are left. Half a minute on a core.

    python examples/plot_residual_network.py [--out examples/output]
"""

import torch
from networks import ResidualNet, bars, exported, folder

import escnn_relax


# %%
# Lighter upwards or downwards
# ----------------------------
# A ramp from top to bottom, or from bottom to top, under noise: mirrored, the answer is the other one.


def data(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    labels, ramp = torch.randint(2, (count,)), torch.linspace(-1, 1, 13).view(1, 1, 13, 1)
    return ramp * (2 * labels - 1).view(-1, 1, 1, 1) + 0.5 * torch.randn(count, 1, 13, 13), labels


# %%
# Three groups in one network
# ---------------------------
# ``restrict`` acts from a layer on, so the second stage gets C4 and the third C2, with the function unchanged;
# ``relax`` then frees each from what it has. The loop is an ordinary one.


def learn(steps: int = 20) -> dict:
    torch.manual_seed(0)
    checkpoint, (test, answers) = ResidualNet(width=1, classes=2).state_dict(), data(100)
    strict = ResidualNet(width=1, classes=2)
    strict.load_state_dict(checkpoint)
    graded = escnn_relax.restrict(strict, (None, 4), from_layer="stage2", example=test[:2])
    graded = escnn_relax.restrict(graded, (None, 2), from_layer="stage3", example=test[:2])
    relaxed = escnn_relax.relax(graded)
    with torch.no_grad():
        same = float((relaxed.eval()(test) - strict.eval()(test)).abs().max())
        mirrored = float((strict(test.flip(2)) - strict(test)).abs().max())

    optimiser = torch.optim.Adam(relaxed.train().parameters(), lr=0.01)
    for images, labels in (data(20) for _ in range(steps)):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(relaxed(images), labels).backward()
        optimiser.step()
    broken = {n: layer.breaking_energy for n, layer in relaxed.named_modules() if hasattr(layer, "breaking_energy")}
    final = escnn_relax.harden(relaxed.eval()).eval()
    with torch.no_grad():
        score = float((final(test).argmax(1) == answers).float().mean())
        export = float((exported(final, test[:2])(test) - final(test)).abs().max())
    return {"same": same, "mirrored": mirrored, "export": export, "score": score, "broken": broken}


# %%
# The claim
# ---------
# What was said above, as assertions: the script fails where one of them does not hold.


def check(result: dict) -> None:
    assert result["same"] < 1e-4 and result["export"] < 1e-4, (
        f"restricted and exported it is the same function: {result}"
    )
    assert result["mirrored"] < 1e-4 and result["score"] > 0.9, f"the answer needs up and down: {result}"


# %%
# Run it
# ------


def main() -> None:
    out, result = folder(__doc__), learn()
    bars(
        result["broken"],
        "share of the kernel that breaks its group",
        "D4, C4 and C2 stages",
        out / "residual_network.png",
    )
    check(result)


if __name__ == "__main__":
    main()
