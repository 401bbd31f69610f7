"""Convert images of any library to the pixels to look up, and to a copy to hand out.

A guard is fooled where it looks up something else than what a person sees later: a channels-first array read as rows,
floats from -1 to 1 cut at 0, colours under an alpha of 0, the second frame of a GIF. So a form is read only where it is
one of the list below, and all else raises InputError. The copy that is handed out is built anew from the pixels that
were looked up: no metadata, mask, later frame, or array that it is a view of, comes with it.

- Pillow, 8 bits a channel: RGB, L, 1, P, CMYK, YCbCr, HSV; with transparency: see `_over_backgrounds`.
- numpy and torch, uint8 or floats from 0 to 1: [h w], [h w 1], [h w 3], [h w 4], [1 h w], [3 h w]. Channels first is
  read where no channels-last reading is possible. [4 h w] is refused: latents have the same shape.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from copyscope.diffusion.models import Image
from copyscope.errors import InputError

ROUNDING = 1e-3
"""How far floats may lie outside 0..1; or one step of their type at 1, where that is more."""
CHANNELS = (1, 3, 4)
ELONGATED = 4
"""Arrays longer than this many times their width are refused: their axes are likely in another order."""
TINY = 48
"""Arrays of at most this many values hold nothing that one can recognise, in whatever order their axes are."""
FAINT = 16
"""Fewer of the 255 levels than these are looked up at full contrast too, which shows what is in them. Floats of which a
channel spans fewer are handed out rounded to the levels that were looked up: their fractions could hold a whole
picture, as of 8-bit pixels divided by 255 twice, or of an alpha between .5 and .51."""
DEEP = ("I", "F")
"""How Pillow's modes of more than 8 bits a channel begin."""
TENSORS = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
NEXT = "Return Pillow images, or uint8 arrays [h w 3], one an image"


@dataclasses.dataclass(frozen=True, eq=False)
class Delivered:
    """An image that may be handed out once all its views are looked up.

    Attributes:
        image: in the form it came in, a copy.
        views: uint8 [h w 3] each, what a person may see in it; first the usual one.
    """

    image: Any
    views: list[Image]


def delivered(image: Any, colours: bool = False) -> Delivered:
    """Views of an image in the form of any library; the module says which forms there are.

    Args:
        image: the image.
        colours: the channels of an array are known to be red, green and blue. Else they may be in reverse order, or
            grey images or those of another colour space: reversed and each alone they are looked up too.

    Raises:
        InputError: it is no image, or may be read as another than is meant.
    """
    found = _delivered(image, colours)
    return Delivered(found.image, [*found.views, *_at_full_contrast(found.views)])


def _delivered(image: Any, colours: bool) -> Delivered:
    from PIL import Image as Pillow

    if isinstance(image, Pillow.Image):
        return _of_pillow(image)
    # No subclasses: those of numpy may hide values behind a mask, those of torch may do anything.
    if type(image) is np.ndarray or type(image) is np.memmap:
        plain = np.array(image, dtype=image.dtype.newbyteorder("="), order="C")
        return _of_array(plain, plain, colours)
    if type(image) is Tensor:
        return _of_tensor(image, colours)
    raise InputError(f"What came back is no image but a {_kind(image)}, which cannot be looked up.\n{NEXT}")


