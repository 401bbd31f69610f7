"""Random folders of images, captions and what lies beside them, with the right answer known."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.pictures import picture, write


@dataclasses.dataclass
class World:
    """A folder, and what is to be read of it.

    opened: path to open. images: file content -> captions, and whether their order counts not. weights: content ->
    weight. junk: names that the account must have among the unused.
    """

    opened: str
    images: dict[bytes, set[str]]
    weights: dict[bytes, float]
    junk: set[str]
    label: str = ""


_STEMS = ("a", "img 01", "v0.25", "v0.50", "café", "0001", "Übung", "x_y", "p-1", "IMG_2", "日本", "long name (1)")
_SUFFIXES = (".png", ".png", ".jpg", ".JPG", ".jpeg", ".webp")


def make(folder: Path, seed: int) -> World:
    """A folder of one of all layouts."""
    random = np.random.default_rng(seed)
    layout = random.choice(["plain", "plain", "plain", "kohya", "splits", "tar", "parquet", "arrow"])
    world = globals()[f"_{layout}"](folder, random)
    world.label = f"{seed}: {layout} {world.label}"
    return world


class _Maker:
    """Images of their own, by number."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random, self.n = random, int(random.integers(0, 200)) * 50

    def image(self) -> bytes:
        self.n += 1
        return picture(self.n)

    def chance(self, share: float) -> bool:
        return bool(self.random.random() < share)

    def pick(self, values):
        return values[int(self.random.integers(len(values)))]


def _named(maker: _Maker, folders: list[str], n: int) -> list[str]:
    """Paths of n images, no two with one stem in one folder."""
    found: dict[str, str] = {}
    number = 0
    while len(found) < n:
        stem = maker.pick(_STEMS) if maker.chance(0.5) else f"{number:04d}"
        number += 1
        if maker.chance(0.2):
            stem = unicodedata.normalize("NFD", stem)
        folder = maker.pick(folders)
        key = f"{folder}/{unicodedata.normalize('NFC', stem).casefold()}"
        if key not in found:
            found[key] = f"{folder}/{stem}{maker.pick(_SUFFIXES)}".lstrip("/")
    return list(found.values())


# Ways to write captions of images in files: (folder, {path: caption}, maker) -> None


def _beside(suffix: str, keep: bool = False, encoding: str = "utf-8"):
    def put(folder: Path, captions: dict[str, str], maker: _Maker) -> None:
        for path, caption in captions.items():
            stem = path if keep else path[: path.rindex(".")]
            write(folder, {stem + suffix: caption.encode(encoding)})

    return put


def _json_beside(folder: Path, captions: dict[str, str], maker: _Maker) -> None:
    for path, caption in captions.items():
        value = {maker.pick(["caption", "text", "captions"]): caption, "seed": 3}
        write(folder, {path[: path.rindex(".")] + ".json": json.dumps(value)})


def _key(path: str, maker: _Maker) -> str:
    name = unicodedata.normalize("NFC", path)
    return "/data/other machine/" + name if maker.chance(0.3) else name


def _captions_json(form: str):
    def put(folder: Path, captions: dict[str, str], maker: _Maker) -> None:
        keys = {_key(path, maker): caption for path, caption in captions.items()}
        name = "captions.json"
        if form == "stems":
            keys = {key[: key.rindex(".")]: caption for key, caption in keys.items()}
        found: object = keys
        if form == "list":
            found = [{maker.pick(["image", "file_name", "path"]): key, "caption": text} for key, text in keys.items()]
        elif form == "kohya":
            found, name = (
                {key: {"caption": text, "train_resolution": [9, 9]} for key, text in keys.items()},
                "meta_lat.json",
            )
        elif form == "coco":
            numbers = {key: number + 100 for number, key in enumerate(keys)}
            found = {
                "info": {},
                "images": [{"id": number, "file_name": key} for key, number in numbers.items()],
                "annotations": [
                    {"id": n, "image_id": numbers[key], "caption": keys[key]} for n, key in enumerate(keys)
                ],
            }
            name = "annotations/captions_all2017.json"
        elif form == "nan":
            found = keys | {next(iter(keys)): [keys[next(iter(keys))], float("nan")]}
        write(folder, {name: json.dumps(found)})

    return put


