"""Normal noise of an image's own generator."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def normal(rng: np.random.Generator, n: int, dim: int) -> Tensor:
    """Standard normal numbers, float32 [n dim], on the CPU.

    Torch's, seeded by a draw of the generator: numpy's own take more than twice as long, which is felt in training.
    """
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(int(rng.integers(2**63))))
