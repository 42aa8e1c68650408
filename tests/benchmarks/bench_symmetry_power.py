"""Power of the symmetry test against the number of samples and the strength of the breaking.

    python tests/benchmarks/bench_symmetry_power.py [--runs 20]

A bar at a random side of 5 x 5 pixels of noise; the label says whether it is upright, but for a share of the samples is
drawn at random. A C4 network of three layers with random weights. Counted are the runs in which the test finds anything
broken (family-wise level 5 %), so that strength 0 shows the level. Writes ``symmetry_power.md`` and
``symmetry_power.png`` beside itself. One thread.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "symmetry"), str(TESTS / "diagnosis")]

import matplotlib  # noqa: E402
import torch  # noqa: E402
from test_symmetry_test import C4, Net, loader, pictures  # noqa: E402

from escnn_relax import symmetry_test  # noqa: E402

COUNTS = (100, 200, 400, 800, 1600)
#: Share of the samples whose label says what it is asked for.
STRENGTHS = (0.0, 0.1, 0.2, 0.4, 0.8)


def finds(count: int, strength: float, seed: int) -> bool:
    """Whether anything is found in one data set."""
    x, y = pictures(count, "C2", seed)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(count, generator=generator) >= strength
    y = torch.where(noise, torch.randint(2, (count,), generator=generator), y)
    torch.manual_seed(seed)
    test = symmetry_test(
        Net(C4, outputs=2, fields=1), loader((x, y), 50), draws=199, groups=50, seed=seed, progress=False
    )
    return any(t.broken for t in test.tests)


def draw(power: dict[float, list[float]], runs: int, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(6, 3.8), layout="constrained")
    colours = plt.get_cmap("cividis")
    for n, (strength, values) in enumerate(power.items()):
        label = f"{strength:.0%} of the labels"
        ax.plot(COUNTS, values, marker="osD^v"[n], color=colours(n / len(power)), label=label)
    ax.axhline(0.05, color="black", linestyle=":", linewidth=1, label="level")
    ax.set_xscale("log", base=2)
    ax.set_xticks(COUNTS, [str(n) for n in COUNTS])
    ax.set_xlabel("samples")
    ax.set_ylabel(f"share of {runs} runs that find it")
    ax.set_title("Half of a quarter turn's symmetry broken, for a share of the labels")
    ax.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    torch.set_num_threads(1)
    matplotlib.use("Agg")
    power: dict[float, list[float]] = {}
    lines = [
        "# Power of the symmetry test",
        "",
        (
            f"Share of {runs} runs in which anything is found (family-wise level 5 %), by samples and by the share of"
            " labels that follow the"
        ),
        (
            "question; made by `bench_symmetry_power.py`, drawn in `symmetry_power.png`. Runs of one seed share network"
            " and draws, so that"
        ),
        "neighbouring numbers are not independent.",
        "",
        "| labels that follow | " + " | ".join(f"N = {n}" for n in COUNTS) + " |",
        "|---|" + "---|" * len(COUNTS),
    ]
    for strength in STRENGTHS:
        power[strength] = [sum(finds(n, strength, seed) for seed in range(runs)) / runs for n in COUNTS]
        lines.append(f"| {strength:.0%} | " + " | ".join(f"{p:.2f}" for p in power[strength]) + " |")
        print(lines[-1], flush=True)
    here = Path(__file__).parent
    (here / "symmetry_power.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    draw(power, runs, here / "symmetry_power.png")


if __name__ == "__main__":
    main()
