"""Memory of training with evidence against plain training, in a process of its own for each.

Both train the same network on the same batches for four epochs; one also refreshes the curvature and steps the
precisions, after the second. Counted are the bytes of all tensors alive at once, those that operations return, and the
largest resident set of the process, which holds Python, the libraries and what the allocator keeps besides.

    python tests/benchmarks/bench_memory.py
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import warnings
import weakref

import torch
import escnn_relax  # noqa: E402, F401, I001  # before escnn, which may need what it brings
from escnn import gspaces
from escnn import nn as enn
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, TensorDataset

from escnn_relax import Evidence
from escnn_relax.nn import RelaxedR2Conv

CURVATURES = ("expand", "auto", "reduce", "eigenvalue-corrected", "diagonal")


class Steerable(nn.Module):
    """Three relaxed C8 layers."""

    def __init__(self, kind=RelaxedR2Conv):
        super().__init__()
        space = gspaces.rot2dOnR2(8)
        self.gray, fields = enn.FieldType(space, [space.trivial_repr]), enn.FieldType(space, 6 * [space.regular_repr])
        self.act = enn.ReLU(fields)
        ins = (self.gray, fields, fields)
        self.layers = nn.ModuleList([kind(in_type, fields, 5, padding=2) for in_type in ins])
        self.linear = nn.Linear(fields.size, 10)

    def forward(self, x):
        x = self.gray(x)
        for layer in self.layers:
            x = self.act(layer(x))
        return self.linear(x.tensor.mean((-2, -1)))


def plain():
    layers, channels = [], 1
    for _ in range(3):
        layers += [nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        channels = 32
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(288, 10))


NETWORKS = {"plain CNN, 3 × Conv32": plain, "relaxed C8, 3 layers of 6 regular fields": Steerable}


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors made within and not freed yet."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known:
                    self._known[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._free, storage._cdata)
        return result

    def _free(self, key):
        self.now -= self._known.pop(key)


def train(network: str, curvature: str | None, batch_size: int) -> dict[str, float]:
    """Four epochs; in MiB."""
    model = NETWORKS[network]()
    data = TensorDataset(torch.randn(256, 1, 28, 28), torch.randint(10, (256,)))
    loader = DataLoader(data, batch_size=batch_size)
    evidence = Evidence(model, curvature=curvature or "expand", num_data=len(data), relaxed_only=False)
    descent = torch.optim.Adam(model.parameters(), lr=1e-3)
    with Alive() as alive:
        for epoch in range(4):
            model.train()
            for x, y in loader:
                descent.zero_grad()
                evidence.loss(model(x), y).backward()
                descent.step()
            if curvature is not None and epoch == 1:
                evidence.refresh(loader)
                evidence.step()
    return {"tensors": alive.peak / 2**20, "process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    print("| network | batch | curvature | tensors, MiB | times plain | process, MiB | times plain |")
    print("|---|---|---|---|---|---|---|")
    for network in NETWORKS:
        for batch_size in (128, 32):
            base = None
            for curvature in (None, *(CURVATURES if batch_size == 128 else ("expand",))):
                command = [sys.executable, __file__, network, curvature or "-", str(batch_size)]
                found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                base = base or found
                numbers = " | ".join(f"{found[k]:.0f} | {found[k] / base[k]:.2f}" for k in ("tensors", "process"))
                print(f"| {network} | {batch_size} | {curvature or 'none: plain training'} | {numbers} |", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if len(sys.argv) > 1:
        name, kind, size = sys.argv[1:]
        print(json.dumps(train(name, None if kind == "-" else kind, int(size))))
    else:
        main()
