"""How sphinx-gallery runs the examples: with a folder for their figures, so that they may start processes, and each as
if it were alone."""

from __future__ import annotations

import multiprocessing.spawn
import sys
from pathlib import Path

from escnn.nn.modules.basismanager import basisexpansion_singleblock, basissampler_singleblock

OUTPUT = Path(__file__).parents[1] / "output"
_preparation = multiprocessing.spawn.get_preparation_data
_script = ""


def arguments(gallery: dict, script: dict) -> list[str]:
    """The command line of an example."""
    global _script
    _script = script["src_file"]
    return ["--out", str(OUTPUT)]


def preparation(name: str) -> dict:
    """What a spawned process is told: to import the example as its main module, of which sphinx-gallery keeps no
    file."""
    data = _preparation(name)
    if _script and getattr(sys.modules["__main__"], "__file__", None) is None:
        data.pop("init_main_from_name", None)
        data["init_main_from_path"] = _script
    return data


multiprocessing.spawn.get_preparation_data = preparation


def forget(gallery: dict, script: str) -> None:
    """Empty escnn's memory of sampled kernels, which layers share: those of a model that became ``double()`` are double
    for all that are made later."""
    for stored in (basisexpansion_singleblock._stored_filters, basissampler_singleblock._stored_filters):
        stored.clear()
