"""The training loop: resuming bit for bit, Ctrl-C, divergence, accumulation, early stopping, its files, its lines."""

import os
import re
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from markov import markov_store

from gru4rec_fast import ops
from gru4rec_fast.data import SessionParallelLoader
from gru4rec_fast.nn import SampledLoss, SessionNetwork
from gru4rec_fast.optim import SparseAdagrad
from gru4rec_fast.profiling import MemoryRecord
from gru4rec_fast.training import (
    CheckpointError,
    Trainer,
    TrainingDiverged,
    TrainingInterrupted,
    TrainingOptions,
    fit,
    load_checkpoint,
    make_progress,
    run_folder,
    write_curves,
)
from gru4rec_fast.training.place import LOSSES_PER_LOOK, LossWatch, Place
from gru4rec_fast.training.progress import BarProgress, PlainProgress, Silent

FORMAT = "gru4rec_fast.SessionNetwork/1"
STORE = markov_store(n_sessions=60)
LANES = 8


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing would take most of the time of these tests."""
    monkeypatch.setattr(run_folder, "write_curves", lambda *_: None)


def make_trainer(
    *,
    store: Any = STORE,
    layers: tuple[int, ...] = (12,),
    embedding: str = "constrained",
    momentum: float = 0.0,
    dropout: float = 0.0,
    shuffle: bool = False,
    bptt: int = 1,
    lanes: int = LANES,
    learning_rate: float = 0.1,
    n_sample: int = 16,
    dtype: torch.dtype = torch.float32,
    optimizer: Any = None,
    **arguments: Any,
) -> Trainer:
    """A trainer over the module's store; what is no argument of this function goes to the options or the trainer."""
    options = {name: arguments.pop(name) for name in list(arguments) if name in TrainingOptions.__dataclass_fields__}
    network = SessionNetwork(
        store.n_items, list(layers), embedding=embedding, embedding_dim=7, seed=3,
        dropout_p_embed=dropout, dropout_p_hidden=dropout, dtype=dtype,
    )  # fmt: skip
    loader = SessionParallelLoader(store, lanes, bptt, shuffle=shuffle, seed=3, min_live=1 if n_sample else 2)
    support = torch.from_numpy(store.support)
    return Trainer(
        network,
        loader,
        TrainingOptions(**{"n_epochs": 2, "n_sample": n_sample, "seed": 3, **options}),
        criterion=SampledLoss(batch_size=lanes, logq=1.0, support=support, dtype=dtype),
        optimizer=optimizer(network.parameters())
        if optimizer
        else SparseAdagrad(network.parameters(), learning_rate, momentum),
        sampler=ops.build_alias_table(support, 0.5) if n_sample else None,
        **arguments,
    )


def at_block(trainer: Trainer, number: int, act: Any) -> None:
    """Call `act` while the trainer plays its block `number`, counted from 1 over the whole run."""
    play, played = trainer._play_block, [0]

    def counted(*arguments: Any) -> None:
        played[0] += 1
        if played[0] == number:
            act()
        play(*arguments)

    trainer._play_block = counted  # type: ignore[method-assign]


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.network.named_parameters()}


def without_seconds(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in history]


