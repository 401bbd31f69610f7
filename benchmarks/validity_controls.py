"""How often the verdict with controls is right: a model tuned on thirty pictures of one subject.

    python benchmarks/validity_controls.py /tmp/validity

A subject is an object (a cube with pictures on its faces, turned and lit at random before a random scene) or a place
(one photograph of an interior, framed, tilted and lit at random). Of each, thirty views are the training set and sixty
are held back: new views of the same subject, which are likenesses and no copies. The controls are 200 views of other
subjects of the same kind, and so are the unrelated images among the generated ones. Copies are altered training views.
"""

from __future__ import annotations

import argparse
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from copyscope.data import assets
from copyscope.detection.embedding.protocols import protocol
from copyscope.detection.matching.match import Matches, combine
from copyscope.detection.matching.ncc import Verify
from copyscope.detection.matching.registration import Register
from copyscope.detection.search.exact import Nearest
from copyscope.detection.verdict import alterations
from copyscope.detection.verdict.answer import MUST_SEE
from copyscope.detection.verdict.calibration import Baseline
from copyscope.detection.verdict.verdict import Calibration, Planted, verdict
from copyscope.imaging import images
from copyscope.stats import bootstrap, proportion
from record import record

SIDE, TRAIN, NEW, CONTROLS = 256, 30, 60, 200
SUBJECTS = {"object": 10, "place": 10}
COPIES = {kind: 30 if kind in MUST_SEE else 15 for kind in alterations.KINDS}
AGAIN = 2
"""Samples of controls a subject."""
PROTOCOL = "sscd-distilled"
SIDES = (Verify().size, Register().size)
# Each generated set: copies, new views of the subject, views of other subjects.
SETS = {"nothing": (0, 0, 100), "new views": (0, 60, 40), "copies": (15, 45, 40)}

Floats = NDArray[np.float32]


def views(kind: str, number: int, n: int) -> list[images.Image]:
    """n views [SIDE SIDE 3] of a subject; the same arguments give the same views."""
    rng = np.random.default_rng([zlib.crc32(kind.encode()), number])
    photographs = _photographs()
    if kind == "place":
        return [_lit(_framed(photographs[number], rng), rng) for _ in range(n)]
    own = photographs[-1 - number]
    faces = [_square(own, rng, 0.3) for _ in range(6)]
    scenes = [each for place, each in enumerate(photographs) if place != len(photographs) - 1 - number]
    return [_lit(_before(_square(scenes[int(rng.integers(len(scenes)))], rng, 0.7), faces, rng), rng) for _ in range(n)]


_loaded: list[images.Image] = []


def _photographs() -> list[images.Image]:
    if not _loaded:
        files = sorted(assets.fetch("photographs").glob("*.jpg"))
        _loaded.extend(images.resize_short(images.decode(file), 640) for file in files)
    return _loaded


def _square(picture: images.Image, rng: np.random.Generator, share: float) -> images.Image:
    """A square of `share` of the shorter side, anywhere, at SIDE."""
    side = round(share * min(picture.shape[:2]))
    top, left = (int(rng.integers(picture.shape[axis] - side + 1)) for axis in range(2))
    return images.resize(np.ascontiguousarray(picture[top : top + side, left : left + side]), (SIDE, SIDE))


def _framed(picture: images.Image, rng: np.random.Generator) -> images.Image:
    """A square of 45 to 75 % of the shorter side, turned by up to 10 degrees, its corners moved by up to 6 %."""
    side = rng.uniform(0.45, 0.75) * min(picture.shape[:2])
    turn = np.deg2rad(rng.uniform(-10, 10))
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    corners = side * (np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]]) @ turned)
    corners += side * rng.uniform(-0.06, 0.06, (4, 2))
    low, high = -corners.min(axis=0), np.array(picture.shape[1::-1]) - 1 - corners.max(axis=0)
    corners += rng.uniform(low, np.maximum(high, low + 1e-6))
    square = np.array([[0, 0], [SIDE, 0], [SIDE, SIDE], [0, SIDE]], np.float64)
    return _warped(picture, square, corners)


def _before(scene: images.Image, faces: Sequence[images.Image], rng: np.random.Generator) -> images.Image:
    """A cube with pictures on its faces, turned at random, before a scene."""
    axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    axes[:, 0] *= np.linalg.det(axes)
    size, away = rng.uniform(0.8, 1.2) * SIDE, rng.uniform(4, 6)
    centre = SIDE * rng.uniform(0.42, 0.58, 2)
    light = rng.normal(size=3)
    light /= np.linalg.norm(light)
    found = scene
    for number, face in enumerate(faces):
        axis, sign = number % 3, 1 if number < 3 else -1
        normal, across, up = sign * axes[:, axis], axes[:, (axis + 1) % 3], sign * axes[:, (axis + 2) % 3]
        corners = np.array([normal + a * across + b * up for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))])
        # The eye is at (0, 0, away) and looks down the third axis.
        if normal @ (np.array([0, 0, away]) - normal) <= 0:
            continue
        flat = centre + size * corners[:, :2] / (away - corners[:, 2:])
        texture = np.array([[0, 0], [SIDE, 0], [SIDE, SIDE], [0, SIDE]], np.float64)
        shade = 0.7 + 0.3 * max(0.0, float(normal @ light))
        drawn = _warped(face, flat, texture) * shade
        inside = _warped(np.full_like(face, 255), flat, texture)[:, :, :1] / 255.0
        found = (inside * drawn + (1 - inside) * found).round().astype(np.uint8)
    return found


