"""Small corpora with known truth, made by code in a second: who copied what, which images repeat, with which captions.

Also the alterations that make a copy of an image, for these worlds and for the demo. Every function that draws at
random takes a numpy Generator, and every scene of a world has one of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from copyscope.data.sidecars import write_metadata
from copyscope.imaging import images
from copyscope.imaging.images import Image

if TYPE_CHECKING:
    from PIL import Image as Pillow

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "violet", "pink")
SHAPES = ("disc", "square", "ring", "bar", "triangle", "cross")
PLACES = ("sand", "clouds", "water", "marble", "moss", "rust", "snow", "felt")


@dataclasses.dataclass(frozen=True)
class World:
    """Folders of images (imagefolders) and what is true of them.

    train, generated, held_out: folders; ids are file names. truth: generated id -> the training id it copies, or None.
    kinds: generated id -> how the copy was altered, "" where it is none. group: training id -> number of its group, for
    images that have near-duplicates only. duplication: group -> "full" (one caption) or "partial" (several).
    """

    folder: Path
    train: Path
    generated: Path
    held_out: Path
    truth: dict[str, str | None]
    kinds: dict[str, str]
    group: dict[str, int]
    duplication: dict[int, str]


def world(
    folder: Path,
    n_train: int = 40,
    n_generated: int = 30,
    n_held_out: int = 40,
    *,
    copies: float = 0.4,
    kinds: Sequence[str] = ("exact", "light_copy", "blur", "jpeg", "shift"),
    duplicates: Sequence[tuple[int, str]] = ((2, "full"), (3, "partial"), (5, "full")),
    seed: int = 0,
) -> World:
    """Writes a world into `folder`: `train/`, `generated/`, `held-out/`, each with a `metadata.jsonl`.

    copies: share of the generated images that copy a training image, each another one as long as there are others, each
    near-duplicate group once at least if there are enough copies. kinds: how, in turn ("exact" = the same pixels).
    duplicates: the near-duplicate groups of the training set, as (size, "full" | "partial"); their sizes count to
    `n_train`. The first two members are the same file, the others slightly re-encoded.
    """
    repeated = sum(size for size, _ in duplicates)
    if repeated > n_train or any(size < 2 or kind not in ("full", "partial") for size, kind in duplicates):
        raise ValueError(f"duplicates are (size >= 2, 'full' | 'partial') of at most {n_train} images: {duplicates}")
    scenes = iter(np.random.SeedSequence(seed).spawn(n_train + n_generated + n_held_out))

    def scene() -> tuple[Image, str]:
        return picture(np.random.default_rng(next(scenes)))

    originals = [scene() for _ in range(n_train - repeated + len(duplicates))]
    rng = np.random.default_rng(np.random.SeedSequence([seed, 1]))
    train = _Folder(folder / "train")
    group: dict[str, int] = {}
    members: list[list[str]] = []
    for index, (image, caption) in enumerate(originals):
        size, kind = duplicates[index] if index < len(duplicates) else (1, "full")
        members.append([])
        for member in range(size):
            again = image if member < 2 else alter(image, "light_copy", rng)
            said = caption if kind == "full" else f"{caption}, view {member + 1}"
            members[-1].append(train.add(again, captions=[said, f"picture of {said}"]))
        group |= {name: index for name in members[-1] if size > 1}
    generated = _Folder(folder / "generated")
    truth: dict[str, str | None] = {}
    altered: dict[str, str] = {}
    n_copies = round(copies * n_generated) if originals and kinds else 0
    order = [*range(len(duplicates)), *(len(duplicates) + rng.permutation(len(originals) - len(duplicates)))]
    copied = rng.permutation(n_generated) < n_copies
    turn = 0
    for index in range(n_generated):
        if copied[index]:
            source, kind = order[turn % len(order)], kinds[turn % len(kinds)]
            image, caption = originals[source]
            name = generated.add(image if kind == "exact" else alter(image, kind, rng), prompt=caption)
            truth[name], altered[name] = members[source][0], kind
            turn += 1
        else:
            image, caption = scene()
            name = generated.add(image, prompt=caption)
            truth[name], altered[name] = None, ""
    held_out = _Folder(folder / "held-out")
    for _ in range(n_held_out):
        image, caption = scene()
        held_out.add(image, captions=[caption])
    for part in (train, generated, held_out):
        part.close()
    duplication = {index: kind for index, (_, kind) in enumerate(duplicates)}
    return World(folder, train.path, generated.path, held_out.path, truth, altered, group, duplication)


def picture(rng: np.random.Generator) -> tuple[Image, str]:
    """An image of 96 to 160 pixels a side and its caption: coloured shapes over 1/f noise, as in natural images."""
    height, width = (int(side) for side in rng.integers(96, 161, 2))
    ground, light = rng.uniform(20, 235, 3), rng.normal(0, 1, 3)
    rough = _noise(rng, height, width, float(rng.uniform(0.8, 1.6)))
    tint = _noise(rng, height, width, 2.0)
    canvas = ground + 45 * rough[:, :, None] * light / np.linalg.norm(light) + 30 * tint[:, :, None]
    y, x = np.mgrid[0:height, 0:width] / min(height, width)
    words = []
    for _ in range(int(rng.integers(2, 6))):
        hue, shape = int(rng.integers(len(COLOURS))), SHAPES[int(rng.integers(len(SHAPES)))]
        # A random turn, place and size; the edge is soft over a pixel or two.
        angle, radius = float(rng.uniform(0, np.pi)), float(rng.uniform(0.1, 0.38))
        v, u = (
            y - rng.uniform(0.1, height / min(height, width) - 0.1),
            x - rng.uniform(0.1, width / min(height, width) - 0.1),
        )
        inside = _shape(
            shape, (u * np.cos(angle) + v * np.sin(angle)) / radius, (v * np.cos(angle) - u * np.sin(angle)) / radius
        )
        cover = np.clip(inside * radius * min(height, width) / 2 + 0.5, 0, 1)[:, :, None]
        paint = _hue((hue + float(rng.uniform(-0.3, 0.3))) / len(COLOURS)) * rng.uniform(0.6, 1)
        canvas = canvas * (1 - cover) + cover * (paint + 18 * rng.normal() * rough[:, :, None])
        words.append(f"{COLOURS[hue]} {shape}")
    place = PLACES[int(rng.integers(len(PLACES)))]
    caption = f"{' and '.join(words)} on {place}, number {int(rng.integers(10**6))}"
    return np.clip(canvas, 0, 255).round().astype(np.uint8), caption


def _noise(rng: np.random.Generator, height: int, width: int, exponent: float) -> NDArray[np.float64]:
    """Noise [height width], mean 0, deviation 1, whose amplitude falls as 1 / frequency ** exponent (Field 1987)."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    waves = np.fft.rfft2(rng.normal(size=(height, width))) / frequency**exponent
    field = np.fft.irfft2(waves, s=(height, width))
    return np.asarray(field / field.std())


