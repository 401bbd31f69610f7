"""Prompt, seed, model and sampler that generators write into their PNG, JPEG and WebP files.

Only headers are read: text chunks of PNG up to the pixels, EXIF and comment segments of JPEG, the EXIF chunk of WebP.
Known are AUTOMATIC1111 and its forks (`parameters`), ComfyUI (`prompt`, a graph), InvokeAI (`invokeai_metadata`,
`sd-metadata`, `Dream`), NovelAI (`Comment`), Fooocus, Draw Things (EXIF UserComment), and plain text chunks named like
the columns, as scripts around diffusers write them.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from copyscope.documents import parse_json

MOST_TEXT = 4 << 20
"""Bytes of text that are read of one image (4 MiB): a ComfyUI workflow may have some 100 KB."""
_MOST_CHUNKS = 4096
_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
_PAIR = re.compile(r'\s*([^:,]+?):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_DREAM = re.compile(r'^"(?P<prompt>.*)"(?P<options>(?:\s+-\S+(?:\s+[^-\s]\S*)?)*)\s*$', re.DOTALL)
_HOPS = 64
"""Nodes of a ComfyUI graph that are gone through from the sampler to a text."""


def made_with(file: Any, start: int = 0, size: int | None = None) -> dict[str, Any]:
    """`prompt`, `seed`, `model` and `sampler`, as far as the image in a file has them; {} where it has none.

    Args:
        file: seekable.
        start: where in it the image begins, in bytes.
        size: of the image, in bytes; None = to the end of the file.
    """
    try:
        return _known(dict(_texts(file, start, size)))
    except (OSError, ValueError, struct.error, zlib.error, KeyError, IndexError, TypeError, RecursionError):
        return {}


def _known(found: dict[str, str]) -> dict[str, Any]:
    """The columns in the texts of an image, by their keys."""
    for key in ("parameters", "UserComment", "Comment", "comment", "Description", "ImageDescription"):
        if key in found and (made := parameters(found[key]) or _of_json(found[key])):
            if "Source" in found and "model" not in made and key == "Comment":
                made["model"] = found["Source"]
            if "prompt" not in made and "Description" in found:
                made["prompt"] = found["Description"]
            return made
    for key in ("invokeai_metadata", "sd-metadata", "fooocus_scheme", "generation_data", "metadata"):
        if key in found and (made := _of_json(found[key])):
            return made
    if "Dream" in found and (made := _dream(found["Dream"])):
        return made
    if "prompt" in found and found["prompt"].lstrip()[:1] == "{" and (made := _comfy(found["prompt"])):
        return made
    names = {key.lower(): value for key, value in found.items()}
    if "prompt" in names and names["prompt"].lstrip()[:1] != "{":
        return _columns(names)
    return {}


def parameters(text: str) -> dict[str, Any]:
    """The text that AUTOMATIC1111 and its forks write: prompt, negative prompt, then `Steps: 20, Sampler: ...`."""
    lines = text.replace("\r\n", "\n").strip().split("\n")
    last = next((place for place in range(len(lines) - 1, -1, -1) if lines[place].startswith("Steps: ")), None)
    if last is None:
        return {}
    prompt = []
    for line in lines[:last]:
        if line.startswith("Negative prompt:"):
            break
        prompt.append(line)
    settings = {key.strip().lower(): value.strip('" ') for key, value in _PAIR.findall(lines[last])}
    if len(settings) < 2:
        return {}
    return _columns({"prompt": "\n".join(prompt).strip(), **settings})


_SYNONYMS = {
    "prompt": ("prompt", "positive_prompt", "positive prompt", "c", "prompt_text"),
    "seed": ("seed", "noise_seed"),
    "model": ("model", "model hash", "base_model", "base_model_name", "model_name", "model_weights", "model_id"),
    "sampler": ("sampler", "sampler_name", "scheduler", "scheduler_name"),
}


def _columns(found: dict[str, Any]) -> dict[str, Any]:
    """The four columns, from whatever each is called."""
    made: dict[str, Any] = {}
    for column, names in _SYNONYMS.items():
        for name in names:
            value = found.get(name)
            if isinstance(value, dict):
                value = value.get("model_name") or value.get("name") or value.get("key")
            if isinstance(value, str):
                value = value.strip()
            if isinstance(value, (str, int, float)) and not isinstance(value, bool) and value != "":
                made[column] = _number(value) if column == "seed" else str(value)
                break
    return made if "prompt" in made or len(made) > 1 else {}


def _number(value: str | int | float) -> int | float | str:
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,30}", value.strip()):
        return int(value)
    return value


def _of_json(text: str) -> dict[str, Any]:
    """An object of settings: InvokeAI's of today and before, NovelAI's, Fooocus's, Draw Things'."""
    if text.lstrip()[:1] != "{":
        return {}
    found = parse_json(text)
    if not isinstance(found, dict):
        return {}
    if isinstance(image := found.get("image"), dict):
        prompt = image.get("prompt")
        if isinstance(prompt, list):
            prompt = next((each.get("prompt") for each in prompt if isinstance(each, dict)), None)
        found = found | image | {"prompt": prompt}
    return _columns({str(key).lower(): value for key, value in found.items()})


def _dream(text: str) -> dict[str, Any]:
    """The command line that early versions of InvokeAI wrote: `"a cat" -s 50 -S 123 -A k_lms`."""
    if not (match := _DREAM.match(text.strip())):
        return {}
    options = dict(re.findall(r"-(\S)\s*(\S+)", match["options"]))
    return _columns({"prompt": match["prompt"], "seed": options.get("S"), "sampler": options.get("A")})


def _comfy(text: str) -> dict[str, Any]:
    """The graph that ComfyUI ran: from its sampler to the text, the model and the seed."""
    graph = parse_json(text)
    if not isinstance(graph, dict):
        return {}
    nodes = {str(key): node for key, node in graph.items() if isinstance(node, dict)}
    inputs = {key: node["inputs"] for key, node in nodes.items() if isinstance(node.get("inputs"), dict)}
    samplers = [key for key in inputs if "positive" in inputs[key] and _is_sampler(nodes[key])]
    samplers += [key for key in inputs if "guider" in inputs[key]]
    for key in sorted(samplers, key=lambda key: "seed" in inputs[key] or "noise_seed" in inputs[key], reverse=True):
        mine = inputs[key]
        start = mine["positive"] if "positive" in mine else mine["guider"]
        prompt = _upstream(inputs, start, _PROMPTS, ("positive", "conditioning", "conditioning_1", "guider", "text"))
        if not prompt:
            continue
        seed = next((mine[name] for name in ("seed", "noise_seed", "noise") if name in mine), None)
        sampler = next((mine[name] for name in ("sampler_name", "sampler") if name in mine), None)
        through = ("model", "guider", "basic_pipe", "pipe")
        return _columns(
            {
                "prompt": prompt,
                "seed": _upstream(inputs, seed, ("seed", "noise_seed", "value", "int"), ("seed", "noise", "value")),
                "sampler": _upstream(inputs, sampler, ("sampler_name",), ("sampler_name", "sampler")),
                "model": _upstream(
                    inputs, mine.get("model", mine.get("guider")), ("ckpt_name", "unet_name", "model_name"), through
                ),
            }
        )
    return {}


_PROMPTS = (
    "text",
    "text_g",
    "t5xxl",
    "clip_l",
    "text_l",
    "prompt",
    "positive_prompt",
    "string",
    "value",
    "wildcard_text",
)


def _is_sampler(node: dict[str, Any]) -> bool:
    return "sampler" in str(node.get("class_type", "")).lower()


def _upstream(inputs: dict[str, dict[str, Any]], start: Any, wanted: tuple[str, ...], through: tuple[str, ...]) -> Any:
    """The first plain value named as `wanted` from a link on, by way of inputs that are `through` or `wanted`."""
    if not isinstance(start, list):
        return start
    pending, seen = [start], set[str]()
    while pending and len(seen) < _HOPS:
        link = pending.pop(0)
        key = str(link[0]) if link else ""
        if key in seen or key not in inputs:
            continue
        seen.add(key)
        mine = inputs[key]
        for name in wanted:
            value = mine.get(name)
            if isinstance(value, (str, int, float)) and not isinstance(value, bool) and str(value).strip():
                return value
        links = [mine[name] for name in (*wanted, *through) if isinstance(mine.get(name), list)]
        if not links:
            links = [value for name, value in mine.items() if isinstance(value, list) and name != "negative"]
        pending += links
    return None


def _texts(file: Any, start: int, size: int | None) -> Iterator[tuple[str, str]]:
    """(key, text) of what is written in the header of an image."""
    file.seek(start)
    head = bytes(file.read(12))
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        yield from _of_png(file, start + 8)
    elif head.startswith(b"\xff\xd8"):
        yield from _of_jpeg(file, start + 2)
    elif head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        end = start + 8 + int.from_bytes(head[4:8], "little")
        yield from _of_webp(file, start + 12, end if size is None else min(end, start + size))


def _of_png(file: Any, at: int) -> Iterator[tuple[str, str]]:
    left = MOST_TEXT
    for _ in range(_MOST_CHUNKS):
        file.seek(at)
        head = bytes(file.read(8))
        if len(head) < 8 or head[4:] in (b"IDAT", b"IEND"):
            return
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind in _TEXT_CHUNKS or kind == b"eXIf":
            if (left := left - length) < 0:
                return
            data = bytes(file.read(length))
            if kind == b"eXIf":
                yield from _of_exif(data)
            elif text := _png_text(kind, data):
                yield text
        at += 12 + length


def _png_text(kind: bytes, data: bytes) -> tuple[str, str] | None:
    key, _, rest = data.partition(b"\0")
    name = key.decode("latin-1")
    if kind == b"tEXt":
        # The standard says Latin-1, and some write UTF-8.
        try:
            return name, rest.decode("utf-8")
        except UnicodeDecodeError:
            return name, rest.decode("latin-1")
    if kind == b"zTXt":
        return name, _inflated(rest[1:]).decode("latin-1")
    packed, rest = rest[:1] == b"\1", rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    return name, (_inflated(rest) if packed else rest).decode("utf-8", "replace")


def _inflated(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    found = stream.decompress(data, MOST_TEXT)
    if stream.unconsumed_tail:
        raise ValueError("too much text")
    return found


def _of_jpeg(file: Any, at: int) -> Iterator[tuple[str, str]]:
    for _ in range(_MOST_CHUNKS):
        file.seek(at)
        head = bytes(file.read(4))
        if len(head) < 4 or head[0] != 0xFF or head[1] in (0xDA, 0xD9):
            return
        length = int.from_bytes(head[2:], "big")
        if head[1] == 0xE1:
            data = bytes(file.read(length - 2))
            if data.startswith(b"Exif\0\0"):
                yield from _of_exif(data[6:])
        elif head[1] == 0xFE:
            yield "comment", bytes(file.read(length - 2)).decode("utf-8", "replace")
        at += 2 + length


def _of_webp(file: Any, at: int, end: int) -> Iterator[tuple[str, str]]:
    for _ in range(_MOST_CHUNKS):
        file.seek(at)
        head = bytes(file.read(8)) if at + 8 <= end else b""
        if len(head) < 8:
            return
        length = int.from_bytes(head[4:], "little")
        if head[:4] == b"EXIF" and length <= MOST_TEXT:
            yield from _of_exif(bytes(file.read(length)).removeprefix(b"Exif\0\0"))
        at += 8 + length + length % 2


_EXIF_IFD = 0x8769
_EXIF_TEXTS = {0x010E: "ImageDescription", 0x010F: "Make", 0x0110: "Model", 0x9286: "UserComment", 0x9C9C: "XPComment"}


def _of_exif(data: bytes) -> Iterator[tuple[str, str]]:
    """Texts of a block of EXIF (a TIFF header, then directories of 12-byte entries)."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return
    pending, seen = [struct.unpack_from(order + "I", data, 4)[0]], set[int]()
    while pending:
        at = pending.pop()
        if at in seen or len(seen) > 4:
            continue
        seen.add(at)
        (count,) = struct.unpack_from(order + "H", data, at)
        for number in range(min(count, 512)):
            tag, kind, n, place = struct.unpack_from(order + "HHII", data, at + 2 + 12 * number)
            if tag == _EXIF_IFD:
                pending.append(place)
            elif tag in _EXIF_TEXTS and kind in (1, 2, 7):
                value = data[place : place + n] if n > 4 else data[at + 10 + 12 * number :][:n]
                yield from _exif_text(_EXIF_TEXTS[tag], value)


def _exif_text(name: str, value: bytes) -> Iterator[tuple[str, str]]:
    code, rest = value[:8], value[8:]
    if name == "UserComment" and code.startswith(b"UNICODE"):
        # The order of bytes is that of the writer, and not always that of the file.
        text = rest.decode("utf-16-be" if rest[:1] == b"\0" or rest[1:2] != b"\0" else "utf-16-le", "replace")
    elif name == "UserComment" and code in (b"ASCII\0\0\0", b"\0" * 8):
        text = rest.decode("utf-8", "replace")
    elif name == "XPComment":
        text, name = value.decode("utf-16-le", "replace"), "UserComment"
    else:
        text = value.decode("utf-8", "replace")
    text = text.strip("\0 ")
    # ComfyUI writes its graph into WebP as `prompt:{...}` in place of the maker.
    key, colon, graph = text.partition(":")
    if colon and key in ("prompt", "Prompt", "workflow", "Workflow") and graph.lstrip()[:1] == "{":
        yield key.lower(), graph
    elif name not in ("Make", "Model"):
        yield name, text
