"""Pictures of one kind with different content, by seed, made after the last threshold of the groups was set.

Templates of which a small part differs, as in a set of icons, cards, labels or screens.
"""

from __future__ import annotations

import numpy as np

from fresh_look_alikes import Picture, _font, _sheet

BOLD, SANS, MONO = "DejaVuSans-Bold", "DejaVuSans", "DejaVuSansMono-Bold"


def shirt(rng: np.random.Generator) -> Picture:
    """A football shirt with a number of two digits."""
    picture, draw = _sheet(300, 300, "#2e7d32")
    draw.polygon([(70, 40), (230, 40), (290, 110), (245, 140), (230, 120), (230, 280), (70, 280), (70, 120),
                  (55, 140), (10, 110)], fill="#f5f5f5", outline="#0d47a1")  # fmt: skip
    draw.text((150, 165), str(rng.integers(10, 100)), "#0d47a1", _font(BOLD, 90), anchor="mm")
    return picture


def domino(rng: np.random.Generator) -> Picture:
    """A domino."""
    picture, draw = _sheet(360, 190, "#385b39")
    draw.rounded_rectangle([10, 10, 350, 180], 20, fill="ivory", outline="black", width=3)
    draw.line([180, 20, 180, 170], fill="black", width=3)
    for left in (10, 180):
        for place in rng.permutation(9)[: rng.integers(1, 7)].tolist():
            x, y = left + 40 + place % 3 * 45, 50 + place // 3 * 45
            draw.ellipse([x - 12, y - 12, x + 12, y + 12], fill="black")
    return picture


def month(rng: np.random.Generator) -> Picture:
    """The page of a calendar: the days begin elsewhere and one is marked."""
    picture, draw = _sheet(490, 420)
    draw.rectangle([0, 0, 490, 60], fill="#b71c1c")
    draw.text((245, 30), "CALENDAR", "white", _font(BOLD, 30), anchor="mm")
    first, marked = int(rng.integers(7)), int(rng.integers(28))
    for day in range(31):
        x, y = (first + day) % 7 * 70 + 35, (first + day) // 7 * 58 + 95
        if day == marked:
            draw.ellipse([x - 24, y - 24, x + 24, y + 24], fill="#ffcdd2")
        draw.text((x, y), str(day + 1), "black", _font(SANS, 22), anchor="mm")
    return picture


def thermometer(rng: np.random.Generator) -> Picture:
    """A thermometer: the height of the column differs."""
    picture, draw = _sheet(200, 400, "#e3f2fd")
    draw.rounded_rectangle([80, 20, 120, 340], 20, fill="white", outline="grey", width=3)
    draw.ellipse([65, 310, 135, 380], fill="#d32f2f")
    draw.rectangle([92, int(rng.integers(50, 300)), 108, 330], fill="#d32f2f")
    for y in range(50, 310, 20):
        draw.line([122, y, 140, y], fill="grey", width=2)
    return picture


def digital_clock(rng: np.random.Generator) -> Picture:
    """A clock of four digits."""
    picture, draw = _sheet(420, 180, "#101010")
    draw.rectangle([15, 15, 405, 165], outline="#404040", width=6)
    time = f"{rng.integers(24):02d}:{rng.integers(60):02d}"
    draw.text((210, 90), time, "#ff5252", _font(MONO, 110), anchor="mm")
    return picture


def crossword(rng: np.random.Generator) -> Picture:
    """An empty crossword."""
    picture, draw = _sheet(390, 390)
    black = rng.random((13, 13)) < 0.22
    for row, column in np.ndindex(13, 13):
        corner = (column * 30, row * 30, column * 30 + 29, row * 30 + 29)
        draw.rectangle(corner, fill="black" if black[row, column] else "white", outline="black")
    return picture


