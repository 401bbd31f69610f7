"""Run a function on many images; an exception on one becomes the error of that image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from copyscope.data.storage import failure
from copyscope.errors import CopyscopeError, ImageError


def values_of_each(
    name: str, function: Callable[[list[Any]], NDArray[Any]], dim: int, dtype: DTypeLike, images: list[Any]
) -> list[NDArray[Any] | str]:
    """Run a function on many images; an exception on one becomes the error of that image alone.

    Where the function raises for several images, it is called again with one at a time.

    Args:
        name: first words of an error.
        function: images [n] -> values [n dim], of each image alone.
        dim: values an image.
        dtype: of the values.
        images: the images [n].

    Returns:
        For each image its values [1 dim], or why it has none, in a few words.

    Raises:
        CopyscopeError: what the function raises, but for ImageError: missing weights are no fault of an image.
    """
    if not images:
        return []
    try:
        values = np.asarray(function(images), dtype=dtype)
    except ImageError as error:
        if len(images) == 1:
            return [str(error)]
    except CopyscopeError:
        raise
    except Exception as error:
        if len(images) == 1:
            return [f"{name} failed: {failure(error)}"]
    else:
        if values.shape != (len(images), dim):
            raise CopyscopeError(f"{name} gave values of shape {values.shape}, not {(len(images), dim)}")
        finite = np.isfinite(values).all(axis=1)
        return [
            value if good else f"{name} gave values that are not numbers"
            for value, good in zip(np.split(values, len(values)), finite.tolist(), strict=True)
        ]
    return [value for each in images for value in values_of_each(name, function, dim, dtype, [each])]
