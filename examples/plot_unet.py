"""A U-Net sees edges from left to right, from a strict checkpoint to an export
============================================================================

At each pixel: is it lighter than the one to its left? A C4 U-Net with transposed convolutions and skips cannot know
where left is; by the pixel's own brightness it is right at three quarters of them, at most. Relaxed, it is the same
network at first, loads the same checkpoint, learns the question in a training loop of one's own, and leaves as
TorchScript. Half a minute on a core.

    python examples/plot_unet.py [--out examples/output]
"""

import torch
from networks import UNet, bars, exported, folder

import escnn_relax


# %%
# An ordinary loop
# ----------------
# Cross entropy at each pixel; it serves the strict network and the relaxed one alike.


def train(model: torch.nn.Module, images: torch.Tensor, masks: torch.Tensor, steps: int) -> torch.nn.Module:
    optimiser = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(steps):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(images), masks).backward()
        optimiser.step()
    return model.eval()


# %%
# Relax, load, train, export
# --------------------------
# The relaxed U-Net loads the strict one's checkpoint, learns, and leaves as TorchScript with the same outputs.


def learn(steps: int = 25) -> dict:
    torch.manual_seed(0)
    images = torch.randn(16, 1, 16, 16)
    masks = (images > images.roll(1, -1)).long()[:, 0]
    train_set, test, answers = (images[:8], masks[:8]), images[8:], masks[8:]

    strict = UNet(width=1)
    relaxed = escnn_relax.relax(strict)
    relaxed.load_state_dict(strict.state_dict())  # as a checkpoint of it would be
    with torch.no_grad():
        same = float((relaxed.eval()(test) - strict.eval()(test)).abs().max())
    train(relaxed.train(), *train_set, steps)
    train(strict.train(), *train_set, steps)
    broken = {n: layer.breaking_energy for n, layer in relaxed.named_modules() if hasattr(layer, "breaking_energy")}
    final = escnn_relax.harden(relaxed).eval()
    with torch.no_grad():
        right = lambda model: float((model(test).argmax(1) == answers)[..., 1:-1, 1:-1].float().mean())
        export = float((exported(final, test[:2])(test) - final(test)).abs().max())
        return {"same": same, "export": export, "C4": right(strict), "relaxed": right(final), "broken": broken}


# %%
# The claim
# ---------
# What was said above, as assertions: the script fails where one of them does not hold.


def check(result: dict) -> None:
    assert result["same"] < 1e-4 and result["export"] < 1e-4, f"relaxed and exported it is the same function: {result}"
    assert result["C4"] < 0.76 and result["relaxed"] > 0.8, (
        f"the question breaks C4: {result['C4']}, {result['relaxed']}"
    )


# %%
# Run it
# ------


def main() -> None:
    out, result = folder(__doc__), learn()
    bars(result["broken"], "share of the kernel that breaks C4", "Left is lighter than right", out / "unet.png")
    check(result)


if __name__ == "__main__":
    main()
