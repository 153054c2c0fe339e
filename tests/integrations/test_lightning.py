"""integrations.lightning, with the real PyTorch Lightning."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from recorded_memory import assert_nothing_is_recorded, calls

pytest.importorskip("lightning", reason="PyTorch Lightning is not installed: pip install lightning")

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from markov import markov_store
from test_estimator import as_table

from gru4rec_fast import GRU4Rec
from gru4rec_fast.integrations.lightning import GRU4RecModule, MemoryCallback, SessionDataModule
from gru4rec_fast.models import GRU4RecParameters
from gru4rec_fast.profiling import LeakDetector, MemoryProfiler

pytestmark = [
    pytest.mark.usefixtures("native_library"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]
STORE, VALIDATION = markov_store(), markov_store(seed=1)
PARAMETERS = {"layers": (16,), "batch_size": 8, "n_sample": 32, "seed": 0, "dropout_p_embed": 0.2, "momentum": 0.3}
EPOCH = 124  # mini-batches in an epoch of STORE


def make_trainer(**options: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    return Trainer(**{"max_epochs": 3, "enable_checkpointing": False} | quiet | options)


def make_module(validation: Any = None, updates_per_step: int = 10, **changed: Any) -> GRU4RecModule:
    return GRU4RecModule(STORE, PARAMETERS | changed, validation=validation, updates_per_step=updates_per_step)


def weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def fitted(**changed: Any) -> GRU4Rec:
    """Return a model that `fit` has trained with the parameters of the modules."""
    validation = changed.pop("validation", None)
    return GRU4Rec(**PARAMETERS | {"n_epochs": 3} | changed).fit(STORE, validation=validation, progress=False)


@pytest.mark.parametrize("changed", [
    {}, {"accumulate": 3, "bptt": 2}, {"shuffle": True}, {"lr_scheduler": "cosine"}, {"lr_scheduler": "plateau"},
    {"lr_scheduler": "ExponentialLR", "lr_scheduler_options": {"gamma": 0.99, "interval": "update"}},
    {"fused": False, "n_sample": 0},
], ids=str)  # fmt: skip
def test_training_ends_with_the_weights_of_fit(changed: dict[str, Any]) -> None:
    module, trainer = make_module(VALIDATION, **changed), make_trainer()
    trainer.fit(module)
    expected = fitted(validation=VALIDATION, **changed)
    assert torch.equal(weights(module.network), weights(expected.network))
    last = expected.history[-1]
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert logged["loss"] == pytest.approx(last["loss"]) and logged["events"] == last["events"]
    for name in ("recall@20", "mrr@20"):
        assert logged[name] == pytest.approx(last["validation"][name])


def test_a_step_of_lightning_is_a_group_of_updates() -> None:
    steps = {}
    for k in (1, 32, 1000):
        trainer = make_trainer(max_epochs=2)
        trainer.fit(make_module(updates_per_step=k))
        steps[k] = trainer.global_step
    assert steps == {1: 2 * EPOCH, 32: 2 * -(-EPOCH // 32), 1000: 2}


@pytest.mark.parametrize("every_n_steps", [4, 13, 14, 21])  # an epoch has 13 steps
@pytest.mark.parametrize("changed", [{}, {"shuffle": True, "seed": None}, {"fused": False}, {"lr_scheduler": "cosine"}],
                         ids=str)  # fmt: skip
def test_a_resumed_training_ends_with_the_same_bits(
    tmp_path: Path, changed: dict[str, Any], every_n_steps: int
) -> None:
    seed_everything(1, verbose=False)
    whole = make_module(**changed)
    make_trainer().fit(whole)
    seed_everything(1, verbose=False)
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=every_n_steps, save_top_k=-1)
    make_trainer(callbacks=[checkpoint], enable_checkpointing=True).fit(make_module(**changed))
    first = min(tmp_path.glob("*.ckpt"), key=lambda path: torch.load(path, weights_only=True)["global_step"])
    assert torch.load(first, weights_only=True)["global_step"] == every_n_steps
    resumed = make_module(**changed)  # draws another seed if seed=None
    make_trainer().fit(resumed, ckpt_path=first)
    assert resumed.runner.position.step == whole.runner.position.step
    assert torch.equal(weights(resumed.network), weights(whole.network))


def test_a_training_resumes_from_the_checkpoint_of_a_validation(tmp_path: Path) -> None:
    whole = make_module(VALIDATION)
    checkpoint = ModelCheckpoint(tmp_path, monitor="recall@20", mode="max", save_top_k=-1, filename="{epoch}")
    make_trainer(callbacks=[checkpoint], enable_checkpointing=True).fit(whole)
    resumed, trainer = make_module(VALIDATION), make_trainer()
    trainer.fit(resumed, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert torch.equal(weights(resumed.network), weights(whole.network))
    assert trainer.global_step == 3 * 13


def test_validation_within_an_epoch_changes_nothing() -> None:
    module = make_module(VALIDATION)
    make_trainer(val_check_interval=5).fit(module)
    assert torch.equal(weights(module.network), weights(fitted().network))


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(max_epochs=1)
    trainer.fit(make_module())
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    other = GRU4RecModule(markov_store(seed=5), PARAMETERS)
    with pytest.raises(ValueError, match="the state was saved with data="):
        make_trainer(max_epochs=2).fit(other, ckpt_path=tmp_path / "model.ckpt")


def test_a_module_is_loaded_from_a_checkpoint_with_its_parameters(tmp_path: Path) -> None:
    trainer, module = make_trainer(max_epochs=1), make_module()
    trainer.fit(module)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = GRU4RecModule.load_from_checkpoint(tmp_path / "model.ckpt", store=STORE)
    assert loaded.hyper_parameters == module.hyper_parameters
    assert torch.equal(weights(loaded.network), weights(module.network))
    make_trainer(max_epochs=1).fit(loaded)  # a new training, from these weights
    assert loaded.runner.position.epoch == 1


def test_seed_everything_determines_a_training_without_a_seed() -> None:
    results = []
    for seed in (1, 1, 2):
        seed_everything(seed, verbose=False)
        module = make_module(seed=None, shuffle=True)
        make_trainer(max_epochs=1).fit(module)
        results.append(weights(module.network))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_early_stopping_by_patience_and_by_lightnings_callback() -> None:
    expected = fitted(validation=VALIDATION, n_epochs=30, patience=2)
    trainer = make_trainer(max_epochs=30)
    trainer.fit(make_module(VALIDATION, patience=2))
    assert trainer.current_epoch == len(expected.history) < 30
    trainer = make_trainer(max_epochs=30, callbacks=[EarlyStopping("loss", min_delta=10.0, patience=1)])
    trainer.fit(make_module())
    assert trainer.current_epoch == 2
    with pytest.raises(ValueError, match="patience=2 monitors recall@20: give validation="):
        make_module(patience=2)


def test_steps_and_epochs_are_logged(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    callbacks = [LearningRateMonitor()]
    module = make_module(VALIDATION, lr_scheduler="step")
    make_trainer(logger=logger, log_every_n_steps=1, callbacks=callbacks).fit(module)
    text = (Path(logger.log_dir) / "metrics.csv").read_text()
    header, *rows = text.splitlines()
    names = header.split(",")
    values = {name: [row.split(",")[i] for row in rows if row.split(",")[i]] for i, name in enumerate(names)}
    # 3 epochs of 13 steps and 956 events
    assert len(values["loss_step"]) == 3 * 13 and sum(map(float, values["events_step"])) == 3 * 956
    assert len(values["loss"]) == len(values["recall@20"]) == 3
    assert [float(value) for value in values["lr-SparseAdagrad"]][-1] == pytest.approx(0.05 * 0.1**2)
    assert "batch_size: 8" in (Path(logger.log_dir) / "hparams.yaml").read_text()


class OwnOptimizer(GRU4RecModule):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.network.parameters(), lr=0.01)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.LinearLR(optimizer), "interval": "step"}]


def announcement(module: GRU4RecModule, caplog: pytest.LogCaptureFixture, **options: Any) -> str:
    """Train for two epochs and return the one line of the log that says which implementation trained."""
    caplog.clear()
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addHandler(caplog.handler)  # Lightning's loggers do not propagate
    try:
        make_trainer(max_epochs=2, **options).fit(module)
    finally:
        logger.removeHandler(caplog.handler)
    (line,) = {record.message for record in caplog.records if "GRU4RecModule" in record.message}
    return line


def test_what_the_fused_step_cannot_train_is_trained_by_autograd(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert announcement(make_module(), caplog) == "GRU4RecModule: the fused step trains"
    module = OwnOptimizer(STORE, PARAMETERS, sparse=False)
    before = weights(module.network)
    assert "supports exactly SparseAdagrad, not Adam" in announcement(module, caplog)
    assert not torch.equal(weights(module.network), before)
    assert module.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01)  # LinearLR ends after five updates
    hooked, hook_calls = make_module(), []
    hooked.network.register_forward_hook(lambda *_: hook_calls.append(1))
    assert "there are hooks" in announcement(hooked, caplog)
    assert len(hook_calls) == 2 * EPOCH
    torch.testing.assert_close(weights(hooked.network), weights(fitted(n_epochs=2, fused=False).network))
    assert "autocast is on" in announcement(make_module(), caplog, precision="bf16-mixed")


def test_double_precision() -> None:
    module = make_module(logq=1.0)
    make_trainer(precision="64-true").fit(module)
    assert weights(module.network).dtype == torch.float64 and module.runner.why_not_fused is None


def test_pytorch_lightning_is_used_where_the_program_uses_it(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning", reason="the package pytorch_lightning is not installed")
    script = """
