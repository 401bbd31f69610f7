"""Pictures of one kind with different content, by seed, on which no threshold was set: other fonts, scripts, programs.

Rendered with matplotlib and its fonts where `look_alikes.py` draws with Pillow. Half of them are templates: all but a
small part is the same in every picture (clocks, boards, tables, road signs).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

Picture = Image.Image
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
GREEK = "αβγδεζηθικλμνξοπρστυφχψω"
CYRILLIC = "абвгдежзийклмнопрстуфхцчшщыэюя"


def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(FONTS / f"{name}.ttf", size)


def _sheet(width: int, height: int, colour: str = "white") -> tuple[Picture, ImageDraw.ImageDraw]:
    picture = Image.new("RGB", (width, height), colour)
    return picture, ImageDraw.Draw(picture)


def _words(rng: np.random.Generator, letters: str, n: int) -> str:
    return " ".join("".join(rng.choice(list(letters), rng.integers(2, 10))) for _ in range(n))


def _figure(draw: Callable[[Any], None], width: float = 5, height: float = 4) -> Picture:
    figure = Figure((width, height), dpi=90)
    draw(figure.subplots())
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return Image.open(file).convert("RGB")


def greek_page(rng: np.random.Generator) -> Picture:
    """Two columns of Greek in a serif face."""
    picture, draw = _sheet(620, 877)
    for x in (50, 325):
        for y in range(60, 820, 17):
            draw.text((x, y), _words(rng, GREEK, 6)[:36], fill=(20, 20, 20), font=_font("DejaVuSerif", 11))
    return picture


def cyrillic_line(rng: np.random.Generator) -> Picture:
    """One line of Cyrillic in a typewriter face on grey."""
    picture, draw = _sheet(720, 90, "#e8e8e8")
    draw.text((20, 30), _words(rng, CYRILLIC, 8)[:48], fill="black", font=_font("DejaVuSansMono", 24))
    return picture


def book_page(rng: np.random.Generator) -> Picture:
    """A page of a book: 40 lines of Computer Modern with a heading."""
    picture, draw = _sheet(480, 720, "#fbf7ec")
    latin = "aabcdeeeefghiilmnooprsstuv"
    draw.text((180, 30), _words(rng, latin, 2), fill="black", font=_font("cmb10", 20))
    for y in range(80, 690, 15):
        draw.text((45, y), _words(rng, latin, 12)[:66], fill="black", font=_font("cmr10", 13))
    return picture


def formula(rng: np.random.Generator) -> Picture:
    """A formula set by mathtext."""
    names = "abcdkmnpqrstuvwxyz"

    def term() -> str:
        one, other, power = *rng.choice(list(names), 2), int(rng.integers(2, 9))
        return str(
            rng.choice(
                [rf"\frac{{{one}}}{{{other}+{power}}}", rf"\sqrt{{{one}-{other}}}", rf"{one}_{{{other}}}^{power}"]
            )
        )

    def draw(axes: Any) -> None:
        axes.axis("off")
        axes.text(0.5, 0.5, "$" + " + ".join(term() for _ in range(5)) + "$", ha="center", va="center", size=24)

    return _figure(draw, 6, 1.5)


def line_chart(rng: np.random.Generator) -> Picture:
    """Three curves over a grid, with a legend."""

    def draw(axes: Any) -> None:
        for name in ("train", "test", "base"):
            axes.plot(np.cumsum(rng.normal(0, 1, 50)), label=name)
        axes.grid()
        axes.legend(loc="upper left")
        axes.set_ylim(-20, 20)

    return _figure(draw)


def scatter(rng: np.random.Generator) -> Picture:
    """Points in a frame."""

    def draw(axes: Any) -> None:
        axes.scatter(*rng.normal(size=(2, 80)), s=14)
        axes.set_xlim(-3, 3)
        axes.set_ylim(-3, 3)

    return _figure(draw)


def histogram(rng: np.random.Generator) -> Picture:
    """Bars that touch, of a drawn sample."""

    def draw(axes: Any) -> None:
        axes.hist(rng.normal(rng.normal(0, 0.5), rng.uniform(0.6, 1.2), 200), 20, (-3, 3))
        axes.set_ylim(0, 50)

    return _figure(draw)


def confusion(rng: np.random.Generator) -> Picture:
    """A matrix of ten classes with its numbers written in."""

    def draw(axes: Any) -> None:
        table = rng.poisson(4, (8, 8)) + np.diag(rng.integers(20, 60, 8))
        axes.imshow(table, cmap="Blues")
        for (row, column), value in np.ndenumerate(table):
            axes.text(column, row, str(value), ha="center", va="center", size=8)

    return _figure(draw)


def pie(rng: np.random.Generator) -> Picture:
    """A pie of five slices."""
    return _figure(lambda axes: axes.pie(rng.dirichlet(np.full(5, 3.0)), labels=list("ABCDE")))


def contours(rng: np.random.Generator) -> Picture:
    """A contour map of hills."""
    down, right = np.mgrid[0:1:80j, 0:1:80j]
    height = sum(
        rng.normal() * np.exp(-((down - y) ** 2 + (right - x) ** 2) / 0.03) for y, x in rng.uniform(size=(8, 2))
    )
    return _figure(lambda axes: axes.contour(height, 10, colors="saddlebrown", linewidths=1))


def streets(rng: np.random.Generator) -> Picture:
    """A town: the cells of a Voronoi diagram."""
    from scipy.spatial import Voronoi

    cells = Voronoi(rng.uniform(-50, 562, (140, 2)))
    picture, draw = _sheet(512, 512, "#eee9dd")
    for one, other in cells.ridge_vertices:
        if min(one, other) >= 0:
            line = [tuple(cells.vertices[end].tolist()) for end in (one, other)]
            draw.line(line, fill="white", width=int(rng.choice([3, 3, 3, 8])))
    return picture


def matrix_code(rng: np.random.Generator) -> Picture:
    """A data matrix of 24 modules: solid and dashed border."""
    cells = rng.integers(0, 2, (24, 24), dtype=np.uint8) * 255
    cells[:, 0] = cells[-1] = 0
    cells[0, ::2], cells[0, 1::2] = 0, 255
    cells[1::2, -1], cells[::2, -1] = 0, 255
    return Image.fromarray(np.pad(cells, 2, constant_values=255)).resize((336, 336), 0).convert("RGB")


def square_code(rng: np.random.Generator) -> Picture:
    """A square code of 45 modules with finder and alignment patterns."""
    cells = rng.integers(0, 2, (45, 45), dtype=np.uint8) * 255
    for top, left, side in ((0, 0, 7), (0, 38, 7), (38, 0, 7), (36, 36, 5), (20, 20, 5)):
        for ring in range((side + 1) // 2):
            value = 0 if ring % 2 == 0 else 255
            cells[top + ring : top + side - ring, left + ring : left + side - ring] = value
    return Image.fromarray(np.pad(cells, 3, constant_values=255)).resize((510, 510), 0).convert("RGB")


def piano(rng: np.random.Generator) -> Picture:
    """Systems of two staves with chords and bar lines."""
    picture, draw = _sheet(600, 800)
    for system in range(50, 740, 150):
        for staff in (system, system + 70):
            for line in range(5):
                draw.line([40, staff + 8 * line, 560, staff + 8 * line], fill="black")
            for x in range(70, 550, 30):
                for note in rng.integers(-1, 10, rng.integers(1, 4)).tolist():
                    draw.ellipse([x, staff + 4 * note - 3, x + 9, staff + 4 * note + 4], fill="black")
                draw.line([x + 9, staff + 16, x + 9, staff - 18], fill="black", width=2)
        for x in range(40, 570, 130):
            draw.line([x, system, x, system + 102], fill="black", width=2)
    return picture


def drawing(rng: np.random.Generator) -> Picture:
    """One line of pencil without end."""
    from scipy.interpolate import CubicSpline

    picture, draw = _sheet(400, 400)
    way = CubicSpline(np.arange(14), rng.uniform(40, 360, (14, 2)))(np.linspace(0, 13, 500))
    draw.line([(x, y) for x, y in way.tolist()], fill="#303030", width=3)
    return picture


def clock(rng: np.random.Generator) -> Picture:
    """The face of a clock with numbers; the hands differ."""
    picture, draw = _sheet(300, 300, "#d8e4ec")
    draw.ellipse([20, 20, 280, 280], fill="white", outline="black", width=8)
    for hour in range(1, 13):
        x, y = 150 + 105 * np.sin(hour * np.pi / 6), 150 - 105 * np.cos(hour * np.pi / 6)
        draw.text((x, y), str(hour), fill="black", font=_font("DejaVuSans", 22), anchor="mm")
    minutes = int(rng.integers(720))
    for angle, length, width in ((minutes * np.pi / 360, 55, 9), (minutes * np.pi / 30, 85, 6)):
        draw.line([150, 150, 150 + length * np.sin(angle), 150 - length * np.cos(angle)], fill="black", width=width)
    return picture


def dial(rng: np.random.Generator) -> Picture:
    """A gauge: the needle differs."""
    picture, draw = _sheet(360, 240, "#202428")
    draw.arc([40, 40, 320, 320], 180, 360, fill="white", width=12)
    for tick in range(11):
        angle = np.pi * (1 + tick / 10)
        ends = [(180 + r * np.cos(angle), 180 + r * np.sin(angle)) for r in (105, 125)]
        draw.line([tuple(map(float, end)) for end in ends], fill="white", width=4)
    angle = np.pi * (1 + rng.uniform())
    draw.line([180, 180, 180 + 110 * np.cos(angle), 180 + 110 * np.sin(angle)], fill="red", width=6)
    return picture


def chess(rng: np.random.Generator) -> Picture:
    """A position on a chess board."""
    picture, draw = _sheet(400, 400)
    for row, column in np.ndindex(8, 8):
        colour = "#b58863" if (row + column) % 2 else "#f0d9b5"
        draw.rectangle([column * 50, row * 50, column * 50 + 49, row * 50 + 49], fill=colour)
    for place in rng.permutation(64)[:18].tolist():
        piece = chr(0x2654 + int(rng.integers(12)))
        draw.text((place % 8 * 50 + 25, place // 8 * 50 + 25), piece, "black", _font("DejaVuSans", 40), anchor="mm")
    return picture


def puzzle(rng: np.random.Generator) -> Picture:
    """A sudoku: digits in a grid."""
    picture, draw = _sheet(380, 380)
    for line in range(10):
        for ends in ([10 + line * 40, 10, 10 + line * 40, 370], [10, 10 + line * 40, 370, 10 + line * 40]):
            draw.line(ends, fill="black", width=3 if line % 3 == 0 else 1)
    for place in rng.permutation(81)[:28].tolist():
        at = place % 9 * 40 + 30, place // 9 * 40 + 30
        draw.text(at, str(rng.integers(1, 10)), "black", _font("STIXGeneral", 28), anchor="mm")
    return picture


def table(rng: np.random.Generator) -> Picture:
    """A table of figures with a head."""
    picture, draw = _sheet(560, 420)
    for column, name in enumerate(("Model", "Top-1", "Top-5", "FLOPs", "Params")):
        draw.text((20 + column * 108, 20), name, "black", _font("DejaVuSans-Bold", 16))
    for row in range(12):
        draw.line([10, 46 + row * 30, 550, 46 + row * 30], fill="#999999")
        for column in range(5):
            value = "abcdefghijkl"[row] if column == 0 else f"{rng.uniform(10, 99):.2f}"
            draw.text((20 + column * 108, 52 + row * 30), value, "black", _font("DejaVuSans", 15))
    return picture


def plate(rng: np.random.Generator) -> Picture:
    """A number plate."""
    picture, draw = _sheet(520, 120, "#f4f4f4")
    draw.rectangle([0, 0, 519, 119], outline="black", width=5)
    draw.rectangle([5, 5, 50, 114], fill="#003399")
    letters = "".join(rng.choice(list("ABCDEFGHJKLMNPRSTUVWXYZ"), 4))
    text = f"{letters[:2]} {letters[2:]} {rng.integers(100, 1000)}"
    draw.text((285, 60), text, "black", _font("DejaVuSansMono-Bold", 72), anchor="mm")
    return picture


def round_sign(rng: np.random.Generator) -> Picture:
    """A round sign with a number of four digits."""
    picture, draw = _sheet(240, 240, "#9db8c9")
    draw.ellipse([20, 20, 220, 220], fill="white", outline="#cc1122", width=24)
    draw.text((120, 120), str(rng.integers(1000, 10000)), "black", _font("DejaVuSans-Bold", 54), anchor="mm")
    return picture


def smiley(rng: np.random.Generator) -> Picture:
    """A round face with other eyes and another mouth."""
    picture, draw = _sheet(256, 256)
    draw.ellipse([16, 16, 240, 240], fill="#ffcc33", outline="#aa7700", width=4)
    size = int(rng.integers(8, 22))
    for x in (88, 168):
        draw.ellipse([x - size, 100 - size, x + size, 100 + size], fill="#442200")
    top, depth = int(rng.integers(140, 170)), int(rng.integers(10, 50))
    (draw.chord if rng.random() < 0.5 else draw.arc)(
        [80, top, 176, top + depth], *((0, 180) if rng.random() < 0.6 else (180, 360)), fill="#442200", width=6
    )
    return picture


def slide(rng: np.random.Generator) -> Picture:
    """A slide of a talk: the same layout and logo, other points."""
    picture, draw = _sheet(640, 480)
    draw.rectangle([0, 0, 640, 70], fill="#1b4f72")
    draw.ellipse([570, 410, 625, 465], fill="#e67e22")
    latin = "aabcdeeeefghiilmnooprsstuv"
    draw.text((24, 18), _words(rng, latin, 3), "white", _font("DejaVuSans-Bold", 28))
    for row in range(5):
        draw.text((50, 110 + row * 62), "- " + _words(rng, latin, 5)[:40], "black", _font("DejaVuSans", 20))
    return picture


FRESH = {
    kind.__name__: kind
    for kind in (
        greek_page, cyrillic_line, book_page, formula, line_chart, scatter, histogram, confusion, pie, contours,
        streets, matrix_code, square_code, piano, drawing, clock, dial, chess, puzzle, table, plate, round_sign, smiley,
        slide,
    )
}  # fmt: skip
