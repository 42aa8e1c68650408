"""Kernels built once: the same from memory, from disk and anew, whatever happens to the files."""

import logging
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from escnn import gspaces
from escnn.nn import FieldType
from fields import field_type, kernels_of

from escnn_relax.nn import RelaxedR2Conv
from escnn_relax.symmetry.kernels import kernel_cache, pathway_kernels
from escnn_relax.symmetry.kernels.cache_key import cache_key


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty cache, in memory and on disk, that writes whatever it is given."""
    where = tmp_path / "kernels"
    monkeypatch.setenv("ESCNN_RELAX_CACHE", str(where))
    monkeypatch.setattr(kernel_cache, "WORTHWHILE", 0)
    monkeypatch.setattr(kernel_cache, "_warned", False)
    monkeypatch.setattr(kernel_cache, "_MEMORY", type(kernel_cache._MEMORY)())
    return where


@pytest.fixture
def builds(monkeypatch):
    """How often kernels were built."""
    calls, build = [], pathway_kernels.Relaxation._split
    monkeypatch.setattr(pathway_kernels.Relaxation, "_split", lambda self, *a: calls.append(1) or build(self, *a))
    return calls


def rows(**how):
    layer = RelaxedR2Conv(field_type("C4"), field_type("C4", "irreps"), 3, bias=False, initialize=False, **how)
    return torch.cat(list(kernels_of(layer).values()))


def forget():
    kernel_cache.clear(disk=False)


def test_built_once_and_always_the_same(builds, folder):
    first = rows()
    assert len(builds) == len(list(folder.iterdir())) == 3  # one for each representation of the output
    assert torch.equal(rows(), first) and len(builds) == 3
    forget()
    assert torch.equal(rows(), first) and len(builds) == 3
    kernel_cache.clear()
    assert not list(folder.iterdir())
    assert torch.equal(rows(), first) and len(builds) == 6


def test_kernels_of_the_cache_cannot_be_spoilt_by_a_layer(builds):
    layer = RelaxedR2Conv(field_type("C4"), field_type("C4"), 3, bias=False, initialize=False)
    before = kernels_of(layer)["irrep_1"].clone()
    for buffer in layer.kernel.buffers():
        if buffer.is_floating_point():
            buffer.zero_()
    again = RelaxedR2Conv(field_type("C4"), field_type("C4"), 3, bias=False, initialize=False)
    assert len(builds) == 1 and torch.equal(kernels_of(again)["irrep_1"], before)


def test_another_process_reads_what_this_one_wrote(folder):
    first = rows()
    script = """