import sys
from pytorch_lightning import LightningModule, Trainer
from markov import markov_store
from gru4rec_fast.integrations.lightning import GRU4RecModule
module = GRU4RecModule(markov_store(), {"layers": (8,), "batch_size": 8, "n_sample": 16})
Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False).fit(module)
assert isinstance(module, LightningModule) and "lightning.pytorch" not in sys.modules
assert module.runner.position.events == 956
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [Path(__file__).parents[1], *sys.path]))}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True, timeout=300)


def test_unsupported_options_of_the_trainer_are_errors() -> None:
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    for options in ({"gradient_clip_val": 1.0}, {"accumulate_grad_batches": 2}):
        with pytest.raises(MisconfigurationException, match="manual optimization"):
            make_trainer(**options).fit(make_module())
    with pytest.raises(TypeError, match=re.escape("call Trainer.fit(module) without loaders")):
        make_trainer().fit(make_module(), SessionDataModule(STORE, batch_size=8))
    with pytest.raises(ValueError, match="updates_per_group=0: must be at least 1"):
        make_module(updates_per_step=0)


def test_limited_batches_restart_the_epoch() -> None:
    module = make_module()
    make_trainer(limit_train_batches=2).fit(module)
    assert module.runner.position.mini_batches == 20 and module.runner.position.step == 60


