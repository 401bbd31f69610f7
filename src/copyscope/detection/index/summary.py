"""Summary of an index as plain values: what it holds, how it is described, what its p-values rest on."""

from __future__ import annotations

from typing import Annotated, TypedDict

from .segments import IndexSnapshot, precision_of


class IndexCalibration(TypedDict):
    """What the p-values of an index rest on."""

    method: Annotated[str, "`held-out` or `baseline`"]
    n: Annotated[int, "calibration images"]
    n_removed: Annotated[int, "look-alikes of training images taken out"]
    n_blank: Annotated[int, "images of one colour left out"]
    n_missing: Annotated[int, "images that cannot be read, or could be read once and not again"]
    rule: Annotated[str, "by which rule"]


class IndexSummary(TypedDict):
    """Summary of an index."""

    schema: Annotated[str, "`copyscope.index/2`, or `copyscope.index/3` where `precision` is not `float32`"]
    copyscope: Annotated[str, "version that built it"]
    created: Annotated[str, "when, ISO 8601, UTC"]
    protocol: Annotated[str, "protocol, or the descriptor's spec"]
    descriptor: Annotated[str, "descriptor's spec"]
    fingerprint: Annotated[str, "sha256 of the weights, or a library's version"]
    crops: Annotated[bool, "parts of the training images are described too"]
    precision: Annotated[str, "in what vectors are kept: `float32`, `float16` or `int8`"]
    n: Annotated[int, "training images that can be found"]
    n_missing: Annotated[int, "images given that could not be read"]
    n_blank: Annotated[int, "images given of one colour to within noise: they are never matched, and were left out"]
    n_removed: Annotated[int, "images removed that the files still hold, until it is compacted"]
    n_segments: Annotated[int, "segments they lie in"]
    bytes: Annotated[int, "size on disk"]
    calibration: Annotated[IndexCalibration, "what the p-values rest on"]


def summary_of(state: IndexSnapshot) -> IndexSummary:
    """The summary of what is on disk."""
    manifest = state.manifest
    calibration = manifest["calibration"]
    return {
        "schema": manifest["schema"],
        "copyscope": manifest["copyscope"],
        "created": manifest["created"],
        "protocol": manifest["protocol"],
        "descriptor": manifest["descriptor"],
        "fingerprint": manifest["fingerprint"],
        "crops": manifest["crops"],
        "n_missing": manifest["n_missing"],
        "precision": precision_of(manifest),
        "n": state.n,
        "n_blank": manifest.get("n_blank", 0),
        "n_removed": manifest["n_removed"],
        "n_segments": len(manifest["segments"]),
        "bytes": sum(entry["bytes"] for entry in manifest["files"].values()),
        "calibration": {
            "method": calibration["method"],
            "n": calibration["n"],
            "n_removed": calibration["n_removed"],
            "rule": calibration["rule"],
            "n_blank": calibration.get("n_blank", 0),
            "n_missing": calibration.get("n_missing", 0),
        },
    }
