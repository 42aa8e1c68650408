"""What restricting costs, against building escnn's own layer on the subgroup in the same run.

    python tests/benchmarks/bench_restrict.py

Each pair is measured cold: a process of its own, since escnn caches kernel bases for the life of the process.
"""

import subprocess
import sys
import time

CASES = {
    "C8 -> C4, 16 -> 16 fields, 5x5": ("rot2dOnR2(8)", "4", "R2Conv", 16, 5),
    "C8 -> C1, 16 -> 16 fields, 5x5": ("rot2dOnR2(8)", "1", "R2Conv", 16, 5),
    "D4 -> D2, 8 -> 8 fields, 5x5": ("flipRot2dOnR2(4)", "(1, 2)", "R2Conv", 8, 5),
    "D8 -> C4, 8 -> 8 fields, 3x3": ("flipRot2dOnR2(8)", "(None, 4)", "R2Conv", 8, 3),
    "Octa -> C4, 1 -> 1 field, 3x3x3": ("octaOnR3()", "(False, 4)", "R3Conv", 1, 3),
}


def measure(space, id, kind, width, size, what):
    import torch
    from escnn import nn

    from escnn_relax.morphism.restrict.network import restrict
    from escnn_relax.symmetry.groups.restriction import restriction
    from escnn_relax.symmetry.groups.lattice import subgroup

    torch.set_num_threads(1)
    gspace = eval(f"gspaces.{space}")
    regular = nn.FieldType(gspace, width * [gspace.regular_repr])
    conv = getattr(nn, kind)(regular, regular, size, initialize=False, recompute=True)
    if what == "restrict":
        start = time.perf_counter()
        restrict(conv, eval(id))
    else:
        change = restriction(subgroup(gspace, eval(id)))
        on_h = change.field_type(regular)
        start = time.perf_counter()
        getattr(nn, kind)(on_h, on_h, size, initialize=what == "build with escnn's initialisation")
    print(time.perf_counter() - start)


def main():
    kinds = ("build", "build with escnn's initialisation", "restrict")
    print(f"{'':34}" + "".join(f"{k:>36}" for k in kinds) + "   restrict / build")
    for title, case in CASES.items():
        seconds = []
        for what in kinds:
            command = [sys.executable, "-W", "ignore", __file__, *map(str, case), what]
            seconds.append(
                float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
            )
        print(f"{title:34}" + "".join(f"{s:34.2f} s" for s in seconds) + f"   {seconds[2] / seconds[0]:.2f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        space, id, kind, width, size, what = sys.argv[1:]
        measure(space, id, kind, int(width), int(size), what)
    else:
        main()
