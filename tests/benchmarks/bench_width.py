"""A refresh at the width of real networks, against a training step on the same images in the same run; one thread,
processor time.

1. agreement: ``sketched`` against ``expand`` where both run: the same choices of the precision, effective dimensions,
   traces; wide: the same for kernels of more coefficients
2. growth: refresh and training step of a C8 layer of 4 to 32 regular fields, ``auto`` against ``expand`` up to 16, with
   exponents
3. tutorial: escnn's own C8 network (24-48-48-96-96-64 regular fields on 29 x 29), all pathways open, with peak memory
4. others: a wide residual network with D4 -> C1 restriction, an equivariant U-Net, a network of 24^3 voxels
5. outputs: 10 to 800 classes, and outputs at every pixel
6. peers: laplace-torch, curvlinops and BackPACK on the exported plain twin of a C8 layer of 4 to 16 regular fields
7. memory: the tutorial network under a bound, and what the process takes
8. test: the symmetry test of the strict tutorial network on 600 images, over an epoch on as many

    python tests/benchmarks/bench_width.py [agreement wide growth tutorial others outputs peers memory test] [--write]

With ``--write`` what ``growth`` and ``outputs`` find is added to ``growth.jsonl``, which ``draw_growth.py`` draws.
"""

from __future__ import annotations

import copy
import gc
import json
import math
import resource
import statistics
import sys
import time
import warnings
from pathlib import Path

import torch
import escnn_relax  # noqa: E402, F401, I001  # before escnn, which may need what it brings
from escnn import gspaces
from escnn import nn as enn
from torch import nn

from escnn_relax import Evidence, relax, symmetry_test
from escnn_relax.evidence import CurvatureSettings
from escnn_relax.curvature.curvature import Curvature
from escnn_relax.errors import MemoryLimitError
from escnn_relax.nn import RelaxedR3Conv


class Tutorial(nn.Module):
    """The network of escnn's introduction."""

    def __init__(self, widths=(24, 48, 48, 96, 96, 64)):
        super().__init__()
        space = gspaces.rot2dOnR2(8)
        self.gray = enn.FieldType(space, [space.trivial_repr])
        last, blocks = self.gray, [enn.MaskModule(self.gray, 29, margin=1)]
        kernels, paddings = (7, 5, 5, 5, 5, 5), (1, 2, 2, 2, 2, 1)
        for index, (width, size, padding) in enumerate(zip(widths, kernels, paddings)):
            fields = enn.FieldType(space, width * [space.regular_repr])
            blocks += [enn.R2Conv(last, fields, size, padding=padding, bias=False), enn.InnerBatchNorm(fields)]
            blocks.append(enn.ReLU(fields, inplace=True))
            if index in (1, 3):
                blocks.append(enn.PointwiseAvgPoolAntialiased(fields, sigma=0.66, stride=2))
            last = fields
        blocks.append(enn.PointwiseAvgPoolAntialiased(last, sigma=0.66, stride=1, padding=0))
        self.body, self.pool = enn.SequentialModule(*blocks), enn.GroupPooling(last)
        c = widths[-1]
        self.head = nn.Sequential(nn.Linear(c, c), nn.BatchNorm1d(c), nn.ELU(inplace=True), nn.Linear(c, 10))

    def forward(self, x):
        x = self.pool(self.body(self.gray(x))).tensor
        return self.head(x.mean((-2, -1)))


class Step(nn.Module):
    """A residual block of two convolutions, normalisation first."""

    def __init__(self, into, onto, stride=1):
        super().__init__()
        self.norms = nn.ModuleList([enn.InnerBatchNorm(into), enn.InnerBatchNorm(onto)])
        self.relus = nn.ModuleList([enn.ReLU(into), enn.ReLU(onto)])
        options = [{"stride": stride}, {}]
        pairs = [(into, onto), (onto, onto)]
        self.convolutions = nn.ModuleList(
            [enn.R2Conv(*pair, 3, padding=1, bias=False, **option) for pair, option in zip(pairs, options)]
        )
        self.shortcut = None if into == onto else enn.R2Conv(into, onto, 1, stride=stride, bias=False)

    def forward(self, x):
        y = self.relus[0](self.norms[0](x))
        skip = x if self.shortcut is None else self.shortcut(y)
        y = self.convolutions[1](self.relus[1](self.norms[1](self.convolutions[0](y))))
        return y + skip


