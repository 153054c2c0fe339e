"""gru4rec_fast.integrations.rectools: the sampled loss in SASRec, BERT4Rec and HSTU of RecTools."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("rectools", reason="RecTools is not installed; .ci/integrations makes an environment for it")
pytest.importorskip("pytorch_lightning", reason="the extra torch of RecTools is not installed")

import pandas as pd
import pytorch_lightning as pl
from markov import markov_store
from rectools.dataset import Dataset
from rectools.models import BERT4RecModel, HSTUModel, SASRecModel, model_from_config
from rectools.models.nn.transformers.lightning import TransformerLightningModule
from rectools.models.nn.transformers.similarity import SimilarityModuleBase
from rectools.models.nn.transformers.utils import leave_one_out_mask
from torch.utils._python_dispatch import TorchDispatchMode

from gru4rec_fast import ops
from gru4rec_fast.integrations.rectools import SampledLossModule

pytestmark = pytest.mark.filterwarnings("ignore")
PAGE = Path(__file__).parents[2] / "docs" / "integrations" / "rectools.md"
LENGTH = 8
SMALL = {
    "n_blocks": 1, "n_heads": 2, "n_factors": 16, "session_max_len": LENGTH, "batch_size": 64, "n_negatives": 20,
    "lr": 0.01, "recommend_torch_device": "cpu", "lightning_module_type": SampledLossModule,
}  # fmt: skip


def interactions(n_users: int = 200, n_items: int = 30, weights: tuple[float, ...] = (1,)) -> pd.DataFrame:
    """Return the sessions of `markov_store` as RecTools' table. Items have the ids 100, 101, ...

    The events have the `weights` in turns; but the last event of a user, the target of validation, has the first one.
    """
    store = markov_store(n_users, n_items)
    users = np.repeat(np.arange(store.n_sessions), np.diff(store.offsets))
    times = pd.Timestamp("2026-01-01") + pd.to_timedelta(np.arange(len(users)), unit="s")
    weight = np.resize(weights, len(users))
    weight[store.offsets[1:] - 1] = weights[0]
    return pd.DataFrame({"user_id": users, "item_id": store.items + 100, "weight": weight, "datetime": times})


def make_trainer(n_batches: int, n_epochs: int = 1) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=n_epochs, limit_train_batches=n_batches, num_sanity_val_steps=0, logger=False, accelerator="cpu",
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


def fitted(cls: type = SASRecModel, data: Any = None, n_batches: int = 1, **settings: Any) -> Any:
    """Return a model after some mini-batches of training; lightning_module_kwargs may be given as `kwargs`."""
    if cls is HSTUModel:
        settings = {"relative_time_attention": False, **settings}
    settings = {**SMALL, "lightning_module_kwargs": settings.pop("kwargs", None), **settings}
    model = cls(get_trainer_func=make_trainer, get_trainer_func_kwargs={"n_batches": n_batches}, **settings)
    data = Dataset.construct(interactions()) if data is None else data
    return model.fit(data)


def expected_loss(model: Any, batch: dict[str, Tensor], step: int, **options: Any) -> Tensor:
    """Return the loss, computed from the scores of the whole catalogue by RecTools' own forward pass."""
    module, data = model.lightning_model, model.data_preparator
    scores = module.torch_model(batch)[:, -batch["y"].shape[1] :] / options.get("logits_t", 1.0)
    drawn, _ = ops.negative_sampling(module.sampler, module.n_negatives, seed=module.seed, step=step)
    items = drawn[0] + data.n_item_extra_tokens
    support = np.bincount(data.train_dataset.interactions.df["item_id"], minlength=scores.shape[2])
    correction = options.get("logq", 0) * 0.5 * torch.from_numpy(np.log(np.maximum(support, 1)))
    scores = scores - correction
    total, n = torch.zeros((), dtype=scores.dtype), 0
    for b, t in zip(*np.nonzero(batch["y"].numpy()), strict=True):
        target, weight = batch["y"][b, t], float(batch["yw"][b, t])
        if weight == 0:
            continue
        own, negatives = scores[b, t, target], scores[b, t, items]
        if options.get("mask_accidental_hits"):
            negatives = negatives[items != target]
        if model.loss == "bpr-max":  # with alpha = 0.5 of the elu and bpreg = 1
            own, negatives = F.elu(own, 0.5), F.elu(negatives, 0.5)
            s = negatives.softmax(0)
            loss = -torch.log((s * torch.sigmoid(own - negatives)).sum()) + (s * negatives**2).sum()
        else:
            loss = F.cross_entropy(torch.cat([own[None], negatives]), torch.tensor(0))
        total, n = total + weight * loss, n + 1
    assert n > 0
    return total / n


