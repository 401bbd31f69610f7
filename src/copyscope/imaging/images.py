"""Decode, resize, encode: the only module that does; bytes -> uint8 [h w 3] RGB.

How every kind of image becomes RGB is part of what a number means, so it is fixed here and told in `docs/corpora.md`:
EXIF orientation is applied, transparency is composited over white (a white drawing over black), 16-bit and deeper grey
is rescaled, the first frame or page stands for the file, colour profiles are ignored. Whatever cannot be read raises
ImageError with a short reason; no other exception and no warning of the decoder (Pillow) escapes. All functions are
safe to call from many threads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from copyscope.errors import ImageError

from .formats import (
    FORMATS,
    HEAD,
    MOST_WITH_TEXTS,
    format_of,
    plugins,
    too_much_text,
    why_raw,
    why_unread,
    without_texts,
)
from .rgb import layers, without_alpha

if TYPE_CHECKING:
    from PIL import Image as Pillow

Image = NDArray[np.uint8]
"""One image: uint8 [h w 3], RGB, 0..255."""
_Layers = tuple[Image, Image | None]

BACKGROUNDS = ("other", "bare", "grey")
"""What a transparent image may also be shown over: black for white or white for black; nothing, its colours being shown
where it is transparent too; grey."""

FRAMES = "first"
"""Which frame of an animation (GIF, WebP, APNG), or page of a TIFF, stands for the file."""

MAX_PIXELS = 100_000_000
"""Images with more pixels than this are refused by their header, before any pixel is allocated."""

MAX_WEBP_PIXELS = 64_000_000
"""The same of WebP, whose decoder takes 21 bytes a pixel where the others take 13 at most."""

MAX_ASPECT = 1000
"""So are those whose longer side is more than this many times the shorter: what resizes the shorter side to some
hundreds of pixels would make many times the pixels of such a strip."""

LARGE_PIXELS = 16_000_000
"""Of images with more pixels one at a time is decoded in this process."""

MAX_SCANS = 100
"""Scans of a JPEG: each goes over all of the image, and some bytes are enough for one. Encoders make ten or so."""

MAX_KEPT = 512 * 512
"""Pixels: larger resized images are not kept for the next who asks."""
FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")

_large = threading.RLock()
_NAMES = {"WEBP": "WebP", "MPO": "JPEG"}


def decode(source: bytes | str | Path, max_pixels: int = MAX_PIXELS) -> Image:
    """Decode an image file or its bytes to uint8 [h w 3], upright RGB, writable, in bounded memory.

    It takes 1.3 GiB of memory at most; of images of more than LARGE_PIXELS one at a time is decoded in a process.

    Raises:
        ImageError: missing, no image, truncated, corrupt, more than `max_pixels` pixels, or beyond MAX_ASPECT.
    """
    return decode_layers(source, max_pixels)[0]


def decode_layers(
    source: bytes | str | Path, max_pixels: int = MAX_PIXELS, turn: contextlib.ExitStack | None = None
) -> tuple[Image, Image | None]:
    """Decode as `decode`, and a transparent image over the other background too: black for white, else None.

    Two transparent images show the same only where they do so over both.

    Args:
        source: path of the file, or its bytes.
        max_pixels: largest size, at most MAX_PIXELS.
        turn: no large image is decoded in other threads until it is closed, by this thread; None = until this one is
            done.
    """
    with _quiet, contextlib.ExitStack() as own:
        try:
            if isinstance(source, (str, Path)):
                with _open_file(source) as file:
                    return _decode(file, max_pixels, own if turn is None else turn)
            return _decode(BytesIO(source), max_pixels, own if turn is None else turn)
        except ImageError:
            raise
        except MemoryError:
            raise ImageError("too large for the memory there is") from None
        except Exception as error:  # hostile bytes make Pillow raise almost anything
            raise ImageError(f"corrupt image: {_reason(error)}") from None


def preview(content: bytes, size: int) -> Image:
    """What a person is shown of an image file, its longer side at most `size` pixels.

    Decoding a JPEG at a fraction of its size takes a fraction of the time, but gives other pixels: no number may rest
    on them. Raises ImageError as `decode`.
    """
    with _quiet, contextlib.ExitStack() as turn:
        try:
            return thumbnail(_decode(BytesIO(content), MAX_PIXELS, turn, draft=2 * size)[0], size)
        except ImageError:
            raise
        except Exception as error:
            raise ImageError(f"corrupt image: {_reason(error)}") from None


def over_background(content: bytes, background: str) -> bytes:
    """Composite a transparent image over one of BACKGROUNDS, as the bytes of a PNG file.

    Raises:
        ImageError: it cannot be read, or is not transparent.
    """
    seen, behind = decode_layers(content)
    if behind is None:
        raise ImageError("the image is not transparent")
    if background == "other":
        return encode(behind, "png")
    if background == "grey":
        # Compositing is linear.
        return encode(((seen.astype(np.uint16) + behind + 1) // 2).astype(np.uint8), "png")
    with _quiet, contextlib.ExitStack() as turn:
        return encode(_decode(BytesIO(content), MAX_PIXELS, turn, without_alpha)[0], "png")


def starts_like_image(head: bytes) -> bool:
    """Whether the first 16 bytes of a file are those of an image, by the marks of the formats that are read."""
    return (format_of(head) or why_unread(head)) != ""


def resize(image: Image, size: tuple[int, int], filter: str = "bilinear") -> Image:
    """Resize `image` [h w 3] to `size` = (height, width) by Pillow's antialiased filter, a part of every protocol."""
    height, width = size
    if height < 1 or width < 1:
        raise ValueError(f"an image cannot be {height} pixels high and {width} wide")
    if filter not in FILTERS:
        raise ValueError(f"no resize filter {filter!r}; there are: {', '.join(FILTERS)}")
    _refuse_bomb(width, height)
    try:
        return _array(_resized(image, (width, height), filter))
    except MemoryError:
        raise ImageError(f"too large for the memory there is: {width} x {height} pixels") from None


