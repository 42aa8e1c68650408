"""What a graded layer costs: a training step, memory and construction, beside escnn's plain layer.

    python tests/benchmarks/bench_graded.py             # all of it; the numbers are in graded.md
    python tests/benchmarks/bench_graded.py --profile   # where the time of a step goes; --construction: of that alone

Steps of the two layers alternate within one process, so that whatever else the machine does falls on both alike. Memory
and construction are measured in processes of their own, construction with an empty and then with a filled folder of
kernels, in seconds of the processor; what escnn keeps on disk of finite groups and of the plane is warm in both.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
import escnn_relax  # noqa: E402, F401, I001  # before escnn, which may need what it brings
from escnn import gspaces
from escnn import nn as enn

from escnn_relax import relax
from escnn_relax.nn import RelaxedR2Conv
from escnn_relax.nn.kernels import sectioned
from escnn_relax.symmetry.kernels import kernel_cache

#: fields in, fields out, kernel size, pixels; batches of 32.
SIZES = ((8, 16, 5, 28), (16, 32, 5, 14), (16, 16, 3, 28))

#: Layers whose construction takes long: name, G-space, fields, kernel size.
LARGE = (
    *("C8 regular, 5x5", "D8 regular, 5x5", "C16 regular, 5x5"),
    *(
        "SO(2), frequencies 0-3, 7x7",
        "SO(3), frequencies 0-2, 5x5x5",
        "SO(3), frequencies 0-3, 5x5x5",
        "O(3), frequencies 0-2, 5x5x5",
    ),
    *("Octahedral regular, 3x3x3", "Octahedral regular, 5x5x5", "SO(3) band-limited to 2, 5x5x5"),
)


def types(fields_in, fields_out):
    space = gspaces.rot2dOnR2(8)
    return [enn.FieldType(space, n * [space.regular_repr]) for n in (fields_in, fields_out)]


def layer(kind, size):
    fields_in, fields_out, kernel_size, _ = size
    strict = enn.R2Conv(*types(fields_in, fields_out), kernel_size, padding=kernel_size // 2, initialize=False)
    torch.nn.init.normal_(strict.weights, std=0.1)
    return strict if kind == "plain" else RelaxedR2Conv.from_strict(strict)


def trainer(module, size):
    x = module.in_type(torch.randn(32, module.in_type.size, size[3], size[3]))
    descent = torch.optim.Adam(module.parameters(), lr=1e-4)

    def step():
        descent.zero_grad(set_to_none=True)
        module(x).tensor.square().mean().backward()
        descent.step()

    return step


def expansion(module):
    def run():
        kernel, _ = module.expand_parameters()
        kernel.backward(torch.ones_like(kernel))

    return run


def alternating(runs, repeats):
    """Median milliseconds of each, and the median of the ratio of the second to the first in each round."""
    times = [[] for _ in runs]
    for repeat in range(repeats + 2):
        for n in range(len(runs)) if repeat % 2 else reversed(range(len(runs))):
            start = time.perf_counter()
            runs[n]()
            times[n].append(1000 * (time.perf_counter() - start))
    first, second = (t[2:] for t in times)
    return statistics.median(first), statistics.median(second), statistics.median(b / a for a, b in zip(first, second))


def steps():
    for size in SIZES:
        pair = [layer(kind, size) for kind in ("plain", "graded")]
        plain, graded, ratio = alternating([trainer(m, size) for m in pair], 25)
        before, after, _ = alternating([expansion(m) for m in pair], 25)
        memory = [child("memory", kind, str(SIZES.index(size)))["peak"] for kind in ("plain", "graded")]
        print(
            f"{size[0]} -> {size[1]} fields, {size[2]}x{size[2]}, {size[3]}x{size[3]}: step {plain:.1f} / {graded:.1f}"
            f" ms, ratio {ratio:.3f}; expansion {before:.2f} / {after:.2f} ms; peak {memory[0]:.0f} /"
            f" {memory[1]:.0f} MiB"
        )


def large(name):
    regular = lambda space: [space.regular_repr]
    space, fields = {
        "C8": lambda: (gspaces.rot2dOnR2(8), regular),
        "D8": lambda: (gspaces.flipRot2dOnR2(8), regular),
        "C16": lambda: (gspaces.rot2dOnR2(16), regular),
        "Octahedral": lambda: (gspaces.octaOnR3(), regular),
        "SO(2), frequencies 0-3": lambda: (
            gspaces.rot2dOnR2(-1, maximum_frequency=3),
            lambda s: [s.irrep(k) for k in range(4)],
        ),
        "SO(3), frequencies 0-2": lambda: (
            gspaces.rot3dOnR3(maximum_frequency=2),
            lambda s: [s.irrep(k) for k in range(3)],
        ),
        "SO(3), frequencies 0-3": lambda: (
            gspaces.rot3dOnR3(maximum_frequency=3),
            lambda s: [s.irrep(k) for k in range(4)],
        ),
        "SO(3) band-limited to 2": lambda: (
            gspaces.rot3dOnR3(2),
            lambda s: [s.fibergroup.bl_regular_representation(2)],
        ),
        "O(3), frequencies 0-2": lambda: (
            gspaces.flipRot3dOnR3(2),
            lambda s: [s.irrep(p, k) for k in range(3) for p in (0, 1)],
        ),
    }[name.rsplit(",", 1)[0].removesuffix(" regular")]()
    fields = enn.FieldType(space, fields(space))
    kind = enn.R3Conv if space.dimensionality == 3 else enn.R2Conv
    return kind(fields, fields, int(name[-1]), initialize=False)


def structure():
    """What keeping the kernels by input irrep is worth."""
    for name, fields in (("C8", 16), ("D8", 8), ("C16", 8)):
        field = large(f"{name} regular, 5x5").in_type
        many = enn.FieldType(field.gspace, fields * list(field.representations))
        strict = enn.R2Conv(many, many, 5, initialize=False)
        torch.nn.init.normal_(strict.weights, std=0.1)
        layers, before = [], sectioned.WORTHWHILE
        for sectioned.WORTHWHILE in (10**12, before):
            layers.append(relax(strict))
        dense, apart, _ = alternating([expansion(m) for m in layers], 9)
        plain, *_ = alternating([expansion(strict)] * 2, 9)
        sizes = [sum(b.numel() * b.element_size() for b in m.kernel.buffers()) / 2**20 for m in layers]
        print(
            f"{name}, {fields} -> {fields} fields, 5x5: expansion plain {plain:.1f}, dense {dense:.1f}, by irrep "
            f"{apart:.1f} ms; kernels {sizes[0]:.1f} / {sizes[1]:.1f} MiB"
        )


def construction():
    for name in LARGE:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["ESCNN_RELAX_CACHE"] = folder
            cold, warm = child("build", name), child("build", name)
        print(
            f"{name}: plain {cold['strict']:.2f} s, graded {cold['graded']:.2f} s, from disk {warm['graded']:.2f} s, "
            f"again in the same process {warm['again']:.3f} s; {cold['disk'] / 2**20:.1f} MiB on disk; "
            f"peak {cold['before']:.0f} MiB with escnn's layer, {cold['peak']:.0f} with both"
        )


def memory(kind, index):
    size = SIZES[int(index)]
    step = trainer(layer(kind, size), size)
    for _ in range(5):
        step()
    return {"peak": peak()}


def peak():
    """MiB that the process had at most; not getrusage, since a process starts with the peak of the one that started
    it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def build(name):
    def timed(make):
        start = time.process_time()
        made = make()
        return made, time.process_time() - start

    strict, seconds = timed(lambda: large(name))
    before = peak()
    _, graded = timed(lambda: relax(strict))
    found = {"strict": seconds, "graded": graded, "before": before, "peak": peak()}
    _, again = timed(lambda: relax(strict))
    return {**found, "again": again, "disk": kernel_cache.size().disk_bytes}


def child(*arguments):
    command = [sys.executable, __file__, "--child", *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def profile():
    step = trainer(layer("graded", SIZES[1]), SIZES[1])
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as record:
        step()
    print(record.key_averages().table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=40))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if "--child" in sys.argv:
        what, *rest = sys.argv[2:]
        print(json.dumps({"memory": memory, "build": build}[what](*rest)))
    else:
        parts = {"--profile": [profile], "--construction": [construction]}
        for part in next((of for name, of in parts.items() if name in sys.argv), [steps, construction, structure]):
            part()
