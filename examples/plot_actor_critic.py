"""An actor and a critic that learn where up is, from a strict checkpoint to an export
===================================================================================

One network sees an image and a velocity, and has two heads: a policy over the four directions and a value. It pays to
go up, wherever one looks, and the value is the velocity upwards: an equivariant network can know neither. Relaxed from
its checkpoint, two heads and vector inputs included, it learns both, says which layers broke C4, and leaves as
TorchScript. Twenty seconds on a core.

    python examples/plot_actor_critic.py [--out examples/output]
"""

import torch
from networks import ActorCritic, bars, exported, folder

import escnn_relax


# %%
# A policy gradient in ten lines
# ------------------------------
# The return is the velocity upwards, and going up pays a bonus. The loss knows nothing of symmetry.


def train(model: torch.nn.Module, steps: int) -> tuple[float, float]:  # P(up), what the critic misses of the variance
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(steps):
        images, velocities = torch.randn(16, 1, 7, 7), torch.randn(16, 2)
        (policy, value), returns = model(images, velocities), velocities[:, 1:]
        actions = torch.distributions.Categorical(logits=policy.detach()).sample()
        chosen = torch.log_softmax(policy, 1).gather(1, actions[:, None])[:, 0]
        optimiser.zero_grad()
        ((returns - value).square().mean() - ((actions.eq(0).float() - 0.25) * chosen).mean()).backward()
        optimiser.step()
    images, velocities = torch.randn(64, 1, 7, 7), torch.randn(64, 2)
    with torch.no_grad():
        (policy, value), returns = model.eval()(images, velocities), velocities[:, 1:]
    return float(policy.softmax(1)[:, 0].mean()), float((returns - value).square().mean() / returns.var())


# %%
# From a checkpoint to an export
# ------------------------------
# The relaxed network takes the strict one's ``state_dict`` as it is. After training, ``harden`` and TorchScript leave
# plain layers.


def learn(steps: int = 60) -> dict:
    torch.manual_seed(0)
    strict = ActorCritic(width=2)
    relaxed = escnn_relax.relax(strict)
    relaxed.load_state_dict(strict.state_dict())  # as a checkpoint of it would be
    result = {"relaxed": train(relaxed, steps), "C4": train(strict, steps)}
    broken = {n: layer.breaking_energy for n, layer in relaxed.named_modules() if hasattr(layer, "breaking_energy")}
    final, images, velocities = escnn_relax.harden(relaxed).eval(), torch.randn(5, 1, 7, 7), torch.randn(5, 2)
    with torch.no_grad():
        pairs = zip(exported(final, images[:2], velocities[:2])(images, velocities), final(images, velocities))
        return result | {"broken": broken, "export": max(float((a - b).abs().max()) for a, b in pairs)}


# %%
# The claim
# ---------
# What was said above, as assertions: the script fails where one of them does not hold.


def check(result: dict) -> None:
    assert result["relaxed"][0] > 0.8 > 0.5 > result["C4"][0], f"only the relaxed one goes up: {result}"
    assert result["relaxed"][1] < 0.2 < 0.5 < result["C4"][1], f"and knows its value: {result}"
    assert result["export"] < 1e-4, f"exported it is the same function: {result['export']:.1e}"


# %%
# Run it
# ------


def main() -> None:
    out, result = folder(__doc__), learn()
    bars(result["broken"], "share of the kernel that breaks C4", "Where up is", out / "actor_critic.png")
    check(result)


if __name__ == "__main__":
    main()
