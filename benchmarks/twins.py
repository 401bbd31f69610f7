"""Are verbatim copies called where the held-out pictures are the same symbols by other artists?

    python benchmarks/twins.py FOLDER      # FOLDER is made; the first time 45 minutes on two cores, then 5

FOLDER/train and FOLDER/held-out: 1,300 and 331 emoji of 64 pixels by three artists; of every held-out picture the same
symbol by the two others is in the training set. FOLDER/run: `small_unet`, trained for 1,000 steps with 52 of the
pictures drawn twenty times as often. FOLDER/copies: 104 images of the captions of those 52; FOLDER/unseen: 64 of
held-out captions. What is there is not made again. The pictures are read from npm packages by the user's own npm: Noto
(emoji-datasource-google; Apache-2.0), Twemoji (emoji-datasource-twitter; CC BY 4.0), Fluent 3D and emojibase (MIT).

Beside the model's images there are planted copies of training pictures of symbols on which registration was not tuned
(its bands were chosen on every third symbol), in every kind of `copyscope.detection.verdict.alterations`. A column is a
score of `Matches` or of `Register`; its rate is the share that lies above every held-out picture, look-alikes taken out
as an audit does: p = 1 / (m + 1). "min rank" is the smallest of the three ranks, calibrated in the same way.

"verdict" is `copyscope.audit` of copies and unseen together, end to end: how many of the copies are called, how many of
the unseen. Expect 90 % or more of the copies and at most 5 % of what is called to be unseen.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import copyscope
import worlds
from copyscope import Corpus, stats
from copyscope.data import assets
from copyscope.detection.embedding.embed import embed
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.matching.match import match
from copyscope.detection.matching.ncc import Verify
from copyscope.detection.matching.registration import Register
from copyscope.detection.verdict.alterations import KINDS, alter
from copyscope.detection.verdict.calibration import look_alikes
from copyscope.imaging import images
from record import record

SIZE, N_TRAIN, PLANTED, PER_CAPTION, UNSEEN = 64, 1300, 100, 2, 64
COLUMNS = ("similarity", "combined", "registered")
TRAINING = {
    "steps": 1000, "duplication": "full", "duplication_rate": 0.04, "duplication_factor": 20, "caption_dropout": 0.1,
}  # fmt: skip
TUNED_ON = 3
STYLES = {"google": "blob style", "twitter": "flat style", "fluent": "clay style"}
# fmt: off
PACKAGES = {
    "google": (assets.Package("npm", "emoji-datasource-google", "16.0.0", "sha512-"
               "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A=="),
               "package/img/google/64/"),
    "twitter": (assets.Package("npm", "emoji-datasource-twitter", "16.0.0", "sha512-"
                "7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ=="),
                "package/img/twitter/64/"),
}
# fmt: on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    make(folder)
    with tempfile.TemporaryDirectory() as cache:
        record("twins", measure(folder) | {"verdict": verdict(folder, Path(cache))})


def make(folder: Path) -> None:
    """Pictures, model and images, as far as they are not there yet."""
    if not (folder / "held-out" / "metadata.jsonl").exists():
        world(folder)
    settings = [f"--set={name}={value}" for name, value in TRAINING.items()]
    if not (folder / "run" / "summary.json").exists():
        _copyscope("train", folder / "train", "-o", folder / "run", *settings, "--set=tracker=none")
    table = Corpus.open(folder / "train").table.to_pylist()
    captions = {row["id"]: row["captions"][0] for row in table}
    duplicated = [row["id"] for row in _run_table(folder) if row["duplicated"]]
    unseen = [row["text"] for row in _rows(folder / "held-out")]
    for name, prompts, n in (
        ("copies", [captions[each] for each in duplicated], PER_CAPTION * len(duplicated)),
        ("unseen", unseen[:: len(unseen) // UNSEEN], UNSEEN),
    ):
        if (folder / name / "metadata.jsonl").exists():
            continue
        (folder / f"{name}.txt").write_text("".join(prompt + "\n" for prompt in prompts), encoding="utf-8")
        _copyscope("generate", folder / "run", "-o", folder / name, "-n", n, "--set=guidance=1.5",
                   "--prompts", folder / f"{name}.txt")  # fmt: skip


def world(folder: Path) -> None:
    """The imagefolders `train` and `held-out`, with `text`, `style` and `concept`; the same ones every time."""
    found: dict[str, dict[str, images.Image]] = collections.defaultdict(dict)
    fluent = assets.fetch("fluent-emoji")
    symbols = [row for row in _rows(fluent) if not row["skin_tone"] and row["group"] != "component"]
    labels = {_code(Path(row["file_name"]).stem): row["label"] for row in symbols}
    with tempfile.TemporaryDirectory() as temporary:
        for artist, (package, inside) in PACKAGES.items():
            with tarfile.open(assets._download(package, Path(temporary) / artist)) as archive:
                for member in archive:
                    code = _code(Path(member.name).stem)
                    if member.name.startswith(inside) and code in labels and (file := archive.extractfile(member)):
                        found[code][artist] = images.decode(file.read())
    for row in symbols:
        found[_code(Path(row["file_name"]).stem)]["fluent"] = images.decode(fluent / row["file_name"])
    concepts = [code for code in sorted(found) if len(found[code]) == len(STYLES)]
    rng = random.Random(0)
    held = {(code, rng.choice(list(STYLES))) for code in concepts if rng.random() < 0.2}
    pictures = [(code, artist) for code in concepts for artist in STYLES]
    twins = [each for each in pictures if each not in held and each[0] in dict(held)]
    others = [each for each in pictures if each[0] not in dict(held)]
    train = twins + random.Random(1).sample(others, N_TRAIN - len(twins))
    for part, members in (("train", train), ("held-out", held)):
        (folder / part / "images").mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, object]] = []
        for code, artist in sorted(members, key="_".join):
            name = f"images/{code}_{artist}.png"
            picture = images.resize(found[code][artist], (SIZE, SIZE), "lanczos")
            (folder / part / name).write_bytes(images.encode(picture, "png"))
            row = {"file_name": name, "text": f"{labels[code]}, {STYLES[artist]}", "style": artist, "concept": code}
            rows.append(row | {"symbol": concepts.index(code)})
        worlds.write_metadata(folder / part, rows)


def measure(folder: Path) -> dict[str, Any]:
    """Scores and rates of every kind, and those of the held-out pictures."""
    train = embed(Corpus.open(folder / "train"), "sscd-288")
    held = embed(Corpus.open(folder / "held-out"), "sscd-288")
    alike = look_alikes(held, train)
    held = Embeddings(held.corpus, held.rows[~alike], held.vectors[~alike], held.descriptor, held.fingerprint)
    nulls, _ = columns(held, train)
    found: dict[str, Any] = {
        "train": len(train.rows), "held_out": len(nulls), "look_alikes": int(alike.sum()),
        "level": 1 / (len(nulls) + 1),
        "register": str(Register()),
        "nulls": {name: _points(nulls[:, at], (0.5, 0.95, 0.99, 1)) for at, name in enumerate(COLUMNS)},
        "kinds": {},
    }  # fmt: skip
    first_of = {row["captions"][0]: row["id"] for row in train.corpus.table.to_pylist()}
    for name in ("copies", "unseen"):
        made = embed(Corpus.open(folder / name), "sscd-288")
        prompts = made.corpus.pick("prompt", made.rows).to_pylist()
        found["kinds"][name] = rates(nulls, train, made, [first_of.get(prompt, "") for prompt in prompts])
    rng = np.random.default_rng(1)
    table = train.corpus.table.to_pylist()
    untuned = [row for row in table if row["symbol"] % TUNED_ON]
    chosen = [untuned[at] for at in rng.permutation(len(untuned))[:PLANTED]]
    pictures = [images.decode(folder / "train" / row["id"]) for row in table]
    place = {row["id"]: at for at, row in enumerate(table)}
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as temporary:
            for number, row in enumerate(chosen):
                background = pictures[int(rng.integers(len(pictures)))]
                altered = alter(pictures[place[row["id"]]], kind, rng, background)
                (Path(temporary) / f"{number:03d}.png").write_bytes(images.encode(altered, "png"))
            planted = embed(Corpus.open(temporary), "sscd-288")
            found["kinds"][kind] = rates(nulls, train, planted, [row["id"] for row in chosen])
    return found


def verdict(folder: Path, cache: Path) -> dict[str, Any]:
    """What an audit answers of copies and unseen in one folder, and how many of each it calls copies."""
    made, rows = cache / "generated", []
    made.mkdir()
    for part in ("copies", "unseen"):
        for row in _rows(folder / part):
            name = f"{part}-{row['file_name']}"
            shutil.copy(folder / part / row["file_name"], made / name)
            rows.append({"file_name": name, "prompt": row["prompt"], "seed": row["seed"]})
    worlds.write_metadata(made, rows)
    found = copyscope.audit(made, folder / "train", folder / "held-out", cache=cache / "cache")
    table = found.tables["generated"].to_pylist()
    copies, unseen = ([row for row in table if row["id"].startswith(part)] for part in ("copies", "unseen"))
    summary = found.summary
    return {
        "answer": summary["verdict"]["answer"],
        "sentence": summary["verdict"]["sentence"],
        "of": len(copies),
        "called": sum(row["copied"] for row in copies),
        "called_rate": stats.proportion(sum(row["copied"] for row in copies), len(copies)).as_dict(),
        "not_called": sorted({row["prompt"] for row in copies if not row["copied"]}),
        "unseen": len(unseen),
        "unseen_called": sum(row["copied"] for row in unseen),
        "replication_rate": summary["replication_rate"],
        "estimated_rate": summary["estimated_rate"],
        "excess": summary["excess"],
        "sensitivity": {kind: each["value"] for kind, each in summary["sensitivity"].items()},
        "seconds": summary["seconds"],
    }


def rates(nulls: NDArray[np.float32], train: Embeddings, made: Embeddings, sources: list[str]) -> dict[str, Any]:
    """Scores of copies by column, and which share of them lies above every held-out picture."""
    scores, names = columns(made, train)
    result: dict[str, Any] = {"n": len(scores)}
    result["source_named"] = float(np.mean([name == source for name, source in zip(names, sources, strict=True)]))
    above = scores > nulls.max(axis=0)
    for at, name in enumerate(COLUMNS):
        result[name] = _points(scores[:, at], (0, 0.1, 0.5)) | {"rate": float(above[:, at].mean())}
    # Above all held-out pictures in some column: of these none has so small a rank in any.
    result["min_rank"] = {
        "rate": float(above.any(axis=1).mean()),
        "without_registered": float(above[:, :2].any(axis=1).mean()),
    }
    return result


def columns(queries: Embeddings, train: Embeddings) -> tuple[NDArray[np.float32], list[str]]:
    """Highest similarity, combined and registered score of each query [n 3], and whom the last one names."""
    found = match(queries, train, Verify(), register=Register())
    assert found.registered is not None
    best = np.nan_to_num(found.registered, nan=-1).argmax(axis=1)[:, None]
    ids = train.ids
    return found.evidence, [ids[at] for at in np.take_along_axis(found.nearest.index, best, axis=1)[:, 0]]


def _points(values: NDArray[np.float32], shares: tuple[float, ...]) -> dict[str, float]:
    names = {0: "min", 0.5: "median", 1: "max"}
    return {names.get(share, f"q{100 * share:g}"): round(float(np.quantile(values, share)), 4) for share in shares}


def _copyscope(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "copyscope", *map(str, arguments)], check=True)


def _run_table(folder: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return list(pq.read_table(folder / "run" / "train.parquet").to_pylist())


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def _code(name: str) -> str:
    """A code point sequence in one spelling, without variation selectors."""
    return "-".join(part for part in name.lower().split("-") if part != "fe0f")


if __name__ == "__main__":
    main()
