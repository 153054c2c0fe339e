"""Seeds of modules and loaders: an integer of the caller, or one that is drawn from torch's CPU generator."""

from __future__ import annotations

import torch


def draw_seed() -> int:
    """Return a seed from torch's CPU generator, which `torch.manual_seed` seeds."""
    return int(torch.randint(1 << 53, (), device="cpu"))  # every reader of JSON represents integers below 2**53 exactly


class Seeded:
    """Base class of objects with a constructor argument `seed: int | None`.

    If it is None, the seed is drawn when the object is constructed. A checkpoint stores the drawn seed, and an object
    that resumes from the checkpoint takes it.
    """

    seed: int
    seed_was_drawn: bool

    def set_seed(self, seed: int | None) -> None:
        """Set the seed to an integer, or to a drawn one if `seed` is None.

        Raises:
            ValueError: `seed` is not in [0, 2**63).
        """
        if seed is not None and not 0 <= seed < 1 << 63:
            raise ValueError(f"seed={seed}: must be in [0, 2**63), or None to draw a seed from torch's generator")
        self.seed_was_drawn = seed is None
        self.seed = draw_seed() if seed is None else seed

    def restore_seed(self, saved: int | None) -> None:
        """Take the seed of a checkpoint, unless the caller has chosen an integer; None changes nothing.

        Raises:
            RuntimeError: `saved` is not in [0, 2**63), so the checkpoint is damaged.
        """
        if saved is not None and not 0 <= saved < 1 << 63:
            raise RuntimeError(f"the saved seed {saved} is not in [0, 2**63)")
        if saved is not None and self.seed_was_drawn:
            self.seed = saved
