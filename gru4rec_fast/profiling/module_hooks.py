"""Record the forward and the backward pass of modules as phases of a MemoryProfiler, by hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.autograd import Variable
from torch.autograd.graph import register_multi_grad_hook, saved_tensors_hooks
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from gru4rec_fast.profiling.tensor_bytes import TensorBytes


class ModuleHooks:
    """The hooks of a module and, with `recurse`, of its submodules; see `MemoryProfiler.attach`.

    The activations of a forward pass are the tensors that autograd saves between its begin and its end, without the
    parameters. The hooks of saved tensors count them and do not change their values.
    """

    def __init__(
        self,
        module: nn.Module,
        name: str,
        recurse: bool,
        tensors: TensorBytes,
        begin_phase: Callable[[str], Any],
        end_phase: Callable[[Any], None],
    ) -> None:
        self._tensors, self._begin_phase, self._end_phase = tensors, begin_phase, end_phase
        self._open: list[Any] = []  # phases of the forward passes that are running
        self._backward: Any = None  # phase of the module whose backward is running
        self._seen: set[int] = set()  # addresses of the storages that are counted or are parameters
        self._saved_bytes = 0
        self._saved_tensors_hooks: list[saved_tensors_hooks] = []
        self._handles: list[RemovableHandle] = []
        for path, submodule in module.named_modules() if recurse else [("", module)]:
            self._add_hooks(submodule, f"{name}.{path}" if path else name, is_root=submodule is module)
        self._handles += [
            parameter.register_post_accumulate_grad_hook(tensors.note_gradient)
            for parameter in module.parameters()
            if parameter.requires_grad and parameter.is_leaf
        ]

    def _add_hooks(self, module: nn.Module, name: str, *, is_root: bool) -> None:
        def before_forward(_module: nn.Module, _args: Any) -> None:
            if is_root:
                self._start_counting_activations()
            self._open.append(self._begin_phase(f"{name}.forward"))

        def after_forward(_module: nn.Module, _args: Any, output: Any) -> None:
            if self._open:
                self._end_phase(self._open.pop())
            if is_root:
                self._stop_counting_activations()
            # register_full_backward_hook would warn if the inputs are integers.
            outputs = [x for x in tree_leaves(output) if isinstance(x, Tensor) and x.requires_grad]
            if outputs:
                register_multi_grad_hook(outputs, lambda _grad: self._begin_backward(f"{name}.backward"), mode="any")

        self._handles += [
            module.register_forward_pre_hook(before_forward),
            module.register_forward_hook(after_forward, always_call=True),
        ]

    def _begin_backward(self, name: str) -> None:
        if self._backward is None:
            # At the end of this backward pass. Only the autograd engine has this function.
            Variable._execution_engine.queue_callback(self._end_backward)
        self._end_phase(self._backward)
        self._backward = self._begin_phase(name)

    def _end_backward(self) -> None:
        self._end_phase(self._backward)
        self._backward = None

    def _start_counting_activations(self) -> None:
        self._seen, self._saved_bytes = self._tensors.parameter_storages(), 0
        hooks = saved_tensors_hooks(self._count_saved, lambda tensor: tensor)
        hooks.__enter__()
        self._saved_tensors_hooks.append(hooks)

    def _stop_counting_activations(self) -> None:
        if self._saved_tensors_hooks:
            self._saved_tensors_hooks.pop().__exit__()
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

    def remove(self) -> None:
        """Remove all hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