def test_test_metrics_of_a_data_module() -> None:
    module = make_module()
    (metrics,) = make_trainer().test(module, datamodule=SessionDataModule(STORE, test=VALIDATION), verbose=False)
    from gru4rec_fast.evaluation import evaluate_sessions

    expected = evaluate_sessions(module.network, VALIDATION).metrics
    assert metrics == pytest.approx(expected, rel=1e-6)


def run_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> dict[str, Any]:
    """Run a code block of the page in a folder with train.tsv and valid.tsv; return its variables."""
    page = (Path(__file__).parents[2] / "docs" / "integrations" / "lightning.md").read_text()
    code = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)[block]
    assert len(code.splitlines()) < 40
    monkeypatch.chdir(tmp_path)
    for name, store in {"train": STORE, "valid": VALIDATION}.items():
        as_table(store).to_csv(f"{name}.tsv", sep="\t", index=False)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code, f"lightning.md, block {block + 1}", "exec"), namespace)
    return namespace


@pytest.mark.parametrize("block", [0, 1])
def test_the_examples_on_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    metrics = run_page(tmp_path, monkeypatch, block)["trainer"].callback_metrics
    assert metrics["recall@20"] > 0.9  # a random order has 20/30


def test_the_example_of_memory_on_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = run_page(tmp_path, monkeypatch, 2)["memory"]
    assert memory.profiler.report().phase("update").calls > 0


