"""An embedding table that grows: appending rows copies the table only when the spare memory behind it is used up.

The rows of a table are a prefix of a larger storage. Appending in place makes the prefix longer. Each storage that
this file allocates has an attribute `used_bytes`, the size of the prefix. Only a tensor of this size grows within the
storage; any other tensor in it is copied when it grows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import dlpack

from gru4rec_fast._untrusted import whole_numbers
from gru4rec_fast.ops._checks import check_tensor

Init = Tensor | Callable[[Tensor], Any] | None
Optimizers = Optimizer | Iterable[Optimizer] | None

_GROWTH = 1.5  # a full table gets a storage of this many times its rows, so that n appended rows cost O(n) copies


class GrowableEmbedding(nn.Embedding):
    """An nn.Embedding with spare capacity, to which `append_rows` appends rows.

        table = GrowableEmbedding(1000, 64)
        optimizer = torch.optim.Adam(table.parameters())
        ...
        table.append_rows(1, optimizer=optimizer)  # a new item

    `weight` stays the same Parameter, so the optimizer keeps it. Its data are the first rows of a larger storage. On
    the CPU, spare rows take address space, but no memory until they are used. State dicts hold the used rows only. A
    copy (`copy.deepcopy`, `.to(device)`) has no spare capacity until it grows.

    `load_state_dict` gives the table the number of rows of the state dict; load the state of the optimizer, too.
    A pickle of the module itself, and `state_dict(keep_vars=True)`, also hold the spare rows.

    Args:
        num_embeddings: number of rows at first.
        embedding_dim: width.
        capacity: number of rows for which to allocate memory; None: `num_embeddings`.
        options: further arguments of nn.Embedding: sparse, padding_idx, max_norm, device, dtype ...

    Raises:
        ValueError: the capacity is less than num_embeddings.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, *, capacity: int | None = None, **options: Any) -> None:
        super().__init__(num_embeddings, embedding_dim, **options)
        if capacity is not None:
            if capacity < num_embeddings:
                raise ValueError(f"capacity={capacity}: must be at least num_embeddings={num_embeddings}")
            _reserve(self.weight, capacity, capacity)

    @property
    def capacity(self) -> int:
        """Number of rows that the table can have before it is copied."""
        storage = self.weight.untyped_storage()
        if not _owns(self.weight, storage):
            return len(self.weight)
        return storage.nbytes() // max(1, self.embedding_dim * self.weight.element_size())

    def append_rows(self, n: int, init: Init = None, *, optimizer: Optimizers = None) -> None:
        """Append n rows, in place as long as there is spare capacity.

        Call it between two updates, after `optimizer.zero_grad()`. Rows and state of the optimizer are then the same as
        if the table had had its final size from the start, but for weight decay, which would have shrunk the new rows.
        A module in DistributedDataParallel must be wrapped again afterwards, and a SampledLoss or sampler with the
        support of the old rows must be made again. A loss that was computed before cannot be used afterwards:
        its gradient would have the old rows.

        Args:
            n: number of rows, at least 0.
            init: the rows [n, embedding_dim], of the weight's dtype and device; or a function that fills them in place,
                such as torch.nn.init.zeros_; None: the initial values of a new table (`initial_rows`).
            optimizer: the optimizer of the table, or several. Their state of the weight grows along, with spare
                capacity, too.

        Raises:
            ValueError: n is negative; `init` has another shape, dtype or device; the weight has a gradient; the weight
                is a part of a larger tensor; the state of an optimizer cannot grow.
            TypeError: an argument has another type. After an error, nothing has changed.
        """
        append_to_parameters(self.additions(n, init), optimizer)
        self.num_embeddings = self.weight.shape[0]

    def initial_rows(self, n: int) -> Tensor:
        """Return n rows with the initial values of a new table: normal, as in nn.Embedding."""
        return torch.randn(n, self.embedding_dim, dtype=self.weight.dtype, device=self.weight.device)

    @torch.no_grad()
    def additions(self, n: int, init: Init = None) -> list[tuple[nn.Parameter, Tensor]]:
        """Return each parameter with the rows that `append_rows` appends to it. Raises for bad arguments."""
        (n,) = whole_numbers(0, n=n)
        weight: Any = self.weight
        if isinstance(init, Tensor):
            check_tensor("init", init, weight.dtype, (n, self.embedding_dim), weight.device)
            return [(weight, init)]
        if init is None:
            return [(weight, self.initial_rows(n))]
        if not callable(init):
            raise TypeError(f"init must be a tensor, a function or None, not {type(init).__name__}")
        rows = weight.new_empty(n, self.embedding_dim)
        init(rows)
        check_tensor("the rows that init has filled", rows, weight.dtype, (n, self.embedding_dim), weight.device)
        return [(weight, rows)]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not keep_vars:
            for name in self._parameters:
                destination[prefix + name] = without_spare_rows(destination[prefix + name])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # If the saved parameters differ in the number of rows, none is resized, and torch reports their sizes.
        own = {name: parameter for name, parameter in self._parameters.items() if parameter is not None}
        saved = {name: state_dict.get(prefix + name, parameter) for name, parameter in own.items()}
        if len({tensor.shape[:1] for tensor in saved.values()}) == 1:
            for name, parameter in own.items():
                if saved[name].shape[1:] == parameter.shape[1:] and saved[name].shape != parameter.shape:
                    parameter.grad = None
                    _set_data(parameter, parameter.data.new_empty(saved[name].shape))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.num_embeddings = len(self.weight)