import sys, torch
sys.path[:0] = ["tests", "tests/symmetry"]
from escnn_relax.symmetry.kernels import pathway_kernels
pathway_kernels.Relaxation._split = None  # building would fail
from test_kernel_cache import rows
torch.save(rows(), sys.argv[1])
"""
    out = folder.parent / "rows.pt"
    subprocess.run([sys.executable, "-W", "ignore", "-c", script, str(out)], check=True, env=_environment(folder))
    assert torch.equal(torch.load(out, weights_only=True), first)


def _environment(folder):
    # the tests' own set-up names another folder when it is imported, which a subprocess does not do
    paths = [os.getcwd(), *sys.path]
    return {**os.environ, "ESCNN_RELAX_CACHE": str(folder), "PYTHONPATH": os.pathsep.join(p for p in paths if p)}


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign", "renamed"])
def test_damaged_files_are_replaced_with_one_warning(damage, builds, folder, caplog):
    first = rows()
    files = sorted(folder.iterdir())
    contents = [file.read_bytes() for file in files]
    for n, (file, content) in enumerate(zip(files, contents)):
        middle = content.find(b"data/0") + 200 if damage == "flipped" else 0
        file.write_bytes(
            {
                "truncated": content[: len(content) // 2],
                "flipped": content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :],
                "empty": b"",
                "foreign": b"not of this kind",
                "renamed": contents[n - 1],
            }[damage]
        )
    forget()
    with caplog.at_level(logging.WARNING, logger="escnn_relax"):
        assert torch.equal(rows(), first)
    assert len(builds) == 6 and len(caplog.records) == 1 and "built anew" in caplog.text
    forget()
    assert torch.equal(rows(), first) and len(builds) == 6  # the files are good again


def test_a_folder_that_cannot_be_written(builds, folder, caplog, monkeypatch):
    folder.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING, logger="escnn_relax"):
        first = rows()
    assert len(caplog.records) == 1 and "cannot write" in caplog.text
    assert torch.equal(rows(), first) and len(builds) == 3  # from memory


def test_interrupted_writing_leaves_nothing_behind(folder, monkeypatch):
    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full)
    rows()
    assert not list(folder.iterdir())


@pytest.mark.parametrize("value", ["off", "0", "OFF"])
def test_switched_off(value, builds, folder, monkeypatch):
    monkeypatch.setenv("ESCNN_RELAX_CACHE", value)
    first = rows()
    assert kernel_cache.folder() is None and not folder.exists()
    forget()
    assert torch.equal(rows(), first) and len(builds) == 6
    assert kernel_cache.size().files == 0
    kernel_cache.clear()


def test_where_the_folder_is(monkeypatch, tmp_path):
    assert kernel_cache.folder() == tmp_path / "kernels"
    monkeypatch.delenv("ESCNN_RELAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kernel_cache.folder() == tmp_path / "escnn_relax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert kernel_cache.folder() == tmp_path / ".cache" / "escnn_relax"


def test_quickly_built_kernels_are_not_written(folder, monkeypatch):
    monkeypatch.setattr(kernel_cache, "WORTHWHILE", 1e9)
    rows()
    assert not folder.exists() and kernel_cache.size().memory_bytes > 0


def entry(n):
    return {"p": torch.full((2, 1, 1, 64), float(n), dtype=torch.float64)}  # 1 KiB


def test_memory_keeps_the_most_recently_used(monkeypatch):
    monkeypatch.setenv("ESCNN_RELAX_CACHE", "off")
    monkeypatch.setattr(kernel_cache, "MEMORY_LIMIT", 2048)
    calls = []

    def fetch(n):
        assert float(kernel_cache.kernels(str(n), lambda: calls.append(n) or entry(n))["p"][0, 0, 0, 0]) == n

    for n in (0, 1, 0, 2, 0, 1):  # 2 drives out 1, not 0
        fetch(n)
    assert calls == [0, 1, 2, 1] and kernel_cache.size().memory_bytes == 2048
    monkeypatch.setattr(kernel_cache, "MEMORY_LIMIT", 100)
    fetch(5)
    fetch(5)  # larger than the limit: handed out, not kept
    assert calls[-2:] == [5, 5] and kernel_cache.size().memory_bytes == 0


def test_disk_keeps_the_most_recently_used(folder, monkeypatch):
    for n in range(3):
        kernel_cache.kernels(str(n), lambda: entry(n))
        os.utime(folder / f"{n}.kernels", (1000 + n, 1000 + n))
    bytes_of_one = kernel_cache.size().disk_bytes // 3
    monkeypatch.setattr(kernel_cache, "DISK_LIMIT", int(3.5 * bytes_of_one))
    forget()
    kernel_cache.kernels("0", lambda: entry(9))  # used just now
    kernel_cache.kernels("3", lambda: entry(3))
    assert sorted(p.name for p in folder.iterdir()) == ["0.kernels", "2.kernels", "3.kernels"]
    assert kernel_cache.size().files == 3 and kernel_cache.size().disk_bytes <= kernel_cache.DISK_LIMIT


def test_other_files_in_the_folder_stay(folder):
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    kernel_cache.kernels("1", lambda: entry(1))
    kernel_cache.clear()
    assert [p.name for p in folder.iterdir()] == ["notes.txt"]


def test_many_threads_at_once(folder):
    kernel_cache.kernels("0", lambda: entry(0))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: kernel_cache.kernels(str(n % 4), lambda: entry(n % 4)), range(200)))
    assert all(float(k["p"].mean()) == n % 4 for n, k in enumerate(found))


def key_of(layer, **change):
    i, o = layer.in_type.representations[0], layer.out_type.representations[0]
    equivariant = change.get("equivariant", torch.zeros(1, o.size, i.size, 9, dtype=torch.float64))
    return cache_key(change.get("relaxation", layer.relaxation), change.get("band", layer.band), i, o, equivariant)


def test_keys_tell_apart_what_differs():
    """Subgroup, irreps, basis, group, axis of a reflection, rings, size, representation, equivariant kernels."""
    made = lambda name, size=3, **how: RelaxedR2Conv(field_type(name), field_type(name), size, initialize=False, **how)
    oblique = gspaces.flip2dOnR2(axis=0.3)
    flipped = FieldType(oblique, [oblique.regular_repr])
    layer = made("D4")
    variants = [
        layer,
        made("C4"),
        made("D4", 5),
        made("D4", sigma=0.7),
        made("D4", basis="pixel"),
        made("D4", irreps=[(1, 0)]),
        made("D4", subgroups=[(0, 1)]),
        made("D4", subgroups=[(1, 1)]),
        made("D1"),
        RelaxedR2Conv(flipped, flipped, 3, initialize=False),
        RelaxedR2Conv(field_type("D4", "quotient"), field_type("D4"), 3, initialize=False),
    ]
    keys = [key_of(v) for v in variants]
    keys.append(key_of(layer, equivariant=torch.ones(1, 8, 8, 9, dtype=torch.float64)))
    assert len(set(keys)) == len(keys)
    assert key_of(made("D4")) == keys[0]


def test_long_builds_say_so(monkeypatch, caplog, folder):
    """One line after a while, none where it is quick, and none after the end."""
    released = threading.Event()

    class Now(threading.Timer):
        def start(self):
            self.function(*self.args)
            released.set()

    build = lambda: {"kernels": torch.ones(1)}
    with caplog.at_level(logging.WARNING, logger="escnn_relax"):
        kernel_cache.kernels("00", build, "the kernels of C4")
        assert not caplog.records
        monkeypatch.setattr(threading, "Timer", Now)
        kernel_cache.kernels("01", build, "the kernels of C4")
    assert released.is_set() and len(caplog.records) == 1
    assert "still building the kernels of C4" in caplog.text and str(folder) in caplog.text


def test_one_line_for_all_that_a_layer_builds(monkeypatch, caplog, folder):
    """Symptom: nothing was said where many parts took long together and none by itself."""

    class Now(threading.Timer):
        def start(self):
            self.function(*self.args)

    monkeypatch.setattr(threading, "Timer", Now)
    build = lambda: {"kernels": torch.ones(1)}
    with caplog.at_level(logging.WARNING, logger="escnn_relax"):
        with kernel_cache.announce("the kernels of a layer"):
            for n in range(3):
                kernel_cache.kernels(f"1{n}", build, "a part of them")
        assert len(caplog.records) == 1 and "the kernels of a layer" in caplog.text
        with pytest.raises(ValueError), kernel_cache.announce("what fails"):
            raise ValueError
        kernel_cache.kernels("20", build, "the next")  # said again, after the failure
    assert [r.getMessage().split(",")[0] for r in caplog.records[1:]] == [
        "still building what fails",
        "still building the next",
    ]
