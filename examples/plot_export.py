"""Harden a network and export it, with equal outputs
==================================================

A relaxed network is trained, hardened, and handed over in the forms in which networks leave Python: ``torch.export``,
TorchScript, and ONNX where the packages ``onnxruntime`` and ``onnxscript`` are there. Hardened layers are one
convolution each: escnn's own where the symmetry was kept, a free one where it was broken. ``prepare_export`` puts plain
torch modules in the place of escnn's, behind the same types: so the network's own ``forward`` can be traced, nothing of
escnn is left in the program, and its outputs are those of the relaxed network. About 20 seconds on a core.

    python examples/plot_export.py [--out examples/output] [--epochs 25]
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import statistics
import timeit
import warnings
from pathlib import Path
from collections.abc import Callable

import torch
from digits import DigitNet, accuracy, task
from torch import Tensor, nn

import escnn_relax

#: The first dimension may have any size.
BATCH = {0: torch.export.Dim("batch", min=2, max=4096)}


# %%
# Three ways out of Python
# ------------------------
# Each returns a function of a batch, read back from what was saved. ONNX needs the packages ``onnxruntime`` and
# ``onnxscript``, and is left out without them.


def exported(model: nn.Module, example: Tensor) -> Callable:
    """By ``torch.export``, saved and loaded again."""
    program = torch.export.export(model, (example,), dynamic_shapes=(BATCH,))
    torch.export.save(program, file := io.BytesIO())
    file.seek(0)
    return torch.export.load(file).module()


def scripted(model: nn.Module, example: Tensor) -> Callable:
    """By TorchScript, saved and loaded again."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in favour of torch.export, still asked for
        torch.jit.save(torch.jit.trace(model, example, check_trace=False), file)
        file.seek(0)
        return torch.jit.load(file)


def onnx(model: nn.Module, example: Tensor) -> Callable:
    """By ONNX, run by onnxruntime."""
    import onnxruntime

    program = torch.onnx.export(model, (example,), dynamo=True, dynamic_shapes=(BATCH,), verbose=False)
    program.save(file := io.BytesIO())
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


# %%
# Time
# ----
# The median of some calls; the relaxed network is timed beside the forms that it leaves in.


def milliseconds(model: Callable, x: Tensor, repeats: int = 15) -> float:
    """Median time of a call."""
    return 1000 * statistics.median(timeit.repeat(lambda: model(x), number=1, repeat=repeats))


# %%
# Train, harden, export
# ---------------------
# The outputs of every form are compared with those of the relaxed network.


def learn(epochs: int) -> dict:
    """Train, harden, export; per form its largest deviation from the relaxed network's logits, and time for 100
    digits."""
    torch.manual_seed(0)
    data = task("turn", 0)
    model = escnn_relax.relax(DigitNet(data.classes, fields=4))
    options = {"curvature": escnn_relax.CurvatureSettings(samples=1), "burn_in": 5, "progress": False}
    escnn_relax.fit(model, data.loader(), epochs=epochs, evidence_loader=data.evidence_loader(), **options)
    # so little energy that outputs stay as they are
    final, hardening = escnn_relax.harden(model.eval(), energy=1e-6, return_report=True)
    plain, example = escnn_relax.prepare_export(final), data.test[0][:4]
    forms: dict[str, Callable] = {"relaxed": model, "hardened": final, "plain": plain}
    forms |= {"torch.export": exported(plain, example), "TorchScript": scripted(plain, example)}
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnxscript"):
        forms["ONNX"] = onnx(plain, example)
    x = data.test[0][:100]
    with torch.no_grad():
        logits = model(x)
        errors = {name: float((form(x) - logits).abs().max() / logits.abs().max()) for name, form in forms.items()}
        own = final(x)
        between = {name: float((form(x) - own).abs().max() / own.abs().max()) for name, form in forms.items()}
        times = {name: milliseconds(form, x) for name, form in forms.items() if name != "ONNX"}
    found = {"kinds": [layer.kind for layer in hardening], "accuracy": accuracy(final, data.test)}
    return found | {"errors": errors, "between": between, "times": times}


# %%
# The claim
# ---------
# What was said above, as assertions: the script fails where one of them does not hold.


def check(result: dict) -> None:
    """The claims; AssertionError with the first that does not hold."""
    assert result["errors"]["hardened"] < 0.02, f"hardening keeps the outputs: {result['errors']['hardened']:.1e}"
    for name in result["errors"].keys() - {"relaxed", "hardened"}:
        between = result["between"][name]
        assert between < 1e-5, f"{name} computes what the hardened network does: {between:.1e}"
    assert result["kinds"][-1] == "MergedConvolution", f"the last layer has broken its symmetry: {result['kinds']}"
    assert result["accuracy"] > 0.5, f"it is worth exporting: {result['accuracy']:.0%}"


# %%
# The figure
# ----------
# A bar for each form, with its largest deviation beside it.


def draw(result: dict, path: Path) -> None:
    """Times, with the deviations beside them."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
    names = list(result["times"])
    axes.barh(names, list(result["times"].values()), color=["#BBBBBB"] + ["#0072B2"] * (len(names) - 1))
    for row, name in enumerate(names):
        text = f" outputs differ by {result['errors'][name]:.0e}" if name != "relaxed" else " (the reference)"
        axes.text(result["times"][name], row, text, va="center", fontsize=9)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.5 * max(result["times"].values())), xlabel="time for 100 digits (ms, one thread)")
    axes.set_title("One network as it leaves Python\n(largest difference of a logit, relative to the largest)")
    figure.savefig(path, dpi=110)


# %%
# Run it
# ------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("examples/output"))
    parser.add_argument("--epochs", type=int, default=25)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    result = learn(given.epochs)
    print(f"test accuracy {result['accuracy']:.1%}; hardened layers: {', '.join(result['kinds'])}")
    for name, error in result["errors"].items():
        print(f"{name}: {error:.1e} from the relaxed network, {result['between'][name]:.1e} from the hardened one")
    draw(result, given.out / "export.png")
    check(result)


if __name__ == "__main__":
    main()
