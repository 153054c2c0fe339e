"""Reading, training, evaluation and recommending by several processes, through torch.distributed."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from hashlib import blake2b
from typing import Any, Self, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

_T = TypeVar("_T")
_group_numbers = itertools.count()


class OtherRankError(RuntimeError):
    """Raised where another rank has raised an error, which that rank reports; the message repeats it."""


class Ranks:
    """The processes (ranks) that read one log together, or train one model, each with a copy of the network.

        with Ranks() as ranks:  # in a script that torchrun has started
            model.fit("train.tsv", out="run", ranks=ranks)

    GRU4Rec: every rank computes the whole schedule of sessions, and trains some lanes of each mini-batch; a lane is one
    of the sessions that are processed in parallel. The targets of all lanes are negatives, as in one process. Between
    gradients and update, the ranks add up their gradients: all those of the GRU, and those of the table rows that any
    lane reads, which every rank knows. The sums have the same bits on all ranks, and so have the weights.

    NGCF and LightGCN: in each layer, every rank computes some nodes, and gets the embeddings of all others. The loss
    and the update are computed by all ranks alike.

    All ranks must call the methods in the same order, because each one waits for the others. All but `part` raise
    RuntimeError if another rank has ended.

    Args:
        device: device of the model. If torch.distributed has no process group yet, one is made from the environment
            variables of torchrun: NCCL for "cuda", else gloo.

    Attributes:
        rank, size: number of this process, and number of processes.
        device: device of the tensors that the ranks exchange.
        n_bytes: bytes of the tensors that `sum_` has added up and `join_rows` has joined.

    Raises:
        RuntimeError: there is no process group, and torchrun has not started this process; or torch has no
            torch.distributed.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        if not dist.is_available():
            raise RuntimeError("this build of torch has no torch.distributed")
        self._owns_group = not dist.is_initialized()
        on_gpu = torch.device(device).type == "cuda"
        if self._owns_group:
            if "RANK" not in os.environ:
                raise RuntimeError("there is one process only: start it by torchrun, e.g. torchrun --nproc-per-node 2")
            if on_gpu:
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            store, rank, size = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
            # The store keeps the addresses of an earlier group of this process, so each group has keys of its own.
            store = dist.PrefixStore(f"gru4rec_fast {next(_group_numbers)}", store)  # type: ignore[attr-defined]
            dist.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=size)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.n_bytes = 0
        self.device = torch.device("cuda" if on_gpu else "cpu")

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes the files."""
        return self.rank == 0

    def part(self, n: int) -> tuple[int, int]:
        """Return (first, end), this rank's part of n lanes, users or files. Sizes of parts differ by at most one."""
        return n * self.rank // self.size, n * (self.rank + 1) // self.size

    def sum_(self, tensor: Tensor) -> None:
        """Replace each element of the tensor by its sum over all ranks."""
        with _lost_rank_as_error():
            dist.all_reduce(tensor)
        self.n_bytes += tensor.nbytes

    def highest(self, *values: int) -> list[int]:
        """Return, for each argument, its largest value on any rank."""
        tensor = torch.tensor(values, dtype=torch.int64, device=self.device)
        with _lost_rank_as_error():
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.tolist()

    def from_first(self, value: int) -> int:
        """Return the value of rank 0."""
        tensor = torch.tensor(value, dtype=torch.int64, device=self.device)
        with _lost_rank_as_error():
            dist.broadcast(tensor, 0)
        return int(tensor)

    def gather(self, value: Any) -> list[Any]:
        """Return the value of each rank; values are any objects that can be pickled."""
        gathered: list[Any] = [None] * self.size
        with _lost_rank_as_error():
            dist.all_gather_object(gathered, value)
        return gathered

    def join_lanes(self, states: Sequence[Tensor], n_lanes: int) -> list[Tensor]:
        """Return the states [n_lanes, H] of all lanes, given those of this rank's part."""
        first, end = self.part(n_lanes)
        joined = [state.new_zeros(n_lanes, state.shape[1]) for state in states]
        for whole, state in zip(joined, states, strict=True):
            whole[first:end] = state
            with _lost_rank_as_error():
                dist.all_reduce(whole)
        return joined

    def join_rows(self, own: Tensor, n: int) -> Tensor:
        """Return n rows [n, d], given those of this rank: rows rank, rank + size, rank + 2 size, ..."""
        joined = own.new_empty(self.size, -(-n // self.size), own.shape[1])
        joined[self.rank, : len(own)] = own
        for rank, part in enumerate(joined):
            # Gloo's all_gather takes more than twice as long as these broadcasts, and needs parts of equal size.
            with _lost_rank_as_error():
                dist.broadcast(part[: len(range(rank, n, self.size))], rank)
        self.n_bytes += n * own.shape[1] * own.element_size()
        return joined.transpose(0, 1).flatten(0, 1)[:n]

    @torch.no_grad()
    def copy_from_first(self, network: nn.Module) -> None:
        """Overwrite parameters and persistent buffers by those of rank 0.

        Other buffers may share the memory of data, such as a graph's.
        """
        saved = network.state_dict()
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            if name in saved:
                self.overwrite_(tensor)

    def overwrite_(self, tensor: Tensor) -> None:
        """Overwrite a tensor by that of rank 0."""
        with _lost_rank_as_error():
            dist.broadcast(tensor, 0)

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Run the context on rank 0 first, and on the other ranks after it, even if rank 0 raised an error."""
        if not self.is_first:
            self.from_first(0)
        try:
            yield
        finally:
            if self.is_first:
                self.from_first(0)

    @contextmanager
    def shared_errors(self) -> Iterator[None]:
        """Wait at the end of the block for all ranks; if it raised errors on some, raise one on every rank.

        The first of these ranks raises its own error, and the others raise OtherRankError.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            error = caught
        own = None if error is None or isinstance(error, OtherRankError) else f"{type(error).__name__}: {error}"
        messages = self.gather(own)
        first = next((rank for rank, message in enumerate(messages) if message is not None), None)
        if error is not None and (first == self.rank or own is None):
            raise error
        if first is not None:
            raise OtherRankError(f"rank {first}: {messages[first]}") from error

    @contextmanager
    def enter_on_first(self, context: AbstractContextManager[_T]) -> Iterator[_T]:
        """Enter a context on rank 0, and yield its value on all ranks. They leave the block together.

        An error of rank 0 is raised as by `shared_errors`. Other ranks may raise errors only within `shared_errors`.
        """
        with ExitStack() as stack:
            with self.shared_errors():
                entered = [stack.enter_context(context)] if self.is_first else []
            value: _T = self.gather(entered)[0][0]
            with self.shared_errors(), stack:
                yield value

    def check_equal(self, values: Mapping[str, Any]) -> None:
        """Raise ValueError on every rank if a value differs from that of rank 0."""
        first, *others = gathered = self.gather(dict(values))
        if not all(isinstance(own, dict) for own in gathered):
            raise RuntimeError("the ranks have made different calls: one may have gone on after an error")
        for rank, other in enumerate(others, 1):
            for name, value in first.items():
                if other.get(name) != value:
                    raise ValueError(
                        f"{name} is {value!r} on rank 0, and {other.get(name)!r} on rank {rank}: give all ranks the "
                        "same parameters and data"
                    )

    def check_equal_networks(self, network: nn.Module, optimizer: Optimizer) -> None:
        """Raise ValueError on every rank if shapes of parameters, or options or state of the optimizer, differ."""
        parameters = {name: f"{weight.dtype} {[*weight.shape]}" for name, weight in network.named_parameters()}
        groups = [{name: value for name, value in g.items() if name != "params"} for g in optimizer.param_groups]
        names = sorted({name for group in groups for name in group})
        own: dict[str, Any] = {f"{name} of the optimizer": [group.get(name) for group in groups] for name in names}
        state = [tensor for values in optimizer.state.values() for tensor in values.values() if torch.is_tensor(tensor)]
        own |= {"optimizer": type(optimizer).__name__, "state of the optimizer": [*map(digest, state)]}
        self.check_equal({"parameters": [*parameters], **parameters, **own})

    def close(self) -> None:
        """End the process group, if this object has made it."""
        if self._owns_group and dist.is_initialized():
            # A thread of gloo may be about to free the tensor of the last exchange, for which it needs the interpreter.
            # Torch keeps these threads until the end of the process, which would abort if the interpreter ended first.
            time.sleep(0.1)
            dist.destroy_process_group()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def digest(values: Tensor | np.ndarray) -> str:
    """Return a digest (BLAKE2b, hexadecimal) of the bytes of a tensor or array; this takes about 2 s per GB."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().reshape(-1).view(torch.uint8).numpy()
    return blake2b(np.ascontiguousarray(values).data, digest_size=8).hexdigest()


@contextmanager
def _lost_rank_as_error() -> Iterator[None]:
    """Raise an error that says what to do if another rank has ended."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            f"rank {dist.get_rank()} cannot reach another rank, which has probably ended (its own message says why); "
            f"start all ranks again, and resume a training from its last checkpoint ({error})"
        ) from error
