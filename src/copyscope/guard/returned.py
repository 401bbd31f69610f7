"""Find the images in what a call returned, and replace them.

Only forms whose whole content is known are read: what comes back beside the images (flags, seeds, the prompt) must be
too little to hold a picture, since nobody looks it up.
"""

from __future__ import annotations

import copy
import dataclasses
import re
import types
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor

from copyscope.errors import InputError

from .pictures import delivered

FEW = 8
"""Images of an array that may be more than the pixels of a side."""
DEPTH = 4
"""So deep in lists, mappings and dataclasses images are sought in what a method returns."""
IMAGES = "images"
"""Name of the images in an object or a mapping that holds them."""
NUMBERS, CHARACTERS, WORD = 64, 4000, 200
"""Most numbers and characters beside the images, for each image, and most characters without a space: fewer than a
thumbnail has, as numbers or in base64."""


def listed(returned: Any) -> list[Any]:
    """List the images in an image, an array [n ...], a list, a tuple, an iterator, or an object with `images`.

    Raises:
        InputError: it is something else, or has something besides that may be a picture.
    """
    if _holds(returned):
        held = fields(returned)
        found = listed_plain(held.pop(IMAGES))
        refuse_pictures(held, len(found))
        return found
    return listed_plain(returned)


def listed_plain(found: Any) -> list[Any]:
    """List images as `listed`, without holders.

    Raises:
        InputError: it is something else.
    """
    if _is_array(found) and not getattr(found, "is_nested", False):
        shape = list(found.shape)
        # [h w n 3], images stacked on another axis, would be h slices through all of them.
        if found.ndim > 4 or (found.ndim == 4 and shape[0] > max(sorted(shape[1:])[1], FEW)):
            raise InputError(
                f"An array of shape {shape} may have its axes in another order than one image after another.\n"
                "Return a list of images, or an array [n h w 3]"
            )
        return list(found) if found.ndim == 4 else [found]
    if isinstance(found, (list, tuple, Iterator)):
        return list(found)
    # Whether it is an image is for `pictures` to say.
    return [found]


def has_images(returned: Any, depth: int = DEPTH) -> bool:
    """Whether something may be images, or hold some: what a guard would look up.

    Of an iterator it does not say, since to look would use it up.

    Args:
        returned: the value.
        depth: levels of nesting that are looked at.
    """
    if _holds(returned):
        return True
    if isinstance(returned, Iterator) or depth == 0:
        return False
    if isinstance(returned, (Mapping, list, tuple, Set)) or _is_record(returned):
        inside = returned.values() if isinstance(returned, Mapping) else returned
        if _is_record(returned):
            inside = [getattr(returned, field.name, None) for field in dataclasses.fields(returned)]
        return any(has_images(each, depth - 1) for each in inside)
    if _is_array(returned) and not getattr(returned, "is_nested", False) and returned.ndim > 4 and len(returned):
        return has_images(returned[0], depth)  # As of a video.
    try:
        return any(_is_image(each) for each in listed_plain(returned))
    except InputError:
        return False


def refuse_images(returned: Any, name: str) -> Any:
    """Pass on what a method returned, unless it has images; a generator gives its values one by one.

    Args:
        returned: the value.
        name: of the method, for the message.

    Raises:
        InputError: it has images.
    """
    if isinstance(returned, types.GeneratorType):
        return (refuse_images(each, name) for each in returned)
    if has_images(returned):
        raise InputError(f"{name} gave images, and only calls are guarded.\nCall the guarded object itself")
    return returned


def _is_record(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, (type, Mapping))


def _is_image(value: Any) -> bool:
    try:
        # Of one value: a mask, or weights not trained yet.
        return any((view != view[0, 0]).any() for view in delivered(value).views)
    except InputError:
        return False


