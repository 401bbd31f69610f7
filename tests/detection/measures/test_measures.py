"""The measures shelf: one contract for all its parts, a broken part that it rejects, and known values."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import pytest

from copyscope import parts
from copyscope.detection.measures import Item, Measure, complexity_view
from copyscope.imaging import images

NAMES = parts.names("measures")


@pytest.fixture
def noise() -> images.Image:
    return np.random.default_rng(np.random.SeedSequence(2)).integers(0, 256, (224, 224, 3), dtype=np.uint8)


def check_contract(make: Callable[[], Measure], image: images.Image) -> None:
    part = make()
    assert isinstance(part, Measure)
    assert part.unit
    assert part == make()  # a frozen dataclass: what it is made of is all it is
    assert hash(part) == hash(make())
    item = Item(image, ["a red fox", "a fox"], shared=2, near_shared=1)
    before = image.copy()
    value = part.measure(item)
    assert type(value) is float
    assert math.isfinite(value)
    assert value >= 0
    assert part.measure(item) == value
    np.testing.assert_array_equal(image, before)
    part.measure(Item(image[::-1].copy(), ["another"], 0, 0))
    assert part.measure(item) == value  # depends on that item alone
    blind = part.measure(Item(None, item.captions, 2, 1))
    assert math.isnan(blind) if part.needs_image else blind == value
    assert isinstance(part.measure(Item(image, [], 0, 0)), float)


@pytest.mark.parametrize("name", NAMES)
def test_contract(name: str, noise: images.Image) -> None:
    check_contract(lambda: parts.load("measures", name), noise)
    assert str(parts.load("measures", name)) == name


@dataclasses.dataclass(frozen=True)
class Forgetful(Measure):
    """Broken: a missing picture is a zero."""

    unit: ClassVar[str] = "grey levels"
    needs_image: ClassVar[bool] = True

    def measure(self, item: Item) -> float:
        return 0.0 if item.image is None else float(item.image.mean())


@dataclasses.dataclass(frozen=True)
class Remembering(Measure):
    """Broken: depends on what it saw before."""

    unit: ClassVar[str] = "grey levels"
    needs_image: ClassVar[bool] = True
    seen: list[float] = dataclasses.field(default_factory=list, compare=False, hash=False)

    def measure(self, item: Item) -> float:
        if item.image is None:
            return math.nan
        self.seen.append(float(item.image.mean()))
        return sum(self.seen)


@pytest.mark.parametrize("broken", [Forgetful, Remembering])
def test_the_contract_rejects_broken_parts(broken: type[Measure], noise: images.Image) -> None:
    with pytest.raises(AssertionError):
        check_contract(broken, noise)


def test_the_shelf_has_what_the_tables_name() -> None:
    assert NAMES == [
        "caption_length",
        "caption_uniqueness",
        "entropy",
        "jpeg_size",
        "mixed",
        "total_variation",
    ]


def measure(name: str, image: images.Image | None, captions: list[str] | None = None, *shared: int) -> float:
    return float(parts.load("measures", name).measure(Item(image, captions or [], *shared)))


def test_entropy_is_scipys_of_the_luma_histogram(noise: images.Image) -> None:
    from scipy.stats import entropy

    counts = np.histogram(images.luma(noise), bins=256, range=(0, 256))[0]
    assert measure("entropy", noise) == pytest.approx(entropy(counts), abs=1e-9)


def test_entropy_is_scikit_images(noise: images.Image) -> None:
    from skimage.measure import shannon_entropy

    assert measure("entropy", noise) == pytest.approx(shannon_entropy(images.luma(noise), base=math.e), abs=1e-9)


def test_entropy_of_known_pictures() -> None:
    flat = np.full((224, 224, 3), 77, dtype=np.uint8)
    ramp = np.repeat(np.tile(np.arange(256, dtype=np.uint8), (4, 1))[:, :, None], 3, axis=2)
    halves = np.zeros((10, 10, 3), dtype=np.uint8)
    halves[:5] = 255
    assert measure("entropy", flat) == 0
    assert measure("entropy", ramp) == pytest.approx(math.log(256))
    assert measure("entropy", halves) == pytest.approx(math.log(2))


def test_jpeg_size_is_pillows(noise: images.Image) -> None:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", quality=90)
    assert measure("jpeg_size", noise) == len(file.getvalue()) / 1024
    assert measure("jpeg_size", np.zeros_like(noise)) < 0.1 * measure("jpeg_size", noise)


def test_total_variation_by_loops() -> None:
    image = np.random.default_rng(np.random.SeedSequence(4)).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    expected = 0
    for row in range(5):
        for column in range(4):
            for channel in range(3):
                here = int(image[row, column, channel])
                expected += abs(here - int(image[row + 1, column, channel])) if row < 4 else 0
                expected += abs(here - int(image[row, column + 1, channel])) if column < 3 else 0
    assert measure("total_variation", image) == pytest.approx(1e-4 * expected)


def test_mixed_is_the_product(noise: images.Image) -> None:
    assert measure("mixed", noise) == pytest.approx(measure("entropy", noise) * math.sqrt(measure("jpeg_size", noise)))


def test_captions() -> None:
    assert measure("caption_length", None, ["a red  fox\n", "fox"]) == 2
    assert measure("caption_length", None, []) == 0
    assert measure("caption_uniqueness", None, ["fox"]) == 1
    assert measure("caption_uniqueness", None, ["fox"], 2, 1) == 0.25
    assert math.isnan(measure("caption_uniqueness", None, []))


def test_the_complexity_view(noise: images.Image) -> None:
    wide = images.resize(noise, (300, 500))
    view = complexity_view(wide)
    assert view.shape == (224, 224, 3)
    np.testing.assert_array_equal(view, images.centre_crop(images.resize_short(wide, 224), 224))