@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (SASRecModel, {}),
        (SASRecModel, {"kwargs": {"logq": 1.0, "mask_accidental_hits": True}, "loss": "sampled_softmax"}),
        (SASRecModel, {"kwargs": {"sparse": True, "impl": "reference"}, "loss": "cross-entropy"}),
        (SASRecModel, {"loss": "bpr-max", "similarity_module_kwargs": {"distance": "cosine"}}),
        (BERT4RecModel, {"mask_prob": 0.5}),
        (HSTUModel, {"kwargs": {"logits_t": 0.1}}),
    ],
    ids=str,
)
def test_loss_and_gradients_equal_plain_pytorch(cls: type, settings: dict[str, Any]) -> None:
    data = Dataset.construct(interactions(weights=(1, 3, 1, 0)))
    settings = {"dropout_rate": 0.0, "session_max_len": 6, "get_val_mask_func": leave_one_out_mask, **settings}
    model = fitted(cls, data, **settings)
    module = model.lightning_model.double()
    torch.manual_seed(1)
    train, valid = (next(iter(make())) for make in (model.data_preparator.get_dataloader_train,
                                                    model.data_preparator.get_dataloader_val))  # fmt: skip
    assert {0.0, 1.0, 3.0} <= set(train["yw"][train["y"] != 0].tolist())
    full = {name: rows[(train["x"] != 0).all(1)] for name, rows in train.items()}  # without padding
    parameters = [p for p in module.torch_model.parameters() if p.requires_grad]
    calls = (
        (lambda: module._calc_custom_loss(train, 0), train, module.n_draws),
        (lambda: module._calc_custom_loss(full, 0), full, module.n_draws + 1),
        (lambda: module._calc_custom_loss_outputs(valid, 5)["loss"], valid, 2**31 + 5),
    )
    for loss_of, batch, step in calls:
        loss, expected = loss_of(), expected_loss(model, batch, step, **settings.get("kwargs", {}))
        # The operator of negatives returns log-probabilities in float32.
        tolerance = 1e-6 if settings.get("kwargs", {}).get("logq") else 1e-11
        torch.testing.assert_close(loss, expected, rtol=tolerance, atol=0)
        for a, b in zip(
            torch.autograd.grad(loss, parameters, allow_unused=True),
            torch.autograd.grad(expected, parameters, allow_unused=True),
            strict=True,
        ):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                torch.testing.assert_close(a.to_dense(), b.to_dense(), rtol=tolerance, atol=tolerance)


def test_item_features_are_used(tmp_path: Path) -> None:
    """Item embeddings are the sum of id embeddings and category embeddings."""
    events = interactions()
    items = events["item_id"].unique()
    features = pd.DataFrame({"id": items, "feature": "color", "value": items % 3})
    data = Dataset.construct(events, item_features_df=features, cat_item_features=["color"])
    model = fitted(data=data, dropout_rate=0.0)
    module = model.lightning_model.double()
    assert any(name.endswith("embedding_bag.weight") for name, _ in module.named_parameters())
    batch = next(iter(model.data_preparator.get_dataloader_train()))
    expected = expected_loss(model, batch, module.n_draws)
    torch.testing.assert_close(module._calc_custom_loss(batch, 0), expected, rtol=1e-11, atol=0)


