"""How quality.json was made: scipy and scikit-learn only, nothing of copyscope.

Run `python tests/golden/make_quality.py` to make it again. scipy.linalg.sqrtm for the Frechet distance (where the
covariances are singular, n <= d: the eigenvalues of their product), sklearn.neighbors.NearestNeighbors and
sklearn.metrics.pairwise_distances for precision and recall, sklearn.metrics.pairwise.cosine_distances for diversity,
scipy.spatial.distance.cosine for alignment.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def frechet_distance(x: Floats, y: Floats) -> float:
    from scipy import linalg

    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    if min(len(x), len(y)) > x.shape[1]:
        overlap = float(np.trace(linalg.sqrtm(a @ b)).real)
    else:
        overlap = float(np.sqrt(np.maximum(linalg.eigvals(a @ b).real, 0)).sum())
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * overlap)


def precision_recall(real: Floats, generated: Floats, k: int) -> tuple[float, float]:
    from sklearn.metrics import pairwise_distances
    from sklearn.neighbors import NearestNeighbors

    def reach(x: Floats) -> Floats:
        # Without an argument, kneighbors leaves each point itself out.
        return NearestNeighbors(n_neighbors=k, algorithm="brute").fit(x).kneighbors()[0][:, -1]

    between = pairwise_distances(generated, real)
    return (
        float((between <= reach(real)[None, :]).any(axis=1).mean()),
        float((between <= reach(generated)[:, None]).any(axis=0).mean()),
    )


def diversity(x: Floats) -> float:
    from sklearn.metrics.pairwise import cosine_distances

    return float(cosine_distances(x)[np.triu_indices(len(x), 1)].mean())


def alignment(images: Floats, texts: Floats) -> float:
    from scipy.spatial.distance import cosine

    return float(np.mean([1 - cosine(image, text) for image, text in zip(images, texts, strict=True)]))


def case(seed: int, n: int, m: int, d: int, shift: float, spread: float) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(d, d)) / np.sqrt(d)
    real = np.round(rng.normal(size=(n, d)) @ mixing, 3)
    generated = np.round(spread * rng.normal(size=(m, d)) @ mixing + shift, 3)
    few = min(n, m)
    precision, recall = precision_recall(real, generated, 3)
    return {
        "real": real.tolist(),
        "generated": generated.tolist(),
        "frechet_distance": frechet_distance(real, generated),
        "precision": precision,
        "recall": recall,
        "diversity_real": diversity(real),
        "diversity_generated": diversity(generated),
        "alignment": alignment(generated[:few], real[:few]),
    }


def main() -> None:
    cases = {
        "alike": case(1, 60, 50, 6, 0.0, 1.0),
        "shifted and narrow": case(2, 40, 80, 5, 0.3, 0.6),
        "fewer images than dimensions": case(3, 8, 12, 20, 0.1, 1.0),
    }
    Path(__file__).with_name("quality.json").write_text(json.dumps(cases) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