def resize_short(image: Image, size: int, filter: str = "bilinear") -> Image:
    """Resize the shorter side of `image` [h w 3] to `size` pixels, aspect kept.

    The longer side is int(size * longer / shorter), rounded down as in torchvision's `Resize(size)`.

    Raises:
        ImageError: the image is so elongated that the result would have more than MAX_PIXELS pixels.
    """
    height, width = image.shape[:2]
    if height <= width:
        return resize(image, (size, int(size * width / height)), filter)
    return resize(image, (int(size * height / width), size), filter)


def resize_square(image: Image, size: int) -> Image:
    """The central square of `image` [h w 3], as large as fits, at `size` x `size` pixels, bilinear."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = round((height - side) / 2), round((width - side) / 2)
    picture = _picture(image).crop((left, top, left + side, top + side))
    return _array(picture.resize((size, size), _pillow().Resampling.BILINEAR))


def centre_crop(image: Image, size: int) -> Image:
    """Cut out the central `size` x `size` pixels of `image` [h w 3], where torchvision's `CenterCrop(size)` does."""
    height, width = image.shape[:2]
    if size < 1 or size > min(height, width):
        raise ValueError(f"cannot crop {size} x {size} pixels from {width} x {height}; resize first")
    top, left = round((height - size) / 2), round((width - size) / 2)
    return np.ascontiguousarray(image[top : top + size, left : left + size])


def thumbnail(image: Image, size: int) -> Image:
    """Shrink `image` [h w 3] until its longer side has `size` pixels, aspect kept; smaller images stay as they are."""
    height, width = image.shape[:2]
    scale = size / max(height, width)
    if scale >= 1:
        return image.copy()
    return resize(image, (max(1, round(height * scale)), max(1, round(width * scale))), "bicubic")


def luma(image: Image) -> NDArray[np.uint8]:
    """Luma of `image` [h w 3] as uint8 [h w]: ITU-R 601-2, 0.299 R + 0.587 G + 0.114 B, as Pillow's `convert("L")`."""
    return np.array(_picture(image).convert("L"))


def encode(image: Image, format: str = "jpeg", quality: int = 90) -> bytes:
    """Encode `image` [h w 3] as a file: "jpeg", "webp" (both lossy, `quality` 1..100) or "png" (lossless).

    Raises:
        ImageError: the image is larger than the format can hold.
    """
    if format not in ("jpeg", "webp", "png"):
        raise ValueError(f"no image format {format!r}; there are: jpeg, webp, png")
    options = {} if format == "png" else {"quality": quality}
    file = BytesIO()
    try:
        _picture(image).save(file, format, **options)
    except (OSError, ValueError, MemoryError) as error:  # the formats have size limits of their own
        height, width = image.shape[:2]
        raise ImageError(f"{width} x {height} pixels cannot be written as {format}: {_reason(error)}") from None
    return file.getvalue()


