"""Cost of a training step of the published network F-FC+CONV (alpha 10, batch 128, 3 x 32 x 32), as ratios in one run.

1. the block-diagonal formulation, in which each factored layer is two products with one large matrix, against grouped
   products
2. convolutions alone against both pathways
3. a refresh of the curvature, whose largest tensor does not grow with the channels

Beside the time, the largest tensor that a step makes: with grouped products none is larger than the signals.

    python tests/benchmarks/bench_translation.py [--alpha 10] [--write tests/benchmarks/translation.md]
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import sys
import time
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from translation_networks import Network  # noqa: E402

from escnn_relax.curvature.curvature import Curvature  # noqa: E402
from escnn_relax.nn.translation.grouped import GroupedLinear  # noqa: E402


class BlockDiagonal(GroupedLinear):
    """The same map by one matrix that is zero between the groups."""

    def forward(self, x):
        matrix = torch.block_diag(*self.weight.squeeze(-1))
        bias = None if self.bias is None else self.bias[self.bias_index].flatten()
        return torch.nn.functional.linear(x, matrix, bias)


def block_diagonal(model):
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, GroupedLinear):
            module.__class__ = BlockDiagonal
    return model


def step(model, batch):
    descent = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x, y = batch

    def run():
        descent.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        descent.step()

    return run


def cost(run, repeats=3):
    times = []
    for _ in range(repeats + 1):
        gc.collect()
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return statistics.median(times[1:])


class Largest(TorchDispatchMode):
    """The largest tensor that is made within, MiB."""

    def __init__(self):
        super().__init__()
        self.mebibytes = 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, torch.Tensor):  # what an expanded tensor really holds
                self.mebibytes = max(self.mebibytes, tensor.untyped_storage().nbytes() / 2**20)
        return made


def largest(run):
    with Largest() as found:
        run()
    return found.mebibytes


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--alpha", type=int, default=10)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batch = torch.randn(128, 3, 32, 32), torch.randint(10, (128,))
    build = lambda kinds: Network(kinds, given.alpha, channels=3)
    both, convolutions, factored = build("F-FC+CONV"), build("CONV"), build("F-FC")
    large = block_diagonal(both)
    assert torch.allclose(large(batch[0]), both(batch[0]), atol=1e-4)
    runs = {
        "CONV": step(convolutions, batch),
        "F-FC": step(factored, batch),
        "F-FC, block-diagonal": step(block_diagonal(factored), batch),
        "F-FC+CONV": step(both, batch),
        "F-FC+CONV, block-diagonal": step(large, batch),
    }
    curvature = Curvature(build("F-FC+CONV"), "categorical", samples=1)
    refresh = lambda: curvature([batch])
    seconds, sizes = {n: cost(run) for n, run in runs.items()}, {n: largest(run) for n, run in runs.items()}
    last = "F-FC+CONV, refresh of the curvature, one Monte-Carlo column"
    seconds[last], sizes[last] = cost(refresh, 1), largest(refresh)
    lines = [
        "# Cost of the factored pathway",
        "",
        "Output of `python tests/benchmarks/bench_translation.py`: processor seconds of a step, one",
    ]
    lines += [
        f"thread, torch {torch.__version__.split('+')[0]}, alpha {given.alpha}, batch of 128 images of 3 × 32 × 32.",
        "",
    ]
    lines += ["| | seconds | block-diagonal / grouped | times CONV | largest tensor, MiB |", "|---|---|---|---|---|"]
    for name, time_of in seconds.items():
        other = f"{seconds[name + ', block-diagonal'] / time_of:.1f}" if name + ", block-diagonal" in seconds else ""
        lines.append(f"| {name} | {time_of:.2f} | {other} | {time_of / seconds['CONV']:.2f} | {sizes[name]:.0f} |")
    lines += [
        "",
        (
            "The factored pathway is what differs: in F-FC+CONV the convolutions are most of the step. The largest"
            " tensor of a refresh"
        ),
    ]
    lines += ["does not depend on the channels (the same with alpha 2)."]
    print("\n".join(lines))
    if given.write:
        given.write.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
