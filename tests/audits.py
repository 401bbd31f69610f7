"""Synthetic results for the report's tests: any size, hostile names, everything present or everything absent."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from copyscope.report.wording import VISIBLE

HOSTILE = [
    "<script>window.hacked = 1</script>.png",
    '"><img src=x onerror="window.hacked=2">.png',
    "</script><script>window.hacked=3</script>",
    "<!--<script>.png",
    "{{ 7*7 }} & &amp; 'quoted' \"double\" \\u003c",
    "emoji 🐞👩‍🚀 family.png",
    "\u202egnp.exe مرحبا بالعالم",
    "nul \x00 bell \x07 line\u2028separator\u0085",
    "long " + "wörd" * 300,
]

ENDS = ("value", "low", "high")
SEEN = {"light": 0.95, "crop": 0.81, "mirror": 0.9, "recolour": 0.7, "overlay": 0.85, "rotate": 0.6, "part": 0.3}
STRINGS = pa.list_(pa.string())
TYPES = dict.fromkeys(("copied", "likeness", "blank"), pa.bool_()) | dict.fromkeys(
    ("prompts", "captions", "match_captions"), STRINGS
)
TYPES |= dict.fromkeys(
    ("score", "verified", "combined", "p_value", "next_score", "share_low", "share_high"), pa.float64()
)
TYPES |= dict.fromkeys(("entropy", "jpeg_size", "total_variation", "mixed"), pa.float64())
TYPES |= dict.fromkeys(
    (
        "group",
        "size",
        "exact",
        "group_size",
        "times_copied",
        "shared_captions",
        "near_shared_captions",
        "caption_length",
    ),
    pa.int64(),
)


@dataclasses.dataclass(frozen=True)
class FakeResult:
    summary: dict[str, Any]
    tables: dict[str, pa.Table]


def table(**columns: Any) -> pa.Table:
    kinds = TYPES | {"image": pa.binary()}
    return pa.table({name: pa.array(list(values), kinds.get(name, pa.string())) for name, values in columns.items()})


def estimate(value: float | None, reach: float = 0.02, n: int = 300) -> dict[str, Any]:
    low, high = (None, None) if value is None else (value - reach, value + reach)
    return {"value": value, "low": low, "high": high, "n": n}


def make_audit(n: int = 240, copies: int = 24, pictures: int = 60, seed: int = 0) -> FakeResult:
    """n generated images, the first `copies` of them flagged, three a training image; the last one is unreadable."""
    rng = np.random.default_rng(seed)
    names = [*HOSTILE, *(f"sample_{i:05d}.png" for i in range(len(HOSTILE), n))][:n]
    train = [*(f"train/{text}" for text in HOSTILE), *(f"train/img_{i:05d}.jpg" for i in range(max(n, 60)))]
    copied = np.arange(n) < copies
    match: list[str] = [train[i // 3 if copied[i] else int(rng.integers(len(train)))] for i in range(n)]
    score = np.where(copied, rng.uniform(0.7, 0.99, n), rng.beta(4, 9, n)).round(4)
    failed = {n - 1}
    times = {one: match[:copies].count(one) for one in dict.fromkeys(match[:copies])}
    tables = {
        "generated": _generated(rng, names, train, match, score, copied, failed),
        "groups": _groups(train),
        "risk": _risk(rng, times, train[20:26] if copies else []),
        "complexity": table(
            id=names, match=match, score=score, copied=copied, entropy=rng.uniform(3, 8, n),
            jpeg_size=rng.uniform(2e3, 9e4, n), total_variation=rng.uniform(10, 500, n), mixed=rng.uniform(10, 90, n),
        ),
        "histograms": table(
            series=["generated"] * n + ["baseline"] * 500 + ["held-out"] * 200,
            score=np.concatenate([score, rng.beta(3.6, 9, 500), rng.beta(3.8, 9, 200)]),
        ),
        "look_alikes": _look_alikes(train) if copies else _look_alikes(train).slice(0, 0),
        "failures": table(
            corpus=["generated", "train", "held-out"], id=[names[-1], HOSTILE[0], HOSTILE[7]],
            error=["truncated file", HOSTILE[1], "not an image"],
        ),
        "thumbnails": _thumbnails(rng, names[:pictures], match, copied, train),
    }  # fmt: skip
    return FakeResult(_summary(n, copies, tables), tables)


def make_lint() -> FakeResult:
    """What `lint` says of the training set of `make_audit()`: 10 groups of 4, 6 plain pictures, 2 unreadable files."""
    audit = make_audit()
    cards = audit.tables["risk"].to_pylist()
    for index, card in enumerate(cards):
        card |= {"action": "deduplicate" if index < 8 else "recaption", "group_size": 4 if index < 8 else 1}
    dropped = ("times_copied", "share_low", "share_high", "prompts")
    names = [name for name in audit.tables["risk"].column_names if name not in dropped]
    summary = {
        "schema": "copyscope.lint/1",
        "sentence": "30 of 247 readable images repeat another one, in 10 near-duplicate groups.",
        "n_missing": 2,
        "duplicated_share": estimate(30 / 247, 0.04, 247),
        "captions": {"with": 240, "without": 7, "shared": 31, "near_shared": 12},
        "actions": {"deduplicate": 8, "recaption": 6},
        "n_measured": 200,
        "units": {"entropy": "nats"},
        "recipe": {"train": f"data/{HOSTILE[2]}", "options": {"protocol": "sscd-288"}, "seed": 0},
    }
    kept = ("copyscope", "created", "seconds", "n_train", "duplicates", "search", "protocol")
    failures = audit.tables["failures"].to_pylist()[1:]
    tables = {
        "groups": audit.tables["groups"],
        "risk": table(**{name: [card[name] for card in cards] for name in names}),
        "failures": table(
            corpus=["train"] * 2, id=[row["id"] for row in failures], error=[row["error"] for row in failures]
        ),
        "thumbnails": audit.tables["thumbnails"],
    }
    return FakeResult(summary | {name: audit.summary[name] for name in kept}, tables)


def make_lookup(n: int = 40) -> FakeResult:
    """What `lookup` says of n wide pictures: copies of a part first, then of a part of a training image; none of the
    others has a box. The last two cannot be read, and the last but two has no preview."""
    rng = np.random.default_rng(1)
    names = [*HOSTILE, *(f"picture_{i:02d}.png" for i in range(len(HOSTILE), n))][:n]
    matches, shots = [], []
    for i, name in enumerate(names[: n - 2]):
        for rank in range(1, 6):
            p_value = 0.005 if i < 6 and rank == 1 else min(1.0, 0.2 * rank)
            matches.append(
                {"query_id": name, "reference_id": f"train/{HOSTILE[rank]}", "rank": rank, "score": 0.9 - rank / 10,
                 "verified": 0.8, "combined": 1 - (i + rank) / 100, "p_value": p_value,
                 "box": [0.5, 0.25, 0.5, 0.5] if i < 3 else None,
                 "source_box": [0.25, 0.0, 0.25, 1.0] if 3 <= i < 6 else None, "caption": HOSTILE[rank + 1]}
            )  # fmt: skip
        shots.append({"corpus": "pictures", "id": name, "image": thumbnail(rng)[0], "width": 96, "height": 48})
    for rank in range(1, 4):
        one = {"corpus": "train", "id": f"train/{HOSTILE[rank]}", "image": thumbnail(rng)[0]}
        shots.append(one | {"width": 200, "height": 100})
    # The order of the tables is that of the pictures, not that of the page.
    matches = matches[5:] + matches[:5]
    tables = {
        "matches": pa.Table.from_pylist(matches),
        "failures": table(corpus=["pictures"] * 2, id=names[-2:], error=["truncated file", HOSTILE[1]]),
        "thumbnails": pa.Table.from_pylist([shot for shot in shots if shot["id"] != names[-3]]),
    }
    summary = {
        "schema": "copyscope.index-matches/1", "copyscope": "0.1.0", "created": "2026-11-24T08:00:00+00:00",
        "seconds": 2.5, "sentence": f"6 of {n - 2} readable images have a match with a p-value of 0.01 or less.",
        "n": n, "n_missing": 2, "n_index": 100, "protocol": "sscd-288", "local": True, "level": 0.01,
        "flagged": estimate(6 / (n - 2), 0.05, n - 2),
        "calibration": {"method": "held-out", "n": 200, "n_removed": 0, "rule": ""},
        "recipe": {"pictures": [f"made/{HOSTILE[2]}"], "index": "train.index", "options": {"k": 5}},
    }  # fmt: skip
    return FakeResult(summary, tables)


def other_audit(answer: str, n: int = 40, **summary: Any) -> FakeResult:
    """An audit without copies but for those of "suspicious", with another answer and what else is said in its summary.

    "suspicious": calibrated on the training set. "likeness" is the answer "copies" after controls, with two likenesses
    and a blank image. "cannot tell": three reasons, held-out images of another kind, nothing measured.
    """
    found = make_audit(n, 6 if answer in ("suspicious", "likeness") else 0)
    said, tables = copy.deepcopy(found.summary), dict(found.tables)
    said["verdict"]["answer"] = "copies" if answer == "likeness" else answer
    if answer == "suspicious":
        said["verdict"]["sentence"] = f"Suspicious: of {n - 1} generated images, 6 are suspiciously near."
        said["calibration"] |= {"method": "baseline", "n_removed": 0, "n_excluded": 0, "n_look_alikes": 0}
        tables["look_alikes"] = tables["look_alikes"].slice(0, 0)
        said["similarity"]["held_out"] = said["recipe"]["held_out"] = None
    if answer == "likeness":
        flags = {"likeness": [i in (6, 7) for i in range(n)], "blank": [i == 8 for i in range(n)]}
        for name, values in flags.items():
            tables["generated"] = tables["generated"].append_column(name, pa.array(values))
        said["calibration"] |= {"method": "controls", "nearer_than_control": estimate(0.9, 0.05, 30)}
        said["similarity"] |= {"control": said["similarity"]["held_out"], "held_out": None}
        said["recipe"] |= {"held_out": None, "control": "data/control"}
        said |= {"n_likeness": 2, "n_blank": {"generated": 1, "held_out": 0, "control": 0}}
    if answer == "cannot tell":
        kind = "The held-out images are of another kind than the generated ones."
        said["verdict"] |= {
            "sentence": f"Cannot tell: no copy found among {n - 1} generated images. {kind}",
            "reasons": [kind, "39 readable images are too few.", "How many copies would be seen was not measured."],
            "needed": "It would take held-out images of the kind that the model makes.",
        }
        said["calibration"]["differs"] = kind
        said |= {"sensitivity": None, "estimated_rate": {"value": None, "low": 0.0, "high": 1.0, "n": n - 1}}
    return FakeResult(said | summary, tables)


def bare_audit() -> FakeResult:
    """All that may be absent is absent: no readable image, no held-out set, no groups, no quality, empty tables."""
    full = make_audit(12, 0)
    summary = copy.deepcopy(full.summary)
    nothing = dict.fromkeys(("mean", "std", "p75", "p90", "p95", "above_threshold"))
    summary["verdict"] = {
        "answer": "cannot tell",
        "sentence": "No image could be read.",
        "reasons": ["No image could be read."],
        "needed": "72 readable images",
    }
    summary["estimated_rate"] = {"value": None, "low": 0.0, "high": 1.0, "n": 0}
    summary |= {"sensitivity": None, "excess": 0.0, "dataset_similarity": None, "repeated_outputs": None}
    summary["replication_rate"] = {"value": None, "low": 0.0, "high": 1.0, "n": 0}
    summary["similarity"] = nothing | {"n": 0, "estimates": {}, "baseline": nothing | {"n": 0}, "held_out": None}
    summary["findings"] = {"correlations": [], "joint": None, "notes": []}
    summary["quality"] = dict.fromkeys(summary["quality"]) | {"notes": []}
    summary["duplicates"] = {"n_groups": 0, "n_images_in_groups": 0, "chains": None, "threshold": None}
    summary["calibration"] = {"method": "baseline", "n": 0, "rule": None, "fdr": 0.05, "line": None, "sentence": None}
    summary["recipe"]["held_out"] = summary["protocol"]["threshold"] = None
    summary["classical_tests"] = []
    return FakeResult(summary, {name: rows.slice(0, 0) for name, rows in full.tables.items()})


def _generated(
    rng: np.random.Generator, names: list[str], train: list[str], match: list[str], score: NDArray[Any],
    copied: NDArray[Any], failed: set[int],
) -> pa.Table:  # fmt: skip
    n = len(names)

    def unless_failed(values: Any) -> list[Any]:
        return [None if i in failed else value for i, value in enumerate(values)]

    return table(
        id=names,
        prompt=[HOSTILE[i] if i < len(HOSTILE) else f"a photo of thing {i % 17}" for i in range(n)],
        match=unless_failed(match),
        match_captions=unless_failed(captions_of(one) for one in match),
        score=unless_failed(score),
        verified=unless_failed(np.clip(score + 0.02, 0, 1)),
        combined=unless_failed(score),
        p_value=unless_failed(np.where(copied, 0.0012, rng.uniform(0.04, 1, n))),
        copied=copied,
        group_size=unless_failed(4 if one in train[:40] else 1 for one in match),
        next_match=unless_failed(train[-1 - i % 20] for i in range(n)),
        next_score=unless_failed(rng.uniform(0.1, 0.5, n)),
        why=["its match is a simple image, four times in the training set"] * n,
        error=["truncated file" if i in failed else None for i in range(n)],
    )


def _look_alikes(train: list[str]) -> pa.Table:
    ids = [*HOSTILE[:3], *(f"unseen_{i:02d}.png" for i in range(27))]
    score = [round(0.97 - 0.01 * i, 4) for i in range(30)]
    return table(id=ids, match=train[20:50], score=score, verified=score[::-1], combined=score)


def captions_of(name: str) -> list[str]:
    """The captions of a training image, some with several."""
    return [f"caption of {name}", *([f"another of {name}"] if len(name) % 3 else [])]


def _groups(train: list[str]) -> pa.Table:
    kinds = ["full", "partial", "uncaptioned"]
    places = range(40)
    return table(
        id=train[:40],
        group=[i // 4 for i in places],
        size=[4] * 40,
        exact=[2 if i % 8 < 2 else 1 for i in places],
        duplication=[kinds[i // 4 % 3] for i in places],
        captions=[captions_of(train[i]) for i in places],
    )


def _risk(rng: np.random.Generator, times: dict[str, int], kept: list[str]) -> pa.Table:
    ids = [*times, *kept]
    actions = ["deduplicate", "recaption", "drop"]
    n = len(ids)
    return table(
        id=ids,
        times_copied=[times.get(one, 0) for one in ids],
        share_low=[0.001] * n,
        share_high=[0.021] * n,
        prompts=[[f"a photo of {one}", HOSTILE[1]] for one in ids],
        captions=[captions_of(one) for one in ids],
        group_size=[4] * n,
        duplication=["full"] * n,
        shared_captions=range(n),
        near_shared_captions=[1] * n,
        caption_length=[5] * n,
        entropy=rng.uniform(3, 8, n),
        jpeg_size=rng.uniform(2e3, 9e4, n),
        total_variation=rng.uniform(10, 500, n),
        mixed=rng.uniform(10, 90, n),
        action=[actions[i % 3] if one in times else "keep" for i, one in enumerate(ids)],
        reason=["four images of the same picture with one caption"] * n,
    )


def thumbnail(rng: np.random.Generator, like: Image.Image | None = None) -> tuple[bytes, Image.Image]:
    """A smooth random picture, or a slightly altered copy of one, as WebP bytes and as an image."""
    if like is None:
        pixels = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((48, 48), Image.Resampling.BICUBIC)
    else:
        noisy = np.asarray(like).astype(int) + rng.integers(-12, 13, (like.height, like.width, 3))
        image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=70)
    return buffer.getvalue(), image


def _thumbnails(
    rng: np.random.Generator, names: list[str], match: list[str], copied: NDArray[Any], train: list[str]
) -> pa.Table:
    shots: dict[tuple[str, str], bytes] = {}
    originals: dict[str, Image.Image] = {}
    for i, name in enumerate(names):
        if match[i] not in originals:
            shots["train", match[i]], originals[match[i]] = thumbnail(rng)
        shots["generated", name], _ = thumbnail(rng, originals[match[i]] if copied[i] else None)
    for one in _look_alikes(train).slice(0, 24).to_pylist():
        shots.setdefault(("train", one["match"]), thumbnail(rng)[0])
        shots["held-out", one["id"]] = thumbnail(rng)[0]
    for one in [*train[3:40], *train[-20:]]:
        shots.setdefault(("train", one), thumbnail(rng)[0])
    names = [list(one) for one in zip(*shots, strict=True)] or [[], []]
    return table(corpus=names[0], id=names[1], sha256=[digest_of(*key) for key in shots], image=shots.values())


def digest_of(corpus: str, name: str) -> str:
    """What stands for the digest of an image's file."""
    return hashlib.sha256(f"{corpus}/{name.translate(VISIBLE)}".encode()).hexdigest()


