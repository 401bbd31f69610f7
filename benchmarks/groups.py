"""Which near-duplicates are grouped, and which look-alikes are merged, before and after the pixels are asked.

    copyscope fetch fluent-emoji
    copyscope fetch photographs
    apt-get download openclipart-png && dpkg-deb -x openclipart-png_*.deb clip-art     # --clip-art clip-art; optional
    python benchmarks/groups.py

Recall: of sources with one altered copy each, how many pairs are one group. Sources: tiles of the photographs, emoji
and clip-art. *Families*: emoji that differ in skin tone alone: how many are in one group with the first of the family,
and how many in one with an emoji of another name. *Wrongly grouped*: of twelve different pictures of a kind, each with
a recompressed copy, how many are in a group with another one. Thresholds were set on the kinds of `look_alikes.py` and
some of `fresh_look_alikes.py`, none on those of `later_look_alikes.py`. *Before* is the descriptor alone, *after* the
pixels too (`duplicates(verify=None)` and `duplicates()`).
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from copyscope.data import assets
from copyscope.data.corpus import Corpus
from copyscope.detection.dedup.groups import Groups, duplicates
from copyscope.detection.embedding.embed import embed
from copyscope.detection.embedding.protocols import protocol
from copyscope.errors import ImageError
from copyscope.imaging import images
from copyscope.stats import proportion
from fresh_look_alikes import FRESH
from later_look_alikes import LATER
from look_alikes import LOOK_ALIKES
from record import record

TILE = 320
Picture = Image.Image
Rows = Iterator[tuple[str, dict[str, dict[str, Any]]]]


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
    "resize 50 %": lambda picture, _: picture.resize(
        (picture.width // 2, picture.height // 2), Image.Resampling.BICUBIC
    ),
    "crop 80 %": lambda picture, rng: cropped(picture, 0.8, rng),
    "mirror": lambda picture, _: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "quarter turn": lambda picture, _: recompressed(picture.transpose(Image.Transpose.ROTATE_90), 90),
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
    found = tries = 0
    while found < n:
        # A photograph may have no tile that will do: take the next one whatever came of this.
        picture = pictures[tries % len(pictures)]
        tries += 1
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


def clip_art(folder: Path, rng: np.random.Generator, n: int) -> Iterator[Picture]:
    """Pictures of Debian's openclipart-png, neither flags, icons nor shapes."""
    paths = [path for path in sorted(folder.rglob("*.png")) if not {"flags", "icons", "shapes"} & set(path.parts)]
    found = 0
    for at in rng.permutation(len(paths)).tolist():
        try:
            picture = images.decode(paths[at])
        except ImageError:
            continue
        if found == n:
            break
        if min(picture.shape[:2]) >= 64 and not images.is_blank(picture):
            found += 1
            yield Image.fromarray(np.ascontiguousarray(images.resize_short(picture, min(TILE, *picture.shape[:2]))))


class Grouping:
    """Groups by the descriptor alone and by the pixels too; pictures seen before are in the cache."""

    def __init__(self, name: str, cache: Path) -> None:
        self.rules, self.cache = protocol(name), cache
        self.descriptor = self.rules.load()

    def __call__(self, corpus: Corpus) -> dict[str, dict[str, int]]:
        """Group of each image by its stem, "before" and "after"."""
        described = embed(corpus, self.descriptor, cache=self.cache)
        found = {}
        for when, options in (("before", {"verify": None}), ("after", {})):
            groups: Groups = duplicates(described, self.rules.duplicates, cache=self.cache, **options)
            ids = groups.corpus.pick("id", groups.rows).to_pylist()
            found[when] = {Path(name).stem: int(group) for name, group in zip(ids, groups.label, strict=True)}
        return found


def pairs_and_strangers(
    grouping: Grouping, sources: list[Picture], copies: list[Picture]
) -> dict[str, dict[str, float | int | None]]:
    """Shares of sources that are in one group with their copy, and with another source: before and after."""
    with tempfile.TemporaryDirectory() as folder:
        for number, (picture, copy) in enumerate(zip(sources, copies, strict=True)):
            picture.save(Path(folder) / f"{number}.png")
            copy.save(Path(folder) / f"{number}-copy.png")
        found = grouping(Corpus.open(folder))
    row = {}
    for when, group in found.items():
        labels = [group[str(number)] for number in range(len(sources))]
        together = sum(label == group[f"{number}-copy"] for number, label in enumerate(labels))
        wrong = sum(labels.count(label) > 1 for label in labels)
        row[f"recall_{when}"] = proportion(together, len(sources)).as_dict()
        row[f"wrongly_grouped_{when}"] = proportion(wrong, len(sources)).as_dict()
    return row


