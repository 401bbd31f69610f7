"""A training picture set small into another: what looking it up by windows finds, and by the whole picture alone.

    copyscope fetch fluent-emoji
    copyscope fetch photographs
    python benchmarks/insets.py            # half an hour; SSCD looks ten times at 1,700 pictures

The insets are training pictures at half their side, a quarter of the picture, anywhere on another one that is in no
set: emoji, and tiles of photographs. Recall: the right family was named with p <= 0.01; false alarms: unseen pictures
with p <= 0.01.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import altered
import worlds
from copyscope import Index, stats
from copyscope.data import assets
from copyscope.imaging import images
from duplication import photographs
from record import record

LEVEL = 0.01


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--pictures", nargs="+", default=["emoji", "photographs"], choices=["emoji", "photographs"])
    arguments.add_argument("--protocols", nargs="+", default=["sscd-distilled", "sscd-288"])
    options = arguments.parse_args()
    found = []
    for kind in options.pictures:
        for protocol in options.protocols:
            with tempfile.TemporaryDirectory() as folder:
                found.append({"pictures": kind} | insets(Path(folder), kind, protocol))
    record("insets", {"insets": found})


def insets(folder: Path, kind: str, protocol: str) -> dict[str, Any]:
    """Recall and false alarms on planted insets of the whole-picture match and of the one with windows."""
    rng = np.random.default_rng(0)
    if kind == "emoji":
        crowds = altered._crowds(altered._read(assets.fetch(altered.SOURCE)))
        train, held, unseen, rest = altered._split(crowds, (600, 200, 200), 300, rng)
    else:
        tiles = [altered._Picture(path, {"file_name": path.name, "base": path.name}) for path in photographs(folder)]
        # As many each of held-out and unseen tiles, and of those that insets lie on, as there are for training.
        train, held, unseen, rest = (tiles[start::4] for start in range(4))
    for name, pictures in (("train", train), ("held-out", held), ("unseen", unseen)):
        altered._copy_files(folder / name, pictures)
    family = {picture.id: picture.family for picture in train}
    truth = {}
    (folder / "planted").mkdir()
    for number, at in enumerate(rng.permutation(len(train))[:150]):
        picture = images.decode(train[at].file)
        height, width = picture.shape[:2]
        whole = images.resize(images.decode(rest[int(rng.integers(len(rest)))].file), (height, width))
        small = images.resize(picture, (height // 2, width // 2))
        top, left = int(rng.integers(height - height // 2 + 1)), int(rng.integers(width - width // 2 + 1))
        whole[top : top + height // 2, left : left + width // 2] = small
        name = f"{number:04d}.png"
        (folder / "planted" / name).write_bytes(images.encode(whole, "png"))
        truth[name] = (train[at].id, (left / width, top / height, 0.5, 0.5))
    worlds.write_metadata(folder / "planted", [{"file_name": name} for name in truth])
    index = Index.build(folder / "train", folder / "index", protocol, held_out=folder / "held-out")
    result: dict[str, Any] = {"protocol": protocol, "n_train": len(train), "area": 0.25, "level": LEVEL}
    for name, local in (("whole", False), ("with_windows", True)):
        planted = [hits[0] for hits in index.match(folder / "planted", local=local)]
        others = [hits[0] for hits in index.match(folder / "unseen", local=local)]
        named = [family[hit.id] == family[source] for hit, (source, _) in zip(planted, truth.values(), strict=True)]
        sure = [right and hit.p_value <= LEVEL for right, hit in zip(named, planted, strict=True)]
        # What was found in the whole picture counts as a box of all of it.
        overlaps = [
            overlap(hit.box or (0, 0, 1, 1), box)
            for right, hit, (_, box) in zip(named, planted, truth.values(), strict=True)
            if right
        ]
        result[name] = {
            "recall": stats.proportion(sum(sure), len(sure)).as_dict(),
            "named": stats.proportion(sum(named), len(named)).as_dict(),
            "false_alarms": stats.proportion(sum(hit.p_value <= LEVEL for hit in others), len(others)).as_dict(),
            "mean_overlap_of_boxes": round(float(np.mean(overlaps)), 3) if overlaps else None,
        }
    return result | {"calibration": index.summary()["calibration"]}


def overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Intersection over union of two boxes x, y, width, height."""
    across = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    down = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    shared = max(across, 0) * max(down, 0)
    return shared / (one[2] * one[3] + other[2] * other[3] - shared)


if __name__ == "__main__":
    main()
