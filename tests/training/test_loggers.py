"""What is logged, read back from the files of TensorBoard and of Weights & Biases, where they are installed."""

import json
import struct

import pytest
import torch
from nonempty import each
from test_callback import SHORT, adam, train
from test_fit import loader, net

from escnn_relax import EvidenceCallback
from escnn_relax.evidence import evidence_scalars


def logged(writer):
    """A short training that logs; its last numbers, and the log evidence at each step."""
    model, data, evidences = net(), loader(), {}
    remember = lambda numbers, step: evidences.update({step: numbers["evidence/log_evidence"]})
    callback = EvidenceCallback(model, data, log=[writer, remember], verdicts=True, **SHORT)
    train(model, data, callback, adam(callback.parameters()))
    assert sorted(evidences) == [1, 3, 5, 6]
    return evidence_scalars(callback.evidence, verdicts=True), evidences


def test_tensorboard_has_the_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        last, evidences = logged(writer)
    read = EventAccumulator(str(tmp_path)).Reload()
    assert set(read.Tags()["scalars"]) >= set(last)
    for name, value in each(last.items()):
        event = read.Scalars(name)[-1]
        assert event.step == 6 and event.value == torch.tensor(value, dtype=torch.float32).item(), name
    steps = {event.step: event.value for event in read.Scalars("evidence/log_evidence")}
    assert steps == pytest.approx(evidences, rel=1e-6)


def records(data):
    """Of a file of Weights & Biases, a log as LevelDB writes it: blocks of 32 KiB with records cut at their ends."""
    place, found, parts = 7, [], b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        size, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            found.append(parts)
            parts = b""
    return found


def test_weights_and_biases_has_the_numbers(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(mode="offline", dir=str(tmp_path), project="tests")
    for loss in range(50):
        run.log({"train/loss": loss})  # the user's own calls have moved the step on
    last, evidences = logged(run)
    assert run.step == 54
    run.log({"train/loss": 50})
    run.finish()
    wandb.teardown()  # its service writes in a process of its own, and ends when all is written
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    history, axes, own = [], {}, []
    for data in each(records(file.read_bytes())):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            row = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
            (own if "train/loss" in row else history).append(row)
        elif record.WhichOneof("record_type") == "metric":
            axes[record.metric.glob_name] = record.metric.step_metric
    assert {row["epoch"]: row["evidence/log_evidence"] for row in history} == pytest.approx(evidences)
    assert [row["train/loss"] for row in own] == list(range(51)), "nothing of the user's is lost"
    rooms = {name.split("/")[0] for name in last}
    assert {axes[f"{room}/*"] for room in each(rooms)} == {"epoch"} and "train/*" not in axes
    for name, value in each(last.items()):
        assert history[-1][name] == pytest.approx(value), name


def test_loggers_of_lightning_write_files(tmp_path):
    """The Trainer's own loggers, by ``log=True``, at its step."""
    pl = pytest.importorskip("lightning.pytorch")
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from test_lightning import in_order, module, trainer

    from escnn_relax import lightning_callback

    callback = lightning_callback("net", verdicts=True, share=1.0, burn_in=1, refresh_every=2)
    loggers = [pl.loggers.TensorBoardLogger(tmp_path, name="board"), pl.loggers.CSVLogger(tmp_path, name="table")]
    trainer(pl, tmp_path, callback, logger=loggers, log_every_n_steps=1).fit(module(pl, net()), in_order())
    last = evidence_scalars(callback.evidence, verdicts=True)
    read = EventAccumulator(loggers[0].log_dir).Reload()
    for name, value in each(last.items()):
        event = read.Scalars(name)[-1]
        assert event.step == 18 and event.value == pytest.approx(value, rel=1e-6), name
    header, *_, row = (tmp_path / "table" / "version_0" / "metrics.csv").read_text().splitlines()
    written = dict(zip(header.split(","), row.split(",")))
    assert float(written["evidence/log_evidence"]) == pytest.approx(last["evidence/log_evidence"])