def _shape(name: str, u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far inside a shape of radius 1 the points (u, v) are; negative outside."""
    box = 1 - np.maximum(np.abs(u), np.abs(v))
    found: dict[str, NDArray[np.float64]] = {
        "disc": 1 - np.hypot(u, v),
        "square": box,
        "ring": 0.25 - np.abs(np.hypot(u, v) - 0.75),
        "bar": np.minimum(1 - np.abs(u), 0.22 - np.abs(v)),
        "triangle": np.minimum(0.5 + v, 0.5 - 0.5 * v - 0.866 * np.abs(u)),
        "cross": np.minimum(box, 0.25 - np.minimum(np.abs(u), np.abs(v))),
    }
    return found[name]


def _hue(turn: float) -> NDArray[np.float64]:
    """A bright colour [3], 0..255, at a place on the colour circle."""
    return np.asarray(255 * np.clip(np.abs((turn * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0.05, 1))


class _Folder:
    """An imagefolder being written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, object]] = []
        path.mkdir(parents=True)

    def add(self, image: Image, **columns: object) -> str:
        name = f"{len(self.rows):04d}.png"
        (self.path / name).write_bytes(images.encode(image, "png"))
        self.rows.append({"file_name": name, **columns})
        return name

    def close(self) -> None:
        write_metadata(self.path, self.rows)


def alter(image: Image, kind: str, rng: np.random.Generator, *, background: Image | None = None) -> Image:
    """A copy of `image` [h w 3] altered in one of the ways of ALTERATIONS, at a strength fixed there.

    background: what an inset is pasted into, of any size; without one, 1/f noise.
    """
    if kind not in ALTERATIONS:
        raise ValueError(f"no alteration {kind!r}; there are: {', '.join(ALTERATIONS)}")
    if kind == "inset":
        return _inset(image, rng, background)
    return ALTERATIONS[kind](image, rng)


def light_copy(image: Image, rng: np.random.Generator) -> Image:
    """A copy as a model makes it: blurred by 0.6 pixels, noise of 5/255, shifted by up to 4 pixels, JPEG 85."""
    for step in (_blur, _noisy, _shift):
        image = step(image, rng)
    return images.decode(images.encode(image, "jpeg", 85))


def _jpeg(image: Image, rng: np.random.Generator) -> Image:
    return images.decode(images.encode(image, "jpeg", 30))


def _crop(image: Image, rng: np.random.Generator) -> Image:
    """70 % of each side, anywhere, blown up to the size it came from."""
    height, width = image.shape[:2]
    rows, columns = max(1, round(0.7 * height)), max(1, round(0.7 * width))
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    return images.resize(image[top : top + rows, left : left + columns], (height, width), "bicubic")