def test_negatives_are_items_drawn_by_their_support() -> None:
    """The draws are new in each training step, and the same in each validation."""
    model = fitted(n_batches=2, n_negatives=20_000, kwargs={"sample_alpha": 1.0}, loss="cross-entropy")
    module, data = model.lightning_model, model.data_preparator
    assert module.n_draws == 2
    drawn = ops.negative_sampling(module.sampler, 20_000, seed=module.seed, step=0)[0][0] + module.first_item
    support = np.bincount(data.train_dataset.interactions.df["item_id"], minlength=data.item_id_map.size)
    assert support[0] == 0  # padding
    frequency = np.bincount(drawn.numpy(), minlength=len(support)) / 20_000
    p = support / support.sum()
    assert np.all(np.abs(frequency - p) <= 5 * np.sqrt(p / 20_000))  # five standard deviations

    module.double().eval()
    batch = next(iter(data.get_dataloader_train()))
    assert float(module._calc_custom_loss(batch, 0)) != float(module._calc_custom_loss(batch, 0))
    validated = [float(module._calc_custom_loss_outputs(batch, 0)["loss"]) for _ in range(2)]
    assert validated[0] == validated[1]


def test_a_batch_without_targets_has_no_loss() -> None:
    """BERT4Rec may mask no item of a mini-batch."""
    model = fitted(BERT4RecModel)
    module = model.lightning_model
    batch = next(iter(model.data_preparator.get_dataloader_train()))
    loss = module._calc_custom_loss({**batch, "y": torch.zeros_like(batch["y"])}, 0)
    assert float(loss) == 0
    gradients = torch.autograd.grad(loss, list(module.torch_model.parameters()), allow_unused=True)
    assert all(torch.count_nonzero(g) == 0 for g in gradients if g is not None)


@pytest.mark.parametrize(
    ("loss", "epochs", "options"),
    [
        ("softmax", 8, {"sparse": True, "logq": 1.0, "mask_accidental_hits": True}),
        ("bpr-max", 20, {"mask_accidental_hits": True}),
    ],
)
def test_a_markov_chain_is_learnt(loss: str, epochs: int, options: dict[str, Any], tmp_path: Path) -> None:
    """SASRec learns the most probable successor of an item; a saved model recommends the same."""
    pl.seed_everything(0)
    events = interactions(n_users=400)
    data = Dataset.construct(events)
    settings = {**SMALL, "n_factors": 32, "dropout_rate": 0.1, "lightning_module_kwargs": options}
    model = SASRecModel(**settings, loss=loss, epochs=epochs).fit(data)
    users = events["user_id"].unique()
    recommended = model.recommend(users, data, k=1, filter_viewed=False)
    last = events.groupby("user_id")["item_id"].last()
    is_successor = (last[recommended["user_id"]].to_numpy() - 100 + 1) % 30 == recommended["item_id"] - 100
    assert is_successor.mean() > 0.6  # by chance: 1 / 30

    model.save(tmp_path / "model")
    loaded = SASRecModel.load(tmp_path / "model")
    pd.testing.assert_frame_equal(*(each.recommend(users, data, 5, filter_viewed=False) for each in (loaded, model)))


def test_training_goes_on_after_loading_as_without(tmp_path: Path) -> None:
    """The drawn seed and the number of draws are in RecTools' checkpoints."""
    data = Dataset.construct(interactions())
    settings = {**SMALL, "dropout_rate": 0.0, "data_preparator_kwargs": {"shuffle_train": False}, "epochs": 1}
    model = SASRecModel(**settings).fit(data)
    model.save(tmp_path / "model")
    torch.manual_seed(123)
    loaded = SASRecModel.load(tmp_path / "model")
    for each in (model, loaded):
        each.fit_partial(data, min_epochs=1, max_epochs=1)
    ours, theirs = (each.lightning_model for each in (model, loaded))
    assert ours.n_draws == theirs.n_draws == 2 * len(model.data_preparator.get_dataloader_train())
    assert all(torch.equal(a, theirs.state_dict()[name]) for name, a in ours.state_dict().items())


