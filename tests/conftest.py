"""What every test starts from: the same seeds, one thread, and reproducible hypothesis examples.

A test that takes more than some ten seconds carries ``@pytest.mark.slow``: ``make test`` leaves it out and
``make test-all`` runs it, so a quick twin without the mark should guard the same property.
"""

import os
import random
import tempfile

import numpy as np
import pytest
import torch

import escnn_relax  # noqa: F401, I001 - before escnn, whose groups need what it provides where lie_learn is missing
from escnn.nn.modules.basismanager import basisexpansion_singleblock, basissampler_singleblock
from hypothesis import settings

# No deadline, since the first call builds kernel bases that later ones find cached; derandomised, since a failure in
# continuous integration must be the failure that a developer sees.
settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=25, database=None)
settings.load_profile("repeatable")

# One thread: the tensors are small, and threads that wait for each other spin when the machine is busy.
torch.set_num_threads(1)

# A folder of our own for the kernels on disk: the tests (doctests and what they start included) neither read the user's
# cache nor leave anything there. It goes when the process ends. Workers of pytest-xdist share that of the process that
# started them.
if "PYTEST_XDIST_WORKER" not in os.environ:
    KERNELS = tempfile.TemporaryDirectory(prefix="escnn_relax_tests_")
    os.environ["ESCNN_RELAX_CACHE"] = KERNELS.name


@pytest.fixture(autouse=True)
def seeds():
    """The same seeds for each test, so that none depends on which ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def single_precision_bases():
    """escnn shares sampled bases between all layers of a process, and ``layer.double()`` turns them for all: back to
    what they were."""
    yield
    for stored in (basisexpansion_singleblock._stored_filters, basissampler_singleblock._stored_filters):
        for module in stored.values():
            if any(buffer.dtype == torch.float64 for buffer in module.buffers()):
                module.float()
