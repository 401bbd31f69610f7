"""End to end `embed` of 3,000 JPEGs of 512 px against the bare model, and against the loop DCR runs.

    copyscope fetch photographs
    python benchmarks/embed.py             # about 6 minutes on two cores

Rivals, in turn in one run, two threads each: the same ONNX model in bare ONNX Runtime on arrays decoded and resized
beforehand, once as a session of two intra-op threads, once as ours calls it (two callers of one session of one intra-op
thread); and a plain PyTorch ResNet-50 in fp32 fed by Pillow in batches of 16, as DCR feeds it (256, crop 224).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from copyscope.data import assets
from copyscope.data.corpus import Corpus
from copyscope.detection.descriptors import _device, _onnx
from copyscope.detection.descriptors.sscd import Sscd
from copyscope.detection.embedding.embed import embed
from copyscope.detection.embedding.fill import BATCH
from copyscope.imaging import images
from record import record

SIDE, THREADS, TORCH_BATCH = 512, 2, 16


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--n", type=int, default=3000)
    arguments.add_argument("--torch-n", type=int, default=600, help="images the slow rival is given")
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "images"
        write_images(folder, options.n)
        paths = sorted(folder.iterdir())
        prepared = [_onnx.prepare(images.decode(path), 288) for path in paths]
        ours, intra, bare, torch = [], [], [], []
        for turn in range(options.rounds):
            ours.append(options.n / timed(lambda turn=turn: ours_run(folder, Path(name) / f"cache{turn}")))
            intra.append(options.n / timed(lambda: bare_run(prepared, intra_op=True)))
            bare.append(options.n / timed(lambda: bare_run(prepared, intra_op=False)))
            torch.append(options.torch_n / timed(torch_run(paths[: options.torch_n])))
        record(
            "embed",
            {
                "images": options.n,
                "side": SIDE,
                "threads": THREADS,
                "images_per_second": ours,
                "bare_onnx_intra_op_images_per_second": intra,
                "bare_onnx_two_callers_images_per_second": bare,
                "torch_resnet50_images_per_second": torch,
                "ratio_to_bare_intra_op_median": float(np.median(np.array(ours) / np.array(intra))),
                "ratio_to_bare_two_callers_median": float(np.median(np.array(ours) / np.array(bare))),
                "ratio_to_torch_median": float(np.median(np.array(ours) / np.array(torch))),
            },
        )


def write_images(folder: Path, n: int) -> None:
    """Random crops of the photographs, 512 px, JPEG quality 90."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    photographs = [images.decode(path) for path in sorted(assets.fetch("photographs").rglob("*.jpg"))]
    for index in range(n):
        photograph = photographs[index % len(photographs)]
        top, left = (int(rng.integers(0, side - SIDE + 1)) for side in photograph.shape[:2])
        crop = np.ascontiguousarray(photograph[top : top + SIDE, left : left + SIDE])
        (folder / f"{index:05d}.jpg").write_bytes(images.encode(crop, "jpeg", 90))


def timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def ours_run(folder: Path, cache: Path) -> None:
    embed(Corpus.open(folder), Sscd(), cache=cache, workers=THREADS)


def bare_run(prepared: list[np.ndarray], intra_op: bool) -> None:
    batches = [np.stack(prepared[start : start + BATCH]) for start in range(0, len(prepared), BATCH)]
    path = _onnx.packaged("sscd.onnx")
    if intra_op:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = THREADS
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        for batch in batches:
            session.run(None, {"image": batch})
        return
    session = _device.session(path, "cpu")
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda batch: session.run(None, {"image": batch}), batches))


def torch_run(paths: list[Path]) -> Callable[[], None]:
    import torch
    from PIL import Image
    from transformers import ResNetConfig, ResNetModel

    torch.set_num_threads(THREADS)
    model = ResNetModel(ResNetConfig(layer_type="bottleneck")).eval()  # ResNet-50 as its configuration is by default

    def run() -> None:
        with torch.inference_mode():
            for start in range(0, len(paths), TORCH_BATCH):
                batch = []
                for path in paths[start : start + TORCH_BATCH]:
                    picture = Image.open(path).convert("RGB").resize((256, 256)).crop((16, 16, 240, 240))
                    batch.append((torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255 - 0.5) / 0.5)
                model(torch.stack(batch))

    return run


if __name__ == "__main__":
    main()