def test_a_checkpoint_of_rectools_own_module_loads(tmp_path: Path) -> None:
    theirs, ours = fitted(lightning_module_type=TransformerLightningModule), fitted()
    theirs.fit_trainer.save_checkpoint(tmp_path / "theirs.ckpt")
    ours.load_weights_from_checkpoint(tmp_path / "theirs.ckpt")
    expected = theirs.lightning_model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in ours.lightning_model.state_dict().items())


def test_configuration() -> None:
    """A configuration of plain values, as from a file, names the module by its path."""
    config = {
        "cls": "SASRecModel",
        "lightning_module_type": "gru4rec_fast.integrations.rectools.SampledLossModule",
        "loss": "bpr-max",
        "n_negatives": 64,
        "lightning_module_kwargs": {"bpreg": 0.5},
    }
    model = model_from_config(config)
    assert model.lightning_module_type is SampledLossModule
    assert {name: model.get_config(simple_types=True)[name] for name in config} == config


class Sizes(TorchDispatchMode):
    """Records the number of elements of each tensor that an operator of torch allocates."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        known = {id(x) for x in torch.utils._pytree.tree_leaves((args, kwargs))}
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor) and id(tensor) not in known:
                stored = tensor._values() if tensor.layout == torch.sparse_coo else tensor
                if not stored._is_view():
                    self.sizes.append(stored.numel())
        return result


def test_memory_of_a_step_does_not_grow_with_the_catalogue() -> None:
    largest = {}
    for n_items in (2_000, 8_000):
        times = pd.Timestamp("2026-01-01") + pd.to_timedelta(np.arange(n_items), unit="s")
        users = np.arange(n_items) // 4
        events = pd.DataFrame({"user_id": users, "item_id": np.arange(n_items), "weight": 1, "datetime": times})
        for sparse in (True, False):
            model = fitted(data=Dataset.construct(events), kwargs={"sparse": sparse, "seed": 0})
            module, optimizer = model.lightning_model.train(), model.lightning_model.configure_optimizers()
            batch = next(iter(model.data_preparator.get_dataloader_train()))
            with Sizes() as allocated:
                module._calc_custom_loss(batch, 0).backward()
                if sparse:
                    optimizer.step()
            table = model.data_preparator.item_id_map.size * SMALL["n_factors"]
            # With dense gradients, only the gradient of the table is as large as the table.
            assert sum(size >= table for size in allocated.sizes) == (0 if sparse else 1)
            if sparse:
                largest[n_items] = max(allocated.sizes)
    assert largest[2_000] == largest[8_000]


class CustomSimilarity(SimilarityModuleBase):
    """Scores that are no dot products."""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_negatives": 1}, "n_negatives=1: must be at least 2"),
        ({"loss": "BCE"}, "loss='BCE': choose one of cross-entropy"),
        ({"kwargs": {"n_sample": 5}}, "lightning_module_kwargs: 'n_sample' is no argument"),
        ({"kwargs": {"sample_alpha": -1.0}}, "sample_alpha=-1.0: must be finite"),
        ({"kwargs": {"label_smoothing": 1.0}}, "label_smoothing=1.0: must be in"),
        ({"loss": "bpr-max", "kwargs": {"logq": 1.0}}, "logq=1.0: belongs to cross-entropy"),
        ({"kwargs": {"seed": -1}}, "seed=-1: must be in"),
        ({"similarity_module_type": CustomSimilarity}, "similarity_module_type=CustomSimilarity"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(message)) as raised:
        fitted(**settings)
    assert "\n" not in str(raised.value)


def test_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(code) == 1 and code[0].count("\n") < 40
    names: dict[str, Any] = {}
    exec(compile(code[0], str(PAGE), "exec"), names)
    assert names["hits"] > 0.5 and f"{names['hits']:.2f}" in capsys.readouterr().out
