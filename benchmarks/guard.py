"""Copies handed out with and without the guard, of a run of the small model, with the training captions as prompts.

    python benchmarks/guard.py RUN TRAIN HELD_OUT --n 64

The index is of the run's training images. A second index, of another descriptor (--judge), judges what was handed out:
the guard's own would find none by construction.
"""

from __future__ import annotations

import argparse
import collections
import tempfile
from pathlib import Path

from copyscope import Corpus, Guard, Index, Policy, Run, SampleRecipe, stats
from copyscope.diffusion.generate import sample
from record import record


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("run")
    arguments.add_argument("train")
    arguments.add_argument("held_out")
    arguments.add_argument("--n", type=int, default=64)
    arguments.add_argument("--protocol", default="sscd-distilled")
    arguments.add_argument("--judge", default="pdq")
    options = arguments.parse_args()
    model, train = Run.open(options.run).model, Corpus.open(options.train)
    captions = [each[0] for each in train.captions if each][: options.n]
    recipe = SampleRecipe(steps=25, guidance=2.0)

    def paint(prompts, seed):  # type: ignore[no-untyped-def]
        seeds = [seed + row for row in range(len(prompts))]
        return sample(model, model.condition(prompts), seeds, recipe, prompts=prompts)

    with tempfile.TemporaryDirectory() as folder:
        indexes = [
            Index.build(train, Path(folder) / name, name, held_out=options.held_out)
            for name in (options.protocol, options.judge)
        ]
        policy = Policy(local=False, refuse="none")
        guard = Guard(indexes[0], policy)
        guarded = guard(paint)(captions)
        firsts = [each for each in guard.records if each.attempt == 0]
        plain = paint(captions, firsts[0].seed)

        def copies(images):  # type: ignore[no-untyped-def]
            there = [each for each in images if each is not None]
            hits = indexes[1].match(there, local=False)
            found = sum(bool(each) and (each[0].p_value or 1) <= policy.rate for each in hits)
            return stats.proportion(found, len(there)).as_dict()

        record(
            "guard",
            {
                "n": len(captions),
                "first_copies": stats.proportion(sum(each.copy for each in firsts), len(firsts)).as_dict(),
                "refused": sum(each is None for each in guarded),
                "tries": len(guard.records),
                "actions": dict(collections.Counter(each.action for each in guard.records)),
                "judged_by": options.judge,
                "copies_without": copies(plain),
                "copies_with": copies(guarded),
            },
        )


if __name__ == "__main__":
    main()