def _table(name: str, delimiter: str = ",", encoding: str = "utf-8"):
    def put(folder: Path, captions: dict[str, str], maker: _Maker) -> None:
        column, text = maker.pick(["file_name", "image", "filename"]), maker.pick(["caption", "text"])
        if name.lower().endswith("jsonl"):
            lines = [
                json.dumps({column: path, text: caption}, ensure_ascii=False) for path, caption in captions.items()
            ]
        else:
            lines = [delimiter.join([column, text])]
            lines += [f'"{path}"{delimiter}"{caption}"' for path, caption in captions.items()]
        write(folder, {name: "\n".join(lines).encode(encoding)})

    return put


_WAYS: dict[str, Callable[[Path, dict[str, str], _Maker], None]] = {
    "txt": _beside(".txt"),
    "TXT": _beside(".TXT"),
    "caption": _beside(".caption"),
    "png.txt": _beside(".txt", keep=True),
    "caption.txt": _beside(".caption.txt"),
    "utf-16": _beside(".txt", encoding="utf-16"),
    "bom": _beside(".txt", encoding="utf-8-sig"),
    "json beside": _json_beside,
    "paths": _captions_json("paths"),
    "stems": _captions_json("stems"),
    "list": _captions_json("list"),
    "kohya json": _captions_json("kohya"),
    "coco": _captions_json("coco"),
    "nan": _captions_json("nan"),
    "metadata.jsonl": _table("metadata.jsonl"),
    "Metadata.CSV": _table("Metadata.CSV"),
    "captions.csv": _table("captions.csv"),
    "semicolons": _table("list.csv", ";"),
    "tsv": _table("captions.tsv", "\t", "utf-16"),
    "jsonl": _table("all.jsonl"),
}
_OF_ONE = ("txt", "TXT", "caption", "png.txt", "caption.txt", "utf-16", "bom", "json beside")


def _files(folder: Path, maker: _Maker, folders: list[str], n: int, ways: list[str] | None = None) -> World:
    """Images in files, their captions written in one or two ways, and junk beside them."""
    paths = _named(maker, folders, n)
    world = World(str(folder), {}, {}, set())
    ways = ways or [maker.pick(list(_WAYS)) for _ in range(int(maker.random.integers(1, 3)))]
    if "paths" in ways or "stems" in ways or "list" in ways or "nan" in ways:
        ways = ways[:1]  # one file of that name
    by_way: dict[str, dict[str, str]] = {}
    for path in paths:
        content = maker.image()
        write(folder, {path: content})
        caption = f"caption {maker.n} of {unicodedata.normalize('NFC', path)}"
        world.images[content] = {caption}
        if maker.chance(0.1) and len(paths) > 3:
            world.images[content] = set()
            continue
        by_way.setdefault(maker.pick(ways), {})[path] = caption
    for way, captions in by_way.items():
        _WAYS[way](folder, captions, maker)
    world.label = "+".join(by_way)
    _junk(folder, maker, paths, world)
    return world


def _junk(folder: Path, maker: _Maker, paths: list[str], world: World) -> None:
    """What lies beside images and is none of them; `world.junk` is what the account has to name."""
    first = paths[0]
    stem = first[: first.rindex(".")]
    if maker.chance(0.3):
        for suffix in ("-masklabel.png", "_mask.png"):
            write(folder, {stem + suffix: maker.image()})
            world.junk.add(stem + suffix)
    if maker.chance(0.3):
        write(folder, {"._hidden.jpg": b"x", "__MACOSX/a.jpg": b"x"})
        world.junk |= {"._hidden.jpg", "__MACOSX/"}
    if maker.chance(0.3):
        write(folder, {"README.md": "x", "nobody knows.txt": "words", "config.json": '{"size": 3, "deep": {"a": [1]}}'})
        world.junk |= {"nobody knows.txt", "config.json"}
    if maker.chance(0.2):
        write(folder, {"broken.csv": "a,b\n1,2\n"})
        world.junk.add("broken.csv")


def _plain(folder: Path, random: np.random.Generator) -> World:
    maker = _Maker(random)
    folders = [[""], ["images"], ["cat", "dog"], ["", "deep/er"]][int(random.integers(4))]
    return _files(folder, maker, folders, int(random.integers(3, 9)))


def _kohya(folder: Path, random: np.random.Generator) -> World:
    maker = _Maker(random)
    repeats = {"20_sks dog": (20, "sks dog"), "3_a_b": (3, "a_b")}
    world = _files(folder, maker, list(repeats), 6, [maker.pick(_OF_ONE)])
    for path in folder.rglob("*"):
        if path.is_file() and path.read_bytes() in world.images:
            n, words = repeats[path.parent.name]
            world.weights[path.read_bytes()] = n
            world.images[path.read_bytes()] = world.images[path.read_bytes()] or {words}
    return world