@pytest.fixture(scope="module")
def own_module(tmp_path_factory: pytest.TempPathFactory) -> type[LightningModule]:
    """Return the class SessionModule, which the second example on the page defines."""
    with pytest.MonkeyPatch.context() as patch:
        return run_page(tmp_path_factory.mktemp("page"), patch, 1)["SessionModule"]


def test_the_own_module_of_the_page_resumes_within_an_epoch(tmp_path: Path, own_module: Any) -> None:
    def train(ckpt_path: Path | None = None, **options: Any) -> Any:
        torch.manual_seed(0)
        module = own_module(STORE, lanes=8)
        make_trainer(max_epochs=2, gradient_clip_val=0.05, **options).fit(
            module, SessionDataModule(STORE, batch_size=8), ckpt_path=ckpt_path
        )
        return module

    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=50, save_top_k=-1, filename="{step}")
    whole = train(callbacks=[checkpoint], enable_checkpointing=True)
    resumed = train(tmp_path / "step=50.ckpt")
    assert resumed.trainer.global_step == whole.trainer.global_step == 2 * EPOCH
    assert torch.equal(weights(resumed), weights(whole))


@pytest.mark.parametrize("changed", [{}, {"accumulate": 2, "bptt": 3}, {"fused": False}, {"seed": None}])
def test_ddp_on_two_processes(changed: dict[str, Any]) -> None:
    def train(**options: Any) -> GRU4RecModule:
        torch.manual_seed(0)  # for seed=None
        module = make_module(VALIDATION, **changed)
        module.trained_on = make_trainer(max_epochs=2, **options)
        module.trained_on.fit(module)
        return module

    alone, together = train(), train(devices=2, strategy="ddp_fork")
    assert alone.trained_on.callback_metrics["recall@20"] > 0.5
    for name, value in alone.trained_on.callback_metrics.items():
        assert float(together.trained_on.callback_metrics[name]) == pytest.approx(float(value), abs=1e-5), name


def test_own_module_with_ddp_gets_its_lanes(own_module: Any) -> None:
    module, data = own_module(STORE, lanes=4), SessionDataModule(STORE, VALIDATION, batch_size=8)
    trainer = make_trainer(devices=2, strategy="ddp_fork", max_epochs=1)
    trainer.fit(module, data)  # a block of all 8 lanes would not fit the 4 hidden states of a process
    assert trainer.callback_metrics["recall@20"] > 0.5


def test_the_length_of_the_data_modules_loader() -> None:
    data = SessionDataModule(STORE, batch_size=8, steps=3)
    assert len(data.train_dataloader()) == -(-EPOCH // 3)


def test_gru4rec_parameters_are_accepted() -> None:
    p = GRU4RecParameters.create(PARAMETERS)
    assert GRU4RecModule(STORE, p).hyper_parameters.to_dict() == p.to_dict()


class PlainModule(LightningModule):
    """A linear layer on 6 batches, trained by Adam; `fails_at` is a batch whose training step raises an error."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.layer, self.fails_at = torch.nn.Linear(64, 32), fails_at
        self.register_buffer("scale", torch.ones(7))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if batch_idx == self.fails_at:
            raise ZeroDivisionError
        return self.layer(batch).square().mean()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.layer(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters())

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.ones(24, 64), batch_size=4)

    val_dataloader = train_dataloader


class ManualModule(PlainModule):
    """Makes two updates in each training step, by two optimizers."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.layer(batch).square().mean())
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(self.parameters()), torch.optim.Adam(self.parameters())]