def price(rng: np.random.Generator) -> Picture:
    """A label with a price."""
    picture, draw = _sheet(320, 240, "#fff176")
    draw.polygon([(0, 0), (320, 0), (320, 46), (0, 70)], fill="#e53935")
    draw.text((160, 26), "SPECIAL OFFER", "white", _font(BOLD, 26), anchor="mm")
    draw.text((160, 145), f"{rng.integers(1, 100)}.{rng.integers(10, 100)}", "black", _font(BOLD, 76), anchor="mm")
    return picture


def traffic(rng: np.random.Generator) -> Picture:
    """A blue sign with an arrow at any angle."""
    picture, draw = _sheet(256, 256, "#cfd8dc")
    draw.ellipse([16, 16, 240, 240], fill="#0d47a1", outline="white", width=8)
    angle = rng.uniform(0, 2 * np.pi)
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    ends = [(70, 0), (15, 45), (15, 18), (-70, 18), (-70, -18), (15, -18), (15, -45)]
    draw.polygon([tuple((128 + a * along + b * across).tolist()) for a, b in ends], fill="white")
    return picture


def hand_of_cards(rng: np.random.Generator) -> Picture:
    """Three playing cards, each its value and suit."""
    picture, draw = _sheet(480, 240, "#1b5e20")
    for place, card in enumerate(rng.permutation(52)[:3].tolist()):
        x, colour = 20 + place * 155, "#c62828" if card // 13 % 2 else "black"
        draw.rounded_rectangle([x, 20, x + 130, 220], 12, fill="white", outline="black")
        text = "A23456789JQKX"[card % 13] + "♠♥♣♦"[card // 13]
        draw.text((x + 65, 120), text, colour, _font(SANS, 60), anchor="mm")
    return picture


def avatar(rng: np.random.Generator) -> Picture:
    """The sign of an account: two letters on a disc of one colour."""
    picture, draw = _sheet(200, 200)
    draw.ellipse([5, 5, 195, 195], fill="#5c6bc0")
    letters = "".join(rng.choice(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), 2))
    draw.text((100, 100), letters, "white", _font(BOLD, 80), anchor="mm")
    return picture


def chords(rng: np.random.Generator) -> Picture:
    """A chord on the neck of a guitar."""
    picture, draw = _sheet(220, 280)
    for string in range(6):
        draw.line([35 + string * 30, 40, 35 + string * 30, 240], fill="black", width=2)
    for fret in range(6):
        draw.line([35, 40 + fret * 40, 185, 40 + fret * 40], fill="black", width=5 if fret == 0 else 2)
    for string in rng.permutation(6)[:3].tolist():
        x, y = 35 + string * 30, 60 + int(rng.integers(5)) * 40
        draw.ellipse([x - 12, y - 12, x + 12, y + 12], fill="black")
    return picture


def bars_of_signal(rng: np.random.Generator) -> Picture:
    """A telephone: the time, the charge and one line of a message differ."""
    picture, draw = _sheet(300, 560, "#eceff1")
    draw.rectangle([0, 0, 300, 40], fill="#263238")
    draw.text((10, 10), f"{rng.integers(24):02d}:{rng.integers(60):02d}", "white", _font(SANS, 18))
    draw.rectangle([245, 12, 285, 28], outline="white", width=2)
    draw.rectangle([247, 14, 247 + int(rng.integers(4, 36)), 26], fill="white")
    for row in range(5):
        draw.rounded_rectangle([20, 70 + row * 90, 280, 140 + row * 90], 10, fill="white", outline="#b0bec5")
        draw.ellipse([30, 85 + row * 90, 70, 125 + row * 90], fill="#90a4ae")
    letters = "".join(rng.choice(list("abcdefghiklmnoprstu"), 18))
    draw.text((85, 95 + int(rng.integers(5)) * 90), letters, "black", _font(SANS, 16))
    return picture


LATER = {
    kind.__name__: kind
    for kind in (
        shirt, domino, month, thermometer, digital_clock, crossword, price, traffic, hand_of_cards, avatar, chords,
        bars_of_signal,
    )
}  # fmt: skip
