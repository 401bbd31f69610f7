"""Charts of a report as inline SVG.

Figures are built without pyplot, so that no global state of matplotlib is touched but the style set while drawing.
A series differs from the others by line pattern and mark as well as by colour.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .svg import ROLES, STYLE, inline
from .wording import is_number, number

Floats = NDArray[np.float64]

#: Series of the `histograms` table -> (label, role, line pattern), in drawing order.
SERIES = {
    "generated": ("generated", "generated", "-"),
    "baseline": ("baseline", "baseline", "-"),
    "held-out": ("held-out", "heldout", (0, (4, 2))),
    "control": ("control", "heldout", (0, (4, 2))),
}

# DCR draws 200 edges on [0, 1]; with few images that is noise, so fewer images get wider bins.
EDGES = ((5_000, 200), (1_000, 101), (0, 51))
MAX_POINTS = 700


def histograms(series: Mapping[str, Floats], threshold: float | None) -> str:
    """Histograms of the similarity scores of all series on one axis, as shares of their images, with the threshold."""
    series = _present(series)
    if not series:
        return ""
    edges = _edges(series)
    with _style():
        figure, axes = _figure(5.4, 3.7)
        for key, scores in series.items():
            label, role, pattern = SERIES[key]
            counts, _ = np.histogram(np.clip(scores, edges[0], edges[-1]), edges)
            shares = 100 * counts / len(scores)
            if key == "generated":
                axes.stairs(shares, edges, fill=True, color=ROLES[role], alpha=0.28)
            axes.stairs(
                shares,
                edges,
                color=ROLES[role],
                linestyle=pattern,
                linewidth=1.6,
                label=f"{label}, n = {len(scores):,}",
            )
        _threshold(axes, threshold)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("highest similarity score to a training image")
        axes.set_ylabel("% of the images of the series")
        _legend(figure)
        return inline(figure, "histograms", "Histograms of similarity scores", _spoken(series, threshold))


def tails(series: Mapping[str, Floats], threshold: float | None) -> str:
    """Share of images scoring at or above each value, on a logarithmic axis: where rare copies show."""
    series = _present(series)
    if not series:
        return ""
    edges = _edges(series)
    smallest = min(1 / len(scores) for scores in series.values())
    with _style():
        figure, axes = _figure(5.4, 3.7)
        for key, scores in series.items():
            label, role, pattern = SERIES[key]
            ordered = np.sort(scores)
            # Few points suffice where the curve is flat; the top scores are all kept.
            n = len(ordered)
            ranks = np.unique(np.concatenate([np.linspace(0, n - 1, 150), np.arange(max(n - 60, 0), n)]).astype(int))
            axes.step(
                ordered[ranks],
                (n - ranks) / n,
                where="pre",
                color=ROLES[role],
                linestyle=pattern,
                linewidth=1.6,
                label=f"{label}, n = {n:,}",
            )
        _threshold(axes, threshold)
        axes.set_yscale("log")
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(10 ** math.floor(math.log10(smallest)), 1.2)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        axes.yaxis.minorticks_off()
        axes.set_xlabel("highest similarity score to a training image")
        axes.set_ylabel("share scoring at least this")
        _legend(figure)
        return inline(
            figure, "tails", "Share of images scoring at least a given similarity", _spoken(series, threshold)
        )


def scatter(measure: str, unit: str, x: Floats, y: Floats, copied: NDArray[np.bool_]) -> str:
    """Similarity score y [n] against a complexity measure x [n] of the matched training image; copies marked.

    Draws at most MAX_POINTS of each kind, evenly chosen.
    """
    known = np.isfinite(x) & np.isfinite(y)
    x, y, copied = x[known], y[known], copied[known]
    if len(x) == 0:
        return ""
    with _style():
        figure, axes = _figure(4.2, 3.4)
        for flag, role, mark, size, label in (
            (False, "baseline", "o", 4, "not flagged"),
            (True, "copy", "D", 4.6, "copy"),
        ):
            rows = np.flatnonzero(copied == flag)
            if len(rows) == 0:
                continue
            shown = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MAX_POINTS)).astype(int))]
            fill = ROLES[role] if flag else "none"
            axes.plot(
                x[shown], y[shown], mark, markersize=size, markerfacecolor=fill, markeredgecolor=ROLES[role],
                markeredgewidth=0.9, alpha=0.75, label=label,
            )  # fmt: skip
        axes.set_xlabel(_printable(f"{measure} ({unit})" if unit else measure))
        axes.set_ylabel("similarity score")
        axes.locator_params(axis="x", nbins=5)
        _legend(figure)
        text = f"{len(x):,} generated images, {int(copied.sum()):,} of them flagged as copies (filled diamonds)."
        name = "scatter-" + "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in measure)
        return inline(
            figure, name, f"Similarity score against {_printable(measure)} of the matched training image", text
        )


def forest(effects: Sequence[Mapping[str, Any]]) -> str:
    """Odds ratios with their intervals on a logarithmic axis, one row an effect."""
    rows: list[tuple[str, float, float, float]] = []
    for effect in effects:
        ratio = effect.get("odds_ratio") or {}
        ends = [float(ratio[key]) for key in ("value", "low", "high") if is_number(ratio.get(key)) and ratio[key] > 0]
        if len(ends) == 3:
            rows.append((_printable(str(effect.get("name", "")).replace("_", " ")), ends[0], ends[1], ends[2]))
    if not rows:
        return ""
    with _style():
        figure, axes = _figure(5.4, 1.1 + 0.42 * len(rows))
        # Separated data give intervals without end: the axis stops at a factor of a thousand.
        lowest = max(min(low for _, _, low, _ in rows) / 1.4, 1e-3)
        highest = min(max(high for *_, high in rows) * 1.4, 1e3)
        axes.set_xscale("log")
        axes.axvline(1, color=ROLES["muted"], linewidth=1, linestyle=(0, (2, 2)))
        for place, (_, value, low, high) in enumerate(rows):
            role = "copy" if low > 1 else "baseline"
            axes.plot([max(low, lowest), min(high, highest)], [place, place], color=ROLES[role], linewidth=2)
            axes.plot(
                [min(max(value, lowest), highest)], [place], "D" if low > 1 else "o", color=ROLES[role], markersize=7
            )
        axes.set_xlim(min(lowest, 0.8), max(highest, 1.25))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), [row[0] for row in rows])
        axes.tick_params(axis="y", length=0, labelcolor=ROLES["ink"])
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        # Labels between the powers of ten only where they have room.
        between = "25" if highest / lowest < 300 else ""
        axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in between else "")
        axes.tick_params(axis="x", which="minor", labelsize=11)
        axes.set_xlabel("odds ratio per 1 SD (above 1: copied more)")
        spoken = "; ".join(
            f"{name} {number(value)}, {number(low)} to {number(high)}" for name, value, low, high in rows
        )
        return inline(figure, "forest", "Odds ratios of being copied", spoken + ".")


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _style() -> Any:
    import matplotlib

    return matplotlib.rc_context(STYLE)


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


def _threshold(axes: Any, threshold: float | None) -> None:
    if not is_number(threshold):
        return
    axes.axvline(threshold, color=ROLES["ink"], linewidth=1.1, linestyle=(0, (1, 2)))
    axes.text(
        threshold,
        1.01,
        f"threshold {threshold:g}",
        transform=axes.get_xaxis_transform(),
        ha="center",
        va="bottom",
        fontsize=10,
    )


def _legend(figure: Any) -> None:
    """Above the axes, where it can hide no data."""
    figure.legend(
        frameon=False,
        loc="outside upper left",
        ncols=2,
        fontsize=10,
        labelcolor=ROLES["ink"],
        handlelength=1.8,
        borderaxespad=0.2,
    )


def _spoken(series: Mapping[str, Floats], threshold: float | None) -> str:
    said = [
        f"{SERIES[key][0]}: n {len(scores):,}, median {np.median(scores):.2f}, highest {scores.max():.2f}"
        for key, scores in series.items()
    ]
    return "; ".join(said) + (f"; threshold {threshold:g}." if is_number(threshold) else ".")


def _printable(text: str) -> str:
    """Text that matplotlib's own font can measure, not too long for an axis."""
    clean = "".join(letter if letter.isprintable() and ord(letter) < 0x250 else "?" for letter in text)
    return clean if len(clean) <= 42 else clean[:41] + "…"
