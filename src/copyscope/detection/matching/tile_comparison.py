"""Compare two pictures tile by tile: the same picture, or only the same kind.

Pages of text, charts or drawings agree in the large and differ everywhere in the small, so a correlation of the whole
says little, and a descriptor less. Here one picture is registered with the other (symmetry, crop, scale, shift) by
normalised cross-correlation; then tiles are compared, each with a little freedom to move, and the picture is the same
only where nearly all tiles that show anything agree. Pictures are compared at 96 pixels first. That is enough where
every tile and the worst place in fine register (registration.py) agree; else, and where letters or thin lines are lost
at 96 pixels, they are compared at up to 288. A sign or a watermark lies over one of the pictures: what differs is then
in that one alone, while two numbers, mouths or hands of a clock differ both ways. Transparent pictures must agree over
two backgrounds.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .registration import worst_place
from .templates import SYMMETRIES, Planes, fourier, turned

COARSE, SMALL, LARGE = 48, 96, 288
"""Pixels a side at which pictures, squeezed to a square, are registered, compared, and compared again for detail."""
TILE = {SMALL: 12, LARGE: 16}
REACH = 2
"""A tile may lie so many pixels away from where the registration has it."""
AGREES = {SMALL: 0.6, LARGE: 0.86}
"""Agreement of the same picture, at least. At LARGE different pages, forms and cards reach .78, sentences in letters of
4 pixels .85; most recompressed ones have .92 and more."""
PLAIN_AGREES = 0.8
"""The same of a picture without much detail: of 189 pairs of signs, plates, shirts and the like none reaches it, two
reach .7; of 60 of one emoji in two skin tones 23 do, 29 reach .7."""
LARGER = 1.5
"""A closer look is worth while from so many times SMALL pixels on."""
DETAIL = 0.25
"""Share of its contrast that a picture of much detail loses at SMALL. Photographs lose up to .2, pages .3 to .7."""
LEAST, SHOWN, FAINT = 3.0, 0.2, 0.15
"""A tile shows something from a standard deviation of LEAST grey levels, and SHOWN of the picture's own, on."""
SPARSE, DENSE = 0.02, 0.1
"""Shares of the tiles that may differ: on flat ground, and where a picture shows something everywhere."""
SURE, CERTAIN = 0.8, 0.9
SURE_TILE, SURE_PLACE = 0.95, 0.999
"""A picture without much detail is the same without a closer look where no tile agrees less than the one, and no place
in register less than the other. Different smileys reach .98 and .91, pies .93 and .98, screens of telephones .96 and
.9993; recompressed pictures have .95 and .9987, nearly all .99 and .9995."""
DOUBTFUL, REGISTERED, REGISTERED_SIDE = 0.6, 0.85, 64
"""Where some tile is below DOUBTFUL, two pictures too small for a closer look agree by REGISTERED at the worst place,
at so many pixels a side."""
ENOUGH = 16
"""Of a crop that shows fewer tiles REGISTERED is asked too: plain pictures find a few that agree in many others."""
ONE_SIDED = 0.02
"""Where two pictures differ, the edges that one has alone are at most this share of those that the other has alone, if
that is the same picture under a sign or a watermark: under a watermark 0, under a sign .015 in the median. Of different
round signs it is .03 and more, of number plates .07, shirts .18, cards .14, pies .34; thermometers do not tell."""
REFINED = 5
"""Times that tiles are compared at LARGE, each time in finer register: a picture in a border needs three."""
SCALES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)
FULL = 0.02
"""A crop must fit by so much better than the whole."""
ALIKE_LEVELS = 4.0
"""Where no tile shows anything, the same picture differs by so many grey levels on average at most."""