def _series(mean: float, n: int) -> dict[str, Any]:
    values = {
        "mean": mean,
        "std": 0.11,
        "p75": mean + 0.1,
        "p90": mean + 0.2,
        "p95": mean + 0.3,
        "above_threshold": 0.06,
    }
    return values | {"n": n, "estimates": {key: estimate(value, n=n) for key, value in values.items()}}


def _summary(n: int, copies: int, tables: dict[str, pa.Table]) -> dict[str, Any]:
    readable = n - 1
    columns = ("id", "match", "score", "verified", "combined", "p_value", "group_size", "prompt")
    seen = {"1": 6, "2": 2, "3-5": 0, "6+": 0}
    sizes = [{"size": size, "n_copies": 6, "seen": count, "seen_group_aware": 6} for size, count in seen.items()]
    ratios = {
        "group size": (3.1, 1.8, 5.2), "caption uniqueness": (1.4, 0.8, 2.4), "entropy": (0.6, 0.4, 0.9),
        HOSTILE[5]: (1.0, 0.01, 9e9),
    }  # fmt: skip
    correlations = {
        "entropy": ("bits", -0.41),
        "jpeg_size": ("bytes", -0.3),
        "group_size": ("images", 0.52),
        HOSTILE[0]: ("x", 0.01),
    }
    return {
        "schema": "copyscope.audit/1",
        "copyscope": "0.1.0",
        "created": "2026-11-24T08:00:00+00:00",
        "seconds": 12.5,
        "about": {
            "title": f"Release {HOSTILE[0]}", "model": f"flowers-lora {HOSTILE[5]}", "note": "Before the gate.",
            "sets": [
                {"set": name, "path": f"data/{name}", "kind": "folder", "n": n, "digest": digit * 64}
                for name, digit in (("train", "b"), ("generated", "a"), ("held-out", "c"))
            ],
        },
        "verdict": {
            "answer": "copies" if copies else "no copies found",
            "sentence": f"{copies or 'None'} of {readable} generated images reproduce training images.",
            "reasons": [],
            "needed": None,
        },
        "replication_rate": estimate(copies / readable, 0.02, readable) | {"low": 0.8 * copies / n},
        "estimated_rate": estimate(1.1 * copies / readable, 0.03, readable) | {"low": 0.8 * copies / n},
        "sensitivity": {kind: estimate(seen, 0.05, 150) for kind, seen in SEEN.items()},
        "excess": 0.06 if copies else 0.0,
        "n_likeness": 0,
        "n_blank": {"generated": 0, "held_out": 0, "control": 0},
        "parts": {"looked": True, "why": "Each of the training images was looked for in parts."},
        "n_generated": n,
        "n_train": n + len(HOSTILE),
        "n_missing": 1,
        "n_missing_train": 1,
        "n_outside": 0,
        "similarity": _series(0.4, readable)
        | {"baseline": _series(0.28, 500), "held_out": _series(0.3, 200), "control": None},
        "dataset_similarity": {
            "p95": {"generated": estimate(0.7), "baseline": estimate(0.58), "held-out": estimate(0.6)},
            "above": True, "agrees": bool(copies), "sentence": "The 95th percentile of similarity is above the rest.",
        },
        "calibration": {
            "method": "held-out", "n": 180, "n_removed": 20, "rule": "score of 0.9 or more to a training image",
            "n_excluded": 3, "n_look_alikes": 30 if copies else 0, "fdr": 0.05, "line": 0.0125, "differs": None,
            "nearer_than_control": None, "sentence": "Compared with 180 real images not trained on.",
        },
        "repeated_outputs": {
            "n_groups": 1, "n_images": 4, "share": estimate(4 / readable, 0.01, readable),
            "sentence": "The model makes one picture again and again, in 4 images.",
            "groups": [
                {"size": 4, "share": estimate(4 / readable, 0.01, readable), "n_prompts": 4, "n_generations": 4,
                 "ids": tables["generated"]["id"].to_pylist()[30:34], "prompts": HOSTILE[:4], "similarity": 0.96,
                 "similarity_least": 0.9, "verified": 0.97, "verified_least": 0.92},
            ],
        } if copies else None,
        "copies": tables["generated"].select(columns).slice(0, copies).to_pylist(),
        "classical_tests": [
            {"name": name, "reference": paper, "flagged": estimate(0.03), "flagged_group_aware": estimate(0.1),
             "by_group_size": sizes, "note": note}
            for name, paper, note in (("ratio", "Yoon et al. 2023", "as published"), ("AuthPct", "Alaa 2022", ""))
        ],
        "duplicates": {
            "n_groups": 10, "n_images_in_groups": 40, "n_exact_groups": 5, "full": 4, "partial": 3, "uncaptioned": 3,
            "largest": 4, "threshold": 0.9, "chains": "Chains are cut at hubs.",
        },
        "findings": {
            "correlations": [
                {"measure": measure, "unit": unit, "target": "similarity", "pearson": estimate(r, 0.1),
                 "pearson_p": 0.002, "spearman": estimate(r / 2, 0.1), "spearman_p": 0.2}
                for measure, (unit, r) in correlations.items()
            ],
            "joint": {
                "outcome": "is copied", "n": readable, "n_copied": copies, "n_images": 2 * readable, "n_copies": copies,
                "correlation": 0.1, "model": "logistic regression",
                "effects": [
                    {"name": name, "unit": "", "p_value": 0.01, "odds_ratio": dict(zip(ENDS, ratio, strict=True))}
                    for name, ratio in ratios.items()
                ],
                "note": "Causes that go together cannot be told apart with few copies.",
            },
            "notes": ["Rows of one match are resampled together."],
        },
        "quality": {
            "space": "sscd(size=288)", "frechet_distance": estimate(1.32, 0.2), "precision": estimate(0.71),
            "recall": estimate(0.44), "diversity_generated": estimate(0.8), "diversity_train": estimate(0.85),
            "text_image_alignment": None, "notes": ["Not Inception-FID."],
        },
        "search": {"method": "cells", "cells": 1024, "recall": estimate(0.93, n=200)},
        "protocol": {
            "name": "sscd-288", "descriptor": "sscd", "threshold": 0.5, "verify": "aligned", "fingerprint": "0" * 64,
        },
        "recipe": {
            "generated": f"runs/{HOSTILE[2]}", "train": "data/train", "held_out": "data/held-out", "control": None,
            "options": {"k": 8},
            "versions": {"numpy": "2.4"}, "seed": 0,
        },
        "failures": {"generated": 1, "train": 1, "held-out": 1},
    }  # fmt: skip
