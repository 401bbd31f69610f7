"""Pictures of one kind with different content, by seed: pages, charts, codes, cards. What a descriptor merges."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

Picture = Image.Image
WORDS = [
    "river",
    "stone",
    "window",
    "garden",
    "letter",
    "market",
    "candle",
    "engine",
    "forest",
    "island",
    "planet",
    "ribbon",
    "silver",
    "thunder",
    "valley",
    "winter",
    "copper",
    "dancer",
    "falcon",
    "harbor",
    "jungle",
    "kettle",
    "ladder",
    "mirror",
    "needle",
    "orange",
    "pencil",
    "quartz",
    "saddle",
    "teapot",
    "violin",
    "walnut",
]


def _sheet(
    width: int, height: int, colour: str | tuple[int, int, int] = "white"
) -> tuple[Picture, ImageDraw.ImageDraw]:
    picture = Image.new("RGB", (width, height), colour)
    return picture, ImageDraw.Draw(picture)


def _words(rng: np.random.Generator, n: int) -> str:
    return " ".join(rng.choice(WORDS, n))


def page(rng: np.random.Generator) -> Picture:
    """A page of text."""
    picture, draw = _sheet(512, 680)
    for y in range(30, 650, 22):
        draw.text((30, y), _words(rng, 8), fill="black", font_size=15)
    return picture


def sentence(rng: np.random.Generator) -> Picture:
    """One line of text."""
    picture, draw = _sheet(600, 120)
    draw.text((10, 40), _words(rng, 7), fill="black", font_size=22)
    return picture


def chart(rng: np.random.Generator) -> Picture:
    """A bar chart of eight bars."""
    picture, draw = _sheet(480, 360)
    draw.line([40, 20, 40, 320, 460, 320], fill="black", width=2)
    for bar, height in enumerate(rng.integers(20, 280, 8).tolist()):
        draw.rectangle([60 + bar * 50, 320 - height, 95 + bar * 50, 320], fill=(60, 100, 200))
    return picture


def plot(rng: np.random.Generator) -> Picture:
    """A line plot with axes and ticks."""
    picture, draw = _sheet(480, 360)
    draw.line([40, 20, 40, 320, 460, 320], fill="black", width=2)
    for tick in range(8):
        draw.text((50 + tick * 50, 325), str(tick), fill="black", font_size=12)
    ys = 170 + np.cumsum(rng.normal(0, 14, 60))
    draw.line([(45 + step * 7, float(np.clip(y, 25, 315))) for step, y in enumerate(ys)], fill=(200, 40, 40), width=2)
    return picture


def code(rng: np.random.Generator) -> Picture:
    """A square code of 29 modules with three finder patterns."""
    cells = rng.integers(0, 2, (29, 29)).astype(np.uint8) * 255
    for top, left in ((0, 0), (0, 22), (22, 0)):
        cells[top : top + 7, left : left + 7] = 0
        cells[top + 1 : top + 6, left + 1 : left + 6] = 255
        cells[top + 2 : top + 5, left + 2 : left + 5] = 0
    framed = Image.fromarray(np.pad(cells, 4, constant_values=255))
    return framed.resize((370, 370), Image.Resampling.NEAREST).convert("RGB")


def barcode(rng: np.random.Generator) -> Picture:
    """A bar code with its number."""
    picture, draw = _sheet(420, 220)
    x = 30
    while x < 390:
        width = int(rng.integers(2, 8))
        draw.rectangle([x, 20, x + width, 170], fill="black")
        x += width + int(rng.integers(2, 8))
    draw.text((100, 180), "".join(map(str, rng.integers(0, 10, 13))), fill="black", font_size=22)
    return picture


def letter(rng: np.random.Generator) -> Picture:
    """One large letter."""
    picture, draw = _sheet(200, 200)
    draw.text((60, 40), chr(65 + int(rng.integers(26))), fill="black", font_size=120)
    return picture


def icon(rng: np.random.Generator) -> Picture:
    """Three outlines."""
    picture, draw = _sheet(256, 256)
    for _ in range(3):
        (x, y), (w, h) = rng.integers(20, 160, 2).tolist(), rng.integers(30, 80, 2).tolist()
        shape = (draw.ellipse, draw.rectangle)[int(rng.integers(2))]
        shape([x, y, x + w, y + h], outline="black", width=4)
    return picture


def music(rng: np.random.Generator) -> Picture:
    """Sheet music: staves with notes."""
    picture, draw = _sheet(512, 660)
    for staff in range(40, 620, 90):
        for line in range(5):
            draw.line([30, staff + 9 * line, 482, staff + 9 * line], fill="black", width=1)
        for x in range(60, 470, int(rng.integers(18, 30))):
            y = staff - 4 + int(rng.integers(0, 10)) * 9 // 2
            draw.ellipse([x, y, x + 10, y + 7], fill="black")
            draw.line([x + 10, y + 3, x + 10, y - 26], fill="black", width=2)
    return picture


def map_(rng: np.random.Generator) -> Picture:
    """Roads and blocks of a town."""
    picture, draw = _sheet(512, 512, (240, 238, 230))
    for _ in range(25):
        x, y = rng.integers(0, 480, 2).tolist()
        draw.rectangle([x, y, x + int(rng.integers(15, 60)), y + int(rng.integers(15, 60))], fill=(222, 214, 200))
    for width, colour, n in ((3, (255, 255, 255), 24), (7, (250, 214, 120), 4)):
        for _ in range(n):
            a, b = rng.integers(0, 512, 2).tolist()
            draw.line([(0, a), (512, b)] if rng.random() < 0.5 else [(a, 0), (b, 512)], fill=colour, width=width)
    return picture


def handwriting(rng: np.random.Generator) -> Picture:
    """Scribbled lines on ruled paper."""
    picture, draw = _sheet(512, 400, (252, 250, 240))
    for y in range(50, 380, 40):
        draw.line([0, y + 12, 512, y + 12], fill=(190, 205, 230), width=1)
        x = np.arange(30, 480, 2.0)
        phase = np.cumsum(rng.uniform(0.2, 0.9, len(x)))
        draw.line(
            list(zip((x + 4 * np.cos(phase)).tolist(), (y + rng.uniform(3, 12) * np.sin(phase)).tolist(), strict=True)),
            fill=(30, 30, 90), width=2,
        )  # fmt: skip
    return picture


def screen(rng: np.random.Generator) -> Picture:
    """A program's window: same frame and menu, other content."""
    picture, draw = _sheet(640, 400, (245, 245, 245))
    draw.rectangle([0, 0, 640, 40], fill=(50, 60, 120))
    draw.rectangle([0, 40, 140, 400], fill=(225, 225, 225))
    for row in range(8):
        draw.text((12, 56 + row * 30), f"menu item {row}", fill="black", font_size=14)
    for row in range(9):
        draw.text((170, 70 + row * 34), _words(rng, 6), fill="black", font_size=16)
    return picture


