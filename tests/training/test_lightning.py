"""``lightning_callback`` with the real packages, where they are installed; what needs none of them, always."""

import copy
import importlib
import pickle
import sys
import warnings

import pytest
import torch
from nonempty import each
from test_callback import adam, asking, constant, train
from test_fit import loader, net
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from escnn_relax import Batches, EvidenceCallback, fit, lightning_callback, report
from escnn_relax.errors import ArgumentError, CheckpointError, InstallationError
from escnn_relax.evidence import evidence_scalars

#: Refreshes look at all the data with a column for each output, since Lightning draws random numbers of its own.
SHORT = {"burn_in": 1, "refresh_every": 2, "hypersteps": 2, "share": 1.0}
#: Of a run with itself: one random column a sample.
SAMPLED = {"burn_in": 1, "refresh_every": 2, "hypersteps": 2}
PACKAGES = ("lightning.pytorch", "pytorch_lightning")


@pytest.fixture(params=PACKAGES)
def pl(request):
    """Either package; Lightning warns of workers, of loggers and of what it will change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(request.param)
        yield importlib.import_module(request.param)


def module(pl, model, step=None, optimizer=adam, automatic=True):
    """A usual module, with ``model`` inside, called ``net``."""

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.automatic_optimization = model, automatic

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, batch_idx):
            if step is not None:
                return step(self, batch)
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return optimizer(self.parameters())

    return Module()


def trainer(pl, folder, callback, epochs=6, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    quiet |= {"enable_checkpointing": False, "num_sanity_val_steps": 0, "default_root_dir": folder}
    return pl.Trainer(max_epochs=epochs, callbacks=[callback], **{**quiet, **options})


def in_order(count=24, ask=False):
    data = (asking(count) if ask else loader(count)).dataset
    return DataLoader(data, 8)


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("ask", [True, False])
def test_numbers_are_those_of_fit(pl, tmp_path, ours, ask):
    """Whether the module computes the loss by the callback or by itself; with pathways that open, and without."""
    options = {} if ask else SHORT
    epochs = 20 if ask else 6
    there, here, data = net(2 if ask else 3), net(2 if ask else 3), in_order(48, ask)
    expected = fit(there, data, epochs=epochs, optimizer=adam, scheduler=constant, progress=False, **options)
    callback = lightning_callback("net", **options)
    own = module(pl, here, (lambda self, batch: callback.loss(self(batch[0]), batch[1])) if ours else None)
    trainer(pl, tmp_path, callback, epochs).fit(own, data)
    assert len(callback.history.records) == epochs and "training_step" not in own.__dict__
    if ask:
        assert any("opened" in record.note for record in expected.records)
    if ours:
        assert callback.history.to_dict() == expected.to_dict()
        for a, b in each(zip(there.parameters(), here.parameters(), strict=True)):
            assert torch.equal(a, b)
    found, wanted = callback.evidence.log_precision, expected.evidence.log_precision
    for name, value in each(wanted.items()):
        assert found[name] == pytest.approx(value, abs=2e-3), name
    assert [r.note for r in callback.history.records] == [r.note for r in expected.records]
    for a, b in each(zip(there.parameters(), here.parameters(), strict=True)):
        assert torch.allclose(a, b, atol=1e-4)


def test_without_the_callback_it_ends_elsewhere(pl, tmp_path):
    """The twin: the penalty and the gates matter."""
    ends = []
    for with_it in (True, False):
        model, data = net(), in_order()
        callback = lightning_callback("net", **SHORT) if with_it else pl.Callback()
        trainer(pl, tmp_path, callback).fit(module(pl, model), data)
        ends.append(model.linear.weight.detach().clone())
    assert not torch.allclose(*ends, atol=1e-3)


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_run_that_is_resumed_ends_the_same(pl, tmp_path, stop):
    whole, data = net(), DataLoader(in_order().dataset, 8, shuffle=True)
    torch.manual_seed(4)
    first = lightning_callback("net", **SAMPLED)
    trainer(pl, tmp_path, first).fit(module(pl, whole), data)

    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == stop - 1:
                trainer.save_checkpoint(tmp_path / "run.ckpt")
                raise KeyboardInterrupt

    cut = lightning_callback("net", **SAMPLED)
    run = trainer(pl, tmp_path, cut)
    run.callbacks.append(Stop())
    stopped = module(pl, net())
    torch.manual_seed(4)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run.fit(stopped, data)
    assert "training_step" not in stopped.__dict__ and not (tmp_path / "run.ckpt").is_dir()

    torch.manual_seed(77)  # whatever happened in between
    model, second = net(), lightning_callback("net", **SAMPLED)
    trainer(pl, tmp_path, second).fit(module(pl, model), data, ckpt_path=tmp_path / "run.ckpt")
    assert second.history.to_dict() == first.history.to_dict()
    assert second.evidence.log_precision == first.evidence.log_precision
    for a, b in each(zip(whole.parameters(), model.parameters(), strict=True)):
        assert torch.equal(a, b)


def validated(pl, model):
    """A module that logs a validation loss, for callbacks that monitor it."""
    own = module(pl, model)

    class Module(type(own)):
        def __init__(self):
            pl.LightningModule.__init__(self)
            self.net, self.automatic_optimization = model, True

        def validation_step(self, batch, batch_idx):
            self.log("v", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    return Module()


#: How checkpoints are commonly written, whether there is a validation, and how many there are of four epochs.
WRITTEN = {
    "each epoch": ({}, False, 4),
    "after the validation": ({"monitor": "v", "save_on_train_epoch_end": False}, True, 4),
    "after the epoch that was validated": ({"monitor": "v"}, True, 4),
    "after steps": ({"every_n_train_steps": 3}, False, 4),
    "the last": ({"every_n_train_steps": 3, "save_last": True, "save_top_k": 0}, False, 1),
}


@pytest.mark.parametrize("written", WRITTEN)
def test_every_checkpoint_of_lightning_goes_on_the_same(pl, tmp_path, written):
    """Those of the middle and those of the end: numbers, weights and slopes are those of the run itself."""
    options, validates, number = WRITTEN[written]
    keep = importlib.import_module(f"{pl.__name__}.callbacks").ModelCheckpoint(
        tmp_path, filename="{epoch}-{step}", **{"save_top_k": -1, **options}
    )
    data = DataLoader(in_order().dataset, 8, shuffle=True)

    def run(path=None, also=()):
        model, callback = net(), lightning_callback("net", **SAMPLED)
        runs = trainer(pl, tmp_path, callback, 4, enable_checkpointing=bool(also))
        runs.callbacks.extend(also)
        more = [in_order()] if validates else []
        own = validated(pl, model) if validates else module(pl, model)
        runs.fit(own, data, *more, ckpt_path=path)
        return model, callback

    torch.manual_seed(4)
    model, callback = run(also=[keep])
    found = sorted(tmp_path.glob("*.ckpt"))
    assert len(found) == number
    for path in each(found):
        torch.manual_seed(77)  # whatever happened in between
        again, other = run(path)
        assert other.history.to_dict() == callback.history.to_dict(), path.name
        assert other.evidence.log_precision == callback.evidence.log_precision, path.name
        assert other.evidence.terms() == callback.evidence.terms(), path.name
        for a, b in each(zip(model.parameters(), again.parameters(), strict=True)):
            assert torch.equal(a, b), path.name
        slopes = callback.evidence.slopes.read()
        for name, slope in each(other.evidence.slopes.read().items()):
            assert torch.equal(slope, slopes[name]), (path.name, name)


def test_a_run_that_stopped_by_its_steps_is_served(pl, tmp_path):
    callback = lightning_callback("net", epochs=6, **SHORT)
    first = trainer(pl, tmp_path, callback, 6, max_steps=6)
    first.fit(module(pl, net()), in_order())
    first.save_checkpoint(tmp_path / "steps.ckpt")
    again = lightning_callback("net", epochs=6, **SHORT)
    trainer(pl, tmp_path, again, 6, max_steps=6).fit(module(pl, net()), in_order(), ckpt_path=tmp_path / "steps.ckpt")
    assert again.history.to_dict() == callback.history.to_dict() and len(again.history.records) == 2
    assert report(again.evidence.model, again.evidence).layers


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_a_loss_before_a_training_has_no_penalty(pl, tmp_path, likelihood):
    """In the sanity check and in a validation alone; within a training it has."""
    seen, x = [], torch.randn(24, 1, 5, 5)
    y = torch.randint(3, (24,)) if likelihood == "categorical" else torch.randn(24, 3)
    data, callback = DataLoader(TensorDataset(x, y), 8), lightning_callback("net", likelihood=likelihood, **SHORT)

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net()

        def training_step(self, batch, batch_idx):
            return callback.loss(self.net(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            outputs = self.net(batch[0])
            plain = nn.functional.cross_entropy if likelihood == "categorical" else squares
            seen.append((float(callback.loss(outputs, batch[1])), float(plain(outputs, batch[1]))))

        def configure_optimizers(self):
            return adam(self.parameters())

    def squares(outputs, targets):
        return 0.5 * (outputs - targets).square().sum() / len(outputs)

    own = Module()
    with pytest.raises(ArgumentError, match="none before the training begins"):
        callback.loss(own.net(x), y)
    run = trainer(pl, tmp_path, callback, 2, num_sanity_val_steps=1)
    run.validate(own, data, verbose=False)
    run.fit(own, data, data)
    assert len(seen) == 3 + 1 + 6
    for ours, plain in each(seen[:4]):
        assert ours == pytest.approx(plain, rel=1e-5)
    for ours, plain in each(seen[4:]):
        assert likelihood != "categorical" or ours > plain + 1e-3


@pytest.mark.parametrize("given", [True, False])
def test_a_loader_with_its_own_generator_goes_on(pl, tmp_path, given):
    runs = []
    for stop in (None, 2):
        data = loader()
        callback = lightning_callback("net", loader=data if given else None, **SAMPLED)
        model = net()
        run = trainer(pl, tmp_path, callback, epochs=6)
        if stop is not None:

            class Stop(pl.Callback):
                def on_train_epoch_end(self, trainer, pl_module):
                    if trainer.current_epoch == 1:
                        trainer.save_checkpoint(tmp_path / "own.ckpt")
                        raise KeyboardInterrupt

            run.callbacks.append(Stop())
            with pytest.raises((KeyboardInterrupt, SystemExit)):
                run.fit(module(pl, model), data)
            data = loader(seed=99)
            callback, model = lightning_callback("net", loader=data if given else None, **SAMPLED), net()
            trainer(pl, tmp_path, callback).fit(module(pl, model), data, ckpt_path=tmp_path / "own.ckpt")
        else:
            run.fit(module(pl, model), data)
        runs.append(callback.history.to_dict())
    assert runs[0] == runs[1]


def test_a_checkpoint_without_the_evidence_is_refused(pl, tmp_path):
    bare = trainer(pl, tmp_path, pl.Callback(), epochs=2)
    bare.fit(module(pl, net()), in_order())
    bare.save_checkpoint(tmp_path / "bare.ckpt")
    with pytest.raises(CheckpointError, match="epoch 2 begins, of which the evidence has seen 0"):
        trainer(pl, tmp_path, lightning_callback("net", **SHORT)).fit(
            module(pl, net()), in_order(), ckpt_path=tmp_path / "bare.ckpt"
        )


def test_the_whole_module_is_the_model(pl, tmp_path):
    own, data = module(pl, net()), in_order()
    callback = lightning_callback(**SHORT)
    trainer(pl, tmp_path, callback).fit(own, data)
    assert "net.convolution.weights.irrep_1" in callback.evidence.log_precision
    assert report(own, callback.evidence).layers[0].name == "net.convolution"


def test_accumulated_and_clipped_batches(pl, tmp_path):
    """The prior counts once for each step: the same as a loop by hand that accumulates."""
    there, here, data = net(), net(), DataLoader(in_order(32).dataset, 8)
    by_hand = EvidenceCallback(there, data, epochs=4, **SHORT)
    train(there, data, by_hand, adam(by_hand.parameters()), accumulate=2)
    callback = lightning_callback("net", **SHORT)
    trainer(pl, tmp_path, callback, 4, accumulate_grad_batches=2, gradient_clip_val=1e6).fit(module(pl, here), data)
    for a, b in each(zip(there.parameters(), here.parameters(), strict=True)):
        assert torch.allclose(a, b, atol=1e-5)


def test_optimizers_that_do_not_hold_what_may_open(pl, tmp_path):
    def step(parameters):
        return adam(own.net.linear.parameters())

    own = module(pl, net(), optimizer=step)
    with pytest.raises(ArgumentError, match="no optimizer holds the weights of 2 pathways that may open"):
        trainer(pl, tmp_path, lightning_callback("net", **SHORT)).fit(own, in_order())
    assert "training_step" not in own.__dict__


def test_losses_that_are_no_log_likelihood(pl, tmp_path):
    x = torch.randn(24, 1, 5, 5)
    data = DataLoader(TensorDataset(x, 3 * x.mean((1, 2, 3)).unsqueeze(1)), 8)
    own = module(pl, net(1), lambda self, batch: nn.functional.mse_loss(self(batch[0]), batch[1]))
    with pytest.raises(ArgumentError, match="has a noise.*callback.loss"):
        trainer(pl, tmp_path, lightning_callback("net", likelihood="gaussian", **SHORT)).fit(own, data)
    callback = lightning_callback("net", likelihood="gaussian", **SHORT)
    own = module(pl, net(1), lambda self, batch: {"loss": callback.loss(self(batch[0]), batch[1])})
    trainer(pl, tmp_path, callback).fit(own, data)
    assert callback.evidence.log_noise != 0


def test_manual_optimization(pl, tmp_path):
    def descend(self, batch):
        optimizer, loss = self.optimizers(), callback.loss(self(batch[0]), batch[1])
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    there, here, data = net(), net(), in_order()
    expected = fit(there, data, epochs=6, optimizer=adam, scheduler=constant, progress=False, **SHORT)
    callback = lightning_callback("net", **SHORT)
    trainer(pl, tmp_path, callback).fit(module(pl, here, descend, automatic=False), data)
    assert callback.history.to_dict() == expected.to_dict()

    own = module(pl, net(), lambda self, batch: self(batch[0]).sum(), automatic=False)
    with pytest.raises(ArgumentError, match="manual optimization"):
        trainer(pl, tmp_path, lightning_callback("net", **SHORT)).fit(own, data)


def test_batches_that_are_dictionaries(pl, tmp_path):
    data = in_order().dataset
    rows = DataLoader([{"picture": x, "class": y} for x, y in data], 8)
    read = Batches(rows, lambda batch: (batch["picture"], batch["class"]))
    plain, named = net(), net()
    expected = lightning_callback("net", **SHORT)
    trainer(pl, tmp_path, expected).fit(module(pl, plain), in_order())
    callback = lightning_callback("net", loader=read, **SHORT)
    step = lambda self, batch: nn.functional.cross_entropy(self(batch["picture"]), batch["class"])
    trainer(pl, tmp_path, callback).fit(module(pl, named, step), rows)
    assert callback.history.to_dict() == expected.history.to_dict()


def test_lengths_and_loaders_that_are_not_known(pl, tmp_path):
    with pytest.raises(ArgumentError, match="length of the training is not known"):
        trainer(pl, tmp_path, lightning_callback("net", **SHORT), -1, max_steps=3).fit(module(pl, net()), in_order())
    step = lambda self, batch: nn.functional.cross_entropy(self(batch["a"][0]), batch["a"][1])
    with pytest.raises(ArgumentError, match="expected one loader, got several"):
        trainer(pl, tmp_path, lightning_callback("net", **SHORT)).fit(module(pl, net(), step), {"a": in_order()})


def test_training_that_stops_early_has_its_last_refresh(pl, tmp_path):
    callback = lightning_callback("net", epochs=6, **SHORT)
    trainer(pl, tmp_path, callback, 6, max_steps=4).fit(module(pl, net()), in_order())  # in the second of six epochs
    assert len(callback.history.records) == 2 and callback.evidence.has_curvature  # Lightning ends the epoch as well


def test_its_loggers_get_the_numbers(pl, tmp_path):
    seen = {}

    class Logger(importlib.import_module(f"{pl.__name__}.loggers.logger").DummyLogger):
        def log_metrics(self, metrics, step=None):
            if any(name.startswith("evidence/") for name in metrics):
                seen[step] = dict(metrics)

    callback = lightning_callback("net", verdicts=True, **SHORT)
    trainer(pl, tmp_path, callback, logger=Logger()).fit(module(pl, net()), in_order())
    assert sorted(seen) == [6, 12, 18]  # steps of the refreshes of epochs 1, 3, 5; the one after training at the last
    assert seen[18] == evidence_scalars(callback.evidence, verdicts=True) | {"epoch": 6}
    assert seen[18]["convolution/irrep_1/open"] == 0
    silent = lightning_callback("net", log=False, **SHORT)
    seen.clear()
    trainer(pl, tmp_path, silent, logger=Logger()).fit(module(pl, net()), in_order())
    assert not seen


def test_copies_begin_anew(pl):
    callback = lightning_callback("net", **SHORT)
    for other in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        assert type(other) is type(callback) and other.model == "net" and other.options == callback.options
    assert isinstance(callback, pl.Callback)
    with pytest.raises(ArgumentError, match="none before the training begins"):
        callback.evidence  # noqa: B018


def test_both_packages_share_one_callback():
    """Whichever is imported: a callback that either's ``Trainer`` takes."""
    for name in PACKAGES:
        pytest.importorskip(name)
    callback = lightning_callback()
    for name in each(PACKAGES):
        assert isinstance(callback, importlib.import_module(name).Callback)


def test_without_lightning_it_says_what_to_install(monkeypatch):
    for name in PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InstallationError, match="neither lightning nor pytorch_lightning is installed; pip install"):
        lightning_callback()


def test_what_cannot_be_logged_to_is_refused(pl):
    with pytest.raises(ArgumentError, match="SummaryWriter"):
        lightning_callback(log=3)
