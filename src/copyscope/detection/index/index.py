"""Index: build, add, remove, compact and look up.

Vectors, thumbnails for re-ranking, ids and the calibration are all in the index: the images themselves are not needed
again. Images are added and removed; readers go on meanwhile. `manifest` tells how it lies on disk.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from copyscope import parts
from copyscope._version import __version__
from copyscope.curation.decisions import Decisions, Honoured
from copyscope.data.corpus import Corpus
from copyscope.detection.dedup.backgrounds import SUFFIX, joined_by_source, over_all, plain_id, transparency_work
from copyscope.detection.dedup.groups import duplicates, pixels_work
from copyscope.detection.descriptors import Descriptor
from copyscope.detection.descriptors._device import option
from copyscope.detection.embedding.compute import compute_ahead
from copyscope.detection.embedding.embed import embed, vectors_work, without_unreadable
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.embedding.fill import Feature
from copyscope.detection.embedding.protocols import Protocol
from copyscope.detection.embedding.protocols import protocol as named_protocol
from copyscope.detection.matching.blank import blank_among, blank_rows, without_rows
from copyscope.detection.matching.ncc import Verify
from copyscope.detection.matching.tiny_image import DIM
from copyscope.detection.matching.windows import extract, extract_from, window_thumbnails_work, window_work
from copyscope.detection.search.binary_codes import rotation
from copyscope.detection.search.quantized import checked
from copyscope.engine import CacheOptions, Engine, Options
from copyscope.errors import InputError
from copyscope.imaging import images
from copyscope.imaging.blank import is_blank
from copyscope.imaging.images import Image
from copyscope.machine import Progress, file_lock
from copyscope.trust import check_spec

from . import manifest as files
from .calibration import calibrate, forget, recalibrate
from .decided import IndexDecisions
from .hits import TABLE, Hit, answers, table
from .segments import IndexSnapshot, load, merge, write_segment
from .summary import IndexSummary, summary_of

__all__ = ["TABLE", "Hit", "Index", "table"]
COMPACT_ABOVE = 32


class Index:
    """Index of a training set on disk, made by `build` and `open`.

    Many processes may read it while one at a time changes it; safe to call from many threads.
    """

    def __init__(
        self, folder: Path, state: IndexSnapshot, trust_parts: bool = False, decisions: Decisions | None = None
    ) -> None:
        self.origin = str(folder)
        # The process may change its working folder while the index is open.
        self.folder = folder.absolute()
        self._trust_parts = trust_parts
        self._state = state
        self.decided = IndexDecisions(decisions) if decisions is not None else None

    @classmethod
    def build(
        cls,
        train: str | Path | Corpus,
        out: str | Path,
        protocol: str = "sscd-288",
        *,
        held_out: str | Path | Corpus | None = None,
        crops: bool = False,
        precision: str = "float32",
        seed: int = 0,
        cache: str | Path | None = None,
        workers: int | None = None,
        engine: Engine | str | None = None,
        progress: Progress | None = None,
    ) -> Index:
        """Describe training images and write the index; blank ones are counted and left out.

        A transparent image has several rows, over other backgrounds too, whose ids end with `backgrounds.SUFFIX`.

        Args:
            train: a Corpus or what `Corpus.open` takes.
            out: folder to write.
            protocol: a name in `PROTOCOLS` or a descriptor spec.
            held_out: real images, not trained on, that p-values rest on; None = a sample of the training set stands in.
            crops: describe windows of the training images too, ten times the size, to find pictures of a quarter of
                one.
            precision: of the vectors: float32, float16 or int8; scores move by less than they tell apart
                (docs/index.md).
            seed: of the samples.
            cache: folder of the cache; None = the user's.
            workers: threads; None = one a core.
            engine: describes the training images whole, not their windows; None = this process.
            progress: called with a label, the number done and the total.

        Raises:
            InputError: `out` holds an index, or no image can be read.
        """
        folder, rules, precision = Path(out), named_protocol(protocol), checked(precision)
        _refuse_foreign(folder)
        options: CacheOptions = {"cache": cache, "workers": workers, "progress": progress}
        descriptor, verify = rules.load(), Verify()
        also = _later(descriptor, verify, crops, held_out is not None, engine)
        described, source, n_missing, n_blank = _described(train, descriptor, options, engine, also)
        held = _corpus(held_out) if held_out is not None else None
        with file_lock(folder / ".lock"):
            _refuse_foreign(folder)
            files.remove_stale(folder)
            directions = rotation(descriptor.dim), rotation(DIM)
            manifest: dict[str, Any] = {
                "schema": files.SCHEMA if precision == "float32" else files.SHORT_SCHEMA,
                "copyscope": __version__,
                "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "protocol": rules.name,
                "descriptor": str(descriptor),
                "fingerprint": described.fingerprint,
                "verify": str(verify),
                "duplicates": rules.duplicates,
                "dim": descriptor.dim,
                "crops": crops,
                "precision": precision,
                "n_missing": n_missing,
                "n_blank": n_blank,
                "n_removed": 0,
                "segments": [],
                "removed": None,
                "rotation": files.new_name(),
                "calibration": None,
                "files": {},
            }
            for suffix, array in zip(("rotation", "coarse.rotation"), directions, strict=True):
                manifest["files"] |= files.write_array(folder, f"{manifest['rotation']}.{suffix}", array)
            manifest = write_segment(folder, manifest, described, directions, descriptor, verify, crops, options)
            state = load(folder, manifest)
            groups = None
            if held is None:
                groups = duplicates(described, rules.duplicates, engine=engine, **options)
                groups = joined_by_source(groups, source)
            manifest = calibrate(folder, state, described, held, groups, descriptor, verify, seed, options)
            files.write_manifest(folder, manifest)
        return cls.open(folder, trust_parts=True)  # the protocol is the caller's own

    @classmethod
    def open(
        cls, folder: str | Path, *, trust_parts: bool = False, decisions: str | Path | Decisions | None = None
    ) -> Index:
        """Open the index in a folder, its files memory-mapped.

        Args:
            folder: of the index.
            trust_parts: load whatever descriptor the index names, which may run code of its maker; else the first
                look-up raises PartError where it is none of the shelf, or has weights by path.
            decisions: what people decided, a file of `copyscope decide`; None = nothing. No hit is a pair that is
                "different" or "ignore", or a licensed image. A picture without a file is known by none of them.

        Raises:
            InputError: there is none, or a file is missing, damaged or not of its length; `check` looks at every byte.
        """
        decided = Decisions.read(decisions) if decisions is not None else None
        return cls(Path(folder), load(Path(folder)), trust_parts, decided)

    def __len__(self) -> int:
        """Training images that can be found: those added and not removed."""
        return self._fresh().n

    def __repr__(self) -> str:
        return f"Index({str(self.folder)!r}, {len(self)} images, {self._state.manifest['protocol']})"

    @property
    def ids(self) -> list[str]:
        """Ids of the training images, in the order they were added."""
        return self._fresh().column("id")

    @property
    def sha256(self) -> list[str | None]:
        """Digest sha256 (hex) of the file of each training image, in the order of `ids`."""
        return self._fresh().column("sha256")

    def summary(self) -> IndexSummary:
        """Summary of the index as plain values; docs/json.md has its keys."""
        state = self._fresh()
        decided: dict[str, Any] = {**self.decided.summary(state)} if self.decided else {}
        return cast("IndexSummary", {**summary_of(state), **decided})

    def refresh(self) -> Index:
        """Look again at what is on disk, and return the index. Every call does so by itself."""
        self._state = load(self.folder)
        return self

    def match(
        self,
        pictures: str | Path | Corpus | Image | Sequence[Image],
        k: int = 10,
        *,
        local: bool = True,
        exact: bool | None = None,
        cache: str | Path | None = None,
        workers: int | None = None,
        progress: Progress | None = None,
    ) -> list[list[Hit]]:
        """Find the k training images that each picture is most like, highest combined score first.

        An image that is the picture itself comes before all. Blank pictures (`imaging.blank.is_blank`) and unreadable
        ones have no hits.

        Args:
            pictures: arrays uint8 [h w 3], one or several, or anything `Corpus.open` takes, one list a row.
            k: images a picture, 1 or more.
            local: look at windows of the pictures too, ten times the work.
            exact: True searches exactly, False by sign bits first, None whichever is faster.
            cache: folder of the cache; None = the user's.
            workers: threads; None = one a core.
            progress: called with a label, the number done and the total.

        Returns:
            The hits of each picture.

        Raises:
            PartError: the index names a descriptor that is loaded only if it is trusted.
        """
        options: Options = {"workers": workers, "progress": progress}
        if isinstance(pictures, (str, Path, Corpus)):
            return self.match_corpus(_corpus(pictures), k, local=local, exact=exact, cache=cache, **options)[1]
        state = self._fresh()
        given = [pictures] if isinstance(pictures, np.ndarray) and pictures.ndim == 3 else list(pictures)
        if not given:
            return []
        looks = extract(given, self._descriptor(state), Verify(), local)
        blank = np.array([is_blank(picture) for picture in given], bool)
        excused = self.decided.excuse(state, {}) if self.decided else None
        return answers(looks, state, k, local, blank, excused=excused, exact=exact, options=options)

    def match_corpus(
        self,
        corpus: Corpus,
        k: int = 10,
        *,
        local: bool = True,
        exact: bool | None = None,
        honoured: Honoured | None = None,
        cache: str | Path | None = None,
        workers: int | None = None,
        progress: Progress | None = None,
    ) -> tuple[Corpus, list[list[Hit]]]:
        """Match a corpus as `match`, and tell why a row has no hits.

        Args:
            corpus: the pictures.
            k: as in `match`.
            local: as in `match`.
            exact: as in `match`.
            honoured: is filled with what decisions did; None = nobody asks.
            cache: as in `match`.
            workers: as in `match`.
            progress: as in `match`.

        Returns:
            The corpus with `error` filled, and the hits; a row with neither is blank, where anything is in the index.
        """
        state = self._fresh()
        options: Options = {"workers": workers, "progress": progress}
        filled, rows, looks = extract_from(corpus, self._descriptor(state), Verify(), local, cache=cache, **options)
        blank = blank_among(filled, rows, looks.thumbnails, cache=cache, **options)
        digests = filled.pick("sha256", rows)
        found: list[list[Hit]] = [[] for _ in range(len(corpus))]
        excused = self.decided.excuse_of(state, filled, rows, honoured) if self.decided else None
        known = digests.to_pylist()
        each = answers(looks, state, k, local, blank, known, excused=excused, exact=exact, options=options)
        for row, hits in zip(rows.tolist(), each, strict=True):
            found[row] = hits
        if honoured is not None:
            emptied = [row for row, is_blank in zip(rows.tolist(), blank, strict=True) if not (found[row] or is_blank)]
            honoured.emptied.update(map(filled.id_of, emptied))
        return filled, found

    def thumbnails(self, ids: Sequence[str]) -> dict[str, tuple[Image, int, int]]:
        """Thumbnails of training images.

        Args:
            ids: of the images; those that are not in the index are left out.

        Returns:
            id -> the middle square, uint8 [32 32 3], and width and height of the image in pixels.
        """
        state = self._fresh()
        rows, _ = state.find(pa.array(ids, pa.string()))
        taken = state.table.take(rows, ["id", "width", "height"])
        return {
            each["id"]: (square, each["width"], each["height"])
            for square, each in zip(state.whole.thumbnails(rows), taken, strict=True)
        }

    def add(
        self,
        train: str | Path | Corpus,
        *,
        cache: str | Path | None = None,
        workers: int | None = None,
        engine: Engine | str | None = None,
        progress: Progress | None = None,
    ) -> int:
        """Add training images; the calibration follows. Waits for another writer.

        Args:
            train: images whose ids are new; a Corpus or what `Corpus.open` takes.
            cache: as in `build`.
            workers: as in `build`.
            engine: as in `build`.
            progress: as in `build`.

        Returns:
            How many were added, without blank ones.

        Raises:
            InputError: an id is there already, or no image can be read.
        """
        options: CacheOptions = {"cache": cache, "workers": workers, "progress": progress}
        verify = Verify()
        state = self._fresh()
        descriptor, kept = self._descriptor(state), state.manifest["calibration"]
        also = _later(descriptor, verify, state.manifest["crops"], kept["method"] == "held-out", engine)
        described, source, n_missing, n_blank = _described(train, descriptor, options, engine, also)
        with file_lock(self.folder / ".lock"):
            state = load(self.folder)
            ids = described.corpus.table["id"].take(pa.array(described.rows))
            _, there = state.find(ids)
            if there:
                known = ids.filter(pc.is_in(ids, value_set=pa.array(there)))
                raise InputError(
                    f"{len(known)} of the images are in the index already, the first is {known[0].as_py()!r}.\n"
                    "Remove them first, or give only new ones"
                )
            manifest = state.manifest | {
                "n_missing": state.manifest["n_missing"] + n_missing,
                "n_blank": state.manifest.get("n_blank", 0) + n_blank,
            }
            manifest = write_segment(
                self.folder, manifest, described, state.directions, descriptor, verify, manifest["crops"], options
            )
            manifest = recalibrate(self.folder, load(self.folder, manifest), described, verify, options)
            if len(manifest["segments"]) > COMPACT_ABOVE:
                manifest = _merged(self.folder, load(self.folder, manifest))
            files.write_manifest(self.folder, manifest)
        self.refresh()
        return len(np.unique(source))

    def remove(self, ids: Sequence[str]) -> int:
        """Remove training images, so that none is found. The p-values stay valid, if a little large.

        Args:
            ids: of the images; their vectors and thumbnails stay in the files until `compact`.

        Returns:
            How many were removed.

        Raises:
            InputError: an id is not in the index.
        """
        with file_lock(self.folder / ".lock"):
            state = load(self.folder)
            # All rows of a transparent image, whichever is named.
            wanted = list(dict.fromkeys(map(plain_id, ids)))
            further = [each + SUFFIX.format(name) for name in images.BACKGROUNDS for each in wanted]
            rows, known = state.find(pa.array([*wanted, *further], pa.string()))
            there = set(known)
            unknown = [each for each in wanted if each not in there]
            if unknown:
                raise InputError(
                    f"{len(unknown)} of the images are not in the index, the first is {unknown[0]!r}.\n"
                    "Give ids as `copyscope match` shows them"
                )
            files.write_manifest(self.folder, state.write_removed(self.folder, rows))
        self.refresh()
        return len(wanted)

    def compact(self) -> None:
        """Make one segment of all, without any byte of removed images; readers go on with what they have."""
        with file_lock(self.folder / ".lock"):
            files.write_manifest(self.folder, _merged(self.folder, load(self.folder)))
        self.refresh()

    def check(self, progress: Progress | None = None) -> None:
        """Check that every byte of the index is what was written.

        Args:
            progress: called with a label, the MiB done and the total.

        Raises:
            InputError: names the first file which is not.
        """

        def tell(done: int, total: int) -> None:
            if progress:
                progress("check", done >> 20, total >> 20)

        files.with_retries(self.folder, lambda manifest: files.check_sums(self.folder, manifest, tell))

    def _fresh(self) -> IndexSnapshot:
        """The state of now: loaded again where a writer has put another manifest in place."""
        if files.stamp(self.folder) != self._state.stamp:
            self._state = load(self.folder)
        return self._state

    def _descriptor(self, state: IndexSnapshot) -> Descriptor:
        """The descriptor of the index, checked: its weights must be those that made the index, and code trusted."""
        if not self._trust_parts:
            check_spec("descriptors", state.manifest["protocol"], f"The index {self.folder}")
        rules: Protocol = named_protocol(state.manifest["protocol"])
        descriptor = rules.load()
        theirs, ours = state.manifest["fingerprint"], descriptor.fingerprint()
        if str(descriptor) == state.manifest["descriptor"] and theirs.partition(" on ")[0] == ours.partition(" on ")[0]:
            made_on, here = (each.partition(" on ")[2] or "cpu" for each in (theirs, ours))
            if made_on != here:
                raise InputError(
                    f"The index {self.folder} was made on {made_on}; {descriptor} would run on {here}, where scores "
                    f"differ.\nGive {option(made_on)}, or build the index again on {here}"
                )
        elif (str(descriptor), ours) != (state.manifest["descriptor"], theirs):
            raise InputError(
                f"The index {self.folder} was made by {state.manifest['descriptor']} with other weights or another "
                "version.\nBuild the index again"
            )
        return descriptor


def _merged(folder: Path, state: IndexSnapshot) -> dict[str, Any]:
    """The manifest of one segment of all, and nothing of what was removed in it or in the calibration."""
    return merge(folder, dataclasses.replace(state, manifest=forget(folder, state)))


def _later(
    descriptor: Descriptor, verify: Verify, crops: bool, held_out: bool, engine: Engine | str | None
) -> list[Feature]:
    """Features that the windows and the calibration, on `held_out` images or the training images, will ask for."""
    windows = [window_work(descriptor), window_thumbnails_work(verify)] if crops and engine is None else []
    return [*windows, vectors_work(parts.load("descriptors", "pdq"), engine) if held_out else pixels_work()]


def _described(
    train: str | Path | Corpus,
    descriptor: Descriptor,
    options: CacheOptions,
    engine: Engine | str | None,
    also: Sequence[Feature],
) -> tuple[Embeddings, NDArray[np.int64], int, int]:
    """Embed images that show something: embeddings, image of each row, numbers of unreadable and of blank ones."""
    corpus = _corpus(train)
    works = [vectors_work(descriptor, engine), Verify().work(), transparency_work(), *also]
    every = embed(compute_ahead(corpus, works, engine=engine, **options), descriptor, **options)
    every = without_unreadable(every, Verify().work(), **options)
    both, source = over_all(every, descriptor, engine=engine, **options)
    blank = blank_rows(both, **options)
    described, n_blank = without_rows(both, blank), int(blank[: len(every.rows)].sum())
    if not len(described.rows):
        why = f" or shows anything ({n_blank} are blank)" if n_blank else ""
        raise InputError(
            f"None of the {len(corpus)} images in {corpus.origin} can be read{why}.\nName the folder of training images"
        )
    return described, source[~blank], every.n_missing, n_blank


def _corpus(source: str | Path | Corpus) -> Corpus:
    return source if isinstance(source, Corpus) else Corpus.open(source)


def _refuse_foreign(folder: Path) -> None:
    """Raises InputError where an index, or anything that is not ours, lies in `folder`."""
    if (folder / files.MANIFEST).exists():
        raise InputError(
            f"There is an index in {folder}.\nAdd to it with: copyscope index add {folder} IMAGES "
            "(in Python: Index.open(folder).add(train)), or name another folder"
        )
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file.\nName a folder with -o (in Python: out)")
    if folder.exists() and not all(files.OURS.fullmatch(path.name) for path in folder.iterdir()):
        raise InputError(f"{folder} is not empty and holds no index.\nName another folder with -o (in Python: out)")
