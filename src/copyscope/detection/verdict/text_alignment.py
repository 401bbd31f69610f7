"""Text-image alignment without a joint model: a linear head fitted on real images.

A linear head maps a text's vector, of any text encoder, to where in a descriptor's space an image of that text would
lie. Call the number text-image agreement, and say which text encoder, descriptor and images it is of. It is no CLIP
score and never called one: it knows of words only what its few real images taught it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from copyscope.stats import Floats

LEAST = 64
"""Real captioned images below which no head is worth fitting."""
RIDGES = tuple(10.0**power for power in np.arange(-4, 3.1, 0.5))
"""Ridges tried, as multiples of the mean eigenvalue of the texts' scatter."""


@dataclasses.dataclass(frozen=True, eq=False)
class Head:
    """Linear head from text to image vectors: image = image_mean + (text - text_mean) @ weights.

    Attributes:
        text_mean: [e].
        image_mean: [d].
        weights: [e d].
        ridge: the penalty chosen.
        n: images fitted on.
        error: mean squared error [d summed] of an image left out.
    """

    text_mean: Floats
    image_mean: Floats
    weights: Floats
    ridge: float
    n: int
    error: float

    def predict(self, text: Floats) -> Floats:
        """Where images of the texts [n e] would lie, from the mean image: [n d]."""
        found: Floats = (np.asarray(text, dtype=np.float64) - self.text_mean) @ self.weights
        return found


def fit(text: Floats, image: Floats) -> Head:
    """Fit the head from text vectors to the vectors of the images they are captions of.

    Ridge regression with a mean that is not penalised (Hoerl & Kennard 1970). The ridge, one of RIDGES, is the one with
    the least error on an image left out, which has a closed form (Allen 1974, PRESS): nothing is drawn at random.

    Args:
        text: [n e].
        image: [n d].

    Raises:
        ValueError: the rows do not pair, or are fewer than two.
    """
    text, image = np.asarray(text, dtype=np.float64), np.asarray(image, dtype=np.float64)
    if text.ndim != 2 or image.ndim != 2 or len(text) != len(image) or len(text) < 2:
        raise ValueError(f"a head needs two pairs of vectors or more, [n e] and [n d], not {text.shape}, {image.shape}")
    text_mean, image_mean = text.mean(axis=0), image.mean(axis=0)
    left, sizes, right = np.linalg.svd(text - text_mean, full_matrices=False)
    # What rounding leaves of texts that are all alike.
    sizes[sizes <= 1e-12 * np.linalg.norm(text)] = 0.0
    centred = image - image_mean
    turned = left.T @ centred
    scale = max(float((sizes**2).mean()), np.finfo(np.float64).tiny)
    errors = [_left_out(left, sizes, turned, centred, multiple * scale) for multiple in RIDGES]
    best = int(np.argmin(errors))
    ridge = RIDGES[best] * scale
    weights = right.T @ ((sizes / (sizes**2 + ridge))[:, None] * turned)
    return Head(text_mean, image_mean, weights, ridge, len(text), errors[best])


def agreement(head: Head, text: Floats, image: Floats) -> NDArray[np.float64]:
    """Text-image agreement [n]: cosine, from the mean image, of an image and where its text says it would lie.

    1 = just there, 0 = no relation (or a text of which the head says nothing), as for shuffled pairs on average.

    Args:
        head: fitted on real images.
        text: [n e].
        image: [n d].

    Raises:
        ValueError: the rows do not pair.
    """
    predicted, found = head.predict(text), np.asarray(image, dtype=np.float64) - head.image_mean
    if predicted.shape != found.shape:
        raise ValueError(f"texts lead to {predicted.shape} and the images are {found.shape}: they must pair")
    sizes = np.linalg.norm(predicted, axis=1) * np.linalg.norm(found, axis=1)
    products = np.einsum("nd,nd->n", predicted, found)
    cosines: NDArray[np.float64] = np.divide(products, sizes, out=np.zeros(len(sizes)), where=sizes > 0)
    return cosines


def _left_out(left: Floats, sizes: Floats, turned: Floats, centred: Floats, ridge: float) -> float:
    """Mean squared error of each image predicted by the head that is fitted on all others."""
    shrunk = sizes**2 / (sizes**2 + ridge)
    # 1 / n is the share of the mean, which leaves with the image too.
    leverage = 1 / len(left) + (left**2) @ shrunk
    residual = centred - left @ (shrunk[:, None] * turned)
    return float(((residual**2).sum(axis=1) / np.maximum(1 - leverage, 1e-12) ** 2).mean())
