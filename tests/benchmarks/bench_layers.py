"""What layers cost beside escnn's own and beside the convolution alone: training, inference, construction, memory.

    python tests/benchmarks/bench_layers.py [--write tests/benchmarks/layers.md] [--runs 15] [--only C8 Octa]

For each group three or four sizes, a batch of 32 (8 volumes), one thread, and all layers in turn in one process, so
that whatever else the machine does falls on all alike; medians of the ratios of each round are reported. A training
step is forward, backward and an Adam update; building is counted in seconds of the processor, for the same reason. The
relaxed layer has one residual pathway, down to the trivial subgroup, the mixed one three subgroups beside the group
(C4: two).
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import time
from pathlib import Path
from collections.abc import Callable, Sequence

import torch
from bench_memory import Alive
import escnn_relax  # noqa: E402, F401, I001  # before escnn, which may need what it brings
from escnn import gspaces
from escnn import nn as enn
from torch.nn import functional as F

from escnn_relax.nn import MixedR2Conv, MixedR3Conv, RelaxedR2Conv, RelaxedR3Conv
from escnn_relax.symmetry.kernels import kernel_cache
from escnn_relax.symmetry.groups.irreps import irreps_up_to

#: Fields in and out, kernel size, pixels.
PLANE = ((8, 16, 5, 28), (16, 32, 5, 14), (16, 16, 3, 28))
SPACE = ((1, 1, 3, 10), (1, 2, 3, 8), (2, 2, 3, 6), (1, 1, 5, 10))
WAVES = ((4, 4, 3, 10), (4, 4, 5, 10), (8, 8, 5, 8))
#: The G-space, its fields (regular, or so many irreps by frequency), the ids of the subgroups that are mixed, the
#: trivial subgroup's, sizes.
GROUPS = {
    "C4": (lambda: gspaces.rot2dOnR2(4), "regular", [2, 1], 1, PLANE),
    "C8": (lambda: gspaces.rot2dOnR2(8), "regular", [4, 2, 1], 1, PLANE),
    "D4": (lambda: gspaces.flipRot2dOnR2(4), "regular", [(None, 4), (None, 2), (None, 1)], (None, 1), PLANE),
    "SO(2)": (lambda: gspaces.rot2dOnR2(-1, maximum_frequency=3), 4, [4, 2, 1], 1, PLANE),
    "Octa": (lambda: gspaces.octaOnR3(), "regular", [(True, 4), (False, 4), (False, 1)], (False, 1), SPACE),
    "SO(3)": (lambda: gspaces.rot3dOnR3(2), 3, [(False, -1), (False, 4), (False, 1)], (False, 1), WAVES),
    "O(3)": (
        lambda: gspaces.flipRot3dOnR3(2),
        4,
        [("so3",), (True, False, 1), (False, False, 1)],
        (False, False, 1),
        WAVES,
    ),
}


def types(name: str, ins: int, outs: int) -> list[enn.FieldType]:
    """Field types with so many regular fields, or so many times the irreps."""
    make, fields, *_ = GROUPS[name]
    space = make()
    one = [space.regular_repr] if fields == "regular" else irreps_up_to(space.fibergroup, 3)[:fields]
    return [enn.FieldType(space, count * one) for count in (ins, outs)]


def timed(make: Callable):
    start = time.process_time()
    made = make()
    return made, time.process_time() - start


def step(layer, x) -> Callable[[], None]:
    descent = torch.optim.Adam(layer.parameters(), lr=1e-4)

    def run() -> None:
        descent.zero_grad(set_to_none=True)
        y = layer(x)
        getattr(y, "tensor", y).square().mean().backward()
        descent.step()

    return run


def inference(layer, x) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            layer(x)

    return run


def expansion(layer) -> Callable[[], None]:
    def run() -> None:
        kernel, _ = layer.expand_parameters()
        kernel.backward(torch.ones_like(kernel))

    return run


def in_turn(runs: Sequence[Callable[[], None]], repeats: int) -> tuple[list[float], list[float]]:
    """Median milliseconds of each, and median ratios to the first of the same round."""
    times: list[list[float]] = [[] for _ in runs]
    for repeat in range(repeats + 2):
        order = range(len(runs)) if repeat % 2 else reversed(range(len(runs)))
        for n in order:
            start = time.perf_counter()
            runs[n]()
            times[n].append(1000 * (time.perf_counter() - start))
    kept = [of[2:] for of in times]
    return [statistics.median(of) for of in kept], [
        statistics.median(a / b for a, b in zip(of, kept[0])) for of in kept
    ]


def layers(name: str, size: tuple) -> tuple[list, list[float], torch.Tensor]:
    """escnn's layer, ours relaxed and mixed, seconds that each took to build, and an input."""
    ins, outs, kernel_size, pixels = size
    both = types(name, ins, outs)
    _, _, ids, trivial, _ = GROUPS[name]
    flat = both[0].gspace.dimensionality == 2
    kinds = (enn.R2Conv, RelaxedR2Conv, MixedR2Conv) if flat else (enn.R3Conv, RelaxedR3Conv, MixedR3Conv)
    options = {"padding": kernel_size // 2}
    kernel_cache.clear()
    strict, own = timed(lambda: kinds[0](*both, kernel_size, **options))
    relaxed, ours = timed(lambda: kinds[1](*both, kernel_size, subgroups=[trivial], **options))
    mixed, theirs = timed(lambda: kinds[2](*both, kernel_size, subgroups=ids, **options))
    x = torch.randn(32 if flat else 8, both[0].size, *([pixels] * (2 if flat else 3)))
    return [strict, relaxed, mixed], [own, ours, theirs], x


def memory(run: Callable[[], None]) -> float:
    """Bytes of all tensors that a training step makes and that are alive at once, in MiB."""
    run()
    gc.collect()
    with Alive() as alive:
        run()
    return alive.peak / 2**20


def row(name: str, size: tuple, repeats: int) -> str:
    """One line of the table."""
    built, seconds, x = layers(name, size)
    convolve = F.conv2d if x.dim() == 4 else F.conv3d
    strict = built[0]
    kernel, bias = (t.detach() for t in strict.expand_parameters())
    weight = kernel.clone().requires_grad_()
    alone = lambda: convolve(x, weight, bias, padding=size[2] // 2).square().mean().backward()
    fields = strict.in_type(x)
    milliseconds, training = in_turn([*(step(layer, fields) for layer in built), alone], repeats)
    peaks = [memory(step(layer, fields)) for layer in built]
    for layer in built:
        layer.eval()
    bare = lambda: convolve(x, kernel, bias, padding=size[2] // 2)
    quick, answers = in_turn([bare, *(inference(layer, fields) for layer in built)], 2 * repeats)
    ins, outs, kernel_size, pixels = size
    what = f"{name}, {ins} → {outs}, {kernel_size}{'×' + str(kernel_size)}, {pixels}"
    cells = [
        what,
        f"{milliseconds[0]:.1f}",
        *(f"{r:.2f}" for r in training[1:]),
        f"{quick[0]:.1f}",
        *(f"{r:.2f}" for r in answers[1:]),
    ]
    cells += ["/".join(f"{s:.1f}" for s in seconds), "/".join(f"{p:.0f}" for p in peaks)]
    return f"| {' | '.join(cells)} |"


def mixed_fields(repeats: int) -> list[str]:
    """Expansion between mixed field types, forward and backward: ours of the same pathway against escnn's."""
    lines = []
    for name, space in (("C8", gspaces.rot2dOnR2(8)), ("D4", gspaces.flipRot2dOnR2(4))):
        irreps = [r for r in space.fibergroup.irreps()][:4]
        fields = enn.FieldType(space, 4 * [space.regular_repr, *irreps])
        strict = enn.R2Conv(fields, fields, 5, padding=2, initialize=False)
        torch.nn.init.normal_(strict.weights, std=0.1)
        ours = MixedR2Conv.from_strict(strict, subgroups=[GROUPS[name][3]]).without("trivial")
        milliseconds, ratio = in_turn([expansion(strict), expansion(ours)], repeats)
        lines.append(
            f"| {name}, 4 × (regular, {len(irreps)} irreps), 5×5 | {milliseconds[0]:.1f} | {milliseconds[1]:.1f} |"
            f" {ratio[1]:.2f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--only", nargs="*", choices=list(GROUPS), default=list(GROUPS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    heads = ["fields, kernel, pixels", "escnn step, ms", "relaxed", "mixed", "convolution alone"]
    heads += [
        "convolution, inference, ms",
        "escnn",
        "relaxed",
        "mixed",
        "built in s, escnn/relaxed/mixed",
        "tensors of a step, MiB",
    ]
    text = ["# Layers beside escnn's own and the convolution alone", ""]
    text += [
        (
            "Output of `python tests/benchmarks/bench_layers.py`: training steps as ratios to escnn's layer, inference"
            " to the convolution."
        ),
        "",
    ]
    text += [f"| {' | '.join(heads)} |", "|" + len(heads) * "---|"]
    print("\n".join(text), flush=True)
    for name in given.only:
        for size in GROUPS[name][4]:
            text.append(row(name, size, given.runs))
            print(text[-1], flush=True)
    tail = [
        "",
        "| expansion between mixed field types, forward and backward | escnn, ms | ours, ms | ratio |",
        "|---|---|---|---|",
    ]
    tail += [
        *mixed_fields(given.runs),
        "",
        f"Measured with one thread of {platform.machine()}, torch {torch.__version__}.",
    ]
    print("\n".join(tail))
    if given.write:
        given.write.write_text("\n".join(text + tail) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