def _of_pillow(image: Any) -> Delivered:
    from PIL import Image as Pillow

    if image.mode.startswith(DEEP):
        raise InputError(
            f"An image of Pillow's mode {image.mode!r} does not say which value is white.\n"
            "Return 8 bits a channel, as RGB or L"
        )
    try:
        if image.has_transparency_data:
            pixels = np.array(image.convert("RGBA"))
        else:
            pixels = np.array(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    except (OSError, ValueError, SyntaxError, MemoryError, ArithmeticError, AttributeError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"An image of Pillow's mode {image.mode!r} cannot be read: {reason}.\n{NEXT}") from None
    if 0 in pixels.shape:
        raise InputError(f"An image has no pixels: {image.width} x {image.height}.\n{NEXT}")
    return Delivered(Pillow.fromarray(pixels), _views(pixels) if pixels.ndim == 3 else [_grey(pixels)])


def _of_tensor(image: Tensor, colours: bool) -> Delivered:
    if image.layout is not torch.strided or image.is_nested or image.is_meta or image.dtype not in TENSORS:
        what = str(image.dtype).removeprefix("torch.")
        raise InputError(
            f"A tensor of type {what} and layout {image.layout} does not say what its pixels are.\n"
            "Return uint8 from 0 to 255, or floats from 0 to 1, of 16 bits or more"
        )
    copied = image.detach().clone(memory_format=torch.contiguous_format)
    # numpy has no bfloat16, and float16 rounds what is multiplied.
    wide = copied.float() if copied.dtype in (torch.bfloat16, torch.float16) else copied
    step = torch.finfo(copied.dtype).eps if copied.is_floating_point() else 0.0
    return _of_array(copied, wide.cpu().numpy(), colours, step)


def _of_array(image: Any, values: NDArray[Any], colours: bool, step: float = 0.0) -> Delivered:
    """Views of an array or tensor.

    Args:
        image: what is handed out.
        values: the same as a numpy array.
        colours: as in `delivered`.
        step: of the floats at 1, if that is not their own.
    """
    shape = list(values.shape)
    if values.ndim not in (2, 3) or 0 in shape:
        raise InputError(f"An array of shape {shape} is no image.\n{NEXT}")
    levels = _levels(values, step)
    found = _arranged(levels, colours)
    if values.dtype != np.uint8 and _has_faint_plane(values):
        rounded = levels.astype(np.float64) / 255
        image = rounded.astype(values.dtype) if isinstance(image, np.ndarray) else torch.from_numpy(rounded).to(image)
    return Delivered(image, found)


def _levels(values: NDArray[Any], step: float) -> NDArray[np.uint8]:
    """uint8 as it is; floats from 0 to 1 in 255 steps."""
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind != "f":
        raise InputError(
            f"Pixels of type {values.dtype} do not say which value is white.\n"
            "Return uint8 from 0 to 255, or floats from 0 to 1"
        )
    if not np.isfinite(values).all():
        raise InputError(f"An array of shape {list(values.shape)} holds values that are not finite.\n{NEXT}")
    low, high = float(values.min()), float(values.max())
    over = max(ROUNDING, step or float(np.finfo(values.dtype).eps))
    if low < -over or high > 1 + over:
        raise InputError(
            f"Floats from {low:.4g} to {high:.4g} are no pixels: they must lie between 0 and 1.\n"
            "Return them scaled, or uint8; latents must be decoded first"
        )
    wide = values.astype(np.float32) if values.dtype == np.float16 else values
    scaled: NDArray[np.uint8] = (np.clip(wide, 0, 1) * 255).round().astype(np.uint8)
    return scaled


def _has_faint_plane(values: NDArray[Any]) -> bool:
    """Whether a channel of floats of any order of axes that is read spans few levels, and is not of one value."""
    over = None if values.ndim == 2 else (0, 1) if values.shape[2] in CHANNELS else (1, 2)
    span = np.ptp(values.astype(np.float64), axis=over) * 255
    return bool(((span > 0) & (span < FAINT)).any())


def _arranged(levels: NDArray[np.uint8], colours: bool) -> list[Image]:
    """The views of levels of any order of axes that is read."""
    shape, tiny = list(levels.shape), levels.size <= TINY
    first = levels.ndim == 3 and shape[0] in CHANNELS
    last = levels.ndim == 3 and shape[2] in CHANNELS
    # Nobody has [4 h w] of three pixels' width: those are four rows of colours.
    if first and last and not tiny and not (shape[0] == 4 and shape[2] != 4):
        raise InputError(
            f"An array of shape {shape} may have its channels first or last.\n"
            "Return a Pillow image, or one with both sides above 4 pixels"
        )
    if levels.ndim == 3 and not last and not (first and shape[0] != 4):
        what = "may be latents: it has 4 channels first" if first else "has no axis of 1 or 3 channels"
        raise InputError(f"An array of shape {shape} {what}.\n{NEXT}; latents must be decoded first")
    found = levels[..., None] if levels.ndim == 2 else levels if last else levels.transpose(1, 2, 0)
    height, width, channels = found.shape
    if max(height, width) > ELONGATED * min(height, width) and not tiny:
        raise InputError(
            f"An array of shape {shape} is over {ELONGATED} times as long as wide: are its axes in another order?\n"
            "Return a Pillow image where it is one indeed"
        )
    if channels == 1:
        return _of_one_plane(found[..., 0], tiny)
    views = _views(found)
    if not colours:
        views += [np.ascontiguousarray(found[..., 2::-1]), *(_grey(found[..., channel]) for channel in range(3))]
    return views


def _of_one_plane(plane: NDArray[np.uint8], tiny: bool) -> list[Image]:
    """A grey image; and the colours that its rows may hold: pixels of three values, or planes one above another."""
    height, width = plane.shape
    views = [_grey(plane)]
    if width % 3 == 0 and not tiny:
        views.append(plane.reshape(height, width // 3, 3))
    if height % 3 == 0 and not tiny:
        views.append(np.ascontiguousarray(plane.reshape(3, height // 3, width).transpose(1, 2, 0)))
    return views


def _views(pixels: NDArray[np.uint8]) -> list[Image]:
    """Those of pixels [h w 3] or [h w 4]."""
    opaque = pixels.shape[2] == 3 or bool((pixels[..., 3] == 255).all())
    return [np.ascontiguousarray(pixels[..., :3])] if opaque else _over_backgrounds(pixels)


def _over_backgrounds(pixels: NDArray[np.uint8]) -> list[Image]:
    """Of pixels [h w 4] with transparency: over white, over black, the colours without it, and it without the colours.

    Each is what some program shows. Those of one colour are left out, but for the first.
    """
    colours, alpha = pixels[..., :3], pixels[..., 3:].astype(np.uint16)
    white, black = (
        ((colours * alpha + back * (255 - alpha) + 127) // 255).astype(np.uint8)
        for back in (np.uint16(255), np.uint16(0))
    )
    others: list[Image] = [black, np.ascontiguousarray(colours), _grey(pixels[..., 3])]
    return [white, *(view for view in others if (view != view[0, 0]).any())]


def _at_full_contrast(views: Sequence[Image]) -> Iterator[Image]:
    """Those of the views that span few levels, stretched to all of them."""
    for view in views:
        low = view.min(axis=(0, 1))
        span = int((view - low).max())
        if 0 < span < FAINT:
            yield (view - low) * np.uint8(255 // span)


def _grey(plane: NDArray[np.uint8]) -> Image:
    return np.repeat(plane[..., None], 3, 2)


def _kind(value: Any) -> str:
    """Its type, and of arrays of other libraries which library."""
    kind = type(value)
    library = kind.__module__.partition(".")[0]
    return kind.__name__ if library == "builtins" else f"{kind.__name__} of {library}"
