"""Draw charts as inline SVG: axes, lines, marks, legend.

Colours are CSS classes (`fill-baseline`, `stroke-ink`), so light and dark need one drawing. All other style is in
attributes, because the page's Content-Security-Policy allows no inline style. Lengths are in units of the viewBox; text
is 11 units high, and its width is estimated, because the reader's browser chooses the font.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from html import escape

#: The page's style sheet says what each role looks like.
ROLES = ("ink", "muted", "rule", "paper", "generated", "baseline", "heldout", "copy")
SOLID, DASHED, DOTTED, DASH_DOT = "", "6 3", "2 3", "9 3 2 3"

Point = tuple[float, float]
SIZE, SMALL = 11.0, 10.0
_LETTER = 0.62
"""Width of a letter, in heights of the text."""
_MOST_DECADES = 7
#: Outline of each mark, of half-width 1.
_MARKS = {
    "circle": "M1 0A1 1 0 1 1-1 0A1 1 0 1 1 1 0Z",
    "square": "M-1-1H1V1H-1Z",
    "diamond": "M0-1.35L1.35 0L0 1.35L-1.35 0Z",
    "star": "M0-1L.24-.32.95-.31.38.12.59.81 0 .4-.59.81-.38.12-.95-.31-.24-.32Z",
}


@dataclasses.dataclass(frozen=True)
class Scale:
    """Values from low to high along an axis.

    Attributes:
        low: at the begin.
        high: at the end.
        ticks: (value, label) each.
        log: logarithmic.
    """

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def at(self, value: float) -> float:
        """Place of a value: 0 at low, 1 at high."""
        if self.log:
            floor = max(value, self.low * 1e-3)
            return math.log(floor / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


@dataclasses.dataclass(frozen=True)
class Key:
    """One entry of a legend: a line (width > 0) or a mark, or both."""

    label: str
    role: str
    pattern: str = SOLID
    width: float = 1.6
    mark: str = ""
    filled: bool = True


def linear(low: float, high: float, write: Callable[[float], str] = "{:g}".format, most: int = 7) -> Scale:
    """A scale with at most `most` round steps."""
    if not high - low > 1e-9 * max(abs(low), abs(high), 1e-9):
        low, high = low - 0.5, high + 0.5
    power = 10 ** math.floor(math.log10((high - low) / most))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10, 20) if (high - low) / (power * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    # Rounded: 3 * 0.1 is to be written as 0.3.
    digits = 2 - math.floor(math.log10(step))
    values = (round((first + i) * step, digits) + 0.0 for i in range(count))
    return Scale(low, high, tuple((value, write(value)) for value in values))


def around(values: Iterable[float], write: Callable[[float], str] = "{:g}".format, most: int = 7) -> Scale:
    """Linear scale that holds all finite values, with a little room on both sides."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    room = 0.05 * (max(finite) - min(finite)) or 0.5
    return linear(min(finite) - room, max(finite) + room, write, most)


