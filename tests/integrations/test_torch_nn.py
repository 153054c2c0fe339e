"""integrations.torch_nn: GRU has the parameters and results of torch.nn.GRU; from_gru puts it into models."""

from __future__ import annotations

import copy
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from gru4rec_fast.integrations.torch_nn import GRU, from_gru

T, B = 7, 4
X = torch.randn(T, B, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
OPTIONS = [{}, {"num_layers": 3, "bias": False}, {"num_layers": 2, "batch_first": True, "dropout": 0.5}]
options = pytest.mark.parametrize("options", OPTIONS, ids=str)


def make_pair(options: dict[str, Any], impl: str) -> tuple[nn.GRU, GRU]:
    """Return a torch.nn.GRU and a GRU, made with the same state of torch's generator."""
    torch.manual_seed(5)
    expected = nn.GRU(6, 5, **options, dtype=torch.float64)
    torch.manual_seed(5)
    return expected, GRU(6, 5, **options, dtype=torch.float64, impl=impl)


@options
def test_weights_are_those_of_torch(options: dict[str, Any]) -> None:
    expected, gru = make_pair(options, "auto")
    assert repr(gru) == repr(expected)
    assert list(gru.state_dict()) == list(expected.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(gru.parameters(), expected.parameters(), strict=True))
    for source, target in ((expected, gru), (gru, expected)):
        with torch.no_grad():
            source.weight_hh_l0.fill_(0.25)
        target.load_state_dict(source.state_dict(), strict=True)
        assert (target.weight_hh_l0 == 0.25).all()


@pytest.mark.parametrize("layout", ["batched", "unbatched", "packed"])
@options
def test_results_gradients_and_dropout_are_those_of_torch(options: dict[str, Any], layout: str, impl: str) -> None:
    modules = make_pair(options, impl)
    packed = pack_padded_sequence(X, [5, 1, 7, 5], enforce_sorted=False)
    input = {"batched": X, "unbatched": X[:, 0], "packed": packed}[layout]
    results = []
    for module in modules:
        module.train(layout != "packed")  # of a PackedSequence, torch drops other units
        torch.manual_seed(6)  # of the dropout masks
        output, h_n = module(input)
        output = output.data if layout == "packed" else output
        loss = (output.square().sum(), h_n.sum())
        results.append([output, h_n, *torch.autograd.grad(loss, list(module.parameters()))])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
    if options.get("dropout") and layout == "batched":
        torch.manual_seed(7)
        assert not torch.equal(modules[1](X)[0], results[1][0])


def test_a_reset_starts_a_new_sequence(impl: str) -> None:
    gru = GRU(6, 5, 2, dtype=torch.float64, impl=impl)
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[3] = True
    output, h_n = gru(X, torch.ones(2, B, 5, dtype=torch.float64), reset)
    expected, expected_h_n = gru(X[3:])
    torch.testing.assert_close(output[3:], expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(h_n, expected_h_n, rtol=1e-13, atol=1e-13)


def test_a_call_is_compiled_as_one_graph(impl: str) -> None:
    gru = from_gru(nn.GRU(6, 5, 2, dropout=0.5), impl=impl)
    compiled = torch.compile(gru, fullgraph=True, backend="aot_eager")
    torch.manual_seed(3)
    expected = gru(X.float())
    torch.manual_seed(3)
    torch.testing.assert_close(compiled(X.float()), expected)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.GRU(6, 5, dtype=torch.float64)
        self.others = nn.ModuleList([nn.GRU(5, 5, dtype=torch.float64), nn.Linear(5, 5)])
        self.same = self.first


def test_from_gru_keeps_parameters_hooks_and_mode(impl: str) -> None:
    model = Model().eval()
    calls: list[nn.Module] = []
    model.first.register_forward_hook(lambda module, *_: calls.append(module))
    original, parameters = copy.deepcopy(model), list(model.parameters())
    assert from_gru(model, impl=impl) is model
    assert [type(module) for module in model.children()] == [GRU, nn.ModuleList]
    assert type(model.others[0]) is GRU and type(model.others[1]) is nn.Linear and model.same is model.first
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert not model.first.training and model.first.impl == impl
    model.load_state_dict(original.state_dict(), strict=True)
    torch.testing.assert_close(model.first(X), original.first(X), rtol=1e-13, atol=1e-13)
    assert calls[0] is model.first
    torch.testing.assert_close(copy.deepcopy(model).first(X), model.first(X), rtol=0, atol=0)


def test_errors() -> None:
    with pytest.raises(ValueError, match="bidirectional=True is not supported"):
        GRU(6, 5, bidirectional=True)
    with pytest.raises(ValueError, match=r"there is no torch\.nn\.GRU in this Linear"):
        from_gru(nn.Linear(3, 3))
    model = Model()
    model.others.append(nn.GRU(6, 5, bidirectional=True))
    with pytest.raises(ValueError, match=r"the torch\.nn\.GRU 'others\.2' is bidirectional"):
        from_gru(model)
    assert type(model.first) is nn.GRU
    with pytest.raises(ValueError, match=r"hx must be float64 \[1, 4, 5\] .* with batch_first=False"):
        GRU(6, 5, dtype=torch.float64)(X, torch.zeros(1, T, 5, dtype=torch.float64))


def test_the_arguments_are_those_of_torch() -> None:
    names = list(inspect.signature(GRU).parameters)
    documented = ["input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional"]
    assert names == [*documented, "device", "dtype", "impl"]
    assert re.findall(r"^        (\w+): ", nn.GRU.__doc__, re.MULTILINE)[:7] == documented


def test_the_page_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "integrations" / "torch_nn.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(code.splitlines()) < 40
    names: dict[str, Any] = {}
    exec(compile(code, "torch_nn.md", "exec"), names)
    packed = pack_padded_sequence(names["x"], [20] * 32, batch_first=True)
    unpacked, _ = pad_packed_sequence(names["gru"](packed)[0], batch_first=True)
    torch.testing.assert_close(unpacked, names["gru"](names["x"])[0])
