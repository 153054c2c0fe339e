"""GrowableEmbedding: appended rows, the state of optimizers, state dicts, copies, errors; networks that grow."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_trainer import fused_and_autograd, make_trainer
from torch import Tensor, nn

from gru4rec_fast.nn import GrowableEmbedding, OutputTable, SampledLoss, SessionNetwork
from gru4rec_fast.optim import SparseAdagrad, SparseAdam
from gru4rec_fast.training import CapturedTrainingStep, FusedTrainingStep

WIDTH = 16
# For each case: whether gradients are sparse, and the optimizer of the parameters.
OPTIMIZERS: dict[str, tuple[bool, Callable[..., torch.optim.Optimizer]]] = {
    "SparseAdagrad, sparse": (True, lambda p: SparseAdagrad(p, 0.1, momentum=0.3)),
    "SparseAdagrad, dense": (False, lambda p: SparseAdagrad(p, 0.1)),
    "SparseAdam, sparse": (True, lambda p: SparseAdam(p, 0.01)),
    "torch SparseAdam": (True, lambda p: torch.optim.SparseAdam(p, 0.01)),
    "Adam": (False, lambda p: torch.optim.Adam(p, 0.01)),
    "Adam, amsgrad": (False, lambda p: torch.optim.Adam(p, 0.01, amsgrad=True)),
    "Adam, fused": (False, lambda p: torch.optim.Adam(p, 0.01, fused=True)),
    "SGD": (False, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)),
    "Adagrad": (False, lambda p: torch.optim.Adagrad(p, 0.1, initial_accumulator_value=0.3)),
    "Rprop": (False, lambda p: torch.optim.Rprop(p, 0.02)),
    "RMSprop": (False, lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5, centered=True)),
}


def train(table: GrowableEmbedding, optimizer: torch.optim.Optimizer, n_rows: int, steps: int) -> list[float]:
    """Train for some steps with rows below `n_rows`; return the losses."""
    generator, losses = torch.Generator().manual_seed(n_rows), []
    for _ in range(steps):
        index = torch.randint(0, n_rows, (7,), generator=generator)
        loss = (table(index).sum(1) - 1).square().mean()
        losses.append(loss)  # keeps the autograd graph alive, as code that plots losses often does
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return [loss.item() for loss in losses]


@pytest.mark.parametrize("case", OPTIMIZERS)
def test_losses_are_those_of_a_table_with_its_final_size_from_the_start(case: str) -> None:
    sparse, make_optimizer = OPTIMIZERS[case]
    rows = torch.randn(12, WIDTH, generator=torch.Generator().manual_seed(0))
    tables = [GrowableEmbedding.from_pretrained(rows[:n].clone(), freeze=False, sparse=sparse) for n in (5, 12)]
    optimizers = [make_optimizer(table.parameters()) for table in tables]
    losses: list[list[float]] = [[], []]
    for n_rows in (5, 6, 12):  # the table is copied for 5 and 12 rows, and grows in place to 6
        tables[0].append_rows(
            n_rows - tables[0].num_embeddings, rows[len(tables[0].weight) : n_rows], optimizer=optimizers[0]
        )
        for table, optimizer, table_losses in zip(tables, optimizers, losses, strict=True):
            table_losses += train(table, optimizer, n_rows, steps=4)
    assert losses[0] == losses[1] and len({*losses[0]}) == 12
    assert torch.equal(*(table.weight for table in tables))
    states = [optimizer.state[table.weight] for table, optimizer in zip(tables, optimizers, strict=True)]
    for key, value in states[1].items():
        assert not isinstance(value, Tensor) or torch.equal(states[0][key], value), key


class AutogradStep:
    """The interface of FusedTrainingStep, by autograd."""

    def __init__(self, network: SessionNetwork, criterion: SampledLoss, optimizer: SparseAdagrad) -> None:
        self.network, self.criterion, self.optimizer = network, criterion, optimizer

    def train_block(
        self, inputs: Tensor, targets: Tensor, reset: Tensor, negatives: Tensor, hidden: list, step: int
    ) -> float:
        output, hidden[:] = self.network(inputs, [state.detach() for state in hidden], reset, step=step)
        table = self.network.output_weight, self.network.output_bias
        loss = self.criterion(output, *table, targets, negatives)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


STEPS = {"autograd": AutogradStep, "fused": FusedTrainingStep, "captured": CapturedTrainingStep}


@pytest.mark.parametrize("embedding", ["constrained", "separate", "none"])
@pytest.mark.parametrize("step", STEPS)
def test_a_network_that_grows_between_updates_learns_as_one_of_the_final_size(
    step: str, embedding: str, request: pytest.FixtureRequest
) -> None:
    """Growth by one item at a time copies the tables after 6 and 9 items, else it is in place.

    The captured step runs its references on the CPU.
    """
    impl = "reference"
    if step == "fused":
        request.getfixturevalue("native_library")
        impl = "auto"
    network = SessionNetwork(
        6, [8], embedding=embedding, embedding_dim=6, dropout_p_hidden=0.2, sparse=True, seed=4, impl=impl
    )
    final = copy.deepcopy(network)
    for _ in range(4):
        final.extend_items(1)
    losses: dict[SessionNetwork, list[float]] = {network: [], final: []}
    for trained in losses:
        criterion = SampledLoss("bpr-max", batch_size=2, sparse=True, impl=impl)
        optimizer = SparseAdagrad(trained.parameters(), 0.1, 0.2, impl=impl)
        train_step = STEPS[step](trained, criterion, optimizer)
        hidden, generator = trained.initial_state(2), torch.Generator().manual_seed(0)
        for number, n_items in enumerate([6, 6, 7, 8, 9, 10, 10]):
            if n_items > trained.n_items:
                trained.extend_items(1, optimizer=optimizer)
            inputs, targets = torch.randint(0, n_items, (2, 1, 2), generator=generator)
            targets[:] = n_items - 1  # the new item
            negatives = torch.randint(0, n_items, (1, 9), generator=generator)
            reset = torch.zeros(1, 2, dtype=torch.bool)
            losses[trained].append(train_step.train_block(inputs, targets, reset, negatives, hidden, step=number))
    assert losses[network] == losses[final]
    for name, weight in final.state_dict().items():
        assert torch.equal(network.state_dict()[name], weight), name


@pytest.mark.usefixtures(fused_and_autograd.__name__)
def test_a_step_with_the_support_of_fewer_items_is_an_error() -> None:
    runner = make_trainer().runner
    runner.run_updates(2)
    runner.network.extend_items(1, optimizer=runner.optimizer)
    with pytest.raises(ValueError, match=r"support|the sampler's"):
        runner.run_updates(1)


@pytest.mark.parametrize("capacity", [None, 1000])
def test_a_thousand_rows_are_appended_with_few_copies(capacity: int | None) -> None:
    table = GrowableEmbedding(4, 8, capacity=capacity)
    optimizer = torch.optim.Adam(table.parameters())
    table(torch.tensor([1])).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    weight, version = table.weight, table.weight._version
    addresses, state_addresses = {weight.data_ptr()}, set()
    for _ in range(996):
        table.append_rows(1, optimizer=optimizer)
        addresses.add(weight.data_ptr())
        state_addresses.add(optimizer.state[weight]["exp_avg"].data_ptr())
    assert table.weight is weight and weight.shape == (1000, 8) and table.num_embeddings == 1000
    assert len(addresses) <= (1 if capacity else 1 + math.ceil(math.log(1000 / 4, 1.5)))
    assert len(state_addresses) <= 1 + math.ceil(math.log(1000 / 4, 1.5))
    assert weight._version > version  # so autograd detects that a graph has saved the smaller table
    assert optimizer.state[weight]["exp_avg_sq"].shape == (1000, 8)
    assert table.capacity >= 1000


def saved_bytes(value: Any) -> int:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.tell()


def test_files_hold_the_used_rows_only(tmp_path: Path) -> None:
    table = OutputTable(1000, 8)
    optimizer = torch.optim.Adam(table.parameters())
    (table(torch.tensor([1])).sum() + table.bias.sum()).backward()
    optimizer.step()
    optimizer.zero_grad()
    table.append_rows(1, optimizer=optimizer)
    assert table.capacity == 1500
    n_bytes = 1001 * 9 * 4
    assert saved_bytes(table.state_dict()) < n_bytes + 3000
    assert saved_bytes(optimizer.state_dict()) < 2 * n_bytes + 6000
    save_file(table.state_dict(), tmp_path / "table.safetensors")
    assert (tmp_path / "table.safetensors").stat().st_size < n_bytes + 1000
    state = table.state_dict()
    assert state["weight"].data_ptr() == table.weight.data_ptr()  # the same memory, as in every module of torch
    assert table.state_dict(keep_vars=True)["weight"] is table.weight
    loaded = torch.optim.Adam(OutputTable(1001, 8).parameters())
    loaded.load_state_dict(optimizer.state_dict())
    assert loaded.state_dict()["state"][0]["exp_avg"].equal(optimizer.state[table.weight]["exp_avg"])


@pytest.mark.parametrize("n_saved", [3, 5, 9])
def test_a_state_dict_determines_the_number_of_rows(n_saved: int) -> None:
    saved, table = OutputTable(n_saved, 4), OutputTable(5, 4)
    saved.append_rows(1)
    weight = table.weight
    table(torch.tensor([0])).sum().backward()
    table.load_state_dict(saved.state_dict())
    assert table.weight is weight and table.num_embeddings == n_saved + 1
    assert table.weight.equal(saved.weight) and table.bias.equal(saved.bias)
    assert table.weight.grad is None
    table(torch.tensor([n_saved])).sum().backward()
    assert table.weight.grad is not None and table.weight.grad.shape == (n_saved + 1, 4)


def test_a_state_dict_of_another_width_or_with_different_numbers_of_rows_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"size mismatch for weight.*\[5, 3\]"):
        GrowableEmbedding(4, 2).load_state_dict({"weight": torch.zeros(5, 3)})
    table = OutputTable(4, 2)
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        table.load_state_dict({"weight": torch.zeros(5, 2), "bias": torch.zeros(6)})
    assert table.weight.shape == (4, 2) and table.bias.shape == (4,)
    network = SessionNetwork(4, [3], embedding="separate", embedding_dim=2)
    state = network.state_dict() | {"embedding.weight": torch.zeros(5, 2)}
    with pytest.raises(RuntimeError, match=r"different numbers of items: .*'embedding.weight': 5"):
        network.load_state_dict(state)


def test_a_network_loads_a_checkpoint_of_another_size() -> None:
    large, small = (SessionNetwork(n, [3], embedding="none", seed=n) for n in (7, 4))
    large.extend_items(2)
    small.load_state_dict(large.state_dict())
    inputs = torch.tensor([[8, 2]])
    assert small.n_items == 9 and small.output.num_embeddings == small.embedding.num_embeddings == 9
    assert torch.equal(small(inputs)[0], large(inputs)[0])


@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda table: pickle.loads(pickle.dumps(table))])
def test_a_copy_grows_on_its_own(make_copy: Callable[[GrowableEmbedding], GrowableEmbedding]) -> None:
    table = GrowableEmbedding(4, 3, capacity=100)
    copied = make_copy(table)
    assert copied.capacity == 4 and table.capacity == 100
    table.append_rows(1, torch.ones(1, 3))
    copied.append_rows(1, torch.zeros(1, 3))
    assert table.weight[4].eq(1).all() and copied.weight[4].eq(0).all()
    assert table.weight[:4].equal(copied.weight[:4])


def test_tables_in_the_same_memory_do_not_overwrite_each_others_rows() -> None:
    first, second = GrowableEmbedding(4, 3, capacity=9), GrowableEmbedding(4, 3)
    second.weight = nn.Parameter(first.weight.detach())
    first.append_rows(1, torch.ones(1, 3))
    second.append_rows(1, torch.zeros(1, 3))
    assert first.weight[4].eq(1).all() and second.weight[4].eq(0).all()


def test_initial_rows() -> None:
    table = GrowableEmbedding(1, 50)
    table.append_rows(200)
    table.append_rows(2, nn.init.ones_)
    table.append_rows(0)
    assert 0.95 < table.weight[1:201].std() < 1.05 and table.weight[201:].eq(1).all() and len(table.weight) == 203
    output = OutputTable(50, 50, generator=torch.Generator().manual_seed(0))
    output.append_rows(50)
    for rows, bound in ((output.weight[:50], math.sqrt(6 / 100)), (output.weight[50:], math.sqrt(6 / 150))):
        assert 0.9 * bound < rows.abs().max() <= bound and abs(rows.mean()) < 0.05 * bound
    assert output.bias.eq(0).all() and len(output.bias) == 100
    assert output.weight[:50].equal(OutputTable(50, 50, generator=torch.Generator().manual_seed(0)).weight)
    empty = GrowableEmbedding(0, 2, dtype=torch.float64)
    empty.append_rows(3)
    assert empty.weight.shape == (3, 2) and empty.weight.dtype == torch.float64


def with_gradient(table: GrowableEmbedding) -> None:
    table(torch.tensor([0])).sum().backward()


def within_a_larger_tensor(table: GrowableEmbedding) -> None:
    table.weight.data = torch.zeros(9, 2)[1:5]


@pytest.mark.parametrize(
    ("prepare", "arguments", "message"),
    [
        (None, {"n": -1}, "n=-1"),
        (None, {"n": 2, "init": torch.zeros(1, 2)}, r"init must be float32 \[2, 2\] on cpu, not float32 \[1, 2\]"),
        (None, {"n": 1, "init": torch.zeros(1, 2).double()}, "init must be float32 .* not float64"),
        (with_gradient, {"n": 1}, r"has a gradient .* optimizer.zero_grad\(\) before"),
        (within_a_larger_tensor, {"n": 1}, "lies within a larger tensor"),
        (None, {"n": 1.5}, "n=1.5: must be an integer"),
        (None, {"n": 2, "init": [[0.0, 0.0]]}, "init must be a tensor, a function or None, not list"),
        (None, {"n": 2, "init": lambda rows: rows.resize_(3, 2)}, r"rows that init has filled must be .* \[3, 2\]"),
        (None, {"n": 2, "optimizer": ["adam"]}, r"optimizer must be a torch\.optim\.Optimizer, or several, not str"),
        (None, {"n": 2, "optimizer": 1}, r"optimizer must be a torch\.optim\.Optimizer, or several, not int"),
    ],
)
def test_an_error_changes_nothing(prepare: Callable | None, arguments: dict[str, Any], message: str) -> None:
    table = GrowableEmbedding(4, 2)
    if prepare is not None:
        prepare(table)
    address = table.weight.data_ptr()
    with pytest.raises((ValueError, TypeError), match=message):
        table.append_rows(**arguments)
    assert table.weight.shape == (4, 2) and table.weight.data_ptr() == address and table.num_embeddings == 4


@pytest.mark.parametrize("name", ["Adafactor", "LBFGS", "ASGD", "Muon"])
def test_an_optimizer_whose_state_cannot_grow_is_an_error(name: str) -> None:
    table = GrowableEmbedding(4, 2)
    adam, other = torch.optim.Adam(table.parameters()), getattr(torch.optim, name)(table.parameters())

    def loss() -> Tensor:
        value = table(torch.tensor([0])).sum()
        value.backward()
        return value

    for optimizer in (adam, other):
        optimizer.step(loss)
        optimizer.zero_grad()
    with pytest.raises(ValueError, match=f"{name} cannot grow.*: make a new {name}"):
        table.append_rows(1, optimizer=[adam, other])
    assert table.weight.shape == adam.state[table.weight]["exp_avg"].shape == (4, 2)


def test_a_sparse_momentum_cannot_grow() -> None:
    table = GrowableEmbedding(4, 2, sparse=True)
    optimizer = torch.optim.SGD(table.parameters(), lr=0.1, momentum=0.9)
    table(torch.tensor([0])).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    with pytest.raises(ValueError, match=r"the sparse state 'momentum_buffer' .* of SGD cannot grow"):
        table.append_rows(1, optimizer=optimizer)
    assert table.weight.shape == (4, 2)


def test_a_capacity_below_the_number_of_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="capacity=3: must be at least num_embeddings=4"):
        GrowableEmbedding(4, 2, capacity=3)


@pytest.mark.parametrize("embedding", ["constrained", "separate", "none"])
def test_extend_items_does_not_change_the_scores_of_other_items(embedding: str) -> None:
    network = SessionNetwork(5, [4, 3], embedding=embedding, embedding_dim=2, seed=1)
    inputs = torch.tensor([[1, 4], [0, -1]])
    scores, copied = network(inputs)[0] @ network.output_weight.T, copy.deepcopy(network)
    network.extend_items(3)
    copied.extend_items(3)
    new_scores = network(inputs)[0] @ network.output_weight.T
    torch.testing.assert_close(new_scores[..., :5], scores, rtol=1e-6, atol=1e-7)
    assert network.n_items == network.output.num_embeddings == network.input_table.num_embeddings == 8
    assert torch.isfinite(network(torch.full((1, 1), 7))[0]).all()
    for name, weight in copied.state_dict().items():  # the seed and the number of items determine the new rows
        assert torch.equal(weight, network.state_dict()[name])
    rows = network.input_table.weight
    assert len({*rows[:, 0].tolist()}) == 8  # other random numbers than those of the first rows
    with pytest.raises(ValueError, match="n=-1"):
        network.extend_items(-1)


def test_our_optimizers_recognize_a_table_after_it_has_grown() -> None:
    network = SessionNetwork(5, [4])
    optimizer = SparseAdagrad(network.parameters(), momentum=0.5)
    network(torch.tensor([[1]]))
    network.extend_items(1, optimizer=optimizer)
    hidden, _ = network(torch.tensor([[5]]))
    hidden.sum().backward()
    with pytest.raises(ValueError, match=r"the gradient of a table of shape \[6, 4\] is dense"):
        optimizer.step()


def test_an_optimizer_that_is_given_twice_grows_once() -> None:
    table = GrowableEmbedding(5, 3)
    optimizer = torch.optim.Adam(table.parameters())
    table(torch.tensor([1])).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    table.append_rows(2, optimizer=[optimizer, optimizer])
    assert optimizer.state[table.weight]["exp_avg"].shape == table.weight.shape == (7, 3)