def logarithmic(
    low: float, high: float, write: Callable[[float], str] = "{:g}".format, between: Sequence[int] = ()
) -> Scale:
    """A logarithmic scale with a tick at powers of ten, and at `between` (2, 5) times each."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = -(-len(decades) // _MOST_DECADES)
    values = [factor * 10.0**decade for decade in decades[::every] for factor in (1, *between)]
    inside = [value for value in values if low <= value * (1 + 1e-9) <= high * (1 + 2e-9)]
    return Scale(low, high, tuple((value, write(value)) for value in inside or (low, high)), True)


def rows(labels: Sequence[str]) -> Scale:
    """A scale with one row a label, from top to bottom."""
    return Scale(len(labels) - 0.5, -0.5, tuple((float(place), label) for place, label in enumerate(labels)))


class Chart:
    """A drawing in SVG: a legend above one panel, or above several side by side.

    Args:
        name: unique in the page, the prefix of every id.
        width: in pixels.
        height: in pixels.
        legend: its entries.
        panels: how many will be added.
    """

    def __init__(self, name: str, width: float, height: float, legend: Sequence[Key] = (), panels: int = 1) -> None:
        self.name, self.width, self.height = name, width, height
        self._panels, self._added = panels, 0
        self._parts: list[str] = []
        self._marks: dict[tuple[str, float], str] = {}
        self._top = self._draw_legend(legend)

    def panel(
        self, x: Scale, y: Scale, x_label: str = "", y_label: str = "", grid: str = "", names: bool = False
    ) -> Panel:
        """Add axes in the next place from the left.

        Args:
            x: scale from left to right.
            y: scale from bottom to top.
            x_label: below the axis.
            y_label: beside the axis.
            grid: "x", "y" or "xy"; "" = none.
            names: the labels of y are names of rows.
        """
        width = self.width / self._panels
        box = (self._added * width, self._top, width, self.height - self._top)
        self._added += 1
        return Panel(self, box, x, y, x_label, y_label, grid, names)

    def svg(self, title: str, description: str) -> str:
        """Write the drawing as an `<svg>` element for HTML.

        Args:
            title: for screen readers.
            description: for screen readers.
        """
        marks = "".join(
            f'<path id="{mark}" d="{_MARKS[shape]}" transform="scale({_number(size)})"/>'
            for (shape, size), mark in self._marks.items()
        )
        return (
            f'<svg class="plot" viewBox="0 0 {_number(self.width)} {_number(self.height)}" role="img" '
            f'aria-labelledby="{self.name}-title {self.name}-desc">'
            f'<title id="{self.name}-title">{_text(title)}</title>'
            f'<desc id="{self.name}-desc">{_text(description)}</desc>'
            f"<defs>{marks}</defs>{''.join(self._parts)}</svg>"
        )

    def add(self, part: str) -> None:
        """Add an SVG element."""
        self._parts.append(part)

    def text(
        self,
        place: Point,
        text: str,
        role: str = "ink",
        size: float = SIZE,
        anchor: str = "start",
        turned: bool = False,
    ) -> None:
        """Draw one line of text, its base line at a place.

        Args:
            place: in the drawing.
            text: one line.
            role: of the colour.
            size: of the font.
            anchor: start, middle or end.
            turned: from bottom to top.
        """
        turn = f' transform="rotate(-90 {_number(place[0])} {_number(place[1])})"' if turned else ""
        self.add(
            f'<text class="fill-{role}" x="{_number(place[0])}" y="{_number(place[1])}" font-size="{_number(size)}" '
            f'text-anchor="{anchor}"{turn}>{_text(text)}</text>'
        )

    def line(self, points: Sequence[Point], role: str, width: float, pattern: str = SOLID, more: str = "") -> None:
        """Draw a line through points."""
        dash = f' stroke-dasharray="{pattern}"' if pattern else ""
        self.add(
            f'<polyline class="stroke-{role}" fill="none" points="{_points(points)}" '
            f'stroke-width="{_number(width)}"{dash}{more}/>'
        )

    def marks(
        self, points: Iterable[Point], shape: str, role: str, size: float, filled: bool, opacity: float = 1
    ) -> None:
        """Draw a mark of half-width `size` at each point."""
        # A mark is scaled where it is defined, and so is its outline.
        mark = self._marks.setdefault((shape, size), f"{self.name}-mark-{len(self._marks) + 1}")
        uses = "".join(f'<use href="#{mark}" x="{_number(x)}" y="{_number(y)}"/>' for x, y in points)
        fill = f"fill-{role} " if filled else ""
        none = "" if filled else ' fill="none"'
        faint = f' opacity="{opacity:g}"' if opacity < 1 else ""
        self.add(f'<g class="{fill}stroke-{role}" stroke-width="{_number(0.9 / size)}"{none}{faint}>{uses}</g>')

    def _draw_legend(self, keys: Sequence[Key]) -> float:
        """Entries above the panels, where they hide no data, in as many lines as they need; their height."""
        left, base, handle = 2.0, 12.0, 20.0
        for key in keys:
            width = handle + 6 + _width(key.label, SMALL)
            if left > 2 and left + width > self.width:
                left, base = 2.0, base + 15
            if key.width:
                self.line([(left, base - 3.5), (left + handle, base - 3.5)], key.role, key.width, key.pattern)
            if key.mark:
                self.marks([(left + handle / 2, base - 3.5)], key.mark, key.role, 3, key.filled)
            self.text((left + handle + 6, base), key.label, size=SMALL)
            left += width + 16
        return base + 10 if keys else 4.0


class Panel:
    """Axes of a chart, and what is drawn between them, in the units of the axes."""

    def __init__(
        self, chart: Chart, box: tuple[float, float, float, float], x: Scale, y: Scale, x_label: str, y_label: str,
        grid: str, names: bool,
    ) -> None:  # fmt: skip
        self.chart, self.x, self.y = chart, x, y
        left, top, width, height = box
        self.left = left + 10 + max((_width(label, SIZE) for _, label in y.ticks), default=0) + (18 if y_label else 0)
        # The label of the last tick stands half beside the axis, unless the axis goes on beyond the tick.
        beyond = _width(x.ticks[-1][1], SIZE) / 2 - (1 - x.at(x.ticks[-1][0])) * (left + width - self.left)
        self.right = left + width - max(6.0, beyond + 3)
        self.top, self.bottom = top + 14, top + height - 18 - (18 if x_label else 0)
        clip = f"{chart.name}-clip-{round(left)}"
        self._clip = f' clip-path="url(#{clip})"'
        chart.add(
            f'<clipPath id="{clip}"><rect x="{_number(self.left)}" y="{_number(self.top)}" '
            f'width="{_number(self.right - self.left)}" height="{_number(self.bottom - self.top)}"/></clipPath>'
        )
        self._axes(grid, names)
        middle = (self.left + self.right) / 2, (self.top + self.bottom) / 2
        if x_label:
            chart.text((middle[0], top + height - 5), x_label, "muted", anchor="middle")
        if y_label:
            chart.text((left + 11, middle[1]), y_label, "muted", anchor="middle", turned=True)

    def at(self, x: float, y: float) -> Point:
        """Place in the drawing of a point of the axes."""
        across, up = self.x.at(x), self.y.at(y)
        return self.left + across * (self.right - self.left), self.bottom - up * (self.bottom - self.top)

    def line(self, points: Iterable[Point], role: str, pattern: str = SOLID, width: float = 1.6) -> None:
        """Draw a line through the finite points."""
        found = [self.at(*point) for point in points if all(map(math.isfinite, point))]
        if found:
            self.chart.line(found, role, width, pattern, self._clip)

    def area(self, points: Iterable[Point], role: str, opacity: float) -> None:
        """Fill the inside of a closed outline."""
        found = _points([self.at(*point) for point in points])
        self.chart.add(f'<polygon class="fill-{role}" points="{found}" opacity="{opacity:g}"{self._clip}/>')

    def marks(
        self, points: Iterable[Point], shape: str, role: str, size: float = 3, filled: bool = True, opacity: float = 1
    ) -> None:
        """Draw a mark at each finite point."""
        found = [self.at(*point) for point in points if all(map(math.isfinite, point))]
        if found:
            self.chart.marks(found, shape, role, size, filled, opacity)

    def label(self, point: Point, text: str) -> None:
        """Write text at the upper right of a point."""
        if all(map(math.isfinite, point)):
            x, y = self.at(*point)
            self.chart.text((x + 5, y - 5), text, size=SMALL)

    def upright(self, x: float, role: str, label: str = "", pattern: str = DOTTED) -> None:
        """Draw a line at one x from bottom to top, its label above."""
        place = self.at(x, self.y.low)[0]
        self.chart.line([(place, self.bottom), (place, self.top)], role, 1.1, pattern)
        if label:
            half = _width(label, SMALL) / 2
            middle = max(half, min(place, self.chart.width - half))
            self.chart.text((middle, self.top - 3), label, size=SMALL, anchor="middle")

    def level(self, y: float, role: str, label: str = "", at_left: bool = False) -> None:
        """Draw a line at one y from side to side, its label above it at the right, or below it at the left."""
        place = self.at(self.x.low, y)[1]
        self.chart.line([(self.left, place), (self.right, place)], role, 1, DOTTED)
        if label and at_left:
            self.chart.text((self.left + 4, place + 11), label, size=SMALL)
        elif label:
            self.chart.text((self.right, place - 3), label, size=SMALL, anchor="end")

    def _axes(self, grid: str, names: bool) -> None:
        chart = self.chart
        for value, label in self.x.ticks:
            x = self.at(value, self.y.low)[0]
            if "x" in grid:
                chart.line([(x, self.bottom), (x, self.top)], "rule", 0.4)
            chart.line([(x, self.bottom), (x, self.bottom + 3.5)], "rule", 0.8)
            chart.text((x, self.bottom + 15), label, "muted", anchor="middle")
        for value, label in self.y.ticks:
            y = self.at(self.x.low, value)[1]
            if "y" in grid:
                chart.line([(self.left, y), (self.right, y)], "rule", 0.4)
            if not names:
                chart.line([(self.left - 3.5, y), (self.left, y)], "rule", 0.8)
            chart.text((self.left - 6, y + 4), label, "ink" if names else "muted", anchor="end")
        corner = [(self.left, self.bottom), (self.right, self.bottom)]
        chart.line(corner if names else [(self.left, self.top), *corner], "rule", 0.8)


def short(text: str) -> str:
    """Shorten a text for an axis: printable, at most 42 characters, of which wide ones count more."""
    clean = _clean(text)
    widths = itertools.accumulate(_width(letter, 1) for letter in clean)
    fits = sum(width <= 42 * _LETTER + 1e-9 for width in widths)
    return clean if fits == len(clean) else clean[: fits - 1] + "…"


def stairs(edges: Sequence[float], heights: Sequence[float]) -> list[Point]:
    """Outline of a histogram, from the axis and back to it."""
    up = [
        point
        for (left, right), height in zip(itertools.pairwise(edges), heights, strict=True)
        for point in ((left, height), (right, height))
    ]
    return [(edges[0], 0.0), *up, (edges[-1], 0.0)]


def steps(points: Sequence[Point], before: bool) -> list[Point]:
    """Join points by level and upright lines.

    Args:
        points: from left to right.
        before: the height changes at the point before, not at its own.
    """
    found = list(points[:1])
    for last, point in itertools.pairwise(points):
        found += [(last[0], point[1]) if before else (point[0], last[1]), point]
    return found


def _width(text: str, size: float) -> float:
    """Estimated width of text; wide scripts take a square a letter."""
    return sum(1.0 if ord(letter) >= 0x1100 else _LETTER for letter in text) * size


def _points(points: Iterable[Point]) -> str:
    return " ".join(f"{_number(x)},{_number(y)}" for x, y in points)


def _number(value: float) -> str:
    """Two decimals are finer than any screen."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if abs(value) >= 0.005 else "0"


def _clean(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _text(text: str) -> str:
    return escape(_clean(text))
