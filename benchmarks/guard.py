"""Copies handed out with and without the guard, by a run of the small model.

    python benchmarks/guard.py TRAIN HELD_OUT RUN... --rate 0.01 0.05

Prompts are training captions, and captions of held-out images that no training image bears. The first try of a guarded
image is the unguarded one, by the same seed. What is true is told apart from the guard's index: an image is a copy
where its pixels agree with those of a training image, laid over each other within a few pixels, by a normalised
cross-correlation of at least `agrees`: of the caption's own training image without the guard, and of any of the eight
with the nearest pixels for what the guard hands out. `false_alarms`: of the first tries of held-out captions that are
no copies so, those that the guard takes for one.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copyscope import Corpus, Guard, Index, Policy, Run, SampleRecipe, stats
from copyscope.detection.embedding.protocols import protocol
from copyscope.detection.verdict.quality import frechet_distance
from copyscope.diffusion.generate import sample
from copyscope.imaging import images
from record import record

SHIFT, NEAR = 4, 8
STEPS, GUIDANCE = 20, 1.5
AGREES = (0.8, 0.85, 0.9)
Pictures = NDArray[np.float64]


def pictures(found: list[images.Image], side: int) -> Pictures:
    """[n s s 3]."""
    sized = [each if each.shape[:2] == (side, side) else images.resize(each, (side, side)) for each in found]
    return np.stack(sized).astype(np.float64)


def unit(x: Pictures) -> Pictures:
    """Each picture [n h w 3] without the mean of its channels, as a vector of unit length [n d]."""
    flat = (x - x.mean(axis=(1, 2), keepdims=True)).reshape(len(x), -1)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True).clip(min=1e-9)


def agreement(made: Pictures, train: Pictures) -> NDArray[np.float64]:
    """Of each pair [n s s 3], the highest correlation over shifts of at most SHIFT pixels [n]."""
    side = made.shape[1] - 2 * SHIFT
    core, best = unit(train[:, SHIFT:-SHIFT, SHIFT:-SHIFT]), np.full(len(made), -1.0)
    for y in range(2 * SHIFT + 1):
        for x in range(2 * SHIFT + 1):
            best = np.maximum(best, (unit(made[:, y : y + side, x : x + side]) * core).sum(axis=1))
    return best


def nearest(made: Pictures, train: Pictures) -> NDArray[np.float64]:
    """The highest agreement of each picture [n] with those of the training set [m] that are nearest to it."""
    some = np.argsort(-(unit(made) @ unit(train).T), axis=1)[:, :NEAR]
    return np.max([agreement(made, train[column]) for column in some.T], axis=0)


def share(some: NDArray[np.bool_], of: NDArray[np.bool_]) -> dict[str, Any]:
    """How many of those of the second kind are of the first too."""
    return stats.proportion(int((some & of).sum()), int(of.sum())).as_dict()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("train")
    arguments.add_argument("held_out")
    arguments.add_argument("runs", nargs="+")
    arguments.add_argument("--n", type=int, default=256, help="prompts of each kind, at most")
    arguments.add_argument("--rate", type=float, nargs="+", default=[Policy().rate])
    arguments.add_argument("--again", type=float, default=Policy().rate_again, help="rate of images made again")
    arguments.add_argument("--protocol", default="sscd-288")
    arguments.add_argument("--alone", type=int, default=32, help="prompts that are looked at half way, one by one")
    arguments.add_argument("--sheet", type=Path, help="folder for a picture a run: what there was, with and without")
    options = arguments.parse_args()
    train, held_out = Corpus.open(options.train), Corpus.open(options.held_out)
    with tempfile.TemporaryDirectory() as folder:
        index = Index.build(train, Path(folder) / "index", options.protocol, held_out=held_out)
        found = {Path(run).name: one(Run.open(run), index, train, held_out, options) for run in options.runs}
    record("guard", {"protocol": options.protocol, "n_train": len(train), "steps": STEPS, "runs": found})


def one(run: Run, index: Index, train: Corpus, held_out: Corpus, options: argparse.Namespace) -> dict[str, Any]:
    """What the guard does to one model."""
    side, describe = run.model.image_size, protocol(options.protocol).load().describe
    rows = [row for row in run.table.select(["id", "captions", "weight"]).to_pylist() if row["weight"] > 0]
    bearing = {row["captions"][0] for row in rows}
    rows = rows[: options.n]
    known = [row["captions"][0] for row in rows]
    unknown = [each[0] for each in held_out.captions if each and each[0] not in bearing][: options.n]
    theirs = pictures([images.decode(train.read(row)) for row in range(len(train))], side)
    unseen = [images.decode(held_out.read(row)) for row in range(len(held_out))]
    real = describe([images.resize(each, (side, side)) for each in unseen])
    place = {each: row for row, each in enumerate(train.ids)}
    sources = theirs[[place[row["id"]] for row in rows]]
    seeds = {"known": list(range(1000, 1000 + len(known))), "unknown": list(range(9000, 9000 + len(unknown)))}

    def plainly(prompts: list[str], kind: str) -> list[images.Image]:
        recipe = SampleRecipe(steps=STEPS, guidance=GUIDANCE, n_images=len(prompts))
        return sample(run.model, run.model.condition(prompts), seeds[kind], recipe, prompts=prompts)

    plain, others = plainly(known, "known"), plainly(unknown, "unknown")
    own, like = agreement(pictures(plain, side), sources), nearest(pictures(others, side), theirs)
    chance = nearest(pictures(unseen, side), theirs)
    result: dict[str, Any] = {
        "n": len(known),
        "n_held_out": len(unknown),
        "real_held_out_images": {str(line): float((chance >= line).mean()) for line in AGREES},
        "rates": {},
    }
    recipe = SampleRecipe(steps=STEPS, guidance=GUIDANCE)
    for rate in options.rate:
        guard = Guard(index, Policy(rate=rate, rate_again=options.again, local=False, refuse="none"))
        handed = guard(run)(known, recipe, seeds=seeds["known"])
        tried, there = guard.records, np.array([each is not None for each in handed])
        out = [each for each in handed if each is not None]
        left = np.full(len(known), -1.0)
        left[there] = nearest(pictures(out, side), theirs) if out else []
        missed = ~np.array([each.copy for each in tried if each.attempt == 0])
        checking = Guard(index, Policy(rate=rate, local=False, refuse="none", tries=1))
        checking(run)(unknown, recipe, seeds=seeds["unknown"])
        flagged = np.array([each.copy for each in checking.records])
        half = Guard(index, Policy(rate=rate, local=False, refuse="none", rate_again=options.again, look_at=(0.5,)))
        for number, prompt in enumerate(known[: options.alone]):
            half(run)([prompt], recipe, seeds=[seeds["known"][number]])
        # Of as many images on each side, or the distances could not be compared.
        n = min(len(out), len(unknown))
        result["rates"][f"{rate:g}"] = {
            "again": options.again,
            "tries_per_image": len(tried) / len(known),
            "samplings_per_image_looked_at_half_way": sum(each.look or 1 for each in half.records)
            / max(1, min(len(known), options.alone)),
            "refused": stats.proportion(int((~there).sum()), len(known)).as_dict(),
            "by_agreement": {
                str(line): {
                    "copies_without": int((own >= line).sum()),
                    "missed_at_first": int(((own >= line) & missed).sum()),
                    "copies_with": int((left >= line).sum()),
                    "stopped": share(left < line, own >= line),
                    "false_alarms": share(flagged, like < line),
                }
                for line in AGREES
            },
            "frechet_distance_to_held_out": {
                "n": n,
                "without": frechet_distance(real, describe(plain)[:n]),
                "with": frechet_distance(real, describe(out)[:n]) if n else None,
                "captions_not_trained_on": frechet_distance(real, describe(others)[:n]),
            },
        }
        if options.sheet:
            options.sheet.mkdir(parents=True, exist_ok=True)
            blank = np.full((side, side, 3), 255, np.uint8)
            shown = [
                np.concatenate([sources[row].astype(np.uint8), plain[row], blank if one is None else one])
                for row, one in enumerate(handed[:48])
            ]
            lines = [np.concatenate(shown[start : start + 16], axis=1) for start in range(0, len(shown), 16)]
            path = options.sheet / f"{Path(run.folder).name}-{rate:g}.png"
            path.write_bytes(
                images.encode(np.concatenate([each for each in lines if each.shape == lines[0].shape]), "png")
            )
    return result


if __name__ == "__main__":
    main()
