"""Checkpoints on disk: read as they were once spelled, and refused where they are of another run."""

from __future__ import annotations

import pytest

from escnn_relax.errors import CheckpointError
from escnn_relax.training.checkpoint import load, save


def test_a_run_as_it_was_once_spelled(tmp_path):
    save(tmp_path / "run.pt", {"run": {"optimiser": "Adam", "epochs": 3}, "records": [1]})
    assert load(tmp_path / "run.pt", {"optimizer": "Adam", "epochs": 3})["records"] == [1]
    with pytest.raises(CheckpointError, match="other optimizer"):
        load(tmp_path / "run.pt", {"optimizer": "SGD", "epochs": 3})


def test_loaders_with_other_generators(tmp_path):
    save(tmp_path / "run.pt", {"run": {}, "generators": [1]})
    with pytest.raises(CheckpointError, match="other random generators"):
        load(tmp_path / "run.pt", {}, [[1, 2, 3]])
