"""The settings of an evidence: its curvature, its prior and its observation noise, each a small object of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypedDict

from torch import Tensor

from ..curvature.approximation import Approximation
from ..curvature.approximation_choice import AUTOMATIC
from ..deprecation import warn_former
from ..errors import ArgumentError, most_like, nearest
from .prior import BOUNDS, Ties

__all__ = [
    *("CurvatureSettings", "NoiseSettings", "PriorSettings"),
    *("EvidenceKeywords", "FormerKeywords", "nearest_argument", "regrouped", "with_ties"),
]

#: Log precision that pathways which break the symmetry start from: kernels of a fifth of the size of the others.
RESIDUAL = 3.0
#: Which weights may feel their prior in the training.
PENALTIES = ("breaking", "all")


@dataclass(frozen=True)
class CurvatureSettings:
    """How the curvature is taken.

    Attributes:
        approximation: ``"expand"``, ``"reduce"``, ``"eigenvalue-corrected"``, ``"exact"``, ``"diagonal"``,
            ``"sketched"`` or ``"auto"``, which wide networks need: the cost of ``"expand"`` grows with the cube of the
            width.
        samples: Monte-Carlo columns a sample instead of the exact sum over outputs (``None``). ``"auto"`` draws one
            where there are more than 256 outputs or a layer is sketched, and says so in the log.
        bias: ``"exact"`` or ``"kronecker"``, see :mod:`escnn_relax.curvature.conventions`.
        normalisation: cover scales and shifts of batch normalisation too (their prior has mean zero as all others).
        memory: what a refresh may take beside what is there already (MiB): minibatches are cut so that it holds, and
            less than a single sample takes is a ``MemoryLimitError``. With ``"auto"`` the smallest parameters become
            exact, as many as fit into a quarter of it; without, those of at most 256 weights.

    >>> CurvatureSettings("eigenvalue-corrected", memory=500).approximation
    'eigenvalue-corrected'
    """

    approximation: str | Approximation = "expand"
    samples: int | str | None = AUTOMATIC
    bias: str = "exact"
    normalisation: bool = False
    memory: float | None = None


@dataclass(frozen=True)
class PriorSettings:
    """The prior precisions that an evidence starts from, and how they may move.

    Attributes:
        log_precision: initial log prior precision of equivariant pathways, plain weights and biases.
        residual_log_precision: that of pathways that break the symmetry; 3 by default. :func:`~escnn_relax.fit` opens
            them all from the start where it is given.
        ties: which parameters share a precision: ``"parameter"`` (none do, the default), ``"layer"``, ``"model"``, or a
            mapping or function from a parameter's name to its group's.
        fixed: log precisions that do not move, by the name of a parameter or group.
        bounds: least and largest log precision.
        penalty: which weights feel their prior in the training, see :meth:`~escnn_relax.Evidence.penalty`:
            ``"breaking"``, those alone that break a symmetry, or ``"all"`` that have one. By default (``None``) the
            former in a relaxed model, so that all its others are trained as in the strict network, without a penalty or
            with a weight decay of yours; and the latter where nothing breaks a symmetry.

    >>> PriorSettings(fixed={"head.weight": 0.0}).bounds
    (-12.0, 16.0)
    """

    log_precision: float = 0.0
    residual_log_precision: float | None = None
    ties: Ties | None = None
    fixed: Mapping[str, float] | None = None
    bounds: tuple[float, float] = BOUNDS
    penalty: str | None = None

    def __post_init__(self) -> None:
        if self.penalty is not None and self.penalty not in PENALTIES:
            remedy = "leave it out for 'breaking': all others are trained as in the strict network"
            raise ArgumentError("penalty", expected="'breaking' or 'all'", got=repr(self.penalty), remedy=remedy)


@dataclass(frozen=True)
class NoiseSettings:
    """What one unit of the likelihood counts.

    Attributes:
        kind: one noise ``"shared"`` by all outputs, or one for each ``"output"`` (dimension 1 of the model's output).
        log_noise: initial log standard deviation of the observation noise (``"gaussian"`` only), or those of all
            outputs.
        temperature: divides log-likelihood and curvature.

    >>> NoiseSettings("output", log_noise=(0.0, -1.0)).temperature
    1.0
    """

    kind: str = "shared"
    log_noise: float | Sequence[float] | Tensor = 0.0
    temperature: float = 1.0


class FormerKeywords(TypedDict, total=False):
    """Arguments of :class:`~escnn_relax.Evidence` that are fields of its settings now."""

    samples: int | str | None
    bias: str
    normalisation: bool
    memory: float | None
    log_precision: float
    residual_log_precision: float | None
    ties: Ties
    fixed: Mapping[str, float] | None
    bounds: tuple[float, float]
    log_noise: float | Sequence[float] | Tensor
    temperature: float


class EvidenceKeywords(FormerKeywords, total=False):
    """The keywords of :class:`~escnn_relax.Evidence`, as :func:`~escnn_relax.fit` passes them on."""

    curvature: str | Approximation | CurvatureSettings
    num_data: int | None
    prior: PriorSettings | None
    noise: str | NoiseSettings
    relaxed_only: bool


def regrouped(
    curvature: str | Approximation | CurvatureSettings,
    prior: PriorSettings | None,
    noise: str | NoiseSettings,
    former: Mapping[str, Any],
) -> tuple[CurvatureSettings, PriorSettings, NoiseSettings]:
    """All settings, former keywords put where they belong, with a ``DeprecationWarning`` that says where that is.

    Raises:
        ArgumentError: a prior that is none; a keyword that never was one, or a former one beside the settings that it
            is a field of now.
    """
    if not isinstance(prior, PriorSettings | None):
        remedy = "write prior=PriorSettings(ties='layer') for one precision a layer, or leave it out"
        raise ArgumentError("prior", expected="a PriorSettings", got=repr(prior), remedy=remedy)
    arguments: dict[str, Any] = {"curvature": curvature, "prior": prior, "noise": noise}
    settings: dict[str, Any] = {
        "curvature": curvature if isinstance(curvature, CurvatureSettings) else CurvatureSettings(curvature),
        "prior": PriorSettings() if prior is None else prior,
        "noise": noise if isinstance(noise, NoiseSettings) else NoiseSettings(noise),
    }
    homes = {
        f.name: home
        for home, kind in settings.items()
        for f in fields(kind)
        if f.name in FormerKeywords.__annotations__
    }
    for name in former:
        if name not in homes:
            known = ["num_data", "relaxed_only", *settings]
            raise ArgumentError("Evidence", f"it has no argument {name!r}", remedy=nearest_argument(name, known))
    for home in settings:
        values = {name: value for name, value in former.items() if homes[name] == home}
        if not values:
            continue
        kind = type(settings[home])
        if isinstance(arguments[home], kind):
            remedy = f"write {home}={kind.__name__}({', '.join(f'{name}=...' for name in values)}) alone"
            raise ArgumentError(next(iter(values)), f"given beside {home}={kind.__name__}(...)", remedy=remedy)
        first = [repr(arguments[home])] if isinstance(arguments[home], str) else []
        spelled = ", ".join([*first, *(f"{name}={_shown(value)}" for name, value in values.items())])
        warn_former(", ".join(f"{name}=" for name in values), f"{home}={kind.__name__}({spelled})")
        settings[home] = replace(settings[home], **values)
    return settings["curvature"], settings["prior"], settings["noise"]


def nearest_argument(name: str, arguments: Sequence[str]) -> str:
    """The remedy for an argument that is not known: the one most like it, or the field of the settings.

    Args:
        arguments: those of the function, the settings among them.

    >>> nearest_argument("log_precison", ["num_data", "prior"])
    'did you mean prior=PriorSettings(log_precision=...)? There are num_data, prior'
    """
    homes = {"curvature": CurvatureSettings, "prior": PriorSettings, "noise": NoiseSettings}
    spelled = {f.name: f"{home}={kind.__name__}({f.name}=...)" for home, kind in homes.items() for f in fields(kind)}
    like = most_like(name, [*arguments, *spelled])
    if like in arguments:
        return nearest(name, arguments, most=30)
    return f"did you mean {spelled[like]}? There are {', '.join(arguments)}"


def with_ties(options: Mapping[str, Any], ties: Ties) -> dict[str, Any]:
    """Options for an evidence whose parameters are tied like this, and all feel their prior, unless the options say
    how."""
    rest = dict(options)
    former = {name: rest.pop(name) for name in options if name in FormerKeywords.__annotations__}
    settings = (rest.pop("curvature", "expand"), rest.pop("prior", None), rest.pop("noise", "shared"))
    curvature, prior, noise = regrouped(*settings, former)
    prior = replace(prior, ties=ties if prior.ties is None else prior.ties, penalty=prior.penalty or "all")
    return {**rest, "curvature": curvature, "prior": prior, "noise": noise}


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, (str, int, float, tuple, type(None))) else "..."
