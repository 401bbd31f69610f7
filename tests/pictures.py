"""Small image files for tests."""

from __future__ import annotations

import functools
from io import BytesIO
from pathlib import Path

from PIL import Image


@functools.cache
def picture(number: int = 0, format: str = "PNG") -> bytes:
    """The bytes of a 5 x 4 picture in one colour of its own, but for two black columns: it is not blank."""
    file = BytesIO()
    image = Image.new("RGB", (5, 4), (number % 256, number // 256 % 256, 99))
    image.paste((0, 0, 0), (3, 0, 5, 4))
    image.save(file, format)
    return file.getvalue()


def write(folder: Path, files: dict[str, bytes | str]) -> Path:
    """Writes files by relative path, text as UTF-8."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def fill(folder: Path, *names: str) -> Path:
    """Writes a picture of its own under each name."""
    return write(folder, {name: picture(number) for number, name in enumerate(names)})
