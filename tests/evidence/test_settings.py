"""The settings of an evidence: three named objects, and the former keywords that stand for their fields."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import fields

import pytest
from evidence_cases import loader, network

from escnn_relax import CurvatureSettings, Evidence, NoiseSettings, PriorSettings, fit
from escnn_relax.errors import ArgumentError, CheckpointError
from escnn_relax.training.checkpoint import load, plain, save
from escnn_relax.evidence.settings import FormerKeywords

FORMER = {
    "samples": (2, {"curvature": CurvatureSettings(samples=2)}),
    "bias": ("kronecker", {"curvature": CurvatureSettings(bias="kronecker")}),
    "normalisation": (True, {"curvature": CurvatureSettings(normalisation=True)}),
    "memory": (400.0, {"curvature": CurvatureSettings(memory=400.0)}),
    "log_precision": (0.5, {"prior": PriorSettings(log_precision=0.5)}),
    "residual_log_precision": (2.0, {"prior": PriorSettings(residual_log_precision=2.0)}),
    "ties": ("layer", {"prior": PriorSettings(ties="layer")}),
    "fixed": ({"first.bias": 1.0}, {"prior": PriorSettings(fixed={"first.bias": 1.0})}),
    "bounds": ((-2.0, 2.0), {"prior": PriorSettings(bounds=(-2.0, 2.0))}),
    "log_noise": (0.3, {"noise": NoiseSettings(log_noise=0.3)}),
    "temperature": (2.0, {"noise": NoiseSettings(temperature=2.0)}),
}


def test_every_former_keyword_is_here():
    assert FORMER.keys() == FormerKeywords.__annotations__.keys()


@pytest.mark.parametrize("name", FORMER)
def test_a_former_keyword_is_a_field_of_the_settings(name):
    value, settings = FORMER[name]
    (home,) = settings
    with pytest.warns(
        DeprecationWarning, match=rf"{name}= is an old spelling.*write {home}={type(settings[home]).__name__}\("
    ) as caught:
        old = Evidence(network(), "gaussian", num_data=12, **{name: value})
    assert caught[0].filename == __file__, "it points at the caller's line"
    new = Evidence(network(), "gaussian", num_data=12, **settings)
    assert old.settings == new.settings and old.prior == new.prior and old.log_precision == new.log_precision
    assert (old.noise.log, old.temperature) == (new.noise.log, new.temperature)
    assert old.curvature.covered == new.curvature.covered


def test_former_keywords_join_what_is_given_by_name():
    with pytest.warns(DeprecationWarning, match=r"curvature=CurvatureSettings\('exact', samples=2\)"):
        evidence = Evidence(network(), "gaussian", "exact", samples=2)
    assert evidence.settings == CurvatureSettings("exact", samples=2)
    with pytest.warns(DeprecationWarning, match=r"noise=NoiseSettings\('output', log_noise=0.3\)"):
        assert Evidence(network(), "gaussian", noise="output", log_noise=0.3).noise.kind == "output"


def test_not_both():
    with pytest.raises(ArgumentError, match=r"samples: given beside curvature=CurvatureSettings.*write curvature"):
        Evidence(network(), curvature=CurvatureSettings("exact"), samples=2)
    with pytest.raises(ArgumentError, match="Evidence: it has no argument 'priors'; did you mean 'prior'"):
        Evidence(network(), priors=2)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("log_precison", r"prior=PriorSettings\(log_precision=\.\.\.\)"),
        ("temprature", r"noise=NoiseSettings\(temperature=\.\.\.\)"),
        ("sample", r"curvature=CurvatureSettings\(samples=\.\.\.\)"),
        ("numdata", "'num_data'"),
    ],
)
def test_a_misspelt_field_of_the_settings_is_known(wrong, right):
    with pytest.raises(ArgumentError, match=f"Evidence: it has no argument '{wrong}'; did you mean {right}"):
        Evidence(network(), **{wrong: 2})
    with pytest.raises(ArgumentError, match=f"fit: it has no argument '{wrong}'; did you mean {right}"):
        fit(network(), loader(), **{wrong: 2})


def test_a_prior_is_settings():
    with pytest.raises(ArgumentError, match="prior: expected a PriorSettings, got 'layer'; write prior=PriorSettings"):
        Evidence(network(), prior="layer")


def test_the_new_spelling_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Evidence(network(), "gaussian", "exact", noise="output", num_data=12, prior=PriorSettings(ties="layer"))


def test_fit_passes_former_keywords_on():
    options = {"epochs": 1, "burn_in": 0, "progress": False, "gates": False}
    with pytest.warns(DeprecationWarning, match="samples= is an old spelling") as caught:
        old = fit(network(), loader(), samples=1, **options)
    (said,) = (w for w in caught if issubclass(w.category, DeprecationWarning) and "old spelling" in str(w.message))
    assert said.filename == __file__
    assert old.evidence.settings == CurvatureSettings(samples=1)


def test_few_arguments_and_small_settings():
    """Twenty arguments were too many to read; a bag of as many fields would be no better."""
    named = [p for p in inspect.signature(Evidence.__init__).parameters.values() if p.kind is not p.VAR_KEYWORD]
    assert len(named) <= 8
    assert max(len(fields(s)) for s in (CurvatureSettings, PriorSettings, NoiseSettings)) <= 6


def test_settings_are_plain_values_of_a_checkpoint(tmp_path):
    run = {
        "evidence": [("curvature", CurvatureSettings("exact", samples=2)), ("prior", PriorSettings(bounds=(-1.0, 1.0)))]
    }
    save(tmp_path / "run.pt", {"run": run, "done": 3})
    assert load(tmp_path / "run.pt", plain(run))["done"] == 3
    with pytest.raises(CheckpointError, match="other evidence"):
        load(tmp_path / "run.pt", plain({"evidence": [("curvature", CurvatureSettings("exact", samples=3))]}))


def test_which_weights_feel_their_prior():
    with pytest.raises(ArgumentError, match="penalty.*'breaking' or 'all'.*leave it out"):
        PriorSettings(penalty="some")
