"""Several processes: each sees its share of the data, all take the same decisions.

    torchrun --nproc-per-node 2 examples/several_processes.py [--epochs 12]

The usual recipe of torch: ``init_process_group``, a ``DistributedSampler``, a ``DistributedDataParallel`` model;
``fit`` takes both as they are. Curvature and loss are summed over all processes, N is the size of the data set, and
each process ends with the same precisions, bit for bit, and with those of the same batches in one process. Run by
``python`` alone it is one process with all the data. Half a minute on two cores.
"""

from __future__ import annotations

import argparse
import os

import torch
from digits import DigitNet, accuracy, task
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import escnn_relax


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--question", default="half-turn", help="one of digits.TASKS")
    given = parser.parse_args()
    several = "WORLD_SIZE" in os.environ
    if several:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank = dist.get_rank() if several else 0
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = task(given.question, 0)
    train = TensorDataset(*data.train)
    model = escnn_relax.relax(DigitNet(data.classes))
    sampler = DistributedSampler(train, seed=0) if several else None
    wrapped = DistributedDataParallel(model, find_unused_parameters=True) if several else model
    loader = DataLoader(train, 50 if several else 100, shuffle=not several, sampler=sampler)
    history = escnn_relax.fit(wrapped, loader, epochs=given.epochs, burn_in=given.epochs // 2, progress=False)
    precisions = [history.evidence.log_precision]
    if several:
        precisions = [None] * dist.get_world_size()
        dist.all_gather_object(precisions, history.evidence.log_precision)
    assert all(p == precisions[0] for p in precisions), "the processes decided differently"
    if not rank:
        print(escnn_relax.report(model, history.evidence))
        print(f"{len(precisions)} processes, the same precisions; test accuracy {accuracy(model, data.test):.1%}")
    if several:
        del wrapped  # before the group: freed after it, torch waits for a thread of gloo's that waits for Python
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
