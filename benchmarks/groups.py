"""Which near-duplicates are grouped, and which look-alikes are merged, before and after the pixels are asked.

    copyscope fetch fluent-emoji
    copyscope fetch photographs
    python benchmarks/groups.py            # about 15 minutes on two cores

Recall: of sources with one altered copy each, how many pairs are one group. Sources: tiles of the photographs, emoji,
and the pictures of look_alikes.py. Merges: of pairs of different pictures of one kind, how many are one group. *Before*
is the descriptor alone, *after* the pixels too (`duplicates(verify=None)` and `duplicates()`).

Expect no merges after, and every plain alteration of a photograph (JPEG 60, resize, crop to 80 %, mirror, quarter
turn, grey) at a recall of 0.9 or more; watermarks and signs laid over are lost in part: a template with another text
looks the same way.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from copyscope import assets, images
from copyscope.copying.duplicates import Groups, duplicates
from copyscope.copying.embed import embed
from copyscope.copying.protocols import protocol
from copyscope.corpus import Corpus
from look_alikes import LOOK_ALIKES

TILE = 320
Picture = Image.Image


def recompressed(picture: Picture, quality: int) -> Picture:
    return Image.fromarray(images.decode(images.encode(np.array(picture), "jpeg", quality)))


def cropped(picture: Picture, share: float, rng: np.random.Generator) -> Picture:
    width, height = round(share * picture.width), round(share * picture.height)
    left = int(rng.integers(picture.width - width + 1))
    top = int(rng.integers(picture.height - height + 1))
    return picture.crop((left, top, left + width, top + height))


def watermarked(picture: Picture, _: np.random.Generator) -> Picture:
    layer = Image.new("RGBA", picture.size)
    place = (picture.width * 0.15, picture.height * 0.45)
    ImageDraw.Draw(layer).text(place, "SAMPLE", fill=(255, 255, 255, 110), font_size=picture.width // 7)
    return Image.alpha_composite(picture.convert("RGBA"), layer).convert("RGB")


def signed(picture: Picture, _: np.random.Generator) -> Picture:
    picture = picture.copy()
    draw = ImageDraw.Draw(picture)
    draw.rectangle([picture.width * 0.8, picture.height * 0.93, picture.width, picture.height], fill="white")
    return picture


def bordered(picture: Picture, _: np.random.Generator) -> Picture:
    framed = Image.new("RGB", (picture.width + 40, picture.height + 40), "white")
    framed.paste(picture, (20, 20))
    return framed


Alteration = Callable[[Picture, np.random.Generator], Picture]
ALTERATIONS: dict[str, Alteration] = {
    "jpeg 60": lambda picture, _: recompressed(picture, 60),
    "jpeg 30": lambda picture, _: recompressed(picture, 30),
    "resize 50 %": lambda picture, _: picture.resize(
        (picture.width // 2, picture.height // 2), Image.Resampling.BICUBIC
    ),
    "crop 80 %": lambda picture, rng: cropped(picture, 0.8, rng),
    "squeezed": lambda picture, _: picture.resize((256, 192), Image.Resampling.BICUBIC),
    "mirror": lambda picture, _: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "quarter turn": lambda picture, _: recompressed(picture.transpose(Image.Transpose.ROTATE_90), 90),
    "half turn": lambda picture, _: recompressed(picture.transpose(Image.Transpose.ROTATE_180), 90),
    "grey": lambda picture, _: picture.convert("L").convert("RGB"),
    "brighter": lambda picture, _: Image.eval(picture, lambda level: min(255, round(level * 1.15 + 8))),
    "border": bordered,
    "watermark": watermarked,
    "sign": signed,
}


def tiles(rng: np.random.Generator, n: int) -> Iterator[Picture]:
    """Tiles of photographs, one a photograph in turn, that are not nearly flat."""
    photographs = sorted(Path(assets.fetch("photographs")).rglob("*.jpg"))
    pictures = [images.resize_short(images.decode(path), 2 * TILE) for path in photographs]
    found = 0
    while found < n:
        picture = pictures[found % len(pictures)]
        top, left = (int(rng.integers(side - TILE + 1)) for side in picture.shape[:2])
        tile = picture[top : top + TILE, left : left + TILE]
        if tile.std() > 20:
            found += 1
            yield Image.fromarray(np.ascontiguousarray(tile))


def emoji(rng: np.random.Generator, n: int) -> Iterator[Picture]:
    """Emoji of different families."""
    corpus = Corpus.open(assets.fetch("fluent-emoji"))
    bases = corpus.table["base"].to_pylist()
    first = sorted({base: row for row, base in reversed(list(enumerate(bases)))}.values())
    for row in rng.permutation(first)[:n].tolist():
        yield Image.fromarray(images.decode(corpus.read(row)))


def grouped(folder: Path, name: str) -> dict[str, dict[str, int]]:
    """Group of each image, by its stem, before and after; and seconds."""
    rules = protocol(name)
    described = embed(Corpus.open(folder), rules.load(), cache=folder / ".cache")
    found = {}
    for when, options in (("before", {"verify": None}), ("after", {})):
        began = time.perf_counter()
        groups: Groups = duplicates(described, rules.duplicates, cache=folder / ".cache", **options)
        ids = groups.corpus.pick("id", groups.rows).to_pylist()
        found[when] = {Path(name).stem: int(group) for name, group in zip(ids, groups.label, strict=True)}
        found[when]["seconds"] = round(time.perf_counter() - began, 1)
    return found


def recall(sources: list[Picture], name: str, seed: int) -> Iterator[dict[str, object]]:
    for kind, alter in ALTERATIONS.items():
        rng = np.random.default_rng([seed, 1])
        with tempfile.TemporaryDirectory() as folder:
            for number, picture in enumerate(sources):
                picture.save(Path(folder) / f"{number}.png")
                alter(picture, rng).save(Path(folder) / f"{number}-copy.png")
            found = grouped(Path(folder), name)
        row: dict[str, object] = {"kind": kind, "n": len(sources)}
        for when, group in found.items():
            together = [group[str(number)] == group[f"{number}-copy"] for number in range(len(sources))]
            strange = [group[str(one)] == group[str(other)] for one in range(len(sources)) for other in range(one)]
            row |= {f"recall_{when}": float(np.mean(together)), f"strangers_merged_{when}": int(np.sum(strange))}
        yield row


def merges(name: str, n: int, seed: int) -> Iterator[dict[str, object]]:
    for kind, make in LOOK_ALIKES.items():
        with tempfile.TemporaryDirectory() as folder:
            for number in range(n):
                picture = make(np.random.default_rng([seed, number]))
                picture.save(Path(folder) / f"{number}.png")
                small = picture.resize((picture.width * 3 // 4, picture.height * 3 // 4), Image.Resampling.BICUBIC)
                recompressed(small, 40).save(Path(folder) / f"{number}-copy.png")
            found = grouped(Path(folder), name)
        row: dict[str, object] = {"kind": kind, "n": n}
        for when, group in found.items():
            pairs = [group[str(one)] == group[str(other)] for one in range(n) for other in range(one)]
            together = [group[str(number)] == group[f"{number}-copy"] for number in range(n)]
            row |= {f"merged_{when}": float(np.mean(pairs)), f"recall_{when}": float(np.mean(together))}
            row |= {f"seconds_{when}": group["seconds"]}
        yield row


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--protocol", default="sscd-distilled")
    arguments.add_argument("-n", type=int, default=40, help="sources of each kind")
    arguments.add_argument("--look-alikes", type=int, default=12, help="different pictures of each kind")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--out", type=Path)
    given = arguments.parse_args()
    rng = np.random.default_rng(given.seed)
    result: dict[str, object] = {"protocol": given.protocol, "n": given.n, "seed": given.seed}
    parts = {
        "look_alikes": merges(given.protocol, given.look_alikes, given.seed),
        "photographs": recall(list(tiles(rng, given.n)), given.protocol, given.seed),
        "emoji": recall(list(emoji(rng, given.n)), given.protocol, given.seed),
    }
    for part, rows in parts.items():
        result[part] = []
        for row in rows:
            print(
                part,
                *(f"{key} {value:.2f}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()),
            )
            result[part].append(row)  # type: ignore[attr-defined]
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