def test_memory_of_a_module_with_automatic_optimization() -> None:
    memory, module = MemoryCallback(), PlainModule()
    trainer = make_trainer(max_epochs=2, accumulate_grad_batches=2, callbacks=[memory], num_sanity_val_steps=1)
    trainer.fit(module)
    # 6 batches in each of 2 epochs, an update every 2 batches; a validation per epoch and the sanity check
    assert calls(memory) == {"forward": 12, "backward": 12, "update": 6, "evaluation": 3}
    report, size = memory.profiler.report(), 4 * (64 * 32 + 32)
    assert report.tensors["parameters"] == size and report.tensors["buffers"] == 4 * 7
    assert report.tensors["gradients"] == size
    assert report.tensors["optimizer_state"] == 2 * size + 2 * 4  # two moments and the number of steps
    # The activations of a forward pass are freed by its backward pass, which allocates the gradients. zero_grad frees
    # them before every second batch, and is in no phase.
    assert 6 * size <= report.phase("forward").kept_bytes + report.phase("backward").kept_bytes < 7 * size
    assert 2 * size <= report.phase("update").kept_bytes < 3 * size
    assert memory.detector.report().steps == 12
    assert_nothing_is_recorded(memory)
    assert not trainer.optimizers[0]._optimizer_step_post_hooks
    trainer.validate(module, verbose=False)  # is not a training
    assert calls(memory)["evaluation"] == 3


def test_memory_of_a_module_with_manual_optimization() -> None:
    memory = MemoryCallback()
    make_trainer(max_epochs=1, callbacks=[memory], limit_val_batches=0).fit(ManualModule())
    assert calls(memory) == {"training_step": 6, "training_step/backward": 12, "training_step/update": 12}
    # Each optimizer allocates its moments in its first step. The phase ends with the step of the optimizer.
    size = 4 * (64 * 32 + 32)
    assert 4 * size <= memory.profiler.report().phase("training_step", "update").kept_bytes < 5 * size


@pytest.mark.parametrize("fused", [True, False])
def test_memory_of_gru4rec_has_the_phases_of_fit(fused: bool) -> None:
    memory, module = MemoryCallback(), make_module(VALIDATION, fused=fused)
    make_trainer(max_epochs=1, callbacks=[memory], num_sanity_val_steps=0).fit(module)
    assert (module.runner.why_not_fused is None) == fused
    with MemoryProfiler() as profiler:
        expected = fitted(validation=VALIDATION, fused=fused, n_epochs=1)
    assert torch.equal(weights(module.network), weights(expected.network))
    phases = profiler.report().phases[1:]
    assert "update" in calls(memory)
    if fused:  # the two call the fused step with other numbers of updates
        assert calls(memory).keys() == {"/".join(phase.path) for phase in phases}
    else:
        assert calls(memory) == {"/".join(phase.path): phase.calls for phase in phases}
    tensors = memory.profiler.report().tensors
    assert tensors["parameters"] == sum(4 * parameter.numel() for parameter in module.parameters())
    assert tensors["optimizer_state"] == 2 * tensors["parameters"]  # accumulator and momentum
    assert memory.detector.report().steps == 13


def test_memory_after_an_error_and_in_the_next_training() -> None:
    memory, module = MemoryCallback(MemoryProfiler(), LeakDetector(warm_up=3)), PlainModule(fails_at=3)
    trainer = make_trainer(max_epochs=1, callbacks=[memory], limit_val_batches=0)
    with pytest.raises(ZeroDivisionError):
        trainer.fit(module)
    assert_nothing_is_recorded(memory)
    assert calls(memory) == {"forward": 4, "backward": 3, "update": 3}
    assert not trainer.optimizers[0]._optimizer_step_post_hooks
    make_trainer(max_epochs=1, callbacks=[memory], limit_val_batches=0).fit(PlainModule())
    assert calls(memory) == {"forward": 10, "backward": 9, "update": 9}
    with MemoryProfiler(), pytest.raises(RuntimeError, match="a MemoryProfiler records in this thread already"):
        make_trainer(max_epochs=1, callbacks=[memory]).fit(PlainModule())
    assert_nothing_is_recorded(memory)