def look_alikes(grouping: Grouping, kinds: dict[str, Any], n: int, seed: int) -> Rows:
    """Different pictures of one kind, each with a copy at three quarters of the size, JPEG 40."""
    for kind, make in kinds.items():
        drawn = (make(np.random.default_rng([seed, number])) for number in itertools.count())
        # Two seeds may draw the same number or letters.
        pictures = list(itertools.islice(_distinct(drawn), n))
        small = [
            each.resize((each.width * 3 // 4, each.height * 3 // 4), Image.Resampling.BICUBIC) for each in pictures
        ]
        yield kind, pairs_and_strangers(grouping, pictures, [recompressed(each, 40) for each in small])


def _distinct(pictures: Iterable[Picture]) -> Iterator[Picture]:
    seen = set()
    for picture in pictures:
        if picture.tobytes() not in seen:
            seen.add(picture.tobytes())
            yield picture


def altered(grouping: Grouping, sources: list[Picture], seed: int) -> Rows:
    for kind, alter in ALTERATIONS.items():
        rng = np.random.default_rng([seed, 1])
        yield kind, pairs_and_strangers(grouping, sources, [alter(picture, rng) for picture in sources])


def families(grouping: Grouping, n: int, seed: int) -> Rows:
    """Emoji of n families of several members, and all clocks; a family is a name without its skin tone."""
    corpus = Corpus.open(assets.fetch("fluent-emoji"))
    base, label = (corpus.table[name].to_pylist() for name in ("base", "label"))
    several = sorted({name for name in base if base.count(name) > 1})
    chosen = {several[at] for at in np.random.default_rng(seed).permutation(len(several))[:n].tolist()}
    parts = {
        "skin tones": [row for row, name in enumerate(base) if name in chosen],
        "clocks": [row for row, name in enumerate(label) if "o’clock" in name or "-thirty" in name],
    }
    for part, rows in parts.items():
        few = corpus.take(rows)
        family = {Path(few.ids[at]).stem: base[row] for at, row in enumerate(rows)}
        found, row = grouping(few), {}
        for when, group in found.items():
            stems = sorted(family)
            pairs = [(one, other) for at, one in enumerate(stems) for other in stems[:at]]
            first = {family[stem]: stem for stem in reversed(stems)}
            own = [group[stem] == group[first[family[stem]]] for stem in stems if stem != first[family[stem]]]
            wrong = {
                stem
                for one, other in pairs
                if family[one] != family[other] and group[one] == group[other]
                for stem in (one, other)
            }
            row[f"wrongly_grouped_{when}"] = proportion(len(wrong), len(stems)).as_dict()
            if own:
                row[f"recall_{when}"] = proportion(sum(own), len(own)).as_dict()
        yield part, row


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--protocol", default="sscd-distilled")
    arguments.add_argument("-n", type=int, default=30, help="sources of each kind")
    arguments.add_argument("--look-alikes", type=int, default=12, help="different pictures of each kind")
    arguments.add_argument("--clip-art", type=Path, help="folder with openclipart-png")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--only", nargs="*", help="parts to run; then nothing is recorded")
    given = arguments.parse_args()
    rng = np.random.default_rng(given.seed)
    began = time.process_time()
    sources = {"photographs": list(tiles(rng, given.n)), "emoji": list(emoji(rng, given.n))}
    if given.clip_art:
        sources["clip-art"] = list(clip_art(given.clip_art, rng, given.n))
    with tempfile.TemporaryDirectory() as cache:
        grouping = Grouping(given.protocol, Path(cache))
        parts = {
            "look_alikes": look_alikes(grouping, LOOK_ALIKES, given.look_alikes, given.seed),
            "fresh_look_alikes": look_alikes(grouping, FRESH, given.look_alikes, given.seed),
            "later_look_alikes": look_alikes(grouping, LATER, given.look_alikes, given.seed),
            **{name: altered(grouping, pictures, given.seed) for name, pictures in sources.items()},
            "families": families(grouping, 2 * given.n, given.seed),
        }
        found: dict[str, Any] = {"protocol": given.protocol, "seed": given.seed}
        for part, rows in parts.items():
            if given.only and part not in given.only:
                continue
            found[part] = {}
            for kind, row in rows:
                found[part][kind] = row
                print(f"{time.process_time() - began:4.0f} s", part, kind, *map(_counted, row.items()), flush=True)
            found[part]["all"] = _summed(found[part].values())
            print(part, *map(_counted, found[part]["all"].items()), flush=True)
    found["processor_seconds"] = round(time.process_time() - began)
    if not given.only:
        record("groups", found, show=False)


def _summed(rows: Iterable[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Counts of all rows together."""
    found: dict[str, list[tuple[int, int]]] = {}
    for row in rows:
        for name, share in row.items():
            found.setdefault(name, []).append((round(share["value"] * share["n"]), share["n"]))
    return {name: proportion(*np.sum(counts, axis=0).tolist()).as_dict() for name, counts in found.items()}


def _counted(item: tuple[str, dict[str, Any]]) -> str:
    name, share = item
    return f"{name} {round(share['value'] * share['n'])}/{share['n']}"


if __name__ == "__main__":
    main()
