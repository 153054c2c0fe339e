"""SessionGRU: equal to torch.nn.GRU, conversion, layouts of inputs, resets, dropout, dtypes, torch.compile, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from native import assert_as_close, compile_backend
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from gru4rec_fast.nn import SessionGRU

T, B, D, H = 7, 4, 6, 5  # steps, sequences, widths of input and hidden state
LENGTHS = {"packed": [7, 5, 5, 1], "packed unsorted": [5, 1, 7, 5]}
LAYOUTS = ["time first", "batch first", "unbatched", *LENGTHS]


def make_input(layout: str, dtype: torch.dtype = torch.float64) -> Tensor | PackedSequence:
    x = torch.randn(T, B, D, dtype=dtype, generator=torch.Generator().manual_seed(1))
    if layout in LENGTHS:
        return pack_padded_sequence(x, LENGTHS[layout], enforce_sorted=layout == "packed")
    return {"time first": x, "batch first": x.transpose(0, 1), "unbatched": x[:, 0]}[layout]


def make_hx(layout: str, num_layers: int, dtype: torch.dtype = torch.float64) -> Tensor:
    hx = torch.randn(num_layers, B, H, dtype=dtype, generator=torch.Generator().manual_seed(2))
    return hx[:, 0] if layout == "unbatched" else hx


def outputs_and_gradients(
    module: Callable[..., tuple[Any, Tensor]], parameters: list[Tensor], input: Any, hx: Tensor | None, **options: Any
) -> list[Tensor]:
    """Return output, h_n and the gradients of the input, of `hx` and of the parameters."""
    data = (input.data if isinstance(input, PackedSequence) else input).detach().clone().requires_grad_()
    hx = None if hx is None else hx.detach().clone().requires_grad_()
    output, h_n = module(PackedSequence(data, *input[1:]) if isinstance(input, PackedSequence) else data, hx, **options)
    if isinstance(input, PackedSequence):
        for given, returned in zip(input[1:], output[1:], strict=True):
            assert torch.equal(given, returned) if given is not None else returned is None
        output = output.data
    generator = torch.Generator().manual_seed(3)
    loss = sum((result * torch.rand(result.shape, generator=generator).to(result)).sum() for result in (output, h_n))
    gradients = torch.autograd.grad(loss, [data, *([] if hx is None else [hx]), *parameters])
    return [output.detach(), h_n.detach(), *gradients]


def sorted_parameters(gru: nn.GRU, session_gru: SessionGRU) -> tuple[list[Tensor], list[Tensor]]:
    """Return the parameters of a torch.nn.GRU and those of a SessionGRU in the same order."""
    pairs = [
        (getattr(gru, f"{name}_l{index}"), parameter)
        for index, layer in enumerate(session_gru.layers)
        for name, parameter in layer.named_parameters()
    ]
    assert len(pairs) == len(list(gru.parameters()))
    return [a for a, _ in pairs], [b for _, b in pairs]


@pytest.mark.parametrize("with_hx", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_and_gradients_equal_those_of_torch(
    layout: str, num_layers: int, bias: bool, with_hx: bool, impl: str
) -> None:
    """The two sum in different orders, so results differ by a few units in the last place of values of at most 10."""
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-5)):
        gru = nn.GRU(D, H, num_layers, bias, batch_first=layout == "batch first", dtype=dtype)
        session_gru = SessionGRU.from_torch(gru, impl=impl)
        input, hx = make_input(layout, dtype), make_hx(layout, num_layers, dtype) if with_hx else None
        parameters, session_parameters = sorted_parameters(gru, session_gru)
        expected = outputs_and_gradients(gru, parameters, input, hx)
        results = outputs_and_gradients(session_gru, session_parameters, input, hx)
        torch.testing.assert_close(results, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["time first", "packed unsorted"])
def test_with_16_bits_results_are_as_exact_as_those_of_torch(layout: str, dtype: torch.dtype, impl: str) -> None:
    exact = nn.GRU(D, H, 2).to(dtype).double()
    gru = nn.GRU(D, H, 2, dtype=dtype)
    gru.load_state_dict(exact.state_dict())
    session_gru = SessionGRU.from_torch(gru, impl=impl)
    parameters, session_parameters = sorted_parameters(gru, session_gru)
    input, hx = make_input(layout, dtype), make_hx(layout, 2, dtype)
    results = outputs_and_gradients(session_gru, session_parameters, input, hx)
    expected = outputs_and_gradients(gru, parameters, input, hx)
    oracle = outputs_and_gradients(
        exact, sorted_parameters(exact, session_gru)[0], input.to(torch.float64), hx.to(torch.float64)
    )
    assert_as_close(results, expected, oracle)


def test_double_and_bfloat16_convert_a_module_with_dropout(impl: str) -> None:
    module = SessionGRU(D, [H, 4], dropout=0.5, seed=3, impl=impl)
    x = make_input("time first", torch.float32)
    expected, _ = module(x, step=0)
    exact, _ = module.double()(x.double(), step=0)
    rounded, states = module.bfloat16()(x.bfloat16(), step=0)
    torch.testing.assert_close(expected, exact.float())
    assert {rounded.dtype, *(state.dtype for state in states)} == {torch.bfloat16}
    torch.testing.assert_close(rounded.double(), exact, rtol=0, atol=0.05)
    assert torch.equal(rounded == 0, exact == 0)  # the same masks


def test_under_autocast_outputs_and_gradients_have_the_dtype_of_the_parameters(impl: str) -> None:
    gru = SessionGRU(D, H, 2, seed=3, impl=impl)
    x = make_input("time first", torch.float32)
    expected, _ = gru(x)
    with torch.autocast("cpu", torch.bfloat16):
        output, h_n = gru(x)
        output_2, _ = gru(x.bfloat16(), h_n.bfloat16())  # as computed by earlier layers
    assert output.dtype == h_n.dtype == output_2.dtype == torch.float32
    assert not torch.equal(output, expected)  # the products with weight_ih are in bfloat16
    torch.testing.assert_close(output, expected, rtol=0, atol=0.02)
    output.sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in gru.parameters())


# Conversion


@pytest.mark.parametrize("bias", [True, False])
def test_conversion_keeps_weights_options_and_mode(bias: bool) -> None:
    gru = nn.GRU(D, H, 2, bias, batch_first=True, dtype=torch.float64).eval()
    gru.weight_hh_l1.requires_grad_(False)
    session_gru = SessionGRU.from_torch(gru, seed=4, impl="reference")
    assert session_gru.batch_first and session_gru.bias == bias and not session_gru.training
    assert session_gru.seed == 4 and {layer.impl for layer in session_gru.layers} == {"reference"}
    assert [n for n, p in session_gru.named_parameters() if not p.requires_grad] == ["layers.1.weight_hh"]
    returned = session_gru.to_torch()
    assert repr(returned) == repr(gru) and not returned.training
    assert [p.requires_grad for p in returned.parameters()] == [p.requires_grad for p in gru.parameters()]
    for (name, parameter), original in zip(returned.named_parameters(), gru.parameters(), strict=True):
        assert torch.equal(parameter, original) and parameter.dtype == torch.float64, name
        assert parameter.data_ptr() != original.data_ptr()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.GRU(D, H, bidirectional=True), "must be a torch.nn.GRU of one direction, not a bidirectional"),
        (nn.LSTM(D, H), "must be a torch.nn.GRU of one direction, not an instance of LSTM"),
        (nn.Linear(D, H), "not an instance of Linear"),
        (nn.GRU(D, H, 2, dropout=0.25), r"dropout=0.25 between its layers.*set gru.dropout = 0.0 first"),
    ],
)
def test_modules_that_from_torch_refuses(module: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SessionGRU.from_torch(module)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (SessionGRU(D, H, form="reset_before"), "not input_size=6, form='reset_before', hidden_size=5"),
        (SessionGRU(D, [H, 4]), r"hidden_size=\[5, 4\]"),
        (SessionGRU(None, H), "input_size=None"),
        (SessionGRU(D, H, dropout=0.5), "set the dropout to 0.0 first"),
    ],
)
def test_modules_that_to_torch_refuses(module: SessionGRU, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module.to_torch()


# Arguments


def test_hidden_sizes_in_a_list_give_a_list_of_hidden_states(impl: str) -> None:
    """Two modules of one layer, which are a stack, give the same results as one module of two layers."""
    stack = SessionGRU(D, [H, 4], impl=impl).double()
    assert (stack.num_layers, stack.sizes) == (2, [5, 4])
    lower, upper = SessionGRU(D, H, impl=impl).double(), SessionGRU(H, 4, impl=impl).double()
    for layer, module in enumerate((lower, upper)):
        module.layers[0].load_state_dict(stack.layers[layer].state_dict())
    for input, shapes in ((make_input("time first"), [(B, H), (B, 4)]), (make_input("unbatched"), [(H,), (4,)])):
        hx = [torch.rand(shape, dtype=torch.float64) for shape in shapes]
        output, h_n = stack(input, hx)
        between, lower_h_n = lower(input, hx[0].unsqueeze(0))
        expected, upper_h_n = upper(between, hx[1].unsqueeze(0))
        assert isinstance(h_n, list)
        assert torch.equal(output, expected)
        assert all(torch.equal(a, b[0]) for a, b in zip(h_n, (lower_h_n, upper_h_n), strict=True))


@pytest.mark.parametrize("form", ["reset_after", "reset_before"])
@pytest.mark.parametrize("input_size", [D, None])
def test_without_bias_results_equal_those_with_biases_of_zero(form: str, input_size: int | None, impl: str) -> None:
    options: dict[str, Any] = {"form": form, "seed": 3, "dtype": torch.float64, "impl": impl}
    with_bias, without = (SessionGRU(input_size, [2, 4], bias=bias, **options) for bias in (True, False))
    forms = [form if input_size else "reset_before", form]
    assert [layer.form for layer in without.layers] == forms
    assert not [name for name, _ in without.named_parameters() if "bias" in name]
    biases = ["layers.0.bias_ih", "layers.0.bias_hh", "layers.1.bias_ih", "layers.1.bias_hh"]
    expected_biases = [name for name in biases if name.endswith("ih") or forms[int(name[7])] == "reset_after"]
    assert [name for name, _ in with_bias.named_parameters() if "bias" in name] == expected_biases
    for module in (with_bias, without):
        module(make_input("time first"))[0].square().sum().backward()
    named = dict(with_bias.named_parameters())
    for name, parameter in without.named_parameters():
        torch.testing.assert_close(parameter, named[name], rtol=0, atol=0)
        torch.testing.assert_close(parameter.grad, named[name].grad, rtol=1e-13, atol=1e-13)


def test_state_dict_and_initial_weights_are_those_of_version_0_1() -> None:
    module = SessionGRU(D, [H, 4], seed=3, dtype=torch.float64, device="cpu")
    names = [f"layers.{layer}.{name}" for layer in (0, 1) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    assert list(module.state_dict()) == ["step", "dropout_seed", *names]
    generator = torch.Generator().manual_seed(3)
    for layer, width in zip(module.layers, (D, H), strict=True):
        for weight, fan_in in ((layer.weight_ih, width), (layer.weight_hh, layer.hidden_size)):
            bound = (6 / (fan_in + layer.hidden_size)) ** 0.5
            expected = torch.empty(weight.shape).uniform_(-bound, bound, generator=generator)
            assert torch.equal(weight, expected.double())
    with torch.device("meta"):
        assert SessionGRU(D, H).layers[0].weight_hh.device.type == "meta"


@pytest.mark.parametrize("is_list", [False, True])
def test_initial_state_is_what_forward_uses_without_hx(is_list: bool) -> None:
    module = SessionGRU(D, [H, H] if is_list else H, 2).double()
    output, h_n = module(make_input("time first"), module.initial_state(B))
    expected, expected_h_n = module(make_input("time first"))
    assert torch.equal(output, expected)
    torch.testing.assert_close(h_n, expected_h_n, rtol=0, atol=0)


def test_a_sequence_without_steps_leaves_the_hidden_states_as_they_are(impl: str) -> None:
    module, hx = SessionGRU(D, H, 2, impl=impl), make_hx("time first", 2, torch.float32)
    output, h_n = module(torch.empty(0, B, D), hx)
    assert output.shape == (0, B, H) and torch.equal(h_n, hx)


# Resets and dropout


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_reset_starts_a_new_sequence(layout: str, impl: str) -> None:
    """The outputs from the last reset of a sequence on are those of a sequence that starts there."""
    module = SessionGRU(D, H, 2, batch_first=layout == "batch first", dtype=torch.float64, impl=impl)
    begin = {0: 2, 2: 1, 3: 0}  # sequence: the step that is reset; sequence 1 is not reset
    reset = torch.zeros(T, B, dtype=torch.bool)
    for lane, t in begin.items():
        reset[t, lane] = True
    input = make_input(layout)
    arranged = {"batch first": reset.T, "unbatched": reset[:, 0]}.get(layout, reset)
    output, h_n = module(input, make_hx(layout, 2), arranged)
    x, lengths = make_input("time first"), LENGTHS.get(layout, [T] * B)
    if isinstance(output, PackedSequence):
        output, _ = pad_packed_sequence(output)
    elif layout == "batch first":
        output = output.transpose(0, 1)
    elif layout == "unbatched":
        output, h_n = output.unsqueeze(1), h_n.unsqueeze(1)
    for lane in range(output.shape[1]):
        first, end, state = begin.get(lane, 0), lengths[lane], None
        if lane not in begin:
            state = make_hx("time first", 2)[:, lane]
        module.batch_first = False
        expected, expected_h_n = module(x[first:end, lane], state)
        torch.testing.assert_close(output[first:end, lane], expected, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(h_n[:, lane], expected_h_n, rtol=1e-13, atol=1e-13)


def test_dropout_is_applied_to_every_layer_and_to_the_next_step(impl: str) -> None:
    """The dropped units of the output are those of the hidden state after it; the layouts get the same masks."""
    module = SessionGRU(D, H, 2, dropout=0.5, seed=3, dtype=torch.float64, impl=impl)
    x = make_input("time first")
    output, h_n = module(x, step=4)
    assert 0.3 < (output == 0).double().mean() < 0.7
    assert torch.equal(output[-1], h_n[-1]) and (h_n[0] == 0).any()
    first, state = module(x[:3], step=4)
    second, _ = module(x[3:], state, step=7)
    torch.testing.assert_close(torch.cat([first, second]), output, rtol=1e-13, atol=1e-13)
    packed, _ = module(pack_padded_sequence(x, [T] * B), step=4)
    assert torch.equal(pad_packed_sequence(packed)[0], output)
    module.batch_first = True
    assert torch.equal(module(x.transpose(0, 1), step=4)[0], output.transpose(0, 1))
    assert not (module.eval()(x.transpose(0, 1))[0] == 0).any()


# torch.compile and torch.export


@pytest.mark.parametrize("options", [{"num_layers": 2}, {"hidden_size": [H, 4], "batch_first": True}])
def test_the_module_is_compiled_as_one_graph(options: dict[str, Any], impl: str) -> None:
    module = SessionGRU(**{"input_size": D, "hidden_size": H, "impl": impl, **options})
    backend = compile_backend(impl == "native" and "num_layers" in options)
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    x = make_input("time first", torch.float32)
    with torch.no_grad():
        hx = module(x)[1]
    for arguments in ((x,), (x, hx, torch.rand(T, B) < 0.3)):
        output, h_n = compiled(*arguments)
        expected, expected_h_n = module(*arguments)
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(h_n, expected_h_n)
        gradients = torch.autograd.grad(output.square().sum(), list(module.parameters()))
        torch.testing.assert_close(
            gradients, torch.autograd.grad(expected.square().sum(), list(module.parameters())), rtol=1e-5, atol=1e-5
        )
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(x)[0], module(x)[0])


def test_the_module_is_exported_with_any_number_of_steps_and_sequences(native_library: None) -> None:
    module, dim = SessionGRU(D, H, 2, impl="native").eval(), torch.export.Dim.DYNAMIC
    shapes = {"input": {0: dim, 1: dim}, "hx": {1: dim}}
    example = {"input": torch.rand(T, B, D), "hx": torch.rand(2, B, H)}
    exported = torch.export.export(module, (), example, dynamic_shapes=shapes).module()
    x, hx = torch.rand(3, 9, D), torch.rand(2, 9, H)
    torch.testing.assert_close(exported(input=x, hx=hx), module(x, hx))


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_size": 0}, "input_size=0: must be at least 1"),
        ({"hidden_size": 0}, "hidden_size=0: give a size of at least 1"),
        ({"hidden_size": []}, r"hidden_size=\[\]: give a size"),
        ({"hidden_size": [5, 0]}, r"hidden_size=\[5, 0\]: give a size"),
        ({"num_layers": 0}, "num_layers=0 with hidden_size=5: num_layers must be at least 1"),
        ({"hidden_size": [5, 4], "num_layers": 3}, r"num_layers=3 with hidden_size=\[5, 4\].*omit it"),
        ({"dropout": 1.0}, r"dropout=1.0: the probability of dropping must be in \[0, 1\)"),
        ({"form": "cudnn"}, "form='cudnn': choose one of reset_after, reset_before"),
    ],
)
def test_errors_of_the_constructor(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SessionGRU(**{"input_size": D, "hidden_size": H, **arguments})


X = torch.zeros(T, B, D)
PACKED = pack_padded_sequence(X, LENGTHS["packed"])
READ_AS = r"; with batch_first=False, input \[7, 4, 6\] is \[T, B, I\]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(D),), r"input must be \[T, B, I\], \[T, I\] or a PackedSequence, not \[6\]"),
        ((X[..., :4],), r"input must be float32 \[T, B, 6\] on cpu, not float32 \[7, 4, 4\] on cpu"),
        ((X[:, 0, :4],), r"input must be float32 \[T, 6\] on cpu, not float32 \[7, 4\]"),
        ((X.double(),), r"input must be float32 \[T, B, 6\] on cpu, not float64"),
        ((X.to("meta"),), "input must be .* on meta"),
        ((PACKED.to(torch.float64),), r"input.data must be float32 \[N, 6\] on cpu, not float64 \[18, 6\]"),
        # an input of 7 sequences and 4 steps
        ((X, torch.zeros(2, T, H)), r"hx must be float32 \[2, 4, 5\] on cpu, not float32 \[2, 7, 5\] on cpu" + READ_AS),
        ((X, None, torch.zeros(B, T) < 0), r"reset must be bool \[7, 4\] on cpu, not bool \[4, 7\] on cpu" + READ_AS),
        ((X, None, torch.zeros(T, B)), r"reset must be bool \[7, 4\] on cpu, not float32 \[7, 4\]"),
        ((X, torch.zeros(1, B, H)), r"hx must be float32 \[2, 4, 5\] on cpu, not float32 \[1, 4, 5\]"),
        ((X[:, 0], torch.zeros(2, 1, H)), r"hx must be float32 \[2, 5\] on cpu, not float32 \[2, 1, 5\]"),
        ((X, [torch.zeros(B, H)] * 2), r"hx must be a tensor \[num_layers, B, H\], not a list of 2"),
        ((PACKED, torch.zeros(2, 3, H)), r"hx must be .*; the PackedSequence has 4 sequences of at most 7 steps"),
    ],
)
def test_errors_of_a_call(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SessionGRU(D, H, 2)(*arguments)


@pytest.mark.parametrize(
    ("hx", "message"),
    [
        (torch.zeros(2, B, H), "hx must be a list of 2 hidden states, not a Tensor"),
        ([torch.zeros(B, H)], "hx must be a list of 2 hidden states, not a list of 1"),
        ([torch.zeros(B, H)] * 2, r"hx\[1\] must be float32 \[4, 4\] on cpu, not float32 \[4, 5\] on cpu" + READ_AS),
    ],
)
def test_errors_of_hidden_states_in_a_list(hx: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SessionGRU(D, [H, 4])(X, hx)
