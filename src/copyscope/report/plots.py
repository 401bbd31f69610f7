"""Charts of a report as inline SVG: histograms, tails, scatter, odds ratios.

A series differs from the others by line pattern and mark as well as by colour.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .charts import DASHED, SOLID, Chart, Key, Panel, around, linear, logarithmic, rows, short, stairs, steps
from .wording import is_number, number

Floats = NDArray[np.float64]

#: Series of the `histograms` table -> (label, role, line pattern), in drawing order.
SERIES = {
    "generated": ("generated", "generated", SOLID),
    "baseline": ("baseline", "baseline", SOLID),
    "held-out": ("held-out", "heldout", DASHED),
    "control": ("control", "heldout", DASHED),
}

# DCR draws 200 edges on [0, 1]; with few images that is noise, so fewer images get wider bins.
EDGES = ((5_000, 200), (1_000, 101), (0, 51))
MAX_POINTS = 700


def histograms(series: Mapping[str, Floats], threshold: float | None) -> str:
    """Histograms of the similarity of all series on one axis, as shares of their images, with the threshold."""
    series = _present(series)
    if not series:
        return ""
    edges = _edges(series)
    shares = {
        key: 100 * np.histogram(np.clip(scores, edges[0], edges[-1]), edges)[0] / len(scores)
        for key, scores in series.items()
    }
    chart = Chart("histograms", 390, 268, _legend(series))
    panel = chart.panel(
        linear(edges[0], edges[-1]),
        linear(0, 1.05 * max(float(each.max()) for each in shares.values())),
        "highest similarity to a training image",
        "% of the images of the series",
    )
    for key, heights in shares.items():
        _, role, pattern = SERIES[key]
        outline = stairs(edges.tolist(), heights.tolist())
        if key == "generated":
            panel.area(outline, role, 0.28)
        panel.line(outline, role, pattern)
    _threshold(panel, threshold)
    return chart.svg("Histograms of similarity", _spoken(series, threshold))


def tails(series: Mapping[str, Floats], threshold: float | None) -> str:
    """Share of images scoring at or above each value, on a logarithmic axis: where rare copies show."""
    series = _present(series)
    if not series:
        return ""
    edges = _edges(series)
    smallest = min(1 / len(scores) for scores in series.values())
    chart = Chart("tails", 390, 268, _legend(series))
    panel = chart.panel(
        linear(edges[0], edges[-1]),
        logarithmic(10 ** math.floor(math.log10(smallest)), 1.2, lambda value: f"{100 * value:g} %"),
        "highest similarity to a training image",
        "share scoring at least this",
    )
    for key, scores in series.items():
        _, role, pattern = SERIES[key]
        ordered = np.sort(scores)
        # Few points suffice where the curve is flat; the top scores are all kept.
        n = len(ordered)
        ranks = np.unique(np.concatenate([np.linspace(0, n - 1, 150), np.arange(max(n - 60, 0), n)]).astype(int))
        points = list(zip(ordered[ranks].tolist(), ((n - ranks) / n).tolist(), strict=True))
        panel.line(steps([(edges[0], 1.0), *points], before=True), role, pattern)
    _threshold(panel, threshold)
    return chart.svg("Share of images scoring at least a given similarity", _spoken(series, threshold))


def scatter(measure: str, unit: str, x: Floats, y: Floats, copied: NDArray[np.bool_]) -> str:
    """Scatter of similarity against a complexity measure of the matched training image; copies marked.

    Draws at most MAX_POINTS of each kind, evenly chosen.

    Args:
        measure: its name.
        unit: of the measure.
        x: measure [n].
        y: similarity [n].
        copied: bool [n].
    """
    known = np.isfinite(x) & np.isfinite(y)
    x, y, copied = x[known], y[known], copied[known]
    if len(x) == 0:
        return ""
    kinds = [kind for kind in ((False, "circle", "baseline", "not flagged"), (True, "diamond", "copy", "copy"))
             if (copied == kind[0]).any()]  # fmt: skip
    name = "scatter-" + "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in measure)
    keys = [Key(label, role, width=0, mark=mark, filled=flag) for flag, mark, role, label in kinds]
    chart = Chart(name, 302, 245, keys)
    panel = chart.panel(
        around(x.tolist(), most=5),
        around(y.tolist()),
        short(f"{measure} ({unit})" if unit else measure),
        "similarity",
    )
    for flag, mark, role, _ in kinds:
        found = np.flatnonzero(copied == flag)
        shown = found[np.unique(np.linspace(0, len(found) - 1, min(len(found), MAX_POINTS)).astype(int))]
        panel.marks(zip(x[shown].tolist(), y[shown].tolist(), strict=True), mark, role, 2.2, flag, 0.75)
    text = f"{len(x):,} generated images, {int(copied.sum()):,} of them flagged as copies (filled diamonds)."
    return chart.svg(f"Similarity against {short(measure)} of the matched training image", text)


def forest(effects: Sequence[Mapping[str, Any]]) -> str:
    """Forest plot: odds ratios with their intervals on a logarithmic axis, one row an effect."""
    found: list[tuple[str, float, float, float]] = []
    for effect in effects:
        ratio = effect.get("odds_ratio") or {}
        ends = [float(ratio[key]) for key in ("value", "low", "high") if is_number(ratio.get(key)) and ratio[key] > 0]
        if len(ends) == 3:
            found.append((short(str(effect.get("name", "")).replace("_", " ")), ends[0], ends[1], ends[2]))
    if not found:
        return ""
    # Separated data give intervals without end: the axis stops at a factor of a thousand.
    lowest = max(min(low for _, _, low, _ in found) / 1.4, 1e-3)
    highest = min(max(high for *_, high in found) * 1.4, 1e3)
    # Labels between the powers of ten only where they have room.
    between = (2, 5) if highest / lowest < 300 else ()
    chart = Chart("forest", 390, 70 + 30 * len(found))
    panel = chart.panel(
        logarithmic(min(lowest, 0.8), max(highest, 1.25), between=between),
        rows([name for name, *_ in found]),
        "odds ratio per 1 SD (above 1: copied more)",
        names=True,
    )
    panel.upright(1, "muted")
    for place, (_, value, low, high) in enumerate(found):
        role = "copy" if low > 1 else "baseline"
        panel.line([(max(low, lowest), place), (min(high, highest), place)], role, width=2)
        panel.marks([(min(max(value, lowest), highest), place)], "diamond" if low > 1 else "circle", role, 3.5)
    spoken = "; ".join(f"{name} {number(value)}, {number(low)} to {number(high)}" for name, value, low, high in found)
    return chart.svg("Odds ratios of being copied", spoken + ".")


def _present(series: Mapping[str, Floats]) -> dict[str, Floats]:
    finite = {key: np.asarray(series[key], dtype=np.float64) for key in SERIES if key in series}
    finite = {key: scores[np.isfinite(scores)] for key, scores in finite.items()}
    return {key: scores for key, scores in finite.items() if len(scores)}


def _edges(series: Mapping[str, Floats]) -> Floats:
    """Edges on [0, 1], reaching further down only where scores do."""
    lowest = min(float(scores.min()) for scores in series.values())
    fewest = min(len(scores) for scores in series.values())
    count = next(edges for images, edges in EDGES if fewest >= images)
    return np.linspace(min(0.0, math.floor(lowest * 10) / 10), 1.0, count)


def _threshold(panel: Panel, threshold: float | None) -> None:
    if is_number(threshold):
        panel.upright(threshold, "ink", f"threshold {threshold:g}")


def _legend(series: Mapping[str, Floats]) -> list[Key]:
    named = {f"{SERIES[key][0]}, n = {len(scores):,}": SERIES[key][1:] for key, scores in series.items()}
    return [Key(label, role, pattern) for label, (role, pattern) in named.items()]


def _spoken(series: Mapping[str, Floats], threshold: float | None) -> str:
    said = [
        f"{SERIES[key][0]}: n {len(scores):,}, median {np.median(scores):.2f}, highest {scores.max():.2f}"
        for key, scores in series.items()
    ]
    return "; ".join(said) + (f"; threshold {threshold:g}." if is_number(threshold) else ".")