def assert_same_end(one: Path, other: Path) -> None:
    """Two `last` checkpoints hold the same bits: weights, optimizer, history."""
    a, b = (load_checkpoint(folder / "last.safetensors", FORMAT) for folder in (one, other))
    assert a.tensors.keys() == b.tensors.keys()
    for name, tensor in a.tensors.items():
        assert torch.equal(tensor, b.tensors[name]), name
    assert without_seconds(a.progress["history"]) == without_seconds(b.progress["history"])
    assert a.progress["schedule"] == b.progress["schedule"]
    assert a.progress["early_stopping"] == b.progress["early_stopping"]


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"momentum": 0.3},
    "dropout": {"dropout": 0.3},
    "shuffle": {"shuffle": True},
    "two layers": {"layers": (10, 6), "momentum": 0.2},
    "separate": {"embedding": "separate"},
    "one-hot": {"embedding": "none"},
    "in-batch negatives only": {"n_sample": 0},
    "step": {"lr_scheduler": "step", "lr_scheduler_options": {"step_size": 1, "gamma": 0.5}},
    "schedule per update": {
        "lr_scheduler": "OneCycleLR",
        "lr_scheduler_options": {"max_lr": 0.2, "total_steps": 200, "interval": "update"},
        "momentum": 0.1,
    },
    "plateau": {"lr_scheduler": "plateau", "lr_scheduler_options": {"patience": 0}, "monitor": "loss"},
    "blocks": {"bptt": 4, "layers": (10, 6), "dropout": 0.2},
    "accumulation": {"bptt": 2, "accumulate": 3},
    "everything": {
        "layers": (10, 6), "momentum": 0.2, "dropout": 0.2, "shuffle": True, "bptt": 3, "accumulate": 2,
        "lr_scheduler": "cosine",
    },
    "a torch optimizer": {"embedding": "separate", "optimizer": lambda p: torch.optim.Adagrad(p, lr=0.05)},
}  # fmt: skip


