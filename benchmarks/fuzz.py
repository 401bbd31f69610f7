"""Mutated images, containers and manifests, as hostile or rotten storage gives them: does every one end as a row or in
two lines? And mutated requests: does the service answer, and go on answering?

    python benchmarks/fuzz.py images --n 10000
    python benchmarks/fuzz.py containers --n 500
    python benchmarks/fuzz.py manifests --n 500
    python benchmarks/fuzz.py requests --n 2000

Files are made by a seed, so that a failure can be made again. Each lot runs in a process of its own, whose time and
memory are measured; a process that dies, hangs, loses a row or raises what is no error for people is a fault, and its
lot and seed are printed.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")
CONTAINERS = ("tar", "parquet", "zip", "metadata.jsonl", "metadata.csv", "metadata.parquet", "captions.json")
LOT = {"images": 500, "containers": 50, "manifests": 250, "requests": 1000}
SECONDS = 600
"""A lot that takes longer hangs."""
ODD = (0, 1, 0x7F, 0x80, 0xFF)
LONG = (0, 1, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFE00)


def pictures(rng: np.random.Generator) -> dict[str, list[bytes]]:
    """Whole files to begin with: of each format some, of several modes."""
    found: dict[str, list[bytes]] = {}
    for name in FORMATS:
        for mode in ("RGB", "L", "P"):
            picture = Image.fromarray(rng.integers(0, 256, (24, 36, 3), np.uint8)).resize((72, 48))
            if name in ("JPEG", "WEBP") and mode == "P":
                mode = "RGB"
            options = {"progressive": True} if name == "JPEG" and mode == "L" else {}
            options |= {"compression": "tiff_lzw"} if name == "TIFF" and mode == "L" else {}
            file = io.BytesIO()
            picture.convert(mode).save(file, name, **options)
            found.setdefault(name, []).append(file.getvalue())
    return found


def mutated(data: bytes, rng: np.random.Generator, other: bytes = b"") -> bytes:
    """The file with one to four changes: bits, bytes, numbers of 2 or 4 bytes, pieces cut, doubled, put in or taken
    from another; half of the changes in the first 200 bytes, where headers are."""
    found = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        if not found:
            break
        at = int(rng.integers(min(len(found), 200) if rng.random() < 0.5 else len(found)))
        size = int(rng.integers(1, 65))
        match int(rng.integers(9)):
            case 0:
                found[at] ^= 1 << int(rng.integers(8))
            case 1:
                found[at] = int(rng.choice(ODD))
            case 2:
                width, order = int(rng.choice((2, 4))), str(rng.choice(("big", "little")))
                value = int(rng.choice(LONG)) & (256**width - 1)
                found[at : at + width] = value.to_bytes(width, order)  # type: ignore[arg-type]
            case 3:
                del found[at:]
            case 4:
                del found[at : at + size]
            case 5:
                found[at:at] = found[at : at + size] * int(rng.integers(1, 9))
            case 6:
                found[at : at + size] = rng.bytes(size)
            case 7:
                found[at:at] = rng.bytes(size)
            case _:
                found[at:] = other[at:] if other else b""
    return bytes(found)


def container(kind: str, folder: Path, rng: np.random.Generator) -> Path:
    """A whole corpus of four images of that kind in `folder`; the file that is to be mutated."""
    files = {f"{row}.png": pictures(rng)["PNG"][row % 3] for row in range(4)}
    texts = {name: f"a picture, number {name}" for name in files}
    if kind == "tar":
        with tarfile.open(folder / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            for name, data in files.items():
                record = json.dumps({"caption": texts[name]}).encode()
                for path, content in ((name, data), (name.replace("png", "json"), record)):
                    info = tarfile.TarInfo(path)
                    info.size, info.pax_headers = len(content), {"comment": "x" * 20}
                    tar.addfile(info, io.BytesIO(content))
        return folder / "a.tar"
    if kind == "parquet":
        rows = [{"image": {"bytes": data, "path": name}, "text": texts[name]} for name, data in files.items()]
        pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet", compression=str(rng.choice(("none", "zstd"))))
        return folder / "a.parquet"
    if kind == "zip":
        with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return folder / "a.zip"
    for name, data in files.items():
        (folder / name).write_bytes(data)
    records = [{"file_name": name, "text": text, "seed": 7} for name, text in texts.items()]
    path = folder / kind
    if kind == "captions.json":
        path.write_text(json.dumps({name: [text] for name, text in texts.items()}))
    elif kind == "metadata.jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif kind == "metadata.csv":
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(records[0]))
            table.writeheader()
            table.writerows(records)
    else:
        pq.write_table(pa.Table.from_pylist(records), path)
    return path


def run_images(seed: int, n: int, folder: Path) -> dict[str, int]:
    """Describe a folder of n mutated images; raises AssertionError where a row is lost."""
    from copyscope.detection.embedding.embed import embed

    rng = np.random.default_rng([seed, 1])
    whole = pictures(rng)
    for row in range(n):
        name = FORMATS[row % len(FORMATS)]
        one, other = (whole[name][int(rng.integers(3))] for _ in range(2))
        (folder / f"{row:05d}.{name.lower()}.png").write_bytes(mutated(one, rng, other))
    described = embed(folder, "phash", cache=folder.parent / "cache", workers=1)
    errors = [error for error in described.corpus.table["error"].to_pylist() if error]
    assert len(described.corpus) == n, "a row is lost"
    assert len(described.rows) + len(errors) == n, "a row is neither described nor an error"
    assert max(map(len, errors), default=0) < 300, "an error of many words"
    return {"rows": n, "errors": len(errors)}


def run_containers(seed: int, n: int, folder: Path) -> dict[str, int]:
    """Open and read n mutated containers; raises where one ends in anything but rows or an error for people."""
    from copyscope import Corpus
    from copyscope.errors import CopyscopeError

    rng = np.random.default_rng([seed, 2])
    found = {"rows": 0, "errors": 0, "refused": 0}
    for number in range(n):
        kind = CONTAINERS[number % len(CONTAINERS)]
        own = folder / str(number)
        own.mkdir()
        path = container(kind, own, rng)
        path.write_bytes(mutated(path.read_bytes(), rng, path.read_bytes()[::-1]))
        origin = f"zip://::{path}" if kind == "zip" else own if kind.startswith(("metadata", "captions")) else path
        try:
            corpus = Corpus.open(origin)
        except CopyscopeError as error:
            if len(str(error).splitlines()) != 2:
                raise
            found["refused"] += 1
            continue
        read = list(corpus.stream())
        assert sorted(row for row, _ in read) == list(range(len(corpus))), "a row is lost"
        found["rows"] += len(read)
        found["errors"] += sum(isinstance(data, Exception) for _, data in read)
    return found


def lot(what: str, seed: int, n: int) -> None:
    """One lot in this process; prints what came of it as JSON."""
    with tempfile.TemporaryDirectory(prefix="copyscope-fuzz-") as folder:
        work = Path(folder) / "files"
        work.mkdir()
        if what in ("images", "containers"):
            found = (run_images if what == "images" else run_containers)(seed, n, work)
        else:
            import fuzz_read

            found = (fuzz_read.run_manifests if what == "manifests" else fuzz_read.run_requests)(seed, n, work)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(json.dumps(found | {"peak_mib": peak}))


def main() -> None:
    """All lots, one after the other, and what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=LOT)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lot", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.lot:
        lot(given.what, given.seed, given.n)
        return
    total: dict[str, float] = {"n": 0, "faults": 0, "peak_mib": 0, "longest_seconds": 0.0}
    for number, start in enumerate(range(0, given.n, LOT[given.what])):
        size = min(LOT[given.what], given.n - start)
        seed = given.seed + number
        command = [sys.executable, __file__, given.what, "--lot", "--n", str(size), "--seed", str(seed)]
        began = time.monotonic()
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=os.environ)
            fault = done.stderr[-2000:] if done.returncode else ""
        except subprocess.TimeoutExpired:
            fault = f"no end within {SECONDS} seconds"
        total["n"] += size
        total["longest_seconds"] = round(max(total["longest_seconds"], time.monotonic() - began), 1)
        if fault:
            total["faults"] += 1
            print(f"lot of seed {seed}: {fault}", file=sys.stderr)
            continue
        with contextlib.suppress(ValueError):
            for name, value in json.loads(done.stdout).items():
                total[name] = (
                    max(total.get(name, 0), value)
                    if name.startswith(("peak", "longest"))
                    else total.get(name, 0) + value
                )
    print(json.dumps({"what": given.what, "seed": given.seed} | total))


if __name__ == "__main__":
    main()
