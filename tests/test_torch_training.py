"""The modules in training loops of plain PyTorch: optimizers, clipping, schedules, mixed precision, DDP, memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch_training import LANES, N_ITEMS, STEPS, Model, draw_batches, make_ddp_model, train, train_on_rank

from gru4rec_fast.nn import SampledLoss
from gru4rec_fast.optim import SparseAdagrad, SparseAdam, clip_grad_norm_


def assert_learns(losses: list[float]) -> None:
    """Assert that the last third of the losses is less than the first third, by a tenth at least."""
    third = len(losses) // 3
    assert sum(losses[-third:]) < 0.9 * sum(losses[:third])


DENSE_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": partial(torch.optim.SGD, lr=3.0),
    "SGD with momentum": partial(torch.optim.SGD, lr=1.0, momentum=0.9),
    "Adam": partial(torch.optim.Adam, lr=0.05),
    "AdamW": partial(torch.optim.AdamW, lr=0.05, weight_decay=0.01),
    "Adagrad": partial(torch.optim.Adagrad, lr=0.1),
    "SparseAdagrad": partial(SparseAdagrad, lr=0.1),
    "SparseAdagrad with weight decay": partial(SparseAdagrad, lr=0.1, weight_decay=0.001),
}


@pytest.mark.parametrize("name", DENSE_OPTIMIZERS)
@pytest.mark.parametrize("embedding", ["constrained", "separate"])
def test_optimizers_train_with_dense_gradients(name: str, embedding: str) -> None:
    model = Model(embedding=embedding, embedding_dim=6)
    assert_learns(train(model, DENSE_OPTIMIZERS[name](model.parameters())))


@pytest.mark.parametrize("name", ["SGD", "Adagrad", "SparseAdagrad"])
def test_sparse_gradients_train_the_same_weights_if_rows_without_gradient_stay(name: str) -> None:
    models = [Model(sparse=sparse, dtype=torch.float64) for sparse in (False, True)]
    for model in models:
        train(model, DENSE_OPTIMIZERS[name](model.parameters()))
    for dense, sparse in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(dense, sparse, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "make_optimizer",
    [partial(SparseAdagrad, lr=0.1, momentum=0.3), partial(SparseAdam, lr=0.05), partial(SparseAdam, betas=(0, 0.9))],
)
def test_an_optimizer_with_momentum_refuses_a_dense_gradient_of_a_table(make_optimizer: Any) -> None:
    model = Model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    optimizer = make_optimizer(model.parameters())
    with pytest.raises(ValueError, match=r"gradient of a table of shape \[50, 8\] is dense.*pass sparse=True"):
        train(model, optimizer)
    weights = model.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in before.items())
    sparse = Model(sparse=True)
    train(sparse, make_optimizer(sparse.parameters()))


def test_a_copied_table_and_the_weight_of_an_nn_embedding_are_recognized_as_tables() -> None:
    batch, embedding = next(draw_batches(1)), nn.Embedding(N_ITEMS, 8)
    model = Model()
    model(*batch)
    copied = copy.deepcopy(model)
    copied(*batch).backward()
    SampledLoss(batch_size=LANES)(torch.rand(STEPS, LANES, 8), embedding.weight, None, *batch[1:]).backward()
    for parameters in (copied.network.output.parameters(), embedding.parameters()):
        with pytest.raises(ValueError, match="is dense"):
            SparseAdagrad(parameters, momentum=0.1).step()


@pytest.mark.parametrize("sparse", [False, True])
def test_torch_clips_dense_gradients_and_clip_grad_norm_also_sparse_ones(sparse: bool) -> None:
    model = Model(sparse=sparse)
    norms = []

    def clip() -> None:
        clip_norm = clip_grad_norm_ if sparse else nn.utils.clip_grad_norm_
        norms.append(float(clip_norm(model.parameters(), 0.05)))
        norms.append(float(clip_grad_norm_(model.parameters(), 1e9)))

    train(model, SparseAdagrad(model.parameters(), 0.1), n=4, after_backward=clip)
    assert all(norm > 0.05 for norm in norms[::2])
    assert norms[1::2] == pytest.approx([0.05] * 4, rel=1e-4)


def test_clip_grad_value() -> None:
    model = Model()

    def clip() -> None:
        nn.utils.clip_grad_value_(model.parameters(), 1e-3)
        assert max(parameter.grad.abs().max().item() for parameter in model.parameters()) == pytest.approx(1e-3)

    train(model, torch.optim.SGD(model.parameters(), 1.0), n=4, after_backward=clip)


@pytest.mark.parametrize(
    ("sparse", "make_optimizer"),
    [
        (False, partial(torch.optim.AdamW, lr=1e-3)),
        (True, partial(SparseAdagrad, lr=1e-3)),
        (True, partial(SparseAdagrad, lr=1e-3, momentum=0.1)),
        (True, partial(SparseAdam, lr=1e-3)),
    ],
)
def test_one_cycle_schedule(sparse: bool, make_optimizer: Any) -> None:
    """OneCycleLR changes the learning rate, and inversely to it the momentum or the first beta."""
    model = Model(sparse=sparse)
    optimizer, rates, momenta = make_optimizer(model.parameters()), [], []
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=30)

    def after_step() -> None:
        (group,) = optimizer.param_groups
        rates.append(group["lr"])
        momenta.append(group["betas"][0] if "betas" in group else group["momentum"])
        if len(rates) < 30:
            schedule.step()

    train(model, optimizer, after_step=after_step)
    peak = rates.index(max(rates))
    assert 0 < peak < 29 and max(rates) == pytest.approx(0.05)
    assert min(momenta) == momenta[peak] == pytest.approx(0.85) and max(momenta) == pytest.approx(0.95)


@pytest.mark.parametrize("sparse", [False, True])
def test_grad_scaler_under_autocast(sparse: bool) -> None:
    model = Model(sparse=sparse)
    optimizer = SparseAdagrad(model.parameters(), 0.1)
    scaler, losses = torch.amp.GradScaler("cpu", init_scale=1024.0), []
    for number, batch in enumerate(draw_batches(30)):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(*batch)
        if number == 3:
            loss = loss * torch.inf  # the scaler skips this update
        else:
            losses.append(loss.item())
        before = model.network.output_weight.detach().clone()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        clip_grad_norm_(model.parameters(), 10.0)
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(model.network.output_weight, before) == (number == 3)
    assert scaler.get_scale() == 512.0
    assert_learns(losses)


@pytest.mark.parametrize(
    ("dtype", "sparse", "make_optimizer"),
    [
        (torch.bfloat16, False, partial(torch.optim.Adagrad, lr=0.1, eps=1e-3)),
        (torch.bfloat16, False, partial(SparseAdagrad, lr=0.1)),
        (torch.bfloat16, True, partial(SparseAdagrad, lr=0.1, momentum=0.1)),
        # Not sparse: torch cannot add sparse float16 tensors.
        (torch.float16, False, partial(torch.optim.Adagrad, lr=0.1, eps=1e-3)),
    ],
)
def test_networks_of_16_bit_dtypes_train(dtype: torch.dtype, sparse: bool, make_optimizer: Any, impl: str) -> None:
    model = Model(sparse=sparse, embedding="separate", embedding_dim=6, dropout_p_embed=0.1, impl=impl).to(dtype)
    hidden, state = model.network(next(draw_batches(1))[0])
    assert hidden.dtype == state[0].dtype == dtype
    optimizer = make_optimizer(model.parameters())
    losses = train(model, optimizer)
    assert_learns(losses)
    assert model(*next(draw_batches(1))).dtype == torch.float32
    assert all(parameter.dtype == dtype for parameter in model.parameters())


def test_loss_of_a_bfloat16_network_is_close_to_float32() -> None:
    model, batch = Model(), next(draw_batches(1))
    expected = model(*batch).item()
    assert model.bfloat16()(*batch).item() == pytest.approx(expected, rel=0.01)


class AllocatedBytes:
    """Counts the bytes that torch allocates within a `with` block, in all allocations together."""

    def __enter__(self) -> AllocatedBytes:
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._profile.__enter__()
        return self

    def __exit__(self, *args: Any) -> None:
        self._profile.__exit__(*args)
        events = self._profile.profiler.kineto_results.events()
        sizes = [event.nbytes() for event in events if event.name() == "[memory]"]
        self.count = sum(size for size in sizes if size > 0)
        assert self.count, "the profiler recorded no allocation"


@pytest.mark.parametrize("embedding", ["constrained", "separate"])
@pytest.mark.parametrize("make_optimizer", [partial(SparseAdagrad, momentum=0.1), SparseAdam])
def test_memory_of_a_sparse_step_does_not_depend_on_the_catalogue(embedding: str, make_optimizer: Any) -> None:
    allocated = []
    for n_items in (10**4, 10**6):
        model = Model(sparse=True, n_items=n_items, embedding=embedding, embedding_dim=6)
        optimizer = make_optimizer(model.parameters())
        first, second = draw_batches(2, n_items=10**4)
        for batch in (first, second):  # the first step allocates the state of the optimizer
            with AllocatedBytes() as bytes_of_step:
                model(*batch).backward()
                optimizer.step()
                optimizer.zero_grad()
        allocated.append(bytes_of_step.count)
    assert allocated[0] == allocated[1]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this build of torch has no torch.distributed")
@pytest.mark.parametrize("sparse", [False, True])
def test_two_processes_train_the_same_weights_as_one(sparse: bool, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(train_on_rank, (tmp_path, sparse), nprocs=2)
    model, optimizer = make_ddp_model(sparse)
    train(model, optimizer, n=6)
    for rank in range(2):
        for name, weight in torch.load(tmp_path / f"{rank}.pt").items():
            torch.testing.assert_close(weight, model.state_dict()[name], rtol=1e-9, atol=1e-12, msg=f"{rank} {name}")
