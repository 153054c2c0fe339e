"""Training of a model of the package, block by block, with the weights and options of tests/oracle."""

from __future__ import annotations

import numpy as np
import torch
from oracle import Options, embedding_mode, input_width, layer_sizes

from gru4rec_fast import ops
from gru4rec_fast.nn import SampledLoss, SessionNetwork
from gru4rec_fast.ops.philox import STREAM_EMBEDDING_DROPOUT
from gru4rec_fast.optim import SparseAdagrad
from gru4rec_fast.training.captured_step import CapturedTrainingStep
from gru4rec_fast.training.fused_step import FusedTrainingStep

Arrays = dict[str, np.ndarray]


def to_network_names(arrays: Arrays) -> dict[str, torch.Tensor]:
    """Convert arrays with the oracle's names to tensors with the parameter names of SessionNetwork."""
    named = {f"gru.{name}" if name.startswith("layers.") else name: value for name, value in arrays.items()}
    return {name: torch.from_numpy(np.array(value)) for name, value in named.items()}


class PackageRun:
    """Trains a `SessionNetwork` block by block. Tests can set its weights, optimizer state and hidden state."""

    def __init__(
        self,
        weights: Arrays,
        options: Options,
        *,
        support: np.ndarray | None = None,
        dtype: torch.dtype = torch.float64,
        impl: str = "auto",
    ) -> None:
        """Build the model.

        `impl` "reference" or "native" trains by autograd with operators of this implementation; "fused" trains with
        `FusedTrainingStep`; "emulated" trains with the step for GPUs, `CapturedTrainingStep`, and emulated kernels.
        """
        self.step_class = {"fused": FusedTrainingStep, "emulated": CapturedTrainingStep}.get(impl)
        impl = "native" if impl == "fused" else impl
        mode = embedding_mode(weights)
        last_layer = len(layer_sizes(weights)) - 1
        reset_after = f"layers.{last_layer}.bias_hh" in weights
        self.network = SessionNetwork(
            len(weights["output.weight"]),
            layer_sizes(weights),
            embedding=mode,
            embedding_dim=input_width(weights) if mode == "separate" else 0,
            gru_form="reset_after" if reset_after else "reset_before",
            dropout_p_embed=options.dropout.embed,
            dropout_p_hidden=options.dropout.hidden,
            sparse=True,
            seed=options.dropout.seed,
            dtype=dtype,
            impl=impl,
        )
        self.criterion = SampledLoss(
            options.loss,
            batch_size=options.batch_size,
            elu_param=options.elu_param,
            bpreg=options.bpreg,
            label_smoothing=options.label_smoothing,
            logq=options.logq,
            sample_alpha=options.sample_alpha,
            support=None if support is None else torch.from_numpy(support),
            mask_accidental_hits=options.mask_accidental_hits,
            sparse=True,
            dtype=dtype,
            impl=impl,
        )
        self.optimizer = SparseAdagrad(self.network.parameters(), options.learning_rate, options.momentum, impl=impl)
        self.dtype = dtype
        self.set_weights(weights)
        self.state = self.network.initial_state(options.batch_size)

    def set_weights(self, weights: Arrays) -> None:
        self.network.load_state_dict(to_network_names(weights))

    def set_optimizer_state(self, accumulators: Arrays, velocities: Arrays) -> None:
        accumulator, velocity = to_network_names(accumulators), to_network_names(velocities)
        for name, parameter in self.network.named_parameters():
            tensors = self.optimizer.state[parameter]
            tensors["accumulator"] = accumulator[name].to(self.dtype)
            if self.optimizer.defaults["momentum"]:
                tensors["velocity"] = velocity[name].to(self.dtype)

    def set_state(self, state: list[np.ndarray]) -> None:
        self.state = [torch.from_numpy(layer.copy()).to(self.dtype) for layer in state]

    def weights(self) -> Arrays:
        """Return the parameters with the oracle's names."""
        return {
            name.removeprefix("gru."): parameter.detach().numpy().copy()
            for name, parameter in self.network.named_parameters()
        }

    def optimizer_state(self) -> Arrays:
        """Return accumulators and, with momentum, velocities, as "accumulator.<name>" and "velocity.<name>"."""
        return {
            f"{kind}.{name.removeprefix('gru.')}": tensor.numpy().copy()
            for name, parameter in self.network.named_parameters()
            for kind, tensor in self.optimizer.state[parameter].items()
        }

    def train_block(self, steps: list, negatives: list[np.ndarray] | None, first_step: int) -> float:
        """Make one update from a block of steps, and return its loss before the update."""
        inputs, targets, reset = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*steps, strict=True))
        stacked_negatives = None if negatives is None else torch.from_numpy(np.stack(negatives))
        if self.step_class:
            step = self.step_class(self.network, self.criterion, self.optimizer)
            # Updates self.state in place.
            return step.train_block(inputs, targets, reset, stacked_negatives, self.state, step=first_step)
        hidden, state = self.network(inputs, self.state, reset, step=first_step)
        table = self.network.output_weight, self.network.output_bias
        loss = self.criterion(hidden, *table, targets, stacked_negatives)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.state = [layer.detach() for layer in state]
        return loss.item()

    def dropout_masks(self, lanes: int, step: int) -> list[torch.Tensor | None]:
        """Return the dropout masks of one step: of the input embedding, then of each layer; None without dropout."""
        network, gru = self.network, self.network.gru
        # With one-hot inputs there is no weight_ih, and no embedding to drop out.
        embedding_width = gru.layers[0].weight_ih.shape[1] if gru.layers[0].weight_ih is not None else 0
        widths = [embedding_width, *(layer.hidden_size for layer in gru.layers)]
        probabilities = [network.dropout_p_embed if embedding_width else 0.0] + [gru.dropout] * len(gru.layers)
        # STREAM_EMBEDDING_DROPOUT is 1. The stream of layer l is STREAM_HIDDEN_DROPOUT + l = 2 + l.
        return [
            ops.dropout_mask(
                1, lanes, width, p, seed=network.seed, stream=STREAM_EMBEDDING_DROPOUT + i, step=step, dtype=self.dtype
            )[0]
            if p
            else None
            for i, (width, p) in enumerate(zip(widths, probabilities, strict=True))
        ]
