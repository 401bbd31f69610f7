"""Do verdicts survive duplication? Planted copies of images that stand x1, x2, x5, x60 in the training set.

    copyscope fetch fluent-emoji
    copyscope fetch photographs
    python benchmarks/duplication.py       # about 25 minutes on two cores

Three corpora: the Fluent core (no two pictures above 0.6 to each other by the distilled descriptor), photographs (tiles
of the 39, thinned by the same rule) and the whole emoji set with its look-alike families. Of each, by seed, a training
set, a held-out set and unseen images; a fifth of the generated images are copies, the rest are the unseen ones. Two
kinds of copy: nearly exact (JPEG 95), and as a model makes them (slight blur, noise, shift, JPEG 85). A duplicate in
the training set is its picture re-encoded at another JPEG quality. x60 has ten sources copied five times each, the
others fifty.

An unseen emoji may be a twin of a training one (a skin tone): `fpr_without_look_alikes` leaves out those that the
calibration's rule calls look-alikes. `--corpora` runs some of the three and keeps the results there are of the others.

Expect our verdict at a true positive rate of 0.95 or more and a false positive rate of 0.02 or less at every x on the
first two, and the ratio and authenticity tests at zero from x2 on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from copyscope import stats
from copyscope.data import assets
from copyscope.data.corpus import Corpus
from copyscope.detection.dedup.groups import duplicates
from copyscope.detection.descriptors.sscd import Sscd
from copyscope.detection.descriptors.sscd_distilled import SscdDistilled
from copyscope.detection.embedding.embed import embed
from copyscope.detection.embedding.protocols import protocol
from copyscope.detection.matching.match import match
from copyscope.detection.matching.ncc import Verify
from copyscope.detection.verdict import calibration as calibrate
from copyscope.detection.verdict.baselines import classical_tests
from copyscope.detection.verdict.verdict import verdict
from copyscope.imaging import images
from record import RESULTS, record
from worlds import light_copy

FACTORS = (1, 2, 5, 60)
N_COPIES, N_UNSEEN, N_HELD_OUT, X60_SOURCES = 50, 200, 300, 10
TILE = 384


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seeds", type=int, default=5)
    arguments.add_argument("--corpora", nargs="*", default=["fluent-core", "photographs", "fluent-whole"])
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        kept = json.loads(path.read_text()) if (path := RESULTS / "benchmark-duplication.json").is_file() else {}
        found = {name: kept[name] for name in SOURCES if name in kept}
        for corpus in options.corpora:
            files = SOURCES[corpus](root)
            found[corpus] = {
                "pictures": len(files),
                "seeds": options.seeds,
                "table": table(files, root / corpus, options.seeds),
            }
            print(corpus, json.dumps(found[corpus], indent=1), flush=True)
        record("duplication", {"protocol": "sscd-288", "verify": str(Verify()), **found})


def table(files: list[Path], root: Path, seeds: int) -> list[dict[str, object]]:
    """One row a kind of copy and factor: true and false positive rates of every test, over all seeds."""
    rows = []
    for kind in ("nearly exact", "as a model makes them"):
        for factor in FACTORS:
            counts: dict[str, np.ndarray] = {}
            for seed in range(seeds):
                for test, hit in trial(files, root / f"{kind[:2]}-{factor}-{seed}", kind, factor, seed):
                    counts[test] = counts.get(test, 0) + hit
            rates = {
                test: {
                    "tpr": stats.proportion(int(c[0]), int(c[1])).as_dict(),
                    "fpr": stats.proportion(int(c[2]), int(c[3])).as_dict(),
                    "fpr_without_look_alikes": stats.proportion(int(c[4]), int(c[5])).as_dict(),
                }
                for test, c in counts.items()
            }
            rows.append({"copies": kind, "duplicated": factor, "tests": rates})
    return rows


def trial(files: list[Path], root: Path, kind: str, factor: int, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """(test, [flagged and all] of copies, of others, of others that are no look-alikes) of one draw of the corpora."""
    rng = np.random.default_rng([seed, factor])
    order = np.random.default_rng(seed).permutation(len(files))
    n_held_out, n_unseen = min(N_HELD_OUT, len(files) // 3), min(N_UNSEEN, len(files) // 4)
    held, unseen, train = np.split(order, [n_held_out, n_held_out + n_unseen])
    sources = train[: N_COPIES if factor < 60 else X60_SOURCES]
    for name in ("train", "generated", "held-out"):
        (root / name).mkdir(parents=True)
    link(files, held, root / "held-out")
    link(files, train, root / "train")
    link(files, unseen, root / "generated")
    for source in sources:
        picture = images.decode(files[source])
        for again in range(factor - 1):
            encoded = images.encode(picture, "jpeg", int(rng.integers(80, 97)))
            (root / "train" / f"{source:05d}-{again:02d}.jpg").write_bytes(encoded)
    for number in range(N_COPIES):
        picture = images.decode(files[sources[number % len(sources)]])
        copy = (
            images.encode(picture, "jpeg", 95)
            if kind == "nearly exact"
            else images.encode(light_copy(picture, rng), "png")
        )
        (root / "generated" / f"copy-{number:03d}.img").write_bytes(copy)
    yield from judge(root, seed)


def judge(root: Path, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    train, generated, held = (embed(Corpus.open(root / name), Sscd()) for name in ("train", "generated", "held-out"))
    verify = Verify()
    groups = duplicates(train, protocol("sscd-288").duplicates)
    matches = match(generated, train, verify, labels=groups.label)
    copied = np.array([name.startswith("copy") for name in generated.ids])
    held_out, held_matches, _ = calibrate.held_out(held, train, groups, verify)
    calibrations = {
        "verdict, held-out": held_out,
        "verdict, baseline": calibrate.baseline(train, groups, verify, seed=seed).calibration,
    }
    flags = {name: verdict(matches.evidence, calibration).copied for name, calibration in calibrations.items()}
    # The same verdict without the second look, and the field's fixed threshold.
    alone = dataclasses.replace(held_out, scores=held_matches.similarity)
    flags["descriptor alone, held-out"] = verdict(matches.similarity, alone).copied
    flags["similarity > 0.5"] = matches.similarity > protocol("sscd-288").threshold
    for test in classical_tests(matches, groups):
        flags[test.name] = test.flagged
        if test.flagged_by_group is not None:
            flags[f"{test.name}, by group"] = test.flagged_by_group
    # An unseen image may be a look-alike of a training image, and flagging it is then no plain mistake.
    alike = calibrate.look_alikes(generated, train)
    other, strange = ~copied, ~copied & ~alike
    for name, flagged in flags.items():
        yield (
            name,
            np.array(
                [
                    (flagged & those).sum() if hit else those.sum()
                    for those in (copied, other, strange)
                    for hit in (1, 0)
                ]
            ),
        )


def link(files: list[Path], chosen: np.ndarray, folder: Path) -> None:
    for number in chosen:
        (folder / f"{number:05d}{files[number].suffix}").symlink_to(files[number])


def fluent_whole(root: Path) -> list[Path]:
    return sorted((assets.fetch("fluent-emoji") / "images").iterdir())


def fluent_core(root: Path) -> list[Path]:
    return thinned(fluent_whole(root), root / "all-fluent")


def photographs(root: Path) -> list[Path]:
    folder = root / "tiles"
    folder.mkdir()
    for path in sorted(assets.fetch("photographs").rglob("*.jpg")):
        picture = images.decode(path)
        places = [
            (top, left)
            for top in range(0, picture.shape[0] - TILE + 1, TILE)
            for left in range(0, picture.shape[1] - TILE + 1, TILE)
        ]
        for number, (top, left) in enumerate(places):
            tile = np.ascontiguousarray(picture[top : top + TILE, left : left + TILE])
            (folder / f"{path.stem}-{number:03d}.jpg").write_bytes(images.encode(tile, "jpeg", 92))
    return thinned(sorted(folder.iterdir()), root / "all-tiles")


def thinned(files: list[Path], folder: Path, bar: float = 0.6) -> list[Path]:
    """Files of which no two are above `bar` to each other by the distilled descriptor, greedily in random order."""
    folder.mkdir()
    link(files, np.arange(len(files)), folder)
    vectors = embed(Corpus.open(folder), SscdDistilled()).vectors
    kept: list[int] = []
    for number in np.random.default_rng(0).permutation(len(files)):
        if not kept or (vectors[kept] @ vectors[number]).max() <= bar:
            kept.append(int(number))
    return [files[number] for number in kept]


SOURCES = {"fluent-core": fluent_core, "photographs": photographs, "fluent-whole": fluent_whole}

if __name__ == "__main__":
    main()