def _flip(image: Image, rng: np.random.Generator) -> Image:
    return np.ascontiguousarray(image[:, ::-1])


def _colour(image: Image, rng: np.random.Generator) -> Image:
    """Brightness, contrast and saturation by up to 30 % each, hue by up to a tenth of the circle, never near zero."""
    from PIL import ImageEnhance

    picture = _pillow(image)
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        picture = enhancer(picture).enhance(1 + _either(rng, 0.15, 0.3))
    hsv = np.array(picture.convert("HSV"))
    hsv[:, :, 0] += np.uint8(round(_either(rng, 0.04, 0.1) * 256) % 256)
    return np.array(_pillow(hsv, "HSV").convert("RGB"))


def _overlay(image: Image, rng: np.random.Generator) -> Image:
    """A half see-through banner with letters across the image, and an opaque patch of 22 % of each side."""
    from PIL import Image as pillow
    from PIL import ImageDraw

    height, width = image.shape[:2]
    paint = tuple(int(value) for value in rng.integers(0, 256, 3))
    picture = _pillow(image)
    banner = pillow.new("RGB", picture.size, paint)
    top = int(rng.uniform(0.1, 0.7) * height)
    letters = "".join(chr(65 + int(letter)) for letter in rng.integers(0, 26, 8))
    ImageDraw.Draw(banner).text((width * 0.05, top), letters, fill="white", font_size=max(8, 0.16 * height))
    mask = np.zeros((height, width), np.uint8)
    mask[top : top + max(1, round(0.2 * height))] = 140
    picture.paste(banner, mask=pillow.fromarray(mask))
    rows, columns = max(1, round(0.22 * height)), max(1, round(0.22 * width))
    row, column = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    covered = np.array(picture)
    covered[row : row + rows, column : column + columns] = rng.integers(0, 256, 3)
    return covered


def _inset(image: Image, rng: np.random.Generator, background: Image | None = None) -> Image:
    """The image at 60 % of each side, pasted anywhere into another picture of its size."""
    height, width = image.shape[:2]
    if background is None:
        noise = np.stack([_noise(rng, max(height, 2), max(width, 2), 1.0) for _ in range(3)], axis=2)[:height, :width]
        background = np.clip(rng.uniform(60, 196, 3) + 40 * noise, 0, 255).astype(np.uint8)
    whole = images.resize(background, (height, width))
    small = images.resize(image, (max(1, round(0.6 * height)), max(1, round(0.6 * width))))
    rows, columns = small.shape[:2]
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    whole[top : top + rows, left : left + columns] = small
    return whole


def _blur(image: Image, rng: np.random.Generator) -> Image:
    from PIL import ImageFilter

    return np.array(_pillow(image).filter(ImageFilter.GaussianBlur(0.6)))


def _noisy(image: Image, rng: np.random.Generator) -> Image:
    return np.clip(image + rng.normal(0, 5, image.shape), 0, 255).round().astype(np.uint8)


def _shift(image: Image, rng: np.random.Generator) -> Image:
    """By one to four pixels each way; the edge that opens repeats the last row or column."""
    height, width = image.shape[:2]
    down, right = (int(rng.choice([-1, 1]) * rng.integers(1, 5)) for _ in range(2))
    rows, columns = np.clip(np.arange(height) - down, 0, height - 1), np.clip(np.arange(width) - right, 0, width - 1)
    return image[rows[:, None], columns[None, :]]


def _rotate(image: Image, rng: np.random.Generator) -> Image:
    """By 15 degrees either way; the corners that open are filled with the image's own corner colour."""
    from PIL import Image as pillow

    corner = tuple(int(value) for value in image[0, 0])
    angle = 15 * float(rng.choice([-1, 1]))
    return np.array(_pillow(image).rotate(angle, pillow.Resampling.BICUBIC, fillcolor=corner))


ALTERATIONS: dict[str, Callable[[Image, np.random.Generator], Image]] = {
    "jpeg": _jpeg,
    "crop": _crop,
    "flip": _flip,
    "colour": _colour,
    "overlay": _overlay,
    "inset": _inset,
    "rotate": _rotate,
    "blur": _blur,
    "noise": _noisy,
    "shift": _shift,
    "light_copy": light_copy,
}


def _either(rng: np.random.Generator, low: float, high: float) -> float:
    """A number of size low..high and of either sign."""
    return float(rng.choice([-1, 1]) * rng.uniform(low, high))


def _pillow(image: Image, mode: str = "RGB") -> Pillow.Image:
    from PIL import Image as pillow

    height, width = image.shape[:2]
    return pillow.frombytes(mode, (width, height), np.ascontiguousarray(image).tobytes())
