"""Where a picture is light and dark, in few numbers: what a rough copy keeps when the descriptor no longer knows it.

The inner product of two is the normalised cross-correlation of the second look (verify.py), of four by four pixels in
one place. Many pictures that have nothing to do with one another agree so far: it names candidates, and proves nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .verify import shrinking, unit_templates

SIDE = 4
DIM = 3 * SIDE**2


def coarse_vectors(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Unit vectors [n DIM] of thumbnails [n s s 3]; nothing but zeros for a flat one."""
    shrink = shrinking(thumbnails.shape[1], SIDE)
    small = np.asarray(shrink @ thumbnails.astype(np.float32).transpose(0, 3, 1, 2) @ shrink.T, np.float32)
    return unit_templates(small).reshape(len(thumbnails), DIM)