Size = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Placement:
    """How one picture lies in another, in shares of the side.

    Attributes:
        symmetry: of the picture inside.
        swapped: the first picture lies in the second; else the second in the first.
        height: of the part of the outer picture.
        width: likewise.
        top: likewise.
        left: likewise.
        score: correlation of the two.
    """

    symmetry: int
    swapped: bool
    height: float
    width: float
    top: float
    left: float
    score: float


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Tiles that show something.

    Attributes:
        score: agreement [t].
        move: move it is at [t 2], in pixels.
        centre: [t 2].
        dense: share of all tiles that show something.
    """

    score: NDArray[np.float32]
    move: NDArray[np.int64]
    centre: NDArray[np.float32]
    dense: float

    @property
    def agreement(self) -> float:
        """The lowest agreement of tiles but for a few; NaN where none shows anything.

        On a photograph, which shows something everywhere, a sign or a corner laid over it is left out; on flat ground
        what differs is the content.
        """
        few = SPARSE + (DENSE - SPARSE) * min(max((self.dense - 0.5) / 0.3, 0), 1)
        return float(np.sort(self.score)[int(few * len(self.score))]) if len(self.score) else float("nan")


def resampling(size: int, low: float, share: float, side: int) -> Planes:
    """Linear map [side size] of a stretch of a row of pixels to `side` pixels.

    By the triangle filter, antialiased where the stretch shrinks.

    Args:
        size: pixels of the row.
        low: where the stretch begins, as a share of the row.
        share: its length, likewise.
        side: pixels afterwards.
    """
    step = share * size / side
    centres = low * size + (np.arange(side) + 0.5) * step - 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(size)[None] - centres[:, None]) / max(step, 1.0))
    return np.asarray(weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-6), np.float32)


def _windows(plane: Planes, height: int, width: int) -> Planes:
    """1 / length of every window of a plane [h w], its mean taken off; 0 for flat ones."""
    values = np.pad(plane.astype(np.float64), ((1, 0), (1, 0)))

    def sums(table: NDArray[np.float64]) -> NDArray[np.float64]:
        table = table.cumsum(axis=0).cumsum(axis=1)
        return table[height:, width:] - table[:-height, width:] - table[height:, :-width] + table[:-height, :-width]

    variation = sums(np.square(values)) - sums(values) ** 2 / (height * width)
    norm = np.sqrt(np.maximum(variation, 0))
    return np.where(norm < np.sqrt(height * width), 0, 1 / np.maximum(norm, 1e-6)).astype(np.float32)


def _places(large: NDArray[Any], small: NDArray[Any], sizes: list[tuple[int, int]]) -> list[tuple[float, int, int]]:
    """Best correlation of `small` at each size in `large`, and where: (score, top, left)."""
    fft = fourier()

    side = large.shape[0]
    templates = np.zeros((len(sizes), side, side), np.float32)
    for number, (height, width) in enumerate(sizes):
        one = resampling(side, 0, 1, height) @ small @ resampling(side, 0, 1, width).T
        one = one - one.mean()
        norm = float(np.linalg.norm(one))
        templates[number, :height, :width] = one / norm if norm > np.sqrt(height * width) else 0
    maps = fft.irfft2(fft.rfft2(large)[None] * np.conj(fft.rfft2(templates)), s=(side, side))
    found = []
    for (height, width), surface in zip(sizes, maps, strict=True):
        scores = surface[: side - height + 1, : side - width + 1] * _windows(large, height, width)
        at = int(scores.argmax())
        found.append((float(scores.flat[at]), *divmod(at, scores.shape[1])))
    return found


def register(one: Planes, other: Planes, sizes: tuple[Size, Size], symmetries: list[int]) -> Placement:
    """Register two pictures by correlation at COARSE pixels: how they lie in each other.

    Args:
        one: luma [s s], the whole picture squeezed to a square.
        other: luma [s s], likewise.
        sizes: height and width of each.
        symmetries: of the second, to be tried.
    """
    shrink = resampling(one.shape[0], 0, 1, COARSE)
    first, second = shrink @ one @ shrink.T, shrink @ other @ shrink.T
    best: Placement | None = None
    for symmetry in symmetries:
        moved = np.ascontiguousarray(turned(second, symmetry))
        tall, broad = sizes[1][::-1] if symmetry & 4 else sizes[1]
        ratio = (broad / tall) / (sizes[0][1] / sizes[0][0])
        for swapped in (False, True):
            wide = 1 / ratio if swapped else ratio
            shares = {(scale, scale) for scale in SCALES}
            shares |= {(scale * min(1, 1 / wide), scale * min(1, wide)) for scale in SCALES}
            shapes = sorted({(max(8, round(h * COARSE)), max(8, round(w * COARSE))) for h, w in shares if h * w >= 0.3})
            large, small = (moved, first) if swapped else (first, moved)
            for (height, width), (score, top, left) in zip(shapes, _places(large, small, shapes), strict=True):
                score += FULL if height == width == COARSE else 0
                if best is None or score > best.score:
                    best = Placement(
                        symmetry, swapped, height / COARSE, width / COARSE, top / COARSE, left / COARSE, score
                    )
    assert best is not None
    return best


def overlay(one: Planes, other: Planes, placed: Placement, grid: Size) -> tuple[Planes, Planes]:
    """Part of the larger picture and the smaller one [h w], as they lie over each other.

    Args:
        one: luma [s s].
        other: luma [s s].
        placed: how they lie.
        grid: pixels of the larger one, (down, across).
    """
    moved = turned(other, placed.symmetry)
    large, small = (moved, one) if placed.swapped else (one, moved)
    ends = []
    for low, share in ((placed.top, placed.height), (placed.left, placed.width)):
        begin, end = max(low, 0.0), min(low + share, 1.0)
        ends.append((begin, end - begin, (begin - low) / share, (end - begin) / share))
    size = large.shape[0]
    rows, columns = (max(8, round(span * side)) for (_, span, _, _), side in zip(ends, grid, strict=True))
    down, across = ends
    part = resampling(size, *down[:2], rows) @ large @ resampling(size, *across[:2], columns).T
    whole = resampling(size, *down[2:], rows) @ small @ resampling(size, *across[2:], columns).T
    return np.asarray(part, np.float32), np.asarray(whole, np.float32)


def tiles_of(one: Planes, other: Planes, tile: int, reach: int) -> Tiles:
    """Agreement of each tile of `one` [h w] with `other` [h w], moved by up to `reach` pixels either way.

    Agreement is the correlation, lifted where a tile shows little: noise and compression move faint tiles most.
    """
    height, width = one.shape
    a, b = min(tile, height), min(tile, width)
    rows, columns = height // a, width // b

    def cut(plane: Planes) -> Planes:
        blocks = plane[: rows * a, : columns * b].reshape(rows, a, columns, b).swapaxes(1, 2)
        flat = np.ascontiguousarray(blocks).reshape(rows * columns, a * b)
        return np.asarray(flat - flat.mean(axis=1, keepdims=True), np.float32)

    contrast = max(float(one.std()), float(other.std()))
    shown, faint = max(LEAST, SHOWN * contrast), max(LEAST, FAINT * contrast)
    mine = cut(one)
    deviation = np.sqrt(np.square(mine).mean(axis=1))
    padded = np.pad(other, reach, mode="edge")
    best, move = np.full(len(mine), -1, np.float32), np.zeros((len(mine), 2), np.int64)
    shows = deviation >= shown
    for dy, dx in np.ndindex(2 * reach + 1, 2 * reach + 1):
        theirs = cut(padded[dy : dy + height, dx : dx + width])
        their = np.sqrt(np.square(theirs).mean(axis=1))
        if dy == dx == reach:
            shows = shows | (their >= shown)
        found = np.einsum("td,td->t", mine, theirs) / np.maximum(deviation * their * (a * b), 1e-3)
        most = np.square(np.maximum(deviation, their))
        found = 1 - (1 - found) * (most / (most + faint**2))
        # Against a flat tile there is nothing to agree with.
        found[np.minimum(deviation, their) < shown / 8] = 0
        higher = found > best
        best[higher], move[higher] = found[higher], (dy - reach, dx - reach)
    row, column = np.divmod(np.arange(rows * columns), columns)
    centre = np.stack([(row + 0.5) * a, (column + 0.5) * b], axis=1).astype(np.float32)
    return Tiles(best[shows], move[shows], centre[shows], float(shows.mean()))


def refined(placed: Placement, tiles: Tiles, grid: Size) -> Placement:
    """Correct a placement by the moves of the tiles that agree: a line through them along either axis.

    Args:
        placed: the placement.
        tiles: of the larger picture's part against the smaller.
        grid: pixels of the larger one, (down, across).
    """
    sure = tiles.score > SURE
    if sure.sum() < 4:
        return placed
    values = []
    for axis, (low, share) in enumerate(((placed.top, placed.height), (placed.left, placed.width))):
        centre, move = tiles.centre[sure, axis] / grid[axis], tiles.move[sure, axis] / grid[axis]
        spread = centre - centre.mean()
        enough = float(np.square(spread).sum()) > 0.01 * len(spread)
        slope = float((spread * move).sum() / np.square(spread).sum()) if enough else 0.0
        begin = float(move.mean() + slope * (0 - centre.mean()))
        # A point at x of the larger part shows what the smaller shows at x + move: so the part is to begin later, and
        # to be shorter, by so much.
        values.append((low - begin / (1 + slope), share / (1 + slope)))
    (top, height), (left, width) = values
    return dataclasses.replace(placed, top=top, height=height, left=left, width=width)


class Agreement(NamedTuple):
    """Agreement of two pictures.

    Attributes:
        score: the lowest agreement of tiles but for a few.
        same: whether they are the same picture; None = larger views are needed.
        symmetry: that makes the second the first.
    """

    score: float
    same: bool | None
    symmetry: int


def agreement(
    one: tuple[Planes, Planes | None],
    other: tuple[Planes, Planes | None],
    sizes: tuple[Size, Size],
    detailed: bool,
    whole: bool = False,
) -> Agreement:
    """Compare two pictures tile by tile: the same picture, or only the same kind.

    Args:
        one: luma [SMALL SMALL] and, for a closer look, [LARGE LARGE] or None; the whole picture squeezed to a square.
        other: likewise.
        sizes: height and width of each in pixels.
        detailed: either loses much at SMALL.
        whole: only the whole over the whole, and in fine register too: for pairs that nothing else says are alike.
    """
    (first, first_large), (second, second_large) = one, other
    placed, tiles = _best_placement(first, second, sizes, whole)
    score, lowest = _score(tiles, first, second, placed), float(tiles.score.min(initial=1))
    if score < AGREES[SMALL]:
        return Agreement(score, False, placed.symmetry)
    # What neither has by itself is not compared.
    height, width = sizes[1][::-1] if placed.symmetry & 4 else sizes[1]
    grid = min(LARGE, sizes[0][0], height), min(LARGE, sizes[0][1], width)
    worst = worst_place(*_squares(first, second, placed))
    plain = whole or (_is_cropped(placed) and len(tiles.score) < ENOUGH)
    if plain and worst < REGISTERED:
        return Agreement(score, False, placed.symmetry)
    if max(grid) < LARGER * SMALL:
        return Agreement(score, lowest >= DOUBTFUL or worst >= REGISTERED, placed.symmetry)
    if not detailed and lowest >= SURE_TILE and worst >= SURE_PLACE:
        return Agreement(score, True, placed.symmetry)
    if first_large is None or second_large is None:
        return Agreement(score, None, placed.symmetry)
    tiles, part, whole_part = _closest(first_large, second_large, placed, grid)
    score = tiles.agreement if len(tiles.score) else score
    same = score >= (AGREES[LARGE] if detailed else PLAIN_AGREES)
    same = same or (not detailed and _is_one_sided(part, whole_part, tiles))
    return Agreement(score, same, placed.symmetry)


def _closest(first: Planes, second: Planes, placed: Placement, grid: Size) -> tuple[Tiles, Planes, Planes]:
    """Two pictures [LARGE LARGE] laid over each other [h w] where their tiles agree best, and the tiles.

    The register is made finer step by step.
    """
    best: tuple[Tiles, Planes, Planes] | None = None
    for _ in range(REFINED):
        part, whole = overlay(first, second, placed, grid)
        tiles = tiles_of(part, whole, TILE[LARGE], REACH)
        if best is None or tiles.agreement > best[0].agreement:
            best = tiles, part, whole
        if not len(tiles.score) or tiles.agreement >= CERTAIN:
            break
        placed = refined(placed, tiles, grid)
    assert best is not None
    return best


def _is_one_sided(one: Planes, other: Planes, tiles: Tiles) -> bool:
    """Whether, where tiles of two pictures [h w] differ, one of them alone has edges that the other has not.

    Then that one lies under a sign, or the other is clipped. Edges of less than half the strength do not count, so that
    a copy that is less sharp lacks none.
    """
    differs = np.zeros(one.shape, bool)
    half = TILE[LARGE] // 2
    for y, x in tiles.centre[tiles.score < AGREES[LARGE]].astype(int):
        differs[y - half : y + half, x - half : x + half] = True
    mine, theirs = (np.hypot(*np.gradient(plane)) for plane in (one, other))
    sides = [
        float(np.square(np.maximum(edges - 2 * _widened(others), 0))[differs].sum())
        for edges, others in ((mine, theirs), (theirs, mine))
    ]
    return min(sides) <= ONE_SIDED * max(sides)


def _widened(edges: Planes) -> Planes:
    """The highest value of a plane [h w] within REACH of each pixel."""
    for axis in (0, 1):
        padded = np.pad(edges, [(REACH, REACH) if each == axis else (0, 0) for each in (0, 1)], mode="edge")
        edges = np.lib.stride_tricks.sliding_window_view(padded, 2 * REACH + 1, axis=axis).max(axis=-1)
    return edges


def _squares(first: Planes, second: Planes, placed: Placement) -> tuple[Planes, Planes]:
    """What two pictures share, laid over each other, as squares of REGISTERED_SIDE pixels."""

    def square(plane: Planes) -> Planes:
        down, across = (resampling(side, 0, 1, REGISTERED_SIDE) for side in plane.shape)
        return np.asarray(down @ plane @ across.T, np.float32)

    one, other = overlay(first, second, placed, (SMALL, SMALL))
    return square(one), square(other)


def _best_placement(first: Planes, second: Planes, sizes: tuple[Size, Size], whole: bool) -> tuple[Placement, Tiles]:
    """The placement under which the tiles agree best: the whole over the whole if that does, else as registered."""
    likely = _likely_symmetries(first, second)
    best: tuple[float, Placement, Tiles] | None = None
    for number in range(1 if whole else 2):
        placed = Placement(likely[0], False, 1, 1, 0, 0, 0) if number == 0 else register(first, second, sizes, likely)
        for _ in range(2):
            tiles = tiles_of(*overlay(first, second, placed, (SMALL, SMALL)), TILE[SMALL], REACH)
            score = tiles.agreement if len(tiles.score) else -1.0
            if best is None or score > best[0]:
                best = (score, placed, tiles)
            if score >= CERTAIN:
                return placed, tiles
            placed = refined(placed, tiles, (SMALL, SMALL))
    assert best is not None
    return best[1:]


def _score(tiles: Tiles, first: Planes, second: Planes, placed: Placement) -> float:
    if len(tiles.score):
        return tiles.agreement
    part, whole = overlay(first, second, placed, (SMALL, SMALL))
    return float(np.abs(part - whole).mean() <= ALIKE_LEVELS)


def _is_cropped(placed: Placement) -> bool:
    return placed.height * placed.width < 0.95


def _likely_symmetries(first: Planes, second: Planes) -> list[int]:
    """Symmetries that may make the second picture the first, likeliest first; identity and mirror image always."""
    few = resampling(first.shape[0], 0, 1, 12)
    mine, theirs = (few @ plane @ few.T for plane in (first, second))
    mine, theirs = ((plane - plane.mean()) / max(float(plane.std()), 1e-3) for plane in (mine, theirs))
    alike = [float((mine * turned(theirs, symmetry)).mean()) for symmetry in range(SYMMETRIES)]
    order = np.argsort(alike)[::-1].tolist()
    return list(dict.fromkeys([order[0], 0, 1]))


def detail(plane: Planes) -> float:
    """Share of a picture's contrast that is lost when it is shrunk to SMALL pixels."""
    down, up = resampling(plane.shape[0], 0, 1, SMALL), resampling(SMALL, 0, 1, plane.shape[0])
    again = up @ (down @ plane @ down.T) @ up.T
    return float((plane - again).std() / max(float(plane.std()), 1.0))
