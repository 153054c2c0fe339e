"""Networks and losses as whole graphs: torch.compile(fullgraph=True), torch.export, AOTInductor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gru4rec_fast.nn import SampledLoss, SessionNetwork

INPUTS = torch.tensor([[1, 4, 2], [0, -1, 3]])  # items of 2 steps and 3 lanes (sessions in parallel), with padding
TARGETS, NEGATIVES = torch.tensor([[2, 5, 3], [1, -1, 4]]), torch.tensor([[7, 8], [6, 6]])
RESET = torch.tensor([[True, False, True], [False, True, False]])
EMBEDDINGS = ["constrained", "separate", "none"]


def make_network(embedding: str = "separate", sparse: bool = False) -> SessionNetwork:
    return SessionNetwork(
        9,
        [6, 5],
        embedding=embedding,
        embedding_dim=4,
        dropout_p_embed=0.3,
        dropout_p_hidden=0.2,
        sparse=sparse,
        seed=1,
    )


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    """Let a test fail if a second call with equal shapes compiles again."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


class Step(torch.nn.Module):
    """Forward pass and loss of a mini-batch."""

    def __init__(self, network: SessionNetwork, **options: Any) -> None:
        super().__init__()
        self.network, self.criterion = network, SampledLoss(batch_size=3, **options)

    def forward(self, inputs: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
        hidden, _ = self.network(inputs)
        return self.criterion(hidden, self.network.output_weight, self.network.output_bias, targets, negatives)


@pytest.mark.parametrize("embedding", EMBEDDINGS)
@pytest.mark.parametrize("loss", ["cross-entropy", "bpr-max"])
def test_training_compiles_as_one_graph(embedding: str, loss: str, native_library: None) -> None:
    options = {"logq": 1.0, "support": torch.arange(1, 10)} if loss == "cross-entropy" else {}
    eager, compiled = (Step(make_network(embedding), loss=loss, **options) for _ in range(2))
    compiled_step = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for _ in range(3):  # the masks of each call are other ones
        losses = [step(INPUTS, TARGETS, NEGATIVES) for step in (eager, compiled_step)]
        for value in losses:
            value.backward()
        torch.testing.assert_close(*losses)
    assert eager.network.step == compiled.network.step == 6
    for ours, theirs in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace the builtin:UserWarning")
@torch._dynamo.config.patch(error_on_recompile=False)  # each part of the graph is compiled for several shapes
def test_training_with_sparse_gradients_compiles_with_graph_breaks() -> None:
    eager, compiled = (Step(make_network(sparse=True), sparse=True) for _ in range(2))
    compiled_step = torch.compile(compiled, backend="aot_eager")
    for step in (eager, compiled_step):
        step(INPUTS, TARGETS, NEGATIVES).backward()
    for ours, theirs in zip(eager.parameters(), compiled.parameters(), strict=True):
        assert ours.grad.is_sparse == theirs.grad.is_sparse
        torch.testing.assert_close(*(g.to_dense() if g.is_sparse else g for g in (ours.grad, theirs.grad)))


@pytest.mark.parametrize("sparse", [False, True])
def test_evaluation_compiles_as_one_graph(sparse: bool, native_library: None) -> None:
    network = make_network(sparse=sparse).eval()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        state = network.initial_state(3)
        for _ in range(2):
            torch.testing.assert_close(compiled(INPUTS, state, RESET), network(INPUTS, state, RESET))


@pytest.mark.parametrize("embedding", EMBEDDINGS)
@pytest.mark.parametrize("sparse", [False, True])
def test_export_of_the_evaluation_with_dynamic_shapes(embedding: str, sparse: bool, native_library: None) -> None:
    network, steps, lanes = make_network(embedding, sparse).eval(), torch.export.Dim("T"), torch.export.Dim("B")
    state, sizes = network.initial_state(3), {0: steps, 1: lanes}
    program = torch.export.export(
        network, (INPUTS, state, RESET), dynamic_shapes=(sizes, [{0: lanes}, {0: lanes}], sizes)
    ).module()
    for shape in ((2, 3), (5, 4)):
        inputs, reset = torch.randint(-1, 9, shape), torch.rand(shape) < 0.3
        arguments = inputs, network.initial_state(shape[1]), reset
        torch.testing.assert_close(program(*arguments), network(*arguments))


def test_export_of_the_training_draws_the_same_masks(native_library: None) -> None:
    network, exported = make_network(), make_network()
    program = torch.export.export(exported, (INPUTS,)).module()
    for _ in range(2):
        torch.testing.assert_close(program(INPUTS), network(INPUTS))


@pytest.mark.parametrize("training", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_aot_inductor(training: bool, native_library: None, tmp_path: Path) -> None:
    network, exported = make_network().train(training), make_network().train(training)
    with torch.no_grad():
        program = torch.export.export(exported, (INPUTS,))
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "network.pt2"))
        compiled = torch._inductor.aoti_load_package(package)
        for _ in range(2):
            torch.testing.assert_close(compiled(INPUTS), network(INPUTS))


@pytest.mark.slow
def test_training_compiles_with_inductor(native_library: None) -> None:
    eager, compiled = (Step(make_network()) for _ in range(2))
    losses = [step(INPUTS, TARGETS, NEGATIVES) for step in (eager, torch.compile(compiled, fullgraph=True))]
    for value in losses:
        value.backward()
    torch.testing.assert_close(*losses)
    for ours, theirs in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
