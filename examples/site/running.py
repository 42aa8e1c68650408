"""How sphinx-gallery runs the examples: with a folder for their figures, and so that they may start processes."""

from __future__ import annotations

import multiprocessing.spawn
import sys
from pathlib import Path

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
