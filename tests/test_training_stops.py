"""Trainings that end with an exception: by Ctrl-C, by SIGTERM, or by NaN and infinite values."""

import signal
from pathlib import Path

import pytest
import torch
from small_trainer import FORMAT, call_at_block, fused_and_autograd, make_trainer, no_pictures, press_ctrl_c, weights

from gru4rec_fast import ops
from gru4rec_fast.training import TrainingDiverged, TrainingInterrupted, load_checkpoint
from gru4rec_fast.training.training_position import LOSSES_PER_READ, LossMonitor, TrainingPosition

pytestmark = pytest.mark.usefixtures(no_pictures.__name__, fused_and_autograd.__name__)


def test_ctrl_c_within_an_epoch_saves_a_checkpoint(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    handler = signal.getsignal(signal.SIGINT)
    trainer = make_trainer(out=tmp_path, accumulate=3)
    call_at_block(trainer, 4, press_ctrl_c)
    position = r"in epoch 1, after mini-batch 6 \(step 6 of the training\)"
    message = position + r"; to continue from .*last\.safetensors, resume with the same out folder"
    with pytest.raises(TrainingInterrupted, match=message) as caught:
        trainer.run()
    assert isinstance(caught.value, KeyboardInterrupt)
    assert load_checkpoint(tmp_path / "last.safetensors", FORMAT).progress["position"]["mini_batches"] == 6
    assert signal.getsignal(signal.SIGINT) is handler
    message = capfd.readouterr().err  # must not promise to save: it is also shown without an out folder
    assert "Ctrl-C: finishing this step" in message and "saving" not in message


def test_ctrl_c_between_epochs_and_without_an_out_folder(tmp_path: Path):
    trainer = make_trainer(out=tmp_path, validate=lambda: press_ctrl_c() or {"recall@20": 0.5})
    with pytest.raises(TrainingInterrupted, match=r"after epoch 1 \(step \d+ of the training\); to continue"):
        trainer.run()
    assert len(trainer.history) == 1
    trainer = make_trainer()
    call_at_block(trainer, 2, press_ctrl_c)
    with pytest.raises(TrainingInterrupted, match="nothing was saved: no out folder was given"):
        trainer.run()


def test_sigterm_has_the_same_effect_as_ctrl_c(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    handler = signal.getsignal(signal.SIGTERM)
    trainer = make_trainer(out=tmp_path)
    call_at_block(trainer, 4, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(TrainingInterrupted, match=r"after mini-batch 4 \(step") as caught:
        trainer.run()
    assert caught.value.signal_number == signal.SIGTERM
    assert load_checkpoint(tmp_path / "last.safetensors", FORMAT).progress["position"]["mini_batches"] == 4
    assert signal.getsignal(signal.SIGTERM) is handler
    assert "SIGTERM: finishing this step" in capfd.readouterr().err


def test_an_ignored_signal_is_still_ignored(tmp_path: Path):
    handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        trainer = make_trainer(n_epochs=1)
        call_at_block(trainer, 2, lambda: signal.raise_signal(signal.SIGTERM))
        assert len(trainer.run()) == 1
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, handler)


def test_a_second_ctrl_c_stops_immediately(tmp_path: Path):
    trainer = make_trainer(out=tmp_path)
    call_at_block(trainer, 2, lambda: (press_ctrl_c(), press_ctrl_c()))
    with pytest.raises(KeyboardInterrupt) as caught:
        trainer.run()
    assert not isinstance(caught.value, TrainingInterrupted)
    assert not (tmp_path / "last.safetensors").exists()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_update_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, bad: float
):
    trainer = make_trainer(out=tmp_path, n_epochs=5, fused=False)
    epoch_batches = make_trainer(n_epochs=1).run()[0]["mini_batches"]
    forward = trainer.runner.criterion.forward
    weights_before: dict[str, torch.Tensor] = {}

    def make_loss_bad() -> None:
        weights_before.update(weights(trainer))
        trainer.runner.criterion.forward = lambda *args, **options: forward(*args, **options) * bad  # type: ignore

    call_at_block(trainer, epoch_batches + 3, make_loss_bad)
    position = rf"in epoch 2, mini-batch 3 \(step {epoch_batches + 3} of the training\)"
    message = rf"the loss is {bad} {position}.*the last good checkpoint is .*last\.safetensors"
    with pytest.raises(TrainingDiverged, match=message):
        trainer.run()
    for name, tensor in weights(trainer).items():
        assert torch.equal(tensor, weights_before[name]), "the step with the bad loss updated a weight"
    last = load_checkpoint(tmp_path / "last.safetensors", FORMAT)
    assert last.progress["position"]["epoch"] == 2 and last.progress["position"]["mini_batches"] == 0
    resumed = make_trainer(out=tmp_path, n_epochs=2)
    assert len(resumed.run(last)) == 2


def test_a_block_with_a_nan_loss_updates_nothing(tmp_path: Path):
    trainer = make_trainer(out=tmp_path, n_epochs=5, accumulate=2, momentum=0.1)
    weights_before: dict[str, torch.Tensor] = {}

    def make_bias_nan() -> None:
        trainer.network.output.bias.data.fill_(float("nan"))
        weights_before.update(weights(trainer))

    call_at_block(trainer, 3, make_bias_nan)
    with pytest.raises(TrainingDiverged, match=r"the loss is nan in epoch 1, mini-batch 3 \(step 3 of the training\)"):
        trainer.run()
    assert trainer.position.mini_batches == 2
    for name, tensor in weights(trainer).items():
        assert torch.equal(tensor.nan_to_num(), weights_before[name].nan_to_num()), name


def test_infinite_weights_are_not_written_to_a_checkpoint(tmp_path: Path):
    trainer = make_trainer(out=tmp_path)

    def validate_and_make_bias_infinite() -> dict[str, float]:
        if len(trainer.history) == 1:
            trainer.network.output.bias.data[3] = float("inf")
        return {"recall@20": 0.5}

    trainer.validate = validate_and_make_bias_infinite
    with pytest.raises(TrainingDiverged, match=r"output\.bias has NaN or infinite weights.*last good checkpoint"):
        trainer.run()
    assert load_checkpoint(tmp_path / "last.safetensors", FORMAT).tensors["model.output.bias"].isfinite().all()


@pytest.mark.parametrize("with_folder", [True, False])
def test_nan_weights_after_the_last_update_of_an_epoch_are_neither_validated_nor_saved(
    tmp_path: Path, with_folder: bool
):
    validated: list[int] = []
    trainer = make_trainer(
        out=tmp_path if with_folder else None,
        validate=lambda: {"recall@20": float(len(validated) + 1)},
        fused=False,
    )
    epoch_batches = make_trainer(n_epochs=1).run()[0]["mini_batches"]
    update, n_updates = trainer.optimizer.step, [0]

    def update_and_make_bias_nan_after_epoch_2() -> None:
        update()
        n_updates[0] += 1
        if n_updates[0] == 2 * epoch_batches:
            trainer.network.output.bias.data[3] = float("nan")

    validate = trainer.validate
    assert validate is not None
    trainer.validate = lambda: validated.append(n_updates[0]) or validate()
    trainer.optimizer.step = update_and_make_bias_nan_after_epoch_2  # type: ignore[method-assign]
    checkpoint = (
        r"the last good checkpoint is .*last\.safetensors" if with_folder else "no checkpoint had been written yet"
    )
    position = rf"in epoch 2, after mini-batch {epoch_batches} \(step {2 * epoch_batches} of the training\)"
    with pytest.raises(TrainingDiverged, match=rf"output\.bias has NaN or infinite weights {position}.*{checkpoint}"):
        trainer.run()
    assert validated == [epoch_batches] and len(trainer.history) == 1
    if with_folder:
        saved = load_checkpoint(tmp_path / "last.safetensors", FORMAT)
        assert saved.progress["position"]["epoch"] == 2 and saved.tensors["model.output.bias"].isfinite().all()


@pytest.mark.parametrize("nan_value", ["metric", "score"])
def test_a_nan_in_the_validation_raises_training_diverged(tmp_path: Path, nan_value: str):
    def validate() -> dict[str, float]:
        if len(trainer.history) == 1 and nan_value == "score":
            ops.target_rank(torch.full((1, 12), float("nan")), trainer.network.output.weight, None, torch.tensor([0]))
        return {"mrr@20": 0.1, "recall@20": float("nan") if trainer.history else 0.5}

    trainer = make_trainer(out=tmp_path, validate=validate)
    reason = "the validation metric recall@20 is nan" if nan_value == "metric" else "the validation found a NaN score"
    message = rf"{reason} in epoch 2, after .*the last good checkpoint is .*last\.safetensors"
    with pytest.raises(TrainingDiverged, match=message):
        trainer.run()
    assert len(load_checkpoint(tmp_path / "last.safetensors", FORMAT).progress["history"]) == 1


def test_a_resumed_training_that_diverges_names_the_checkpoint_it_was_resumed_from(tmp_path: Path):
    make_trainer(out=tmp_path, n_epochs=1).run()
    resumed = make_trainer(n_epochs=2)
    resumed.restore(load_checkpoint(tmp_path / "last.safetensors", FORMAT))
    call_at_block(resumed, 1, lambda: resumed.network.output.bias.data.fill_(float("nan")))
    with pytest.raises(TrainingDiverged, match=rf"the last good checkpoint is {tmp_path}/last\.safetensors"):
        resumed.run()


def test_a_training_that_diverges_without_a_checkpoint_says_that_there_is_none():
    with pytest.raises(TrainingDiverged, match=r"in epoch 1, mini-batch \d+ .*no checkpoint had been written yet"):
        make_trainer(learning_rate=1e38).run()


def test_losses_on_a_gpu_are_read_in_groups():
    losses, position = LossMonitor(torch.device("cuda")), TrainingPosition(epoch=4)
    for mini_batch in range(LOSSES_PER_READ - 1):
        losses.add(position, torch.tensor(2.0), 1)
        position.mini_batches += 1
        position.step += 1
        assert position.loss_sum == 0 and position.mean_loss is None, mini_batch
    losses.add(position, torch.tensor(3.0), 1)
    assert position.loss_sum == 2.0 * (LOSSES_PER_READ - 1) + 3.0
    position.mini_batches = LOSSES_PER_READ
    losses.add(position, torch.tensor(9.0), 1)
    position.mini_batches += 1
    assert position.mean_loss == pytest.approx(2.0 + 1.0 / LOSSES_PER_READ), (
        "mean_loss must only have the losses that were read"
    )
    losses = LossMonitor(torch.device("cuda"))
    position.mini_batches, position.step = LOSSES_PER_READ, 1000 + LOSSES_PER_READ
    # Each loss is that of two mini-batches: 65 and 66, 67 and 68, 69 and 70. LOSSES_PER_READ is 64.
    for value in (1.0, float("nan"), 1.0):
        losses.add(position, torch.tensor(value), 2)
        position.mini_batches += 2
        position.step += 2
    with pytest.raises(TrainingDiverged, match=r"epoch 4, mini-batches 67 to 68 \(step 1067 of the training\)"):
        losses.read(position)