def append_to_parameters(additions: Sequence[tuple[nn.Parameter, Tensor]], optimizer: Optimizers = None) -> None:
    """Append rows to parameters, and rows of initial state to the state of their optimizers.

    Raises ValueError, and changes nothing, if a parameter or the state of an optimizer cannot grow; TypeError for what
    is no optimizer.
    """
    given = [] if optimizer is None else [optimizer] if not isinstance(optimizer, Iterable) else [*optimizer]
    unwrapped = [getattr(one, "optimizer", one) for one in given]  # accelerate wraps an optimizer in another one
    for one in unwrapped:
        if not isinstance(one, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, or several, not {type(one).__name__}")
    optimizers = list({id(one): one for one in unwrapped}.values())  # one that is given twice grows once
    changes: list[tuple[Tensor, Tensor]] = []
    for parameter, rows in additions:
        _check_parameter(parameter)
        changes.append((parameter, rows))
        for one in optimizers:
            changes += _state_additions(one, parameter, rows.shape[0])
    with torch.no_grad():
        for tensor, rows in changes:  # allocate everything first: then nothing has changed if memory runs out
            n_rows = tensor.shape[0] + rows.shape[0]
            _reserve(tensor, n_rows, max(n_rows, math.ceil(_GROWTH * tensor.shape[0])))
        for tensor, rows in changes:
            _append(tensor, rows)
    for one in optimizers:
        hooks = one._optimizer_state_dict_post_hooks
        if _remove_spare_rows not in hooks.values():
            one.register_state_dict_post_hook(_remove_spare_rows)


def without_spare_rows(tensor: Tensor) -> Tensor:
    """Return a tensor in the same memory, whose storage ends with its last row: torch.save writes whole storages."""
    storage = tensor.untyped_storage()
    if not _owns(tensor, storage) or storage.nbytes() == tensor.nbytes:
        return tensor
    return dlpack.from_dlpack(dlpack.to_dlpack(tensor.detach()))  # type: ignore[attr-defined]


def _remove_spare_rows(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return the state dict of an optimizer with the used rows only; a hook of `Optimizer.state_dict`."""
    state = {
        index: {key: without_spare_rows(value) if isinstance(value, Tensor) else value for key, value in values.items()}
        for index, values in state_dict["state"].items()
    }
    return {**state_dict, "state": state}


def _owns(tensor: Tensor, storage: torch.UntypedStorage) -> bool:
    """Return whether the spare memory of a tensor's storage belongs to this tensor."""
    return getattr(storage, "used_bytes", None) == tensor.nbytes


def _check_parameter(parameter: Tensor) -> None:
    """Raise ValueError unless rows can be appended to a parameter."""
    if type(parameter) is not nn.Parameter or type(parameter.data) is not Tensor:
        raise ValueError(f"rows can be appended to a plain nn.Parameter only, not to a {type(parameter).__name__}")
    if parameter.grad is not None:
        raise ValueError(
            "the table has a gradient of its current rows: call optimizer.step() and optimizer.zero_grad() before "
            "rows are appended"
        )
    if not parameter.is_contiguous() or parameter.storage_offset() != 0:
        raise ValueError(
            "the table is not contiguous or lies within a larger tensor, as the parameters of FSDP do; append rows "
            "before the module is wrapped, or set weight.data = weight.data.clone()"
        )


def _state_additions(optimizer: Optimizer, parameter: nn.Parameter, n: int) -> list[tuple[Tensor, Tensor]]:
    """Return the tensors of an optimizer's state that have the rows of a parameter, each with n rows to append.

    A new row has the state of a row that never had a gradient. Raises ValueError if that is unknown.
    """
    name = type(optimizer).__name__
    if isinstance(optimizer, torch.optim.ASGD | torch.optim.LBFGS | torch.optim.Muon):
        raise ValueError(f"the state of {name} cannot grow: make a new {name} after rows were appended")
    additions = []
    for key, tensor in optimizer.state.get(parameter, {}).items():
        if not isinstance(tensor, Tensor) or tensor.dim() == 0:  # such as the number of steps
            continue
        if tensor.layout != torch.strided or tensor.shape != parameter.shape or not tensor.is_contiguous():
            kind = "" if tensor.layout == torch.strided else "sparse "
            raise ValueError(
                f"the {kind}state {key!r} {[*tensor.shape]} of {name} cannot grow with a table {[*parameter.shape]}: "
                f"make a new {name} after rows were appended"
            )
        group = next(group for group in optimizer.param_groups if any(p is parameter for p in group["params"]))
        value = 0.0
        if isinstance(optimizer, torch.optim.Adagrad) and key == "sum":
            value = group["initial_accumulator_value"]
        elif isinstance(optimizer, torch.optim.Rprop) and key == "step_size":
            value = float(group["lr"])
        additions.append((tensor, tensor.new_full((), value).expand(n, *tensor.shape[1:])))
    return additions


def _reserve(tensor: Tensor, n_rows: int, capacity: int) -> None:
    """Copy a tensor to a storage of `capacity` rows unless its storage has spare memory for `n_rows` rows in all."""
    storage, row_shape = tensor.untyped_storage(), tensor.shape[1:]
    if _owns(tensor, storage) and storage.nbytes() >= n_rows * math.prod(row_shape) * tensor.element_size():
        return
    data = tensor.data.new_empty((capacity, *row_shape))[: tensor.shape[0]]
    data.copy_(tensor.data)
    data.untyped_storage().used_bytes = data.nbytes  # type: ignore[attr-defined]
    tensor.data = data


def _append(tensor: Tensor, rows: Tensor) -> None:
    """Append rows to a tensor in place; its storage must have spare memory for them (`_reserve`)."""
    storage, n_old = tensor.untyped_storage(), tensor.shape[0]
    shape = n_old + rows.shape[0], *tensor.shape[1:]
    data = tensor.data.new_empty(0).set_(storage, 0, shape, tensor.stride())
    data[n_old:] = rows
    storage.used_bytes = data.nbytes  # type: ignore[attr-defined]
    _set_data(tensor, data)
    torch.autograd.graph.increment_version(tensor)


def _set_data(tensor: Tensor, data: Tensor) -> None:
    """Replace the data of a tensor by data of another shape."""
    if tensor.requires_grad:
        # The node that accumulates the gradient has the old shape and lives as long as any graph that contains the
        # parameter, e.g. that of a loss the caller has stored. torch makes a new node only if the dtype changes.
        tensor.data = data.new_empty(0, dtype=torch.float16 if data.dtype != torch.float16 else torch.float32)
    tensor.data = data
