"""How many altered copies of real pictures an audit finds, and how many others it takes for copies.

    python benchmarks/altered.py           about a minute on two cores

The generated set is known to the last image: half are altered copies of training images, the others were never trained
on. The pictures come from `copyscope fetch fluent-emoji`, or from any other imagefolder with `captions` and a `base`:
the family of an image, whose members differ in skin tone or gender.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import worlds
from copyscope.errors import InputError
from copyscope.imaging import images
from copyscope.stats import Estimate, proportion

SOURCE = "fluent-emoji"
KINDS = ("crop", "jpeg", "flip", "colour", "overlay", "inset")
SCHEMA = "copyscope.altered/1"
# Two families go to the same side if the thumbnails of their first pictures correlate at least this much.
ALIKE = 0.85
THUMBNAIL = 24


@dataclasses.dataclass(frozen=True)
class Altered:
    """Three folders and what is true of them.

    source: generated id -> the training id it was copied from, None for images never trained on. kind: generated id ->
    the alteration, "" for those. family: training id -> its family.
    """

    folder: Path
    source: dict[str, str | None]
    kind: dict[str, str]
    family: dict[str, str]

    @property
    def train(self) -> Path:
        return self.folder / "train"

    @property
    def held_out(self) -> Path:
        return self.folder / "held-out"

    @property
    def generated(self) -> Path:
        return self.folder / "generated"

    @classmethod
    def load(cls, folder: Path) -> Altered:
        """What `build` wrote into `folder`. Raises InputError if there is none."""
        try:
            truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
            return cls(folder, truth["source"], truth["kind"], truth["family"])
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f"{folder} was not made here.\nName an empty folder") from None


@dataclasses.dataclass(frozen=True)
class _Picture:
    file: Path
    row: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.row["file_name"])

    @property
    def family(self) -> str:
        return str(self.row["base"])


def build(
    folder: Path,
    source: Path,
    *,
    seed: int = 0,
    n_train: int = 2600,
    n_held_out: int = 300,
    n_generated: int = 240,
    copies: float = 0.5,
    largest_crowd: int = 300,
) -> Altered:
    """Writes `train/`, `held-out/`, `generated/` (imagefolders) and, last, `truth.json` into `folder`.

    source: the folder of `fetch("fluent-emoji")`. copies: share of `n_generated` that are altered copies, KINDS in
    equal numbers, each of another training image where there are enough. The three sides share no crowd (families that
    look alike, see `_crowds`). Held-out and unseen images are one of each crowd, drawn alike, so that they differ in
    nothing but their use; the training set takes up to `largest_crowd` of each of its own. Sizes shrink in proportion
    where the source is too small. The same arguments give the same bytes; a set made with the same arguments is kept.
    Raises InputError if the source is no such folder or `folder` holds something else.
    """
    recipe = {
        "schema": SCHEMA, "seed": seed, "n_train": n_train, "n_held_out": n_held_out, "n_generated": n_generated,
        "copies": copies, "largest_crowd": largest_crowd,
    }  # fmt: skip
    if _recipe(folder) == recipe:
        return Altered.load(folder)
    if folder.exists() and not (folder / "truth.json").exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty and holds no such set.\nName another folder")
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    n_copies = round(copies * n_generated)
    sizes = (n_train, n_held_out, n_generated - n_copies)
    train, held_out, unseen, rest = _split(_crowds(_read(source)), sizes, largest_crowd, rng)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        work = Path(temporary)
        _copy_files(work / "train", train)
        _copy_files(work / "held-out", held_out)
        truth = _generate(work / "generated", train, unseen, rest, n_copies, seed)
        truth |= {"recipe": recipe, "family": {picture.id: picture.family for picture in train}}
        (work / "truth.json").write_text(json.dumps(truth, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        folder.mkdir(exist_ok=True)
        (folder / "truth.json").unlink(missing_ok=True)
        for name in ("train", "held-out", "generated", "truth.json"):
            shutil.rmtree(folder / name, ignore_errors=True)
            os.replace(work / name, folder / name)
    return Altered.load(folder)


def score(made: Altered, summary: dict[str, Any]) -> dict[str, Any]:
    """How well the `copies` of an audit's summary agree with what is true of the set; every number an Estimate.

    precision: of the flagged images, those that are copies and were matched to a member of their source's family.
    recall: of the copies, those so found; `recall_by_kind`: the same for each alteration. false_alarms: of the images
    never trained on, those flagged. misattributed: of the copies flagged, those matched to another family.
    """
    flagged = {str(copy["id"]): str(copy["match"]) for copy in summary["copies"]}
    unknown = sorted(flagged.keys() - made.source.keys())
    if unknown:
        raise InputError(f"The audit is not of this set: it flags {unknown[0]!r}.\nAudit {made.generated}")
    copied = [name for name, origin in made.source.items() if origin is not None]
    hits = {name for name in copied if name in flagged and _same_family(made, flagged[name], made.source[name])}
    n_copied_flagged = sum(name in flagged for name in copied)
    by_kind: dict[str, Estimate] = {}
    for kind in sorted({made.kind[name] for name in copied}):
        of_kind = [name for name in copied if made.kind[name] == kind]
        by_kind[kind] = proportion(sum(name in hits for name in of_kind), len(of_kind))
    return {
        "precision": proportion(len(hits), len(flagged)),
        "recall": proportion(len(hits), len(copied)),
        "recall_by_kind": by_kind,
        "false_alarms": proportion(len(flagged) - n_copied_flagged, len(made.source) - len(copied)),
        "misattributed": proportion(n_copied_flagged - len(hits), n_copied_flagged),
    }


def _same_family(made: Altered, match: str, source: str | None) -> bool:
    return source is not None and made.family.get(match) == made.family[source]


def _recipe(folder: Path) -> Any:
    try:
        return json.loads((folder / "truth.json").read_text(encoding="utf-8")).get("recipe")
    except (OSError, ValueError, AttributeError):
        return None


def _read(source: Path) -> list[_Picture]:
    """The rows of the source's metadata that have a caption and a family, in order."""
    try:
        with open(source / "metadata.jsonl", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file if line.strip()]
        found = [_Picture(source / row["file_name"], row) for row in rows if row["captions"] and row["base"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{source} has no metadata.jsonl with file_name, captions and base: {error}.\n"
            "Get the pictures with: copyscope fetch fluent-emoji"
        ) from None
    if not found:
        raise InputError(f"{source} has no pictures with captions and a base.\nUse another source")
    return found


def _crowds(pictures: Sequence[_Picture]) -> list[list[_Picture]]:
    """The pictures in crowds: families joined, directly or through others, by first pictures that look alike.

    The twenty-four clock faces are a crowd, and so are most yellow faces. The rule compares small thumbnails and asks
    no descriptor, so that what is to be tested does not decide what is true.
    """
    from scipy.sparse.csgraph import connected_components

    families: dict[str, list[_Picture]] = {}
    for picture in pictures:
        families.setdefault(picture.family, []).append(picture)
    first = [members[0].file for members in families.values()]
    n_crowds, crowd = connected_components(_thumbnail_correlations(first) >= ALIKE, directed=False)
    crowds: list[list[_Picture]] = [[] for _ in range(n_crowds)]
    for index, members in zip(crowd, families.values(), strict=True):
        crowds[index] += members
    return crowds


def _thumbnail_correlations(files: Sequence[Path]) -> NDArray[np.float64]:
    """Correlation [n n] of the pictures' thumbnails on white, each colour channel about its own mean."""
    pixels = np.empty((len(files), THUMBNAIL * THUMBNAIL, 3))
    for index, file in enumerate(files):
        pixels[index] = images.resize(images.decode(file), (THUMBNAIL, THUMBNAIL)).reshape(-1, 3)
    centred = (pixels - pixels.mean(axis=1, keepdims=True)).reshape(len(files), -1)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-9)
    return np.asarray(centred @ centred.T)


