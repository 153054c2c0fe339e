"""Record the forward and the backward pass of modules as phases of a MemoryProfiler, by hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.autograd.graph import register_multi_grad_hook, saved_tensors_hooks
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from gru4rec_fast.profiling.tensor_bytes import TensorBytes


class ModuleHooks:
    """The hooks of all modules that a profiler records; see `MemoryProfiler.attach`.

    The activations of a forward pass are the tensors that autograd saves between begin and end of the outermost module,
    without the parameters. The hooks of saved tensors count them and do not change their values.

    Args:
        tensors: what counts the gradients and the activations.
        is_recording: returns whether the profiler records in this thread.
        begin_phase, end_phase: those of the profiler.
    """

    def __init__(
        self,
        tensors: TensorBytes,
        is_recording: Callable[[], bool],
        begin_phase: Callable[[str], Any],
        end_phase: Callable[[Any], None],
    ) -> None:
        self._tensors, self._is_recording = tensors, is_recording
        self._begin_phase, self._end_phase = begin_phase, end_phase
        self._handles: dict[nn.Module, list[RemovableHandle]] = {}  # by the module that was attached
        self._running: list[tuple[nn.Module, Any]] = []  # attached module and phase of each forward pass that runs
        self._outputs = WeakTensorKeyDictionary()  # by output, the name of its module
        self._backward: Any = None  # phase of the module whose backward is running
        self._backward_task = -1  # number that autograd gave to this backward pass
        self._seen: set[int] = set()  # addresses of the storages that are counted or are parameters
        self._saved_bytes = 0
        self._saved_tensors_hooks: saved_tensors_hooks | None = None

    def add(self, module: nn.Module, name: str, recurse: bool) -> None:
        """Add hooks to a module and, with `recurse`, to its submodules. Raises ValueError if the module has them."""
        if module in self._handles:
            raise ValueError(f"{type(module).__name__} is already attached; call detach() first")
        handles = self._handles[module] = []
        for path, submodule in module.named_modules() if recurse else [("", module)]:
            handles += self._hooks_of(submodule, module, f"{name}.{path}" if path else name)
        handles += [
            parameter.register_post_accumulate_grad_hook(self._tensors.note_gradient)
            for parameter in module.parameters()
            if parameter.requires_grad and parameter.is_leaf
        ]

    def remove(self, module: nn.Module | None) -> None:
        """Remove the hooks of a module, if it has any; None: of all. Raises RuntimeError within its forward pass."""
        modules = [*self._handles] if module is None else [module] if module in self._handles else []
        for attached in modules:
            if any(running is attached for running, _ in self._running):
                raise RuntimeError(
                    f"detach() within a forward pass of {type(attached).__name__}: call it after the pass"
                )
        for attached in modules:
            for handle in self._handles.pop(attached):
                handle.remove()

    def _hooks_of(self, module: nn.Module, attached: nn.Module, name: str) -> list[RemovableHandle]:
        def before_forward(_module: nn.Module, _args: Any) -> None:
            if not self._is_recording():
                return
            if not self._running:
                self._start_counting_activations()
            self._running.append((attached, self._begin_phase(f"{name}.forward")))

        def after_forward(_module: nn.Module, _args: Any, output: Any) -> None:
            if not self._is_recording() or not self._running:
                return
            self._end_phase(self._running.pop()[1])
            if not self._running:
                self._stop_counting_activations()
            # register_full_backward_hook would warn if the inputs are integers. If a submodule has returned the same
            # output, the submodule's hook already records the backward pass from there.
            outputs = [x for x in tree_leaves(output) if isinstance(x, Tensor) and x.requires_grad]
            outputs = [x for x in outputs if x not in self._outputs]
            if outputs:
                self._outputs.update(dict.fromkeys(outputs, name))
                register_multi_grad_hook(outputs, before_backward, mode="any")

        def before_backward(_gradient: Tensor) -> None:
            if attached in self._handles and self._is_recording():
                self._begin_backward(f"{name}.backward")

        return [
            module.register_forward_pre_hook(_Hook(before_forward)),
            module.register_forward_hook(_Hook(after_forward), always_call=True),
        ]

    def _begin_backward(self, name: str) -> None:
        task = torch._C._current_graph_task_id()
        if self._backward is None or self._backward_task != task:
            # Call it at the end of this backward pass. torch has no public function for this.
            Variable._execution_engine.queue_callback(self._end_backward)
        self._end_backward()
        self._backward, self._backward_task = self._begin_phase(name), task

    def _end_backward(self) -> None:
        self._end_phase(self._backward)
        self._backward = None

    def end_failed_backward(self) -> None:
        """End the phase of a backward pass that an error has ended. Autograd then does not call `_end_backward`."""
        if self._backward is not None and torch._C._current_graph_task_id() == -1:  # no backward pass is running
            self._end_backward()

    def end_forward(self) -> None:
        """End the forward passes that a KeyboardInterrupt has ended. nn.Module then does not call `after_forward`."""
        self._running = []
        self._stop_counting_activations()

    def _start_counting_activations(self) -> None:
        self._seen, self._saved_bytes = self._tensors.parameter_storages(), 0
        self._saved_tensors_hooks = saved_tensors_hooks(self._count_saved, lambda tensor: tensor)
        self._saved_tensors_hooks.__enter__()

    def _stop_counting_activations(self) -> None:
        hooks, self._saved_tensors_hooks = self._saved_tensors_hooks, None
        if hooks is not None:
            hooks.__exit__()
            self._tensors.activations = max(self._tensors.activations, self._saved_bytes)

    def _count_saved(self, tensor: Tensor) -> Tensor:
        if not tensor.is_sparse:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._seen:
                self._seen.add(storage.data_ptr())
                self._saved_bytes += storage.nbytes()
        # An operation may save its own output. The output refers to the operation, so keeping it here would be a cycle
        # that nothing frees if there is no backward pass.
        return tensor.detach()


def _do_nothing(*_args: Any) -> None:
    pass


class _Hook:
    """A hook that does nothing in a copy of its module, also in a pickled one: only the module itself is recorded."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> None:
        self._function(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, (_do_nothing,)
