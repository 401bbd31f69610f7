"""NCC primitives: unit templates, window norms, spectra, the eight symmetries.

Template matching by the fast Fourier transform and summed-area tables (Lewis 1995).
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

Planes = NDArray[np.float32]

_IMPORTING = threading.Lock()

SYMMETRIES = 8
"""Of a square: bit 4 swaps rows and columns, then bit 2 reverses the rows, then bit 1 the columns. 0 is the identity, 1
the mirror image, 3 the half turn, 5 and 6 the quarter turns."""


def turned(planes: NDArray[Any], symmetry: int) -> NDArray[Any]:
    """Square planes [... s s] under one of the SYMMETRIES, as a view."""
    if symmetry & 4:
        planes = planes.swapaxes(-1, -2)
    return planes[..., :: -1 if symmetry & 2 else 1, :: -1 if symmetry & 1 else 1]


def fourier() -> Any:
    """Import scipy.fft under a lock: many threads importing it at once is more than Python always survives."""
    with _IMPORTING:
        from scipy import fft
    return fft


def shrinking(size: int, side: int) -> Planes:
    """Linear map [side size] that resizes a row of pixels by the antialiased triangle filter."""
    scale = size / side
    centres = (np.arange(side) + 0.5) * scale - 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(size)[None, :] - centres[:, None]) / scale)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def unit_templates(templates: Planes) -> Planes:
    """Unit templates [n 3 w w]: each channel's mean taken off, then scaled to unit length; flat ones to nothing."""
    centred = templates - templates.mean(axis=(2, 3), keepdims=True)
    norms = np.sqrt(np.einsum("nchw,nchw->n", centred, centred))[:, None, None, None]
    return np.asarray(centred * _inverse(norms, templates.shape[-1]), np.float32)


def summed_areas(planes: Planes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Summed-area tables [n 3 s+1 s+1] of planes [n 3 s s] and of their squares."""
    values = np.pad(planes.astype(np.float64), ((0, 0), (0, 0), (1, 0), (1, 0)))
    return values.cumsum(axis=2).cumsum(axis=3), np.square(values).cumsum(axis=2).cumsum(axis=3)


def inverse_norms(tables: tuple[NDArray[np.float64], NDArray[np.float64]], side: int) -> Planes:
    """1 / length [n p p] of every window of `side` pixels, each channel's mean taken off; 0 for flat ones."""
    plain, squares = (
        table[:, :, side:, side:]
        - table[:, :, :-side, side:]
        - table[:, :, side:, :-side]
        + table[:, :, :-side, :-side]
        for table in tables
    )
    variation = (squares - plain**2 / side**2).sum(axis=1)
    return _inverse(np.sqrt(np.maximum(variation, 0)).astype(np.float32), side)


def _inverse(norms: Planes, side: int) -> Planes:
    # Below a grey level of contrast there is only rounding noise to correlate.
    return np.where(norms < side, np.float32(0), 1 / np.maximum(norms, np.float32(1e-6)))