def _split(
    crowds: list[list[_Picture]], sizes: tuple[int, int, int], largest_crowd: int, rng: np.random.Generator
) -> list[list[_Picture]]:
    """Pictures of disjoint crowds: for training, held out, unseen; and one of each crowd left over."""
    order = [crowds[index] for index in rng.permutation(len(crowds))]
    # The last two sizes take one crowd a picture: half of the crowds at most. Training fills itself from the others.
    usable = sum(min(len(crowd), largest_crowd) for crowd in order)
    scale = min(1.0, len(order) / 2 / max(1, sizes[1] + sizes[2]), usable / max(1, sum(sizes)))
    n_train, n_held_out, n_unseen = (int(scale * size) for size in sizes)
    alone = [crowd[int(rng.integers(len(crowd)))] for crowd in order[: n_held_out + n_unseen]]
    train: list[_Picture] = []
    left: list[_Picture] = []
    for crowd in order[n_held_out + n_unseen :]:
        if len(train) < n_train:
            chosen = np.sort(rng.permutation(len(crowd))[: min(largest_crowd, n_train - len(train))])
            train += [crowd[index] for index in chosen]
        else:
            left.append(crowd[0])
    if min(len(train), n_held_out, n_unseen) == 0:
        raise InputError(f"{len(crowds)} crowds of pictures are too few for a made.\nUse another source")
    return [train, alone[:n_held_out], alone[n_held_out:], left]


