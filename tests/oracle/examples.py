"""Random weights of small models, for any embedding mode, GRU form and layer sizes."""

import numpy as np


def random_weights(
    n_items: int,
    mode: str = "constrained",
    sizes: tuple[int, ...] = (4, 3),
    form: str = "reset_after",
    *,
    separate_width: int = 5,
    scale: float = 0.7,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Draw weights from a normal distribution, float64, with the names of `oracle/__init__.py`.

    Biases are drawn as well, so that tests notice a missing bias. `mode` is the embedding mode: "constrained",
    "separate" (with `separate_width` columns) or "none" (one-hot inputs). `form` is "reset_after" or "reset_before".
    """
    rng = np.random.default_rng(seed)
    input_width = {"constrained": sizes[-1], "separate": separate_width, "none": 3 * sizes[0]}[mode]
    shapes: dict[str, tuple[int, ...]] = {"output.weight": (n_items, sizes[-1]), "output.bias": (n_items,)}
    if mode != "constrained":
        shapes["embedding.weight"] = (n_items, input_width)
    for layer, size in enumerate(sizes):
        one_hot = mode == "none" and layer == 0
        if not one_hot:
            shapes[f"layers.{layer}.weight_ih"] = (3 * size, input_width)
        shapes[f"layers.{layer}.weight_hh"] = (3 * size, size)
        shapes[f"layers.{layer}.bias_ih"] = (3 * size,)
        if form == "reset_after" and not one_hot:
            shapes[f"layers.{layer}.bias_hh"] = (3 * size,)
        input_width = size  # of the next layer
    return {name: rng.normal(scale=scale, size=shape) for name, shape in shapes.items()}