class Residual(nn.Module):
    """A wide residual network 16-8, restricted from D4 to C4 to C1 before its second and third stage; as many channels
    as the plain one."""

    def __init__(self, channels=(128, 256, 512), blocks=2):
        super().__init__()
        spaces = [gspaces.flipRot2dOnR2(4), gspaces.rot2dOnR2(4), gspaces.trivialOnR2()]
        self.rgb = enn.FieldType(spaces[0], 3 * [spaces[0].trivial_repr])
        last = enn.FieldType(spaces[0], 2 * [spaces[0].regular_repr])
        self.stem = enn.R2Conv(self.rgb, last, 3, padding=1, bias=False)
        body = []
        for stage, (space, width) in enumerate(zip(spaces, channels)):
            if stage:
                down = enn.RestrictionModule(last, ((None, 4), 1)[stage - 1])
                body += [down, enn.DisentangleModule(down.out_type)]
                last = body[-1].out_type
            order = space.fibergroup.order()
            for block in range(blocks):
                fields = enn.FieldType(space, width // order * [space.regular_repr])
                body.append(Step(last, fields, 2 if stage and not block else 1))
                last = fields
        self.body, self.norm, self.relu = nn.Sequential(*body), enn.InnerBatchNorm(last), enn.ReLU(last)
        self.linear = nn.Linear(channels[-1], 10)

    def forward(self, x):
        x = self.relu(self.norm(self.body(self.stem(self.rgb(x)))))
        return self.linear(x.tensor.mean((-2, -1)))


class UNet(nn.Module):
    """C4, three levels; classes at every pixel."""

    def __init__(self, width=16, classes=4):
        super().__init__()
        space = gspaces.rot2dOnR2(4)
        self.gray = enn.FieldType(space, [space.trivial_repr])
        a, b = (enn.FieldType(space, n * width * [space.regular_repr]) for n in (1, 2))
        joined, out = a + a, enn.FieldType(space, classes * [space.trivial_repr])
        self.down = enn.SequentialModule(enn.R2Conv(self.gray, a, 5, padding=2), enn.ReLU(a))
        self.deep = enn.SequentialModule(
            *(enn.PointwiseMaxPool(a, 2), enn.R2Conv(a, b, 3, padding=1), enn.ReLU(b)),
            *(enn.R2Conv(b, a, 3, padding=1), enn.ReLU(a), enn.R2Upsampling(a, 2, mode="nearest")),
        )
        self.joined = joined
        self.up = enn.SequentialModule(
            enn.R2Conv(joined, a, 3, padding=1), enn.ReLU(a), enn.R2Conv(a, out, 3, padding=1)
        )

    def forward(self, x):
        x = self.down(self.gray(x))
        return self.up(self.joined(torch.cat([x.tensor, self.deep(x).tensor], 1))).tensor


class Voxels(nn.Module):
    """Octahedral group, three layers, 24^3 voxels."""

    def __init__(self, width=4):
        super().__init__()
        space = gspaces.octaOnR3()
        self.gray = enn.FieldType(space, [space.trivial_repr])
        fields = enn.FieldType(space, width * [space.regular_repr])
        last = enn.FieldType(space, 16 * [space.trivial_repr])
        self.body = enn.SequentialModule(
            *(enn.R3Conv(self.gray, fields, 3, padding=1, stride=2, initialize=False), enn.ReLU(fields)),
            *(enn.R3Conv(fields, fields, 3, padding=1, stride=2, initialize=False), enn.ReLU(fields)),
            *(enn.R3Conv(fields, last, 3, padding=1, initialize=False), enn.ReLU(last)),
        )
        for module in self.body:
            if hasattr(module, "weights"):
                nn.init.normal_(module.weights, std=0.1)
        self.linear = nn.Linear(16, 10)

    def forward(self, x):
        return self.linear(self.body(self.gray(x)).tensor.mean((-3, -2, -1)))


def spent(run):
    gc.collect()
    start = time.process_time()
    run()
    return time.process_time() - start


def trained(model, batches):
    """One epoch of the penalised loss, as ``fit`` does it."""
    evidence = Evidence(model, num_data=sum(len(y) for _, y in batches), relaxed_only=False, curvature="auto")
    descent = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def epoch():
        model.train()
        for x, y in batches:
            descent.zero_grad()
            evidence.loss(model(x), y).backward()
            descent.step()

    return evidence, epoch


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def report(name, model, batches, times=(1, 3)):
    """Cost is constant, once the sample of rows is full, plus linear in the images: two sizes give both, so that it is
    known for 1000."""
    evidence, epoch = trained(model, batches)
    count = sum(len(y) for _, y in batches)
    epoch()
    after = peak()
    steps = spent(epoch) / count
    found = [spent(lambda: evidence.refresh(batches * n)) for n in times]
    slope = (found[1] - found[0]) / (times[1] - times[0]) / count
    constant = max(found[0] - slope * times[0] * count, 0.0)
    weights = sum(p.numel() for p in model.parameters())
    print(
        f"| {name} | {weights / 1e6:.2f} M | {count * max(times)} in batches of {len(batches[0][1])} | {steps:.3f} |"
        f" {slope:.3f} | {constant:.1f} | {slope / steps:.2f} | {(constant + 1000 * slope) / (1000 * steps):.2f} |"
        f" {after:.1f} | {peak():.1f} |",
        flush=True,
    )
    return evidence


HEAD = (
    "| network | weights | images measured | step an image (s) | refresh an image (s) | constant (s) | ratio an image |"
    " ratio, 1000 images | peak training (GiB) | with refreshes (GiB) |"
)


def images(count, size, channels=1, classes=10):
    return torch.randn(count, channels, size, size), torch.randint(classes, (count,))


def tutorial():
    print(HEAD, "|" + "---|" * 10, sep="\n")
    report("tutorial, C8, 7 layers relaxed", relax(Tutorial()), [images(32, 29) for _ in range(2)])
    closed = relax(Tutorial())
    for layer in closed.modules():
        if hasattr(layer, "close"):
            layer.close(*(p.name for p in layer.pathways if p.breaks))
    report("the same, everything closed", closed, [images(32, 29) for _ in range(2)])


def others():
    print(HEAD, "|" + "---|" * 10, sep="\n")
    report(
        "wide residual 16-8, D4 then C4 then C1, 32²", relax(Residual()), [images(8, 32, 3) for _ in range(2)], (2, 5)
    )
    segments = [(torch.randn(32, 1, 32, 32), torch.randint(4, (32, 32, 32))) for _ in range(4)]
    report("U-Net, C4, classes at 32² pixels", relax(UNet()), segments)
    solids = [(torch.randn(16, 1, 24, 24, 24), torch.randint(10, (16,))) for _ in range(4)]
    report("24³ voxels, octahedral", relax(Voxels()), solids)


class Layer(nn.Module):
    def __init__(self, width, order=8, size=3):
        super().__init__()
        space = gspaces.rot2dOnR2(order)
        fields = enn.FieldType(space, width * [space.regular_repr])
        self.gray = enn.FieldType(space, [space.trivial_repr])
        layers = [enn.R2Conv(self.gray, fields, 3, padding=1), enn.ReLU(fields)]
        layers += [enn.R2Conv(fields, fields, size, padding=size // 2), enn.ReLU(fields)]
        self.body, self.linear = enn.SequentialModule(*layers), nn.Linear(order * width, 10)

    def forward(self, x):
        return self.linear(self.body(self.gray(x)).tensor.mean((-2, -1)))


def kept(**found):
    if "--write" in sys.argv:
        with open(Path(__file__).with_name("growth.jsonl"), "a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")


def exponent(pairs):
    (x, y), (u, v) = pairs[-2:]
    return math.log(v / y) / math.log(u / x)


def growth():
    print(
        "| what varies | value | training step (s) | refresh, auto | ratio | refresh, expand, one draw |",
        "|" + "---|" * 6,
        sep="\n",
    )
    for what, values in (("fields", (4, 8, 16, 32)), ("kernel size", (3, 5, 7, 9)), ("order of the group", (4, 8, 16))):
        found = {"step": [], "auto": [], "expand": []}
        for value in values:
            width, order, size = {"fields": (value, 8, 3), "kernel size": (12, 8, value)}.get(what, (12, value, 5))
            model, batch = relax(Layer(width, order, size)), images(32, 14)
            _, epoch = trained(model, [batch])
            epoch()
            times = {"step": spent(epoch)}
            for curvature in ("auto", "expand"):
                if curvature == "auto" or width * order * size**2 <= 1200:
                    evidence = Evidence(model, curvature=CurvatureSettings(curvature, samples=1))
                    times[curvature] = spent(lambda: evidence.refresh([batch]))
            kept(what=what, value=value, **times)
            for key, of in times.items():
                found[key].append((value, of))
            expand = f"{times['expand']:.2f}" if "expand" in times else "–"
            print(
                f"| {what} | {value} | {times['step']:.3f} | {times['auto']:.2f} | {times['auto'] / times['step']:.1f}"
                f" | {expand} |",
                flush=True,
            )
        print(
            f"exponents in the {what}, last two: "
            + ", ".join(f"{k} {exponent(v):.1f}" for k, v in found.items() if len(v) > 1)
        )


def outputs():
    print(
        "| classes | exact (s) | default (s) | one draw (s) | their spectra (s) | peak (GiB) |",
        "|" + "---|" * 6,
        sep="\n",
    )
    for classes in (10, 50, 100, 200, 400, 800, 1600):
        model = relax(Layer(2))
        model.linear = nn.Linear(16, classes)
        batch = images(32, 14, classes=classes)
        exact, default, drawn = (spent(lambda: Curvature(model, samples=m)([batch])) for m in (None, "auto", 1))
        estimate = Curvature(model, samples=1)([batch])
        spectra = spent(lambda: [estimate.eigenvalues(name) for name in estimate.factors])
        kept(what="outputs", value=classes, exact=exact, one_column=default, spectra=spectra)
        print(f"| {classes} | {exact:.2f} | {default:.2f} | {drawn:.2f} | {spectra:.2f} | {peak():.1f} |", flush=True)
    model, batch = relax(UNet(2, 20)), (torch.randn(4, 1, 64, 64), torch.randint(20, (4, 64, 64)))
    _, epoch = trained(model, [batch])
    epoch()
    step, refresh = spent(epoch), spent(lambda: Curvature(model)([batch]))
    print(
        f"64 x 64 x 20 outputs: refresh {refresh:.2f} s, training step {step:.2f} s, peak {peak():.1f} GiB", flush=True
    )


def agreement():
    from bench_curvature import Net, irreps, regular

    C4, C8, D4, SO2 = gspaces.rot2dOnR2(4), gspaces.rot2dOnR2(8), gspaces.flipRot2dOnR2(4), gspaces.rot2dOnR2(-1, 3)
    octa = gspaces.octaOnR3()

    def plain():
        return nn.Sequential(
            *(nn.Conv2d(1, 64, 3, padding=1), nn.ELU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
        )

    networks = {
        "C4, 12 regular, 5x5": lambda: Net(C4, regular(C4, 12), residual=True),
        "C8, 8 regular, 3x3": lambda: Net(C8, regular(C8, 8), 3, residual=True),
        "D4, 6 regular, 3x3": lambda: Net(D4, regular(D4, 6), 3, residual=True),
        "SO(2), 6 of 3 irreps, 5x5": lambda: Net(SO2, irreps(SO2, 6, [(0,), (1,), (2,)]), residual=True),
        "octahedral, 1 regular, 3x3x3": lambda: Net(octa, regular(octa, 1), 3, RelaxedR3Conv, residual=True),
        "C1, 64 channels, 3x3": plain,
    }
    compare(networks, 200, (("early", 4), ("late", 26)))


def wide():
    """Kernels of more coefficients than :func:`agreement` has; after three epochs on 100 digits."""
    from bench_curvature import Net, regular

    C8, C16 = gspaces.rot2dOnR2(8), gspaces.rot2dOnR2(16)
    networks = {
        "C8, 12 regular, 7x7": lambda: Net(C8, regular(C8, 12), 7, residual=True),
        "C16, 10 regular, 5x5": lambda: Net(C16, regular(C16, 10), 5, residual=True),
    }
    compare(networks, 100, (("early", 3),))


def compare(networks, count, stages):
    """``sketched`` against ``expand`` on so many digits, with the time of both to their spectra."""
    from bench_curvature import best, digits, slope, train

    print(
        "| network | same choice | effective dimension, median | largest | largest at any δ | trace |"
        " expand (s) | sketched (s) |",
        "|" + "---|" * 8,
        sep="\n",
    )
    for name, make in networks.items():
        torch.manual_seed(0)
        model, data = make(), digits(count, "octahedral" in name)
        for stage, epochs in stages:
            train(model, data, epochs)
            squares = {n: float(p.detach().double().square().sum()) for n, p in model.named_parameters()}
            found, times = {}, []
            for curvature in ("expand", "sketched"):
                torch.manual_seed(1)
                start = time.process_time()
                found[curvature] = Curvature(model, "categorical", curvature, 1)([data])
                for n in found[curvature].factors:
                    found[curvature].eigenvalues(n)
                times.append(time.process_time() - start)
            same, at_best, anywhere, traces = [], [], [], []
            for n in squares:
                if "weight" not in n or n not in found["expand"].factors:
                    continue
                a, b = (found[c].eigenvalues(n) for c in ("expand", "sketched"))

                def error(log_delta):
                    one, two = (float((v / (v + math.exp(log_delta))).sum()) for v in (a, b))
                    return abs(two / one - 1)

                grid = torch.linspace(-4, 9, 14).tolist()
                same += [(slope(a, squares[n], d) > 0) == (slope(b, squares[n], d) > 0) for d in grid]
                at_best.append(error(best(a, squares[n])))
                anywhere.append(max(error(d) for d in grid))
                traces.append(abs(float(b.sum() / a.sum()) - 1))
            print(
                f"| {name}, {stage} | {statistics.mean(same):.1%} | {statistics.median(at_best):.4f} |"
                f" {max(at_best):.4f} | {max(anywhere):.3f} | {max(traces):.0e} | {times[0]:.1f} | {times[1]:.1f} |",
                flush=True,
            )


def peers():
    """All with one drawn column a sample; laplace-torch, whose default back-end has no draws, with all ten classes."""
    from backpack import backpack, extend
    from backpack.extensions import KFAC
    from curvlinops import KFACLinearOperator
    from laplace import KronLaplace
    from torch.utils.data import DataLoader, TensorDataset

    print(
        "| fields | ours, relaxed | ours, plain twin | laplace-torch | curvlinops | BackPACK |",
        "|" + "---|" * 6,
        sep="\n",
    )
    for width in (4, 8, 16):
        model, (x, y) = Layer(width), images(64, 14)
        convolutions = [m for m in model.body if isinstance(m, enn.R2Conv)]
        layers = [part for c in convolutions for part in (c.export(), nn.ReLU())]
        twin = nn.Sequential(*layers, nn.AvgPool2d(14), nn.Flatten(), nn.Linear(8 * width, 10)).eval()
        loader = DataLoader(TensorDataset(x, y), 32)
        relaxed = relax(model)
        extended, loss = extend(copy.deepcopy(twin)), extend(nn.CrossEntropyLoss(reduction="sum"))

        def with_backpack():
            for a, b in loader:
                with backpack(KFAC(mc_samples=1)):
                    loss(extended(a), b).backward()

        def with_curvlinops():
            options = {"fisher_type": "mc", "mc_samples": 1, "check_deterministic": False}
            parameters = list(twin.parameters())
            KFACLinearOperator(
                twin, nn.CrossEntropyLoss(reduction="sum"), parameters, list(loader), **options
            ).compute_kronecker_factors()

        def spectra(network):
            estimate = Curvature(network, "categorical", "auto", 1)(loader)
            return [estimate.eigenvalues(name) for name in estimate.factors]

        runs = [
            lambda: spectra(relaxed),
            lambda: spectra(twin),
            lambda: KronLaplace(twin, "classification").fit(loader),
        ]
        times = []
        for run in (*runs, with_curvlinops, with_backpack):
            run()
            times.append(spent(run))
        print(f"| {width} | " + " | ".join(f"{t:.2f}" for t in times) + " |", flush=True)


def memory():
    """Beside what the process takes before: tensors of the network, libraries, a batch. A smaller bound than one chunk
    needs comes first, and is refused."""
    model, batches = relax(Tutorial()), [images(16, 29)]
    print(
        "| memory (MiB) | what came | processor time (s) | process before, after (GiB) |", "|---|---|---|---|", sep="\n"
    )
    for bound in (1200, 2300):
        evidence = Evidence(model, num_data=16, curvature=CurvatureSettings("auto", memory=bound))
        state = {k: v.clone() for k, v in model.state_dict().items()}
        before, start, what = peak(), time.process_time(), "a refresh"
        try:
            evidence.refresh(batches)
        except MemoryLimitError as error:
            same = all(torch.equal(v.nan_to_num(), state[k].nan_to_num()) for k, v in model.state_dict().items())
            what = f"MemoryLimitError: {error}; the network is {'as before' if same else 'changed'}"
        print(f"| {bound} | {what} | {time.process_time() - start:.0f} | {before:.2f}, {peak():.2f} |", flush=True)
        gc.collect()


def test():
    """Random images, so that nothing is broken; an epoch is extrapolated from 128 of them, in batches of 64."""
    model = Tutorial()
    descent = torch.optim.Adam(model.parameters(), lr=1e-4)

    def epoch():
        for x, y in batches:
            descent.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            descent.step()

    batches = [images(64, 29) for _ in range(2)]
    epoch()
    step = spent(epoch) / 128
    print("| images | test (s) | epoch (s) | ratio | peak (GiB) |", "|" + "---|" * 5, sep="\n")
    count = 600
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*images(count, 29)), 64)
    tested = spent(lambda: symmetry_test(model, loader, progress=False))
    print(f"| {count} | {tested:.0f} | {count * step:.0f} | {tested / count / step:.2f} | {peak():.1f} |", flush=True)


PARTS = {part.__name__: part for part in (agreement, wide, growth, tutorial, others, outputs, peers, memory, test)}


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for part in [part for part in sys.argv[1:] if part != "--write"] or PARTS:
        PARTS[part]()