@functools.cache
def _pillow() -> Any:
    """Pillow's Image module with the plugins of FORMATS, imported on first use."""
    # Pillow registers these three only when every plugin it has is loaded, which is slow.
    from PIL import AvifImagePlugin, Image, TiffImagePlugin, WebPImagePlugin  # noqa: F401

    Image.preinit()
    plugins()
    return Image


def _open_file(path: str | Path) -> Any:
    try:
        # Opening a pipe would wait for a writer for ever.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ImageError("not a regular file")
        return open(path, "rb")
    except FileNotFoundError:
        raise ImageError("no such file") from None
    except PermissionError:
        raise ImageError("no permission to read it") from None
    except OSError as error:
        raise ImageError(f"cannot be opened: {_reason(error)}") from None


def _decode(
    file: Any,
    max_pixels: int,
    turn: contextlib.ExitStack,
    layers_of: Callable[[Pillow.Image], _Layers] = layers,
    draft: int = 0,
) -> _Layers:
    """The layers of an image file.

    Args:
        file: open, at its start.
        max_pixels: as in `decode`.
        turn: as in `decode_layers`.
        layers_of: takes the layers out of the loaded picture.
        draft: pixels a side, at least, to which a JPEG may be shrunk while it is decoded; 0 = it may not.
    """
    try:
        return _decode_once(file, max_pixels, turn, layers_of, draft)
    except ImageError as error:
        if not too_much_text(str(error)):
            raise
    file.seek(0)
    return _decode_once(BytesIO(without_texts(file.read(MOST_WITH_TEXTS))), max_pixels, turn, layers_of, draft)


def _decode_once(
    file: Any, max_pixels: int, turn: contextlib.ExitStack, layers_of: Callable[[Pillow.Image], _Layers], draft: int
) -> _Layers:
    pillow = _pillow()
    try:
        picture = pillow.open(file, formats=(*FORMATS, *plugins()))
    except pillow.DecompressionBombError as error:
        raise ImageError(f"too large: {_bomb_size(file) or _reason(error)}") from None
    except Exception as error:
        raise ImageError(_unidentified(file, error)) from None
    if picture.format == "TIFF" and (why := why_raw(picture)):
        raise ImageError(why)
    width, height = picture.size
    _refuse_bomb(width, height, min(max_pixels, MAX_WEBP_PIXELS) if picture.format == "WEBP" else max_pixels)
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(f"too elongated: {width} x {height} pixels, more than {MAX_ASPECT} to 1")
    if picture.format in ("JPEG", "MPO") and _n_scans(file) > MAX_SCANS:
        raise ImageError(f"corrupt JPEG: more than {MAX_SCANS} scans")
    if width * height > LARGE_PIXELS:
        turn.enter_context(_large)
    try:
        if draft:
            picture.draft(None, (draft, draft))
        picture.load()
    except Exception as error:
        if isinstance(error, MemoryError):
            raise
        raise ImageError(_unreadable(_NAMES.get(picture.format, picture.format), error)) from None
    orientation = _orientation(picture)
    seen, behind = layers_of(picture)
    del picture
    return _upright(seen, orientation), None if behind is None else _upright(behind, orientation)


def _orientation(picture: Pillow.Image) -> int:
    """EXIF orientation 1..8; 1 where there is none, or where the EXIF block is damaged: no reason to lose the image."""
    try:
        value = picture.getexif().get(0x0112, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(image: Image, orientation: int) -> Image:
    """`image` [h w 3] turned as EXIF (CIPA DC-008, tag 0x0112) says: 5..8 swap the axes, then rows or columns flip."""
    if orientation == 1:
        return image
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def _picture(image: Image) -> Pillow.Image:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"an image is uint8 [h w 3], not {image.dtype} {list(image.shape)}")
    kept = _kept.images.get(id(image))
    if kept is None:
        return cast("Pillow.Image", _pillow().fromarray(image))
    if kept.picture is None:
        kept.picture = cast("Pillow.Image", _pillow().fromarray(image))
    return kept.picture


def _resized(image: Image, size: tuple[int, int], filter: str) -> Pillow.Image:
    """`image` [h w 3] at `size` = (width, height)."""
    kept, wanted = _kept.images.get(id(image)), (*size, filter)
    if kept is not None and wanted in kept.resized:
        return kept.resized[wanted]
    made = _picture(image).resize(size, getattr(_pillow().Resampling, filter.upper()))
    if kept is not None and size[0] * size[1] <= MAX_KEPT:
        kept.resized[wanted] = made
    return made


