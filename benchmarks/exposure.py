"""Does the joint model take exposure for an effect of duplication? Groups whose captions were each a prompt once.

    python benchmarks/exposure.py          # about five minutes on one core

300 single images and 60 near-duplicate groups of 2 to 60; each image's caption is the prompt of one generated image, of
which 5 % copy the group. `slope`: what one unit of log_group_size adds to the log odds of one such image. `groups`: how
copies of one group go together: independent, log odds with a standard deviation of 1.5 from group to group, or all or
none of a group. Printed is the share of draws where log_group_size has p < .05, by the model of "copied or not", and by
that of counts with the exposure, and the median odds ratios. Expect at most .07 at slope 0 where copies are
independent.
"""

from __future__ import annotations

import argparse

import numpy as np

from copyscope.detection.causes.firth import effect, firth, worth


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--draws", type=int, default=200)
    draws = arguments.parse_args().draws
    print("groups       slope  copied or not        with exposure")
    for groups in ("independent", "varied", "all or none"):
        for slope in (0.0, 0.2, 0.3):
            found = np.array([fitted(*draw(groups, slope, seed)) for seed in range(draws)])
            shares, ratios = (found[:, :2] < 0.05).mean(axis=0), np.median(found[:, 2:], axis=0)
            print(
                f"{groups:12} {slope:5.1f}  p<.05 {shares[0]:.3f} OR {ratios[0]:5.2f}  "
                f"p<.05 {shares[1]:.3f} OR {ratios[1]:5.2f}",
                flush=True,
            )


def draw(groups: str, slope: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(sizes, copies, images) of the groups [n]."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 5]))
    size = np.concatenate([np.ones(300, np.int64), rng.integers(2, 61, 60)])
    log_odds = np.log(0.05 / 0.95) + slope * np.log(size)
    if groups == "varied":
        log_odds = log_odds + 1.5 * rng.normal(size=len(size))
    chance = 1 / (1 + np.exp(-log_odds))
    copies = size * (rng.random(len(size)) < chance) if groups == "all or none" else rng.binomial(size, chance)
    return size, copies, size


def fitted(size: np.ndarray, copies: np.ndarray, images: np.ndarray) -> tuple[float, float, float, float]:
    """p-values, then odds ratios per SD, of the model of "copied or not" and of the counts."""
    z = np.log(size)
    x = np.column_stack([np.ones(len(z)), (z - z.mean()) / z.std()])
    copied = copies > 0
    naive = effect(x, copied, 1, firth(x, copied))
    trials, share = worth(copies, images)[0], copies / images
    exposed = effect(x, share, 1, firth(x, share, trials=trials), trials=trials)
    return naive.p_value, exposed.p_value, naive.odds_ratio.value, exposed.odds_ratio.value


if __name__ == "__main__":
    main()