def card(rng: np.random.Generator) -> Picture:
    """A playing card of one template: frame, other picture, other name and text."""
    picture, draw = _sheet(300, 420, (120, 90, 50))
    draw.rectangle([16, 16, 284, 404], fill=(235, 225, 200))
    draw.text((28, 22), _words(rng, 2), fill="black", font_size=20)
    noise = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    picture.paste(noise.resize((244, 160), Image.Resampling.BICUBIC), (28, 54))
    for row in range(6):
        draw.text((30, 230 + row * 26), _words(rng, 4), fill="black", font_size=15)
    return picture


def face(rng: np.random.Generator) -> Picture:
    """One drawn face over another name."""
    picture, draw = _sheet(320, 380, (200, 220, 240))
    draw.ellipse([60, 30, 260, 270], fill=(240, 205, 170), outline="black", width=3)
    for x in (115, 185):
        draw.ellipse([x, 110, x + 22, 132], fill="black")
    draw.arc([110, 150, 210, 230], 10, 170, fill="black", width=5)
    draw.rectangle([20, 300, 300, 366], fill="white", outline="black")
    draw.text((34, 316), _words(rng, 2), fill="black", font_size=28)
    return picture


def form(rng: np.random.Generator) -> Picture:
    """A filled form: the same labels and lines, other entries."""
    picture, draw = _sheet(560, 700)
    for row, label in enumerate(("Name", "Street", "Town", "Date", "Item", "Amount", "Signed")):
        draw.text((30, 60 + row * 86), label, fill="black", font_size=18)
        draw.rectangle([150, 50 + row * 86, 530, 90 + row * 86], outline="black")
        draw.text((164, 60 + row * 86), _words(rng, 3), fill=(20, 20, 120), font_size=20)
    return picture


def spectrogram(rng: np.random.Generator) -> Picture:
    """Harmonics that move, over noise."""
    base = 18 + np.cumsum(rng.normal(0, 0.5, 256))
    rows = np.arange(192)[:, None]
    energy = sum(np.exp(-np.square((rows - harmonic * base) / 2)) / harmonic for harmonic in range(1, 9))
    level = np.clip(energy * 200 + rng.gamma(2, 10, (192, 256)), 0, 255)
    colours = np.stack([level, np.clip(level * 1.4 - 120, 0, 255), np.clip(160 - level, 0, 255)], axis=2)
    return Image.fromarray(colours[::-1].astype(np.uint8)).resize((512, 384), Image.Resampling.BICUBIC)


LOOK_ALIKES = {
    "page": page, "sentence": sentence, "chart": chart, "plot": plot, "code": code, "barcode": barcode,
    "icon": icon, "music": music, "map": map_, "handwriting": handwriting, "screen": screen,
    "card": card, "face": face, "form": form, "spectrogram": spectrogram,
}  # fmt: skip
