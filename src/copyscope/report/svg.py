"""Convert a matplotlib figure to themed inline SVG.

Placeholder colours become CSS classes (`fill-baseline`, `stroke-ink`), so light and dark need one drawing. All other
style becomes attributes, because the page's Content-Security-Policy allows no inline style.
"""

from __future__ import annotations

import io
import re
from typing import Any
from xml.etree import ElementTree

#: Role -> placeholder colour to draw with. The page's style sheet says what each role looks like.
ROLES = {
    "ink": "#010203",
    "muted": "#010204",
    "rule": "#010205",
    "paper": "#010206",
    "generated": "#010207",
    "baseline": "#010208",
    "heldout": "#010209",
    "copy": "#01020a",
}

_ROLE_OF = {colour: role for role, colour in ROLES.items()}
_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "copyscope",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.edgecolor": ROLES["rule"],
    "axes.labelcolor": ROLES["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": ROLES["rule"],
    "ytick.color": ROLES["rule"],
    "xtick.labelcolor": ROLES["muted"],
    "ytick.labelcolor": ROLES["muted"],
    "text.color": ROLES["ink"],
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": ROLES["rule"],
}


def inline(figure: Any, name: str, title: str, description: str) -> str:
    """The figure as an `<svg>` element for HTML, the same bytes each time.

    name: unique in the page, the prefix of every id. title, description: what a screen reader says.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for child in list(root):
        if child.tag == f"{_SVG}metadata":
            root.remove(child)
    names = _rename_ids(root, name)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{_SVG}style":
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        _restyle(element, names)
    for attribute in ("width", "height", "version", "id"):
        root.attrib.pop(attribute, None)
    root.set("class", "plot")
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-desc")
    for index, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(tag, {"id": f"{name}-{tag}"})
        element.text = text
        root.insert(index, element)
    return ElementTree.tostring(root, encoding="unicode")


def _rename_ids(root: ElementTree.Element, name: str) -> dict[str, str]:
    """Keep only the ids that something refers to, renamed `name-1`, `name-2`, ... in document order."""
    used: set[str] = set()
    for element in root.iter():
        for key, value in element.attrib.items():
            used.update(_REFERENCE.findall(value))
            if key == _HREF:
                used.add(value.removeprefix("#"))
    names: dict[str, str] = {}
    for element in root.iter():
        old = element.attrib.pop("id", None)
        if old in used:
            names[old] = f"{name}-{len(names) + 1}"
            element.set("id", names[old])
    return names


def _restyle(element: ElementTree.Element, names: dict[str, str]) -> None:
    attributes: dict[str, str] = {}
    classes: list[str] = []
    for key, value in element.attrib.items():
        if key == _HREF:
            attributes["href"] = "#" + names[value.removeprefix("#")]
        elif key == "style":
            for declaration in filter(None, (part.strip() for part in value.split(";"))):
                name, _, setting = declaration.partition(":")
                _declare(name.strip(), setting.strip(), attributes, classes)
        else:
            value = _REFERENCE.sub(lambda match: f"url(#{names[match[1]]})", value)
            attributes[key] = value if key == "id" else _shorten(value)
    element.attrib.clear()
    if classes:
        element.set("class", " ".join(classes))
    element.attrib.update(attributes)
    if element.text is not None and not element.text.strip():
        element.text = None
    if element.tail is not None and not element.tail.strip():
        element.tail = None


def _declare(key: str, value: str, attributes: dict[str, str], classes: list[str]) -> None:
    if key in ("fill", "stroke") and value in _ROLE_OF:
        classes.append(f"{key}-{_ROLE_OF[value]}")
    elif key == "font":
        size = re.search(r"([\d.]+)px", value)
        if size:
            attributes["font-size"] = _shorten(size[1])
        if "bold" in value or re.search(r"\b[67]00\b", value):
            attributes["font-weight"] = "600"
    elif key not in ("font-family", "stroke-linejoin", "stroke-linecap"):
        attributes[key] = _shorten(value)


def _shorten(value: str) -> str:
    """Two decimals are finer than any screen."""
    return _NUMBER.sub(lambda match: f"{float(match[0]):.2f}".rstrip("0").rstrip("."), value)
