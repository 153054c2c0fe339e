"""SampledLoss with a transformer (SASRec: Kang & McAuley 2018) in plain PyTorch with tied embeddings."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gru4rec_fast.nn import SampledLoss

N_ITEMS, WIDTH, LENGTH = 40, 16, 6


class Transformer(nn.Module):
    """One causal layer over sequences of items [B, T], padded on the left with -1; returns hidden states [B, T, H]."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(N_ITEMS + 1, WIDTH, padding_idx=N_ITEMS)
        self.positions = nn.Parameter(0.1 * torch.randn(LENGTH, WIDTH))
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.0, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.items(inputs % (N_ITEMS + 1)) + self.positions
        mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
        return self.layer(x, src_mask=mask)


def draw_sequences(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return inputs and targets [n, T] of sequences that count upwards, with padding on the left."""
    first = torch.randint(0, N_ITEMS, (n, 1), generator=generator)
    items = (first + torch.arange(LENGTH + 1)) % N_ITEMS
    padding = torch.arange(LENGTH) < torch.randint(0, LENGTH, (n, 1), generator=generator)
    return items[:, :-1].masked_fill(padding, -1), items[:, 1:].masked_fill(padding, -1)


@pytest.mark.parametrize("in_batch", [False, True])
@pytest.mark.parametrize("counts_padding", [False, True])
def test_loss_and_gradients_equal_plain_pytorch(in_batch: bool, counts_padding: bool, impl: str) -> None:
    """Cross-entropy of each target against the negatives of its step, of live positions only.

    counts_padding: whether n_live is given, so that padding is left out rather than masked.
    """
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, LENGTH, WIDTH, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(N_ITEMS, WIDTH, dtype=torch.float64, generator=generator, requires_grad=True)
    _, targets = draw_sequences(5, generator)
    negatives = torch.randint(0, N_ITEMS, (LENGTH, 60), generator=generator)  # items occur several times
    expected = torch.zeros((), dtype=torch.float64)
    for t in range(LENGTH):
        live = targets[:, t] >= 0
        states, positives = hidden[live, t], targets[live, t]
        sampled = states @ weight[negatives[t]].T
        if in_batch:
            scores, target_columns = torch.cat([states @ weight[positives].T, sampled], 1), torch.arange(len(positives))
        else:
            own = (states * weight[positives]).sum(1, keepdim=True)
            scores, target_columns = torch.cat([own, sampled], 1), torch.zeros(len(positives), dtype=torch.int64)
        expected = expected + F.cross_entropy(scores, target_columns, reduction="sum") / 5 / LENGTH
    expected_grads = torch.autograd.grad(expected, (hidden, weight))
    criterion = SampledLoss(batch_size=5, in_batch=in_batch, impl=impl)
    n_live = (targets >= 0).sum(0).tolist() if counts_padding else None
    loss = criterion(hidden.transpose(0, 1), weight, None, targets.T, negatives, n_live=n_live)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(loss, (hidden, weight)), expected_grads, rtol=1e-10, atol=1e-14)


def test_masked_padding_gives_the_loss_of_padding_left_out(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where values cannot be read (on a GPU, or while torch traces a graph), padding is masked."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(LENGTH, 5, WIDTH, dtype=torch.float64, generator=generator)
    table = torch.randn(N_ITEMS, WIDTH, dtype=torch.float64, generator=generator), torch.randn(N_ITEMS).double()
    targets = draw_sequences(5, generator)[1].T
    negatives = torch.randint(0, N_ITEMS, (LENGTH, 7), generator=generator)
    results = []
    for reads_values in (True, False):
        monkeypatch.setattr("gru4rec_fast.nn.sampled_loss.can_read_values", lambda _, reads=reads_values: reads)
        monkeypatch.setattr("gru4rec_fast.nn.embedding_rows.can_read_values", lambda _, reads=reads_values: reads)
        criterion = SampledLoss(
            batch_size=5, logq=1.0, support=torch.arange(N_ITEMS), mask_accidental_hits=True, dtype=torch.float64,
            impl=impl,
        )  # fmt: skip
        leaves = [tensor.clone().requires_grad_() for tensor in (hidden, *table)]
        loss = criterion(*leaves, targets.clamp(max=N_ITEMS - 2) + (targets >= 0).long(), negatives.clamp(min=1))
        results.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    assert torch.isfinite(results[0][0])
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-14)


def test_a_transformer_learns_with_tied_embeddings() -> None:
    torch.manual_seed(0)
    model, generator = Transformer(), torch.Generator().manual_seed(0)
    criterion = SampledLoss(batch_size=16, in_batch=False)
    optimizer, losses = torch.optim.AdamW(model.parameters(), 0.01), []
    for _ in range(60):
        inputs, targets = draw_sequences(16, generator)
        negatives = torch.randint(0, N_ITEMS, (1, 64), generator=generator)  # shared by all positions
        hidden = model(inputs).reshape(1, -1, WIDTH)  # all positions as one step
        loss = criterion(hidden, model.items.weight, None, targets.reshape(1, -1), negatives)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    assert torch.count_nonzero(model.items.weight[N_ITEMS]) == 0  # padding is no target and no negative


def test_in_batch_false_needs_negatives() -> None:
    with pytest.raises(ValueError, match="in_batch=False needs negatives"):
        SampledLoss(batch_size=2, in_batch=False)(
            torch.zeros(1, 2, 4), torch.zeros(5, 4), None, torch.zeros(1, 2, dtype=torch.int64)
        )