def like(form: Any, images: Sequence[Any]) -> Any:
    """Images in the form of what was returned; a list in place of an array where one is None.

    Args:
        form: what was returned.
        images: [n].
    """
    if _holds(form):
        return _with(form, like(fields(form)[IMAGES], images))
    if isinstance(form, (list, Iterator)):
        return list(images)
    if isinstance(form, tuple):
        return tuple(images)
    if not _is_array(form) or form.ndim < 4:
        return images[0]
    if any(each is None for each in images) or len({tuple(each.shape) for each in images}) != 1:
        return list(images)
    return torch.stack(list(images)) if isinstance(form, Tensor) else np.stack(images)


def fields(holder: Any) -> dict[str, Any]:
    """Fields of an object by name: items of a mapping, attributes, slots."""
    found: dict[str, Any] = {}
    for kind in type(holder).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(holder, name):
                found[name] = getattr(holder, name)
    found |= getattr(holder, "__dict__", {})
    if isinstance(holder, Mapping):
        found |= {str(name): value for name, value in holder.items()}
    elif isinstance(holder, tuple):
        found |= dict(zip(getattr(holder, "_fields", ()), holder, strict=True))
    if IMAGES not in found:  # A property: what it is made of is among the fields, and must be no picture.
        found[IMAGES] = getattr(holder, IMAGES)
    return found


def refuse_pictures(extras: Mapping[str, Any], n: int) -> None:
    """Refuse a return value whose fields beside n images may hold a picture.

    Args:
        extras: the fields by name.
        n: number of images.

    Raises:
        InputError: one may hold a picture.
    """
    numbers, characters = 0.0, 0.0
    for name, value in extras.items():
        more = _content(value)
        numbers, characters = numbers + more[0], characters + more[1]
        if numbers > NUMBERS * max(n, 1) or characters > CHARACTERS * max(n, 1):
            raise InputError(
                f"The result also holds {name!r}, a {type(value).__name__} that may be a picture.\n"
                "Return images alone, or beside them flags, numbers and texts"
            )


def _content(value: Any) -> tuple[float, float]:
    """How many numbers and characters there are; infinitely many of what is neither."""
    if getattr(value, "__dict__", None):  # What a class of one's own adds to a text or a number.
        return float("inf"), 0
    if value is None or isinstance(value, (bool, float, complex, np.number, np.bool_)):
        return 1, 0
    if isinstance(value, int):
        return 1 + value.bit_length() // 64, 0
    if isinstance(value, str):
        long = any(len(word) > WORD for word in value.split())
        return len(re.findall(r"\d+", value)), float("inf") if long else len(value)
    if type(value) is Tensor or (type(value) is np.ndarray and value.dtype.kind in "biufc"):
        return int(np.prod(value.shape)), 0
    parts: list[Any] = []
    if isinstance(value, Mapping):
        parts = [*value.keys(), *value.values()]
    elif isinstance(value, (list, tuple, Set)):
        parts = list(value)
    else:
        return float("inf"), 0
    each = [_content(part) for part in parts]
    return sum(numbers for numbers, _ in each), sum(characters for _, characters in each)


def _holds(returned: Any) -> bool:
    if isinstance(returned, Mapping):
        return IMAGES in returned
    return hasattr(returned, IMAGES) and not _is_array(returned)


def _with(holder: Any, images: Any) -> Any:
    """The like of a holder, with other images."""
    try:
        if isinstance(holder, tuple):
            return holder._replace(images=images)  # type: ignore[attr-defined]
        if dataclasses.is_dataclass(holder) and not isinstance(holder, Mapping):
            return dataclasses.replace(holder, images=images)  # type: ignore[type-var]
        other = copy.copy(holder)
        if isinstance(other, Mapping):
            other[IMAGES] = images  # type: ignore[index]
        else:
            setattr(other, IMAGES, images)
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"The images in a {type(holder).__name__} cannot be set: {error}.\n"
            "Return a list, or a dataclass with `images`"
        ) from None
    return other


def _is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, Tensor))