def _splits(folder: Path, random: np.random.Generator) -> World:
    maker = _Maker(random)
    names = [["train", "test"], ["train2017", "val2017"], ["data/train", "data/validation"]][int(random.integers(3))]
    world = _files(folder, maker, names, 8, [maker.pick([*_OF_ONE, "metadata.jsonl", "coco", "paths"])])
    chosen = "train" if any((folder / names[0]).iterdir() if (folder / names[0]).exists() else []) else "test"
    kept = {path.read_bytes() for path in (folder / names[0]).rglob("*")} if (folder / names[0]).exists() else set()
    if kept & world.images.keys() and len({*world.images} - kept):
        world.images = {content: captions for content, captions in world.images.items() if content in kept}
        world.opened += f"@{chosen}"
    return world


def _rows(maker: _Maker, n: int) -> tuple[list[bytes], list[str]]:
    return [maker.image() for _ in range(n)], [f"caption {maker.n + number}" for number in range(n)]


def _tar(folder: Path, random: np.random.Generator) -> World:
    maker = _Maker(random)
    world = World(str(folder), {}, {}, set())
    members: dict[str, bytes] = {}
    for path in _named(maker, ["", "part"], int(random.integers(3, 8))):
        path = unicodedata.normalize("NFC", path)
        content, stem, caption = maker.image(), path[: path.rindex(".")], f"caption {maker.n}"
        form = maker.pick([".txt", ".caption", ".json", ".caption.txt", ".captions.json", ".prompt", ""])
        members[stem + maker.pick([".png", ".image", ".img", ".jpg"])] = content
        if form == ".json":
            members[stem + form] = json.dumps({"caption": caption, "weight": 2}).encode()
            world.weights[content] = 2
        elif form == ".captions.json":
            members[stem + form] = json.dumps([caption]).encode()
        elif form:
            members[stem + form] = caption.encode()
        world.images[content] = {caption} if form else set()
    if maker.chance(0.4):
        pair = [maker.image(), maker.image()]
        members |= {"pair.left.png": pair[0], "pair.right.png": pair[1], "pair.json": b'{"caption": "both"}'}
        world.images |= {image: {"both"} for image in pair}
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    suffix, data = ".tar", file.getvalue()
    if packing := maker.pick([None, None, "gzip", "zstd"]):
        suffix = {"gzip": ".tar.gz", "zstd": ".tar.zst"}[packing]
        data = pa.compress(data, packing, asbytes=True)
    write(folder, {"shard-000" + suffix: data})
    world.label = suffix
    return world


def _table_of(maker: _Maker, world: World, n: int, listed: bool) -> pa.Table:
    images, captions = _rows(maker, n)
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    cells = [{"bytes": image, "path": f"{number}.png"} for number, image in enumerate(images)]
    world.images |= {image: {caption} for image, caption in zip(images, captions, strict=True)}
    if listed:
        more = maker.image()
        world.images[more] = {captions[0]}
        column = pa.array(
            [[cells[0], {"bytes": more, "path": "more.png"}], *([cell] for cell in cells[1:])], pa.list_(struct)
        )
    else:
        column = pa.array(cells, struct)
    return pa.table({"images" if listed else "image": column, "text": captions})


def _parquet(folder: Path, random: np.random.Generator) -> World:
    maker, world = _Maker(random), World(str(folder), {}, {}, set())
    (folder / "data").mkdir(parents=True)
    pq.write_table(_table_of(maker, world, 4, maker.chance(0.4)), folder / "data" / "train-00000-of-00001.parquet")
    if maker.chance(0.5):
        other = World("", {}, {}, set())
        pq.write_table(_table_of(maker, other, 2, False), folder / "data" / "test-00000-of-00001.parquet")
        world.opened += "@train"
        world.junk.add("data/test-00000-of-00001.parquet")
    return world


def _arrow(folder: Path, random: np.random.Generator) -> World:
    maker, world = _Maker(random), World(str(folder), {}, {}, set())
    folder.mkdir(parents=True, exist_ok=True)
    table = _table_of(maker, world, 4, maker.chance(0.3))
    with (
        pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as out,
    ):
        out.write_table(table, 2)
    write(folder, {"state.json": "{}", "dataset_info.json": "{}"})
    return world
