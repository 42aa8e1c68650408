"""What ``torch.compile`` brings to a layer: training steps of escnn's and ours, plain and compiled, in one process.

    python tests/benchmarks/bench_compile.py [--runs 9]

C8, 8 regular fields on 8, 3×3, 16 images of 14 pixels, one thread; the smallest processor time of each, as a ratio to
escnn's plain layer. The first step of a compiled layer holds the compilation, in seconds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import escnn_relax  # noqa: E402, F401, I001  # before escnn, which may need what it brings
from escnn import gspaces
from escnn import nn as enn
from torch import nn

from escnn_relax.nn import RelaxedR2Conv

SPACE = gspaces.rot2dOnR2(8)
FIELDS = enn.FieldType(SPACE, 8 * [SPACE.regular_repr])


class OfTensors(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(enn.GeometricTensor(x, FIELDS)).tensor


def closed(layer: RelaxedR2Conv) -> RelaxedR2Conv:
    layer.close(*[p.name for p in layer.pathways if p.breaks])
    return layer


def step(layer: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> None:
    layer(x).square().mean().backward()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    torch.set_num_threads(1)
    x = torch.randn(16, FIELDS.size, 14, 14)
    options = {"padding": 1}
    layers = {
        "escnn": enn.R2Conv(FIELDS, FIELDS, 3, **options),
        "relaxed": RelaxedR2Conv(FIELDS, FIELDS, 3, **options),
        "closed": closed(RelaxedR2Conv(FIELDS, FIELDS, 3, **options)),
    }
    every: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {n: OfTensors(layer) for n, layer in layers.items()}
    built = {}
    for name, layer in layers.items():
        every[f"{name}, compiled"] = compiled = torch.compile(OfTensors(layer))
        start = time.perf_counter()
        step(compiled, x)
        built[name] = time.perf_counter() - start
    best = dict.fromkeys(every, float("inf"))
    for turn in range(runs + 1):
        for name, layer in every.items():
            start = time.process_time()
            step(layer, x)
            best[name] = min(best[name], time.process_time() - start) if turn else best[name]
    print("| layer | plain | compiled | compilation, s |\n|---|---|---|---|")
    for name in layers:
        ratios = [best[n] / best["escnn"] for n in (name, f"{name}, compiled")]
        print(f"| {name} | {ratios[0]:.2f} | {ratios[1]:.2f} | {built[name]:.0f} |")


if __name__ == "__main__":
    main()
