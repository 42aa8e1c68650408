"""The symmetry test of a network from the command line: ``python -m escnn_relax test module:factory --data ...``.

The network comes from a factory of yours, ``module:function`` without arguments, importable from the current directory;
the data from another one that returns a loader, from an ``.npz`` file with the arrays ``x`` and ``y``, or from a folder
with one subfolder of images for each class.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from .diagnosis import symmetry_test
from .errors import ArgumentError, DataError, RelaxError

__all__ = ["main"]

#: The images that a folder is searched for.
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status, 2 where one of our errors says what is wrong.

    Args:
        arguments: of the command line; by default those of the process.
    """
    options = _parser().parse_args(arguments)
    sys.path.insert(0, str(Path.cwd()))
    try:
        return _test(options)
    except RelaxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m escnn_relax", description="Learnable symmetry for escnn.")
    commands = parser.add_subparsers(dest="command", required=True)
    test = commands.add_parser("test", help="which layer breaks which symmetry, before anything is trained")
    test.add_argument("model", metavar="MODULE:FACTORY", help="a function without arguments that returns the network")
    test.add_argument("--data", required=True, help="MODULE:FACTORY of a loader, a .npz file with x and y, or a folder")
    test.add_argument("--weights", help="a state dict of the network, saved by torch.save")
    test.add_argument("--batch", type=int, default=64, help="samples in a batch, of files and folders (64)")
    test.add_argument("--grey", action="store_true", help="read images as grey: one channel")
    test.add_argument("--likelihood", default="categorical", help="categorical, bernoulli or gaussian")
    test.add_argument("--initialisations", type=int, default=1, help="random initialisations beside the weights (1)")
    test.add_argument("--gains", action="store_true", help="gains in nats as well: one refresh more")
    test.add_argument("--inputs", action="store_true", help="whether the inputs alone lack the symmetry")
    test.add_argument("--plot", metavar="FILE", help="draw the heat map into this file")
    test.add_argument("--json", metavar="FILE", help="write all records into this file")
    return parser


def _test(options: argparse.Namespace) -> int:
    model = imported(options.model, "model")
    if not isinstance(model, nn.Module):
        raise ArgumentError(options.model, expected="a factory of an nn.Module", got=type(model).__name__, remedy=CALL)
    if options.weights:
        try:
            model.load_state_dict(torch.load(options.weights, map_location="cpu", weights_only=True))
        except (OSError, RuntimeError) as error:
            remedy = "save them by torch.save(model.state_dict(), file), of a network of this factory"
            raise ArgumentError("--weights", str(error), remedy=remedy) from error
    for file in filter(None, (options.plot, options.json)):
        if not Path(file).absolute().parent.is_dir():
            raise ArgumentError(file, "there is no such folder", remedy="make it, or name a file in another one")
    loader = loaded(options.data, options.batch, options.grey)
    flags = {"initialisations": options.initialisations, "gains": options.gains, "inputs": options.inputs}
    test = symmetry_test(model, loader, likelihood=options.likelihood, progress=sys.stderr.isatty(), **flags)
    print(test)
    if options.plot:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        test.plot()
        pyplot.savefig(options.plot, bbox_inches="tight", dpi=150)
    if options.json:
        Path(options.json).write_text(json.dumps(test.to_dict(), indent=1, default=str), encoding="utf-8")
    return 0


#: What to do where a factory is not one.
CALL = "name a function of yours as module:function, e.g. my_networks:make_model"


def imported(name: str, what: str) -> Any:
    """What a factory returns, named as ``module:function``."""
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise ArgumentError(what, expected="module:function", got=repr(name), remedy=CALL)
    try:
        factory = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ArgumentError(what, f"{name} cannot be imported: {error}", remedy=CALL) from error
    return factory() if callable(factory) else factory


def loaded(source: str, batch: int, grey: bool) -> Iterable[Any]:
    """A loader for ``--data``: of a factory, of an ``.npz`` file, or of a folder with a subfolder of images a class."""
    path = Path(source)
    if path.is_dir():
        return DataLoader(_folder(path, grey), batch, shuffle=True)
    if path.suffix == ".npz" and path.is_file():
        arrays = np.load(path)
        missing = {"x", "y"} - set(arrays.files)
        if missing:
            raise DataError(source, expected="arrays x (inputs) and y (targets)", got=str(arrays.files), remedy=SAVE)
        x, y = torch.as_tensor(arrays["x"]).float(), torch.as_tensor(arrays["y"])
        return DataLoader(TensorDataset(x, y.long() if not y.is_floating_point() else y), batch, shuffle=True)
    if ":" not in source:
        raise DataError(source, "there is no such file or folder", remedy="or name a factory as module:function")
    made: Iterable[Any] = imported(source, "data")
    return made


#: How to write a file that can be read.
SAVE = "write it by numpy.savez(file, x=inputs, y=targets), inputs of the shape (N, channels, ...)"


def _folder(path: Path, grey: bool) -> TensorDataset:
    classes = sorted(folder for folder in path.iterdir() if folder.is_dir())
    files = [
        (file, n) for n, c in enumerate(classes) for file in sorted(c.iterdir()) if file.suffix.lower() in SUFFIXES
    ]
    if not files:
        raise DataError(str(path), "holds no images", remedy="put the images of each class into a subfolder of its own")
    images = [_image(file, grey) for file, _ in files]
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        problem = f"its images have {len(shapes)} different shapes, such as {sorted(shapes)[:2]}"
        raise DataError(str(path), problem, remedy="bring them to one size and one number of channels (--grey)")
    return TensorDataset(torch.stack(images), torch.tensor([label for _, label in files]))


def _image(file: Path, grey: bool) -> Tensor:
    """A picture, shape (channels, height, width), values in 0 ... 1."""
    from PIL import Image

    with Image.open(file) as picture:
        array = np.asarray(picture.convert("L" if grey else picture.mode if picture.mode in ("L", "RGB") else "RGB"))
    image = torch.from_numpy(array.copy()).float() / 255
    return image[None] if image.dim() == 2 else image.permute(2, 0, 1)


if __name__ == "__main__":
    sys.exit(main())