@dataclasses.dataclass
class _Shared:
    """An image that several functions resize: the array, it for Pillow once asked for, and what it was resized to."""

    image: Image
    picture: Pillow.Image | None = None
    resized: dict[tuple[int, int, str], Pillow.Image] = dataclasses.field(default_factory=dict)


class _Kept(threading.local):
    """The shared images of this thread by the `id` of their arrays."""

    def __init__(self) -> None:
        self.images: dict[int, _Shared] = {}


_kept = _Kept()


@contextlib.contextmanager
def shared(many: Iterable[Image]) -> Iterator[None]:
    """Within, this thread converts each of `many` images for Pillow once, and resizes it to one size once.

    The arrays must not change meanwhile.
    """
    before, _kept.images = _kept.images, {id(image): _Shared(image) for image in many}
    try:
        yield
    finally:
        _kept.images = before


def _array(picture: Pillow.Image) -> Image:
    return np.array(picture)


def _refuse_bomb(width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    if width * height > min(max_pixels, MAX_PIXELS):
        raise ImageError(f"too large: {width} x {height} pixels")


def _n_scans(file: Any) -> int:
    """How often the marker of a scan is in a JPEG file."""
    at, found, last = file.tell(), 0, b""
    file.seek(0)
    while block := file.read(1 << 20):
        found += (last + block).count(b"\xff\xda")
        last = block[-1:]
    file.seek(at)
    return found


def _bomb_size(file: Any) -> str:
    """Width and height of an image that Pillow refused for its size, which its own error does not tell."""
    pillow = _pillow()
    for name in FORMATS:
        factory, accept = pillow.OPEN[name]
        try:
            file.seek(0)
            if accept is None or accept(file.read(16)) is True:
                file.seek(0)
                width, height = factory(file, "").size
                return f"{width} x {height} pixels"
        except pillow.DecompressionBombError as error:  # some plugins check by themselves
            return str(error).partition("(")[2].partition(")")[0]
        except Exception:
            continue
    return ""


def _unidentified(file: Any, error: Exception) -> str:
    """Why no decoder took the file."""
    file.seek(0)
    head = file.read(HEAD)
    if not head:
        return "empty file"
    if why := why_unread(head):
        return why
    name = format_of(head)
    if not name:
        return f"not an image: starts with {head[:8]!r}"
    if type(error).__name__ == "UnidentifiedImageError":
        return f"truncated or corrupt {name}: its header cannot be read"
    return _unreadable(name, error)


def _unreadable(name: str | None, error: Exception) -> str:
    reason = _reason(error)
    damage = "truncated" if isinstance(error, EOFError) or "truncat" in reason.lower() else "corrupt"
    return f"{damage} {name or 'image'}: {reason}"


def _reason(error: BaseException) -> str:
    """One short line: an exception's own text, or its type where it has none."""
    text = " ".join(str(error).split())
    return text[:120] if text else type(error).__name__


class _Quiet(threading.local):
    """Silences warnings in the threads that are decoding, and in no other.

    `warnings.catch_warnings` swaps the filters of the whole process and so is not safe among threads. This object
    instead stands in a warnings filter in the place of the message pattern, and its `match` says whether the thread
    that asks is one that is decoding.
    """

    depth = 0

    def match(self, message: str) -> bool:
        return self.depth > 0

    def __enter__(self) -> None:
        # Whoever changes the filters (a test runner, catch_warnings) may drop ours or put one before it.
        filters = cast("list[Any]", warnings.filters)
        if not filters or filters[0] is not _FILTER:
            filters.insert(0, _FILTER)
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1


_quiet = _Quiet()
_FILTER = ("ignore", _quiet, Warning, None, 0)


def crop(picture: Image, side: int, place: NDArray[np.float64] | None = None) -> Image:
    """Cut a square [side side 3] out of a picture: at `place`, shares (down, across) in [0, 1); None = the middle."""
    if place is None:
        return centre_crop(picture, side)
    top, left = ((np.array(picture.shape[:2]) - side + 1) * place).astype(int)
    return np.ascontiguousarray(picture[top : top + side, left : left + side])


def mirror(picture: Image) -> Image:
    """Exchange left and right of a picture [h w 3]."""
    return np.ascontiguousarray(picture[:, ::-1])