def _copy_files(folder: Path, pictures: Sequence[_Picture]) -> None:
    """An imagefolder of the pictures as they are, with all that their metadata says."""
    for picture in pictures:
        target = folder / picture.id
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture.file, target)
    worlds.write_metadata(folder, [picture.row for picture in pictures])


def _generate(
    folder: Path,
    train: Sequence[_Picture],
    unseen: Sequence[_Picture],
    rest: Sequence[_Picture],
    n_copies: int,
    seed: int,
) -> dict[str, Any]:
    """Writes the generated set as PNG, copies and unseen images in random order, and returns its truth."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 1]))
    copied: list[_Picture] = []
    while len(copied) < n_copies:
        copied += [train[index] for index in rng.permutation(len(train))[: n_copies - len(copied)]]
    jobs = [(picture, KINDS[index % len(KINDS)]) for index, picture in enumerate(copied)]
    jobs += [(picture, "") for picture in unseen]
    order = rng.permutation(len(jobs))
    folder.mkdir()
    rows: list[dict[str, object]] = []
    truth: dict[str, Any] = {"source": {}, "kind": {}}
    streams = np.random.SeedSequence([seed, 2]).spawn(len(jobs))
    for place, (job, stream) in enumerate(zip(order, streams, strict=True)):
        picture, kind = jobs[job]
        image, own = images.decode(picture.file), np.random.default_rng(stream)
        if kind:
            # What an inset is pasted into is used nowhere else, so that it is no copy itself.
            other = images.decode(rest[int(own.integers(len(rest)))].file) if rest and kind == "inset" else None
            image = worlds.alter(image, kind, own, background=other)
        name = f"{place:04d}.png"
        (folder / name).write_bytes(images.encode(image, "png"))
        rows.append({"file_name": name, "prompt": picture.row["captions"][0]})
        truth["source"][name], truth["kind"][name] = (picture.id if kind else None), kind
    worlds.write_metadata(folder, rows)
    return truth


def main() -> None:
    """Builds the set in a temporary folder, audits it, records what was found."""
    from copyscope.data import assets
    from copyscope.detection.audit import audit
    from record import record

    with tempfile.TemporaryDirectory() as temporary:
        made = build(Path(temporary) / "set", assets.fetch(SOURCE))
        found = score(made, audit(made.generated, made.train, made.held_out).summary)
    by_kind = {kind: each.as_dict() for kind, each in found.pop("recall_by_kind").items()}
    record("altered", {name: each.as_dict() for name, each in found.items()} | {"recall_by_kind": by_kind})


if __name__ == "__main__":
    main()