def _warped(picture: images.Image, to: NDArray[np.float64], source: NDArray[np.float64]) -> images.Image:
    """A picture [SIDE SIDE 3] in whose corners `to` [4 2] lie the points `source` [4 2] of another; black beyond."""
    from PIL import Image as pillow

    rows, values = [], []
    for (x, y), (u, v) in zip(to, source, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    way = np.linalg.solve(np.array(rows), np.array(values))
    drawn = pillow.fromarray(picture).transform(
        (SIDE, SIDE), pillow.Transform.PERSPECTIVE, way.tolist(), pillow.Resampling.BICUBIC
    )
    return np.asarray(drawn)


def _lit(picture: images.Image, rng: np.random.Generator) -> images.Image:
    """Brightness and each channel changed by up to 15 and 5 %."""
    gain = rng.uniform(0.85, 1.15) * rng.uniform(0.95, 1.05, 3)
    return np.clip(picture * gain, 0, 255).round().astype(np.uint8)


class World:
    """Every subject, described once: its views, then its planted copies twice (generated, and for sensitivity)."""

    def __init__(self, work: Path) -> None:
        self.subjects = [(kind, number) for kind, n in SUBJECTS.items() for number in range(n)]
        self.vectors: dict[tuple[str, int], Floats] = {}
        self.thumbnails: dict[tuple[str, int], dict[int, NDArray[np.uint8]]] = {}
        descriptor = protocol(PROTOCOL).load()
        folder = work / "controls"
        folder.mkdir(parents=True, exist_ok=True)
        for kind, number in self.subjects:
            file = folder / f"{kind}-{number}.npz"
            if not file.exists():
                made = views(kind, number, TRAIN + NEW)
                for version in range(2):
                    made += self._copies(made[:TRAIN], kind, number, version)
                found: dict[str, Any] = {"vectors": descriptor.describe(made)}
                found |= {f"thumbnails-{side}": Verify(size=side).shrink(made) for side in SIDES}
                partial = file.with_suffix(".tmp")
                with open(partial, "wb") as target:
                    np.savez(target, **found)
                partial.rename(file)
                print(f"{kind} {number} described", flush=True)
            with np.load(file) as known:
                self.vectors[kind, number] = known["vectors"]
                self.thumbnails[kind, number] = {side: known[f"thumbnails-{side}"] for side in SIDES}

    @staticmethod
    def _copies(train: Sequence[images.Image], kind: str, number: int, version: int) -> list[images.Image]:
        made = []
        for place, (alteration, n) in enumerate(COPIES.items()):
            for row in range(n):
                rng = np.random.default_rng([zlib.crc32(kind.encode()), number, version, place, row])
                ground = _square(_photographs()[20], rng, 0.7)
                made.append(alterations.alter(train[row], alteration, rng, ground))
        return made

    def matches(self, subject: tuple[str, int], places: Sequence[tuple[tuple[str, int], int]] | None) -> Matches:
        """Of pictures, each a subject and its place there, against the subject's training views; None = of these
        against one another, each against the others: no two views are one picture."""
        train = self.vectors[subject][:TRAIN]
        mine = places or [(subject, place) for place in range(TRAIN)]
        similarity = np.stack([self.vectors[of][place] for of, place in mine]) @ train.T
        if places is None:
            np.fill_diagonal(similarity, -2)
        top = np.argsort(-similarity, axis=1, kind="stable")[:, : Verify().top]
        score = np.take_along_axis(similarity, top, axis=1)
        top = np.where(score < -1.5, -1, top)

        def compared(by: Verify | Register, candidates: NDArray[np.int64]) -> Floats:
            thumbnails = np.stack([self.thumbnails[of][by.size][place] for of, place in mine])
            return by.compare(thumbnails, self.thumbnails[subject][by.size][:TRAIN], candidates, workers=1)

        pixels = compared(Verify(), top)
        order = np.argsort(-combine(score, pixels), axis=1, kind="stable")[:, : Register().top]
        registered = np.full(top.shape, np.nan, np.float32)
        np.put_along_axis(registered, order, compared(Register(), np.take_along_axis(top, order, axis=1)), axis=1)
        n, nobody = len(mine), cast(Any, None)
        return Matches(
            nobody,
            nobody,
            Nearest(top, score),
            pixels,
            np.full(n, -1),
            np.full(n, np.nan, np.float32),
            registered=registered,
        )


def audits(world: World, subject: tuple[str, int]) -> list[dict[str, Any]]:
    """Every generated set of a subject, judged with several samples of controls."""
    own = world.matches(subject, None)
    others = [each for each in world.subjects if each[0] == subject[0] and each != subject]
    rng = np.random.default_rng([zlib.crc32(subject[0].encode()), subject[1], 9])
    mine = world.matches(subject, [(subject, place) for place in range(TRAIN, len(world.vectors[subject]))])
    places = np.concatenate([np.arange(TRAIN + NEW) + 1000 * number for number in range(len(others))])
    some = places[rng.permutation(len(places))[: AGAIN * (CONTROLS + 100)]]
    strangers = world.matches(subject, [(others[place // 1000], place % 1000) for place in some.tolist()])
    there = np.isfinite(own.evidence).all(axis=1)
    levels = np.stack([own.combined.max(axis=1), own.pixels], axis=1)[there]
    baseline = Baseline(Calibration("baseline", own.evidence[there], 0, ""), own.nearest.score[:, 0], levels)
    beyond, unrelated_beyond = (
        baseline.beyond(each.evidence, each.pixels, strangers.evidence) for each in (mine, strangers)
    )
    starts = NEW + np.cumsum([0, *COPIES.values()])
    rows = {kind: np.arange(starts[place], starts[place + 1]) for place, kind in enumerate(COPIES)}
    planted = {
        kind: Planted(mine.evidence[each + sum(COPIES.values())], beyond[each + sum(COPIES.values())])
        for kind, each in rows.items()
    }
    found = []
    for again in range(AGAIN):
        start = again * (CONTROLS + 100)
        calibration = Calibration("controls", strangers.evidence[start : start + CONTROLS], 0, "")
        rest = np.arange(start + CONTROLS, start + CONTROLS + 100)
        for name, (n_copies, n_new, n_unrelated) in SETS.items():
            for kind in rows if n_copies else ("",):
                copied = rng.permutation(rows[kind])[:n_copies] if kind else rows["light"][:0]
                new, unrelated = rng.permutation(NEW)[:n_new], rest[rng.permutation(100)[:n_unrelated]]
                scores = [mine.evidence[copied], mine.evidence[new], strangers.evidence[unrelated]]
                far = [beyond[copied], beyond[new], unrelated_beyond[unrelated]]
                judged = verdict(np.concatenate(scores), calibration, planted=planted, beyond_own=np.concatenate(far))
                called = np.split(judged.copied, np.cumsum([len(copied), len(new)]))
                rate = judged.estimated_rate
                found.append(
                    {
                        "subject": subject[0],
                        "set": name,
                        "kind": kind,
                        "answer": judged.answer,
                        "called": [int(each.sum()) for each in called],
                        "of": [len(each) for each in called],
                        "likeness": int(judged.likeness[len(copied) : len(copied) + len(new)].sum()),
                        "covered": bool(rate.low <= len(copied) / len(judged.copied) <= rate.high),
                    }
                )
    return found


def rows_of_tables(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each kind of subject, generated set and kind of copy."""
    together: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for each in found:
        together.setdefault((each["subject"], each["set"], each["kind"]), []).append(each)
    rows = []
    for (subject, name, kind), mine in together.items():
        called, of = (np.array([each[key] for each in mine]) for key in ("called", "of"))
        wrong = called[:, 1:].sum(axis=1) / np.maximum(called.sum(axis=1), 1)
        rows.append(
            {
                "subject": subject,
                "set": name,
                "kind": kind,
                "audits": len(mine),
                "answers": dict(Counter(each["answer"] for each in mine)),
                "copies_called": proportion(int(called[:, 0].sum()), int(of[:, 0].sum())).as_dict(),
                "new_views_called": proportion(int(called[:, 1].sum()), int(of[:, 1].sum())).as_dict(),
                "unrelated_called": proportion(int(called[:, 2].sum()), int(of[:, 2].sum())).as_dict(),
                "new_views_called_likeness": float(
                    sum(each["likeness"] for each in mine) / max(1, int(of[:, 1].sum()))
                ),
                "fdr": bootstrap(lambda values: float(values.mean()), wrong).as_dict(),
                "coverage": float(np.mean([each["covered"] for each in mine])),
            }
        )
    return rows


def main() -> None:
    """Runs every subject and records what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("work", type=Path, help="folder for vectors, kept between runs")
    world = World(parser.parse_args().work)
    found = [each for subject in world.subjects for each in audits(world, subject)]
    record("validity-controls", {"subjects": SUBJECTS, "train": TRAIN, "rows": rows_of_tables(found)})


if __name__ == "__main__":
    main()
