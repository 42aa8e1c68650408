"""Cost of a training step of the published network F-FC+CONV (alpha 10, batch 128, 3 x 32 x 32), as ratios in one run.

1. the block-diagonal formulation, in which each factored layer is two products with one large matrix, against grouped products
2. convolutions alone against both pathways
3. a refresh of the curvature, which never forms a matrix of the size of all channels and pixels

    python tests/benchmarks/bench_translation.py [--alpha 10]
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

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from translation_networks import Network  # noqa: E402

from escnn_relax.curvature.collect import Curvature  # noqa: E402
from escnn_relax.nn.grouped import GroupedLinear  # noqa: E402


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


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--alpha", type=int, default=10)
    alpha = parser.parse_args().alpha
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batch = torch.randn(128, 3, 32, 32), torch.randint(10, (128,))
    build = lambda kinds: Network(kinds, alpha, channels=3)
    both, ours = build("F-FC+CONV"), {}
    large = block_diagonal(both)
    assert torch.allclose(large(batch[0]), both(batch[0]), atol=1e-4)
    ours["both"] = cost(step(both, batch))
    ours["convolutions"] = cost(step(build("CONV"), batch))
    factored = build("F-FC")
    ours["factored"] = cost(step(factored, batch))
    print(f"alpha {alpha}: F-FC+CONV {ours['both']:.2f} s a step, {ours['both'] / ours['convolutions']:.2f} times CONV alone")
    theirs = cost(step(large, batch))
    print(f"block-diagonal: {theirs:.2f} s, {theirs / ours['both']:.1f} times grouped products (F-FC+CONV)")
    theirs = cost(step(block_diagonal(factored), batch))
    print(f"block-diagonal: {theirs:.2f} s, {theirs / ours['factored']:.1f} times grouped products (F-FC alone)")
    curvature = Curvature(build("F-FC+CONV"), "categorical", samples=1)
    refresh = cost(lambda: curvature([batch]), 1)
    print(f"refresh with one Monte-Carlo column on one batch: {refresh:.2f} s, {refresh / ours['both']:.1f} steps")


if __name__ == "__main__":
    main()