@pytest.mark.parametrize("stop_in_block", [1, 7, "last of epoch 1", "first of epoch 2"])
@pytest.mark.parametrize("case", CASES)
def test_resuming_ends_with_the_same_bits(tmp_path: Path, case: str, stop_in_block: int | str):
    whole = make_trainer(out=tmp_path / "whole", **CASES[case])
    blocks = -(-whole.run()[0]["mini_batches"] // CASES[case].get("bptt", 1))
    number = {"last of epoch 1": blocks, "first of epoch 2": blocks + 1}.get(str(stop_in_block), stop_in_block)

    stopped = make_trainer(out=tmp_path / "parts", **CASES[case])
    at_block(stopped, int(number), press_ctrl_c)
    with pytest.raises(TrainingInterrupted):
        stopped.run()
    resumed = make_trainer(out=tmp_path / "parts", **CASES[case])
    before = weights(resumed)
    resumed.run(load_checkpoint(tmp_path / "parts" / "last.safetensors", FORMAT))
    assert any(not torch.equal(before[name], tensor) for name, tensor in weights(resumed).items())
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_more_epochs_go_on_from_the_end(tmp_path: Path):
    make_trainer(out=tmp_path / "whole", n_epochs=3, dropout=0.2, shuffle=True).run()
    make_trainer(out=tmp_path / "parts", n_epochs=1, dropout=0.2, shuffle=True).run()
    for epochs in (2, 3, 3):  # the last finds nothing left to do
        checkpoint = load_checkpoint(tmp_path / "parts" / "last.safetensors", FORMAT)
        make_trainer(out=tmp_path / "parts", n_epochs=epochs, dropout=0.2, shuffle=True).run(checkpoint)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def plain_epoch(bptt: int, accumulate: int) -> tuple[dict[str, torch.Tensor], list[float]]:
    """One epoch of plain PyTorch over the same batches: losses of `accumulate` blocks averaged, one update."""
    trainer = make_trainer(bptt=bptt, dtype=torch.float64)
    network, state, step, losses = trainer.network, trainer.network.initial_state(LANES), 0, []
    optimizer = torch.optim.Adagrad(network.parameters(), lr=0.1, eps=0.0, initial_accumulator_value=1e-6)
    blocks = list(trainer.loader)
    for start in range(0, len(blocks), accumulate):
        group = []
        for block in blocks[start : start + accumulate]:
            steps = len(block.n_live)
            negatives = ops.negative_sampling(trainer.sampler, 16, seed=3, step=step, steps=steps)[0]
            hidden, state = network(block.inputs, state, block.reset, step=step)
            state = [layer.detach() for layer in state]
            group.append(trainer.criterion(network, hidden, block.targets, negatives, block.n_live))
            losses += [group[-1].item()] * steps
            step += steps
        torch.stack(group).mean().backward()
        for parameter in network.parameters():
            if parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = parameter.grad.to_dense()
        optimizer.step()
        optimizer.zero_grad()
    return weights(trainer), losses


@pytest.mark.parametrize(("bptt", "accumulate"), [(1, 1), (4, 1), (1, 5), (3, 4)])
def test_an_epoch_is_what_plain_pytorch_computes(bptt: int, accumulate: int):
    trainer = make_trainer(bptt=bptt, accumulate=accumulate, n_epochs=1, dtype=torch.float64)
    (record,) = trainer.run()
    expected, losses = plain_epoch(bptt, accumulate)
    assert record["mini_batches"] == len(losses) == trainer.place.step
    group = bptt * accumulate
    assert group == 1 or record["mini_batches"] % group, "the epoch should end inside a group of blocks"
    assert record["events"] == STORE.n_targets
    assert record["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-9)
    for name, tensor in weights(trainer).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-9, atol=1e-9)


def test_accumulation_is_bptt_without_the_gradient_between_steps():
    """With the recurrent path cut off, and held so, there is no such gradient and the two agree."""
    store = markov_store(n_sessions=LANES, longest=5)
    with_bptt, accumulated = (
        make_trainer(store=store, bptt=4, n_epochs=1),
        make_trainer(store=store, accumulate=4, n_epochs=1),
    )
    for trainer in (with_bptt, accumulated):
        with torch.no_grad():
            trainer.network.gru.layers[0].weight_hh.zero_()
            trainer.network.gru.layers[0].bias_ih[12:24] = -1e9  # update gate shut: h' = n, nothing of h goes on
            trainer.network.gru.layers[0].weight_hh.requires_grad_(False)
            trainer.network.gru.layers[0].bias_hh.requires_grad_(False)
        trainer.run()
    assert with_bptt.history[0]["loss"] == pytest.approx(accumulated.history[0]["loss"], rel=1e-6)
    for name, tensor in weights(with_bptt).items():
        torch.testing.assert_close(tensor, weights(accumulated)[name], rtol=1e-4, atol=1e-6)


def test_ctrl_c_in_an_epoch(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    handler = signal.getsignal(signal.SIGINT)
    trainer = make_trainer(out=tmp_path, accumulate=3)
    at_block(trainer, 4, press_ctrl_c)
    where = r"in epoch 1 after mini-batch 6 of it \(step 6 of the training\)"
    message = where + r"; to go on from .*last\.safetensors, resume with the same out folder"
    with pytest.raises(TrainingInterrupted, match=message) as caught:
        trainer.run()
    assert isinstance(caught.value, KeyboardInterrupt)
    assert load_checkpoint(tmp_path / "last.safetensors", FORMAT).progress["place"]["mini_batches"] == 6
    assert signal.getsignal(signal.SIGINT) is handler
    assert "Ctrl-C: finishing this step" in capfd.readouterr().err


def test_ctrl_c_between_epochs_and_without_a_folder(tmp_path: Path):
    trainer = make_trainer(out=tmp_path, validate=lambda: press_ctrl_c() or {"recall@20": 0.5})
    with pytest.raises(TrainingInterrupted, match=r"after epoch 1 \(step \d+ of the training\); to go on"):
        trainer.run()
    assert len(trainer.history) == 1
    trainer = make_trainer()
    at_block(trainer, 2, press_ctrl_c)
    with pytest.raises(TrainingInterrupted, match="nothing was saved: no out folder was given"):
        trainer.run()


def test_sigterm_is_taken_as_ctrl_c_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    handler = signal.getsignal(signal.SIGTERM)
    trainer = make_trainer(out=tmp_path)
    at_block(trainer, 4, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(TrainingInterrupted, match="after mini-batch 4 of it") as caught:
        trainer.run()
    assert caught.value.signal_number == signal.SIGTERM
    assert load_checkpoint(tmp_path / "last.safetensors", FORMAT).progress["place"]["mini_batches"] == 4
    assert signal.getsignal(signal.SIGTERM) is handler
    assert "SIGTERM: finishing this step" in capfd.readouterr().err


def test_a_signal_that_is_ignored_stays_so(tmp_path: Path):
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        trainer = make_trainer(n_epochs=1)
        at_block(trainer, 2, lambda: signal.raise_signal(signal.SIGTERM))
        assert len(trainer.run()) == 1
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_second_ctrl_c_acts_at_once(tmp_path: Path):
    trainer = make_trainer(out=tmp_path)
    at_block(trainer, 2, lambda: (press_ctrl_c(), press_ctrl_c()))
    with pytest.raises(KeyboardInterrupt) as caught:
        trainer.run()
    assert not isinstance(caught.value, TrainingInterrupted)
    assert not (tmp_path / "last.safetensors").exists()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_loss_stops_at_once_and_keeps_the_last_good_checkpoint(tmp_path: Path, bad: float):
    trainer = make_trainer(out=tmp_path, n_epochs=5)
    per_epoch = make_trainer(n_epochs=1).run()[0]["mini_batches"]
    forward = trainer.criterion.forward
    at_bad: dict[str, torch.Tensor] = {}

    def poison() -> None:
        at_bad.update(weights(trainer))
        trainer.criterion.forward = lambda *arguments: forward(*arguments) * bad  # type: ignore[method-assign]

    at_block(trainer, per_epoch + 3, poison)
    where = rf"in epoch 2, mini-batch 3 \(step {per_epoch + 3} of the training\)"
    message = rf"the loss is {bad} {where}.*the last good checkpoint is .*last\.safetensors"
    with pytest.raises(TrainingDiverged, match=message):
        trainer.run()
    for name, tensor in weights(trainer).items():
        assert torch.equal(tensor, at_bad[name]), "the bad step must not move a weight"
    kept = load_checkpoint(tmp_path / "last.safetensors", FORMAT)
    assert kept.progress["place"]["epoch"] == 2 and kept.progress["place"]["mini_batches"] == 0
    resumed = make_trainer(out=tmp_path, n_epochs=2)
    assert len(resumed.run(kept)) == 2


def test_bad_weights_never_replace_a_good_checkpoint(tmp_path: Path):
    trainer = make_trainer(out=tmp_path)

    def poison() -> dict[str, float]:
        if len(trainer.history) == 1:
            trainer.network.output.bias.data[3] = float("inf")
        return {"recall@20": 0.5}

    trainer.validate = poison
    with pytest.raises(TrainingDiverged, match=r"output\.bias holds NaN or infinite weights.*last good checkpoint"):
        trainer.run()
    assert load_checkpoint(tmp_path / "last.safetensors", FORMAT).tensors["model.output.bias"].isfinite().all()


@pytest.mark.parametrize("with_folder", [True, False])
def test_weights_that_the_last_update_of_an_epoch_spoils_are_neither_measured_nor_saved(
    tmp_path: Path, with_folder: bool
):
    validated: list[int] = []
    trainer = make_trainer(
        out=tmp_path if with_folder else None, validate=lambda: {"recall@20": float(len(validated) + 1)}
    )
    per_epoch = make_trainer(n_epochs=1).run()[0]["mini_batches"]
    update, updates = trainer.optimizer.step, [0]

    def spoil() -> None:
        update()
        updates[0] += 1
        if updates[0] == 2 * per_epoch:
            trainer.network.output.bias.data[3] = float("nan")

    validate = trainer.validate
    assert validate is not None
    trainer.validate = lambda: validated.append(updates[0]) or validate()
    trainer.optimizer.step = spoil  # type: ignore[method-assign]
    kept = r"the last good checkpoint is .*last\.safetensors" if with_folder else "no checkpoint had been written yet"
    where = rf"in epoch 2 after mini-batch {per_epoch} of it \(step {2 * per_epoch} of the training\)"
    with pytest.raises(TrainingDiverged, match=rf"output\.bias holds NaN or infinite weights {where}.*{kept}"):
        trainer.run()
    assert validated == [per_epoch] and len(trainer.history) == 1
    if with_folder:
        saved = load_checkpoint(tmp_path / "last.safetensors", FORMAT)
        assert saved.progress["place"]["epoch"] == 2 and saved.tensors["model.output.bias"].isfinite().all()


@pytest.mark.parametrize("what", ["metric", "score"])
def test_a_validation_that_is_no_number_is_a_divergence(tmp_path: Path, what: str):
    def validate() -> dict[str, float]:
        if len(trainer.history) == 1 and what == "score":
            ops.target_rank(torch.full((1, 12), float("nan")), trainer.network.output.weight, None, torch.tensor([0]))
        return {"mrr@20": 0.1, "recall@20": float("nan") if trainer.history else 0.5}

    trainer = make_trainer(out=tmp_path, validate=validate)
    said = "the validation metric recall@20 is nan" if what == "metric" else "validation found a NaN score"
    message = rf"{said} in epoch 2 after .*the last good checkpoint is .*last\.safetensors"
    with pytest.raises(TrainingDiverged, match=message):
        trainer.run()
    assert len(load_checkpoint(tmp_path / "last.safetensors", FORMAT).progress["history"]) == 1


def test_a_resumed_run_that_diverges_names_what_it_was_resumed_from(tmp_path: Path):
    make_trainer(out=tmp_path, n_epochs=1).run()
    resumed = make_trainer(n_epochs=2)
    resumed.restore(load_checkpoint(tmp_path / "last.safetensors", FORMAT))
    at_block(resumed, 1, lambda: resumed.network.output.bias.data.fill_(float("nan")))
    with pytest.raises(TrainingDiverged, match=rf"the last good checkpoint is {tmp_path}/last\.safetensors"):
        resumed.run()


def test_a_diverging_run_without_a_checkpoint_says_so():
    with pytest.raises(TrainingDiverged, match=r"in epoch 1, mini-batch \d+ .*no checkpoint had been written yet"):
        make_trainer(learning_rate=1e38).run()


def test_losses_on_an_accelerator_are_looked_at_in_bunches():
    watch, place = LossWatch(torch.device("cuda")), Place(epoch=4)
    for number in range(LOSSES_PER_LOOK - 1):
        watch.add(place, torch.tensor(2.0), 1)
        place.mini_batches += 1
        place.step += 1
        assert place.loss_sum == 0 and place.mean_loss is None, number
    watch.add(place, torch.tensor(3.0), 1)
    assert place.loss_sum == 2.0 * (LOSSES_PER_LOOK - 1) + 3.0
    place.mini_batches = LOSSES_PER_LOOK
    watch.add(place, torch.tensor(9.0), 1)
    place.mini_batches += 1
    assert place.mean_loss == pytest.approx(2.0 + 1.0 / LOSSES_PER_LOOK), "of the losses that were read"
    watch = LossWatch(torch.device("cuda"))
    place.mini_batches, place.step = LOSSES_PER_LOOK, 1000 + LOSSES_PER_LOOK
    for value in (1.0, float("nan"), 1.0):
        watch.add(place, torch.tensor(value), 2)
        place.mini_batches += 2
        place.step += 2
    with pytest.raises(TrainingDiverged, match=r"epoch 4, mini-batches 67 to 68 \(step 1067 of the training\)"):
        watch.look(place)


def test_early_stopping_keeps_the_best(tmp_path: Path):
    values = [0.1, 0.3, 0.305, 0.2, 0.9]
    after: list[dict[str, torch.Tensor]] = []

    def validate() -> dict[str, float]:
        assert not trainer.network.training
        after.append(weights(trainer))
        return {"recall@20": values[len(after) - 1], "mrr@20": 0.0}

    trainer = make_trainer(out=tmp_path, n_epochs=5, patience=2, min_delta=0.01, validate=validate)
    history = trainer.run()
    assert [record["validation"]["recall@20"] for record in history] == values[:4]
    assert (trainer.early_stopping.best_epoch, trainer.early_stopping.best) == (2, 0.3)
    best = load_checkpoint(tmp_path / "best.safetensors", FORMAT)
    assert len(best.progress["history"]) == 2
    for name, tensor in after[1].items():
        assert torch.equal(best.tensors[f"model.{name}"], tensor)
    resumed = make_trainer(out=tmp_path, n_epochs=5, patience=2, min_delta=0.01, validate=dict)
    assert len(resumed.run(load_checkpoint(tmp_path / "last.safetensors", FORMAT))) == 4, "it had stopped for good"


def test_patience_on_the_training_loss_needs_no_validation(tmp_path: Path):
    trainer = make_trainer(out=tmp_path, n_epochs=9, patience=1, min_delta=100.0, monitor="loss")
    assert len(trainer.run()) == 2
    assert len(load_checkpoint(tmp_path / "best.safetensors", FORMAT).progress["history"]) == 1


def test_plateau_watches_the_validation_metric():
    metrics = iter([0.5, 0.4, 0.6])
    options = {"lr_scheduler": "plateau", "lr_scheduler_options": {"patience": 0, "factor": 0.1}}
    trainer = make_trainer(n_epochs=3, validate=lambda: {"recall@20": next(metrics)}, **options)
    assert [record["learning_rate"] for record in trainer.run()] == pytest.approx([0.1, 0.1, 0.01])


def test_checkpoints_inside_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trainer = make_trainer(out=tmp_path, n_epochs=1, checkpoint_every=10)
    steps: list[int] = []
    save = trainer.folder.save_last

    def note(*arguments: Any) -> Any:
        steps.append(trainer.place.step)
        return save(*arguments)

    monkeypatch.setattr(trainer.folder, "save_last", note)
    (record,) = trainer.run()
    end = record["mini_batches"]
    assert steps == [*range(10, end + 1, 10), end]


def test_a_full_disk_ends_the_training_with_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trainer = make_trainer(out=tmp_path)
    replace, calls = os.replace, [0]

    def full(*arguments: Any) -> None:
        calls[0] += 1
        if calls[0] > 1:
            raise OSError(28, "No space left on device")
        replace(*arguments)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"could not write the checkpoint .*last\.safetensors.*No space left"):
        trainer.run()
    assert load_checkpoint(tmp_path / "last.safetensors", FORMAT).progress["place"]["epoch"] == 2


def test_what_a_run_writes_and_that_it_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run_folder, "write_curves", write_curves)
    make_trainer(out=tmp_path, validate=lambda: {"recall@20": 0.5}).run()
    assert sorted(os.listdir(tmp_path)) == ["best.safetensors", "curves.csv", "curves.png", "last.safetensors"]
    make_trainer(out=tmp_path).run()
    assert not (tmp_path / "best.safetensors").exists(), "the best of an earlier run is not this run's"
    assert len(os.listdir(tmp_path / "previous")) == 4


def test_a_training_that_fails_before_its_first_checkpoint_leaves_the_earlier_one_alone(tmp_path: Path):
    make_trainer(out=tmp_path, validate=lambda: {"recall@20": 0.5}).run()
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    with pytest.raises(TrainingDiverged, match="no checkpoint had been written yet"):
        make_trainer(out=tmp_path, learning_rate=1e38).run()
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_two_trainings_into_one_folder_at_once(tmp_path: Path):
    trainer, refused = make_trainer(out=tmp_path, n_epochs=1), []

    def other() -> None:
        with pytest.raises(OSError, match=f"another training is writing to {tmp_path}") as caught:
            make_trainer(out=tmp_path).run()
        refused.append(caught)

    at_block(
        trainer,
        3,
        lambda: [step() for thread in [threading.Thread(target=other)] for step in (thread.start, thread.join)],
    )
    trainer.run()
    assert refused and len(trainer.history) == 1


def test_phases_are_recorded_where_a_record_is_given():
    memory = MemoryRecord("cpu")
    (record,) = make_trainer(n_epochs=1, memory=memory, accumulate=2).run()
    summary = memory.summary()
    assert list(summary) == ["batch", "forward", "loss", "backward", "update"]
    blocks = record["mini_batches"]
    calls = {name: phase["calls"] for name, phase in summary.items()}
    assert calls == {
        "batch": blocks + 1,
        "forward": blocks,
        "loss": blocks,
        "backward": blocks,
        "update": -(-blocks // 2),
    }
    assert all(phase["peak_bytes"] >= phase["current_bytes"] > 0 for phase in summary.values())


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    trainer = make_trainer(dropout=0.5, shuffle=True)
    trainer.run()
    assert torch.equal(torch.get_rng_state(), before)
    assert trainer.peak_memory_bytes >= 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": None}, "n_sample=16 needs a sampler"),
        ({"patience": 2}, "patience=2 watches recall@20, which needs validation data"),
        ({"n_epochs": 0}, "n_epochs=0: must be at least 1"),
        ({"accumulate": 0}, "accumulate=0: must be at least 1"),
        ({"checkpoint_every": 0}, "checkpoint_every=0: must be at least 1"),
        ({"lr_scheduler": "warp"}, "lr_scheduler='warp': choose one of step, cosine, plateau"),
    ],
)
def test_parts_that_do_not_fit(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        if "sampler" in arguments:
            whole = make_trainer()
            Trainer(whole.network, whole.loader, whole.options, criterion=whole.criterion, optimizer=whole.optimizer)
        else:
            make_trainer(**arguments)


def test_an_unknown_monitor_names_what_is_measured():
    with pytest.raises(ValueError, match=r"monitor='recall@7' is not measured; there are recall@20 and loss"):
        make_trainer(monitor="recall@7", validate=lambda: {"recall@20": 0.1}).run()


def test_one_session_without_negatives_has_nothing_to_train_on():
    with pytest.raises(ValueError, match=r"no mini-batch: with n_sample=0 a step needs 2 live lanes, and there are 1"):
        make_trainer(store=markov_store(n_sessions=1), n_sample=0).run()


def test_resuming_from_what_does_not_fit(tmp_path: Path):
    make_trainer(out=tmp_path, validate=lambda: {"recall@20": 0.5}).run()
    last, best = (load_checkpoint(tmp_path / f"{name}.safetensors", FORMAT) for name in ("last", "best"))
    with pytest.raises(CheckpointError, match="holds a model but no training to go on with"):
        make_trainer().run(best)
    with pytest.raises(CheckpointError, match=r"trained on other data: {'sessions': 60.*not {'sessions': 61"):
        make_trainer(store=markov_store(n_sessions=61)).run(last)
    with pytest.raises(CheckpointError, match="another lr_scheduler"):
        make_trainer(lr_scheduler="step").run(last)


def test_a_cosine_that_ends_with_the_training_is_not_resumed_at_another_length(tmp_path: Path):
    cosine: dict[str, Any] = {"lr_scheduler": "cosine", "n_epochs": 2}
    make_trainer(out=tmp_path, **cosine).run()
    last = load_checkpoint(tmp_path / "last.safetensors", FORMAT)
    with pytest.raises(CheckpointError, match=r"which was to have n_epochs=2: resume with that, or .*'T_max'"):
        make_trainer(**{**cosine, "n_epochs": 4}).run(last)
    explicit = {**cosine, "lr_scheduler_options": {"T_max": 4}}
    make_trainer(out=tmp_path, **explicit).run()
    resumed = make_trainer(**{**explicit, "n_epochs": 4}).run(load_checkpoint(tmp_path / "last.safetensors", FORMAT))
    rates = [record["learning_rate"] for record in resumed]
    assert rates == sorted(rates, reverse=True) and len(set(rates)) == 4


def test_a_finished_training_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_trainer(out=tmp_path).run()
    last = load_checkpoint(tmp_path / "last.safetensors", FORMAT)
    assert len(make_trainer(out=tmp_path, progress=PlainProgress()).run(last)) == 2
    said = "nothing left to train: epoch 2 of n_epochs=2 is finished; raise n_epochs to go on\n"
    assert capsys.readouterr().err == said


def test_a_training_that_stopped_early_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    stopping: dict[str, Any] = {"out": tmp_path, "n_epochs": 9, "patience": 1, "min_delta": 100.0, "monitor": "loss"}
    make_trainer(**stopping).run()
    make_trainer(**stopping, progress=PlainProgress()).run(load_checkpoint(tmp_path / "last.safetensors", FORMAT))
    said = "nothing left to train: stopped after epoch 2 of n_epochs=9, with no gain for 1 epochs (patience=1)\n"
    assert capsys.readouterr().err == said


def test_an_earlier_training_in_the_folder_is_announced(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for _ in range(2):
        make_trainer(out=tmp_path, n_epochs=1, progress=PlainProgress()).run()
    announced = [line for line in capsys.readouterr().err.splitlines() if "earlier training" in line]
    assert announced == [
        f"{tmp_path} holds an earlier training; the first checkpoint of this one will move it to {tmp_path}/previous"
    ]


def test_the_log_is_told_from_others_once_and_only_where_it_matters(tmp_path: Path):
    calls: list[int] = []

    def fingerprint() -> str:
        calls.append(1)
        return "this log"

    make_trainer(n_epochs=1, fingerprint=fingerprint).run()
    assert not calls, "nothing was written"
    make_trainer(out=tmp_path, fingerprint=fingerprint).run()
    assert len(calls) == 1
    last = load_checkpoint(tmp_path / "last.safetensors", FORMAT)
    with pytest.raises(CheckpointError, match=r"trained on other data: .*this log.*another log"):
        make_trainer(fingerprint=lambda: "another log").run(last)


def test_fit_is_the_trainer_in_one_call():
    whole = make_trainer(n_epochs=1)
    parts = {"criterion": whole.criterion, "optimizer": whole.optimizer, "sampler": whole.sampler}
    history = fit(whole.network, whole.loader, whole.options, **parts)
    assert without_seconds(history) == without_seconds(make_trainer(n_epochs=1).run())


def test_plain_progress_prints_one_line_an_epoch(capsys: pytest.CaptureFixture[str]):
    make_trainer(progress=PlainProgress(), validate=lambda: {"recall@20": 0.25}).run()
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 2
    assert re.fullmatch(
        r"epoch 1/2  loss \d\.\d{6}  [\d,]+ events in [\d.]+ s  [\d,]+ events/s  recall@20 0\.2500", lines[0]
    )


def test_a_long_epoch_prints_lines_inside_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(PlainProgress, "interval_s", 0.0)
    make_trainer(n_epochs=1, progress=PlainProgress()).run()
    assert re.search(r"^epoch 1/1  \d+%  loss \d\.\d+  [\d,]+ events/s$", capsys.readouterr().err, re.MULTILINE)


def test_the_bar_is_for_terminals(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    assert isinstance(make_progress(), PlainProgress)
    assert isinstance(make_progress(False), Silent)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bar = make_progress()
    assert isinstance(bar, BarProgress)
    monkeypatch.setattr(BarProgress, "interval_s", 0.0)
    make_trainer(progress=bar).run()
    assert "epoch 2/2" in capsys.readouterr().err
