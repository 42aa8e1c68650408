"""``python -m escnn_relax test``: the symmetry test of somebody's network, without a script."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from escnn_relax.__main__ import loaded, main
from escnn_relax.errors import RelaxError

NETWORK = """
import torch
import escnn_relax
from escnn import gspaces, nn as enn

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        c4 = gspaces.rot2dOnR2(4)
        self.gray, fields = enn.FieldType(c4, [c4.trivial_repr]), enn.FieldType(c4, 2 * [c4.regular_repr])
        self.conv, self.relu, self.pool = enn.R2Conv(self.gray, fields, 3), enn.ReLU(fields), enn.GroupPooling(fields)
        self.linear = torch.nn.Linear(2, 2)
    def forward(self, x):
        return self.linear(self.pool(self.relu(self.conv(self.gray(x)))).tensor.mean((-2, -1)))

def make():
    torch.manual_seed(0)
    return Net()

def number():
    return 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A module with a network, and stripes that lie or stand, in the three forms that data come in."""
    (tmp_path / "networks_of_mine.py").write_text(NETWORK)
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=160)
    x = np.where((np.arange(7) % 2)[None, :, None] == 1, 200, 20) + rng.integers(0, 40, (160, 7, 7))
    x = np.where(y[:, None, None] == 1, x, x.transpose(0, 2, 1)).astype(np.uint8)
    for n, (image, label) in enumerate(zip(x, y)):
        place = tmp_path / "pictures" / ("lies" if label else "stands")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{n}.png")
    np.savez(tmp_path / "data.npz", x=x[:, None] / 255.0, y=y)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    sys.modules.pop("networks_of_mine", None)


@pytest.mark.parametrize("data", ["data.npz", "pictures"])
def test_prints_what_is_broken(folder, data, capsys):
    command = [
        "test",
        "networks_of_mine:make",
        "--data",
        data,
        "--batch",
        "4",
        "--json",
        "out.json",
        "--plot",
        "out.png",
    ]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "nothing contradicts, by layer: conv C2" in printed
    records = json.loads((folder / "out.json").read_text())["tests"]
    assert {r["pathway"]: r["broken"] for r in records} == {"irrep_1": False, "irrep_2": True}
    assert (folder / "out.png").stat().st_size > 1000


def test_a_folder_holds_what_a_file_holds(folder):
    pictures, file = loaded("pictures", 160, False), loaded("data.npz", 160, False)
    (a, labels), (b, y) = next(iter(pictures)), next(iter(file))
    assert a.shape == b.shape == (160, 1, 7, 7) and sorted(labels.tolist()) == sorted(1 - y.numpy())
    assert torch.allclose(a.mean(), b.mean())


@pytest.mark.parametrize(
    ("model", "data", "says"),
    [
        ("networks_of_mine", "data.npz", "module:function"),
        ("networks_of_mine:absent", "data.npz", "cannot be imported"),
        ("no_such_module:make", "data.npz", "cannot be imported"),
        ("networks_of_mine:number", "data.npz", "nn.Module"),
        ("networks_of_mine:make", "absent.npz", "no such file"),
        ("networks_of_mine:make", ".", "holds no images"),
    ],
)
def test_what_is_wrong_is_said(folder, model, data, says, capsys):
    assert main(["test", model, "--data", data]) == 2
    assert says in capsys.readouterr().err


def test_weights_and_places_that_are_not_there(folder, capsys):
    command = ["test", "networks_of_mine:make", "--data", "data.npz"]
    assert main([*command, "--weights", "absent.pt"]) == 2 and "--weights" in capsys.readouterr().err
    assert main([*command, "--plot", "absent/out.png"]) == 2 and "no such folder" in capsys.readouterr().err


def test_images_of_two_sizes_are_refused(folder):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(folder / "pictures" / "lies" / "large.png")
    with pytest.raises(RelaxError, match="different shapes"):
        loaded("pictures", 8, False)


def test_it_is_a_command(folder):
    command = [sys.executable, "-W", "ignore", "-m", "escnn_relax", "--help"]
    assert "test" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
