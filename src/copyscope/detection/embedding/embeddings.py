"""Embeddings: the descriptor vectors of a corpus, saved and loaded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from copyscope.data.corpus import Corpus
from copyscope.data.parquet_pages import read_table
from copyscope.documents import read_json
from copyscope.errors import InputError
from copyscope.files import as_damaged, file_sha256, save_array, write_file, write_parquet

from . import parquet

if TYPE_CHECKING:
    from copyscope.detection.search.ivf import IVF


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """Descriptor vectors of the readable rows of a corpus.

    Args:
        corpus: the corpus, its columns sha256, width, height and error filled.
        rows: [n], corpus row of each vector.
        vectors: float32 [n d], unit length, perhaps memory-mapped.
        descriptor: the descriptor's spec.
        fingerprint: what decided the vectors besides (sha256 of the weights).
        cells: IVF index of the vectors, where they are too many to be searched exactly; None = they are not.
    """

    corpus: Corpus
    rows: NDArray[np.intp]
    vectors: NDArray[np.float32]
    descriptor: str
    fingerprint: str
    cells: IVF | None = None

    @property
    def ids(self) -> list[str]:
        """Id of each vector [n]."""
        return list(self.corpus.table["id"].take(pa.array(self.rows)).to_pylist())

    @property
    def n_missing(self) -> int:
        """Number of corpus rows that could not be read."""
        return len(self.corpus) - len(self.rows)

    def save(self, folder: str | Path) -> None:
        """Write `vectors.npy`, `embeddings.parquet` (one row a corpus row) and, last, `embeddings.json`.

        Args:
            folder: made if it is not there.

        Raises:
            InputError: it cannot be written.
        """
        folder = Path(folder)
        write_file(folder / "vectors.npy", lambda path: save_array(path, self.vectors))
        write_file(folder / "embeddings.parquet", lambda path: write_parquet(self.corpus.table, path))
        summary = {
            "schema": "copyscope.embeddings/1",
            "descriptor": self.descriptor,
            "fingerprint": self.fingerprint,
            "corpus": self.corpus.origin,
            "kind": self.corpus.kind,
            "n": len(self.rows),
            "n_missing": self.n_missing,
            "dim": int(self.vectors.shape[1]),
            "sha256": file_sha256(folder / "vectors.npy"),
        }
        write_file(folder / "embeddings.json", lambda path: path.write_text(json.dumps(summary, indent=1) + "\n"))

    @classmethod
    def load(cls, folder: str | Path) -> Embeddings:
        """Load embeddings, the vectors memory-mapped.

        Args:
            folder: where `save` wrote them, or folder or URL where `embedding.parquet.write` did.

        Returns:
            The embeddings.

        Raises:
            InputError: they are not complete, or damaged.
        """
        if "://" in str(folder) or parquet.is_sharded(folder):
            return cls(*parquet.load(folder))
        folder = Path(folder)
        if not (folder / "embeddings.json").is_file():
            raise InputError(f"No finished embeddings in {folder}.\nMake them with: copyscope embed CORPUS -o {folder}")
        summary, table = read_json(folder / "embeddings.json"), read_table(folder / "embeddings.parquet")
        with as_damaged(folder):
            corpus = Corpus(table, str(summary["corpus"]), str(summary["kind"])).settled()
            rows = np.flatnonzero(corpus.table["error"].is_null().to_numpy(zero_copy_only=False))
            # Those of version 0.1 have no checksum.
            if summary.get("sha256", digest := file_sha256(folder / "vectors.npy")) != digest:
                raise ValueError("vectors.npy is not what its checksum says")
            vectors = np.load(folder / "vectors.npy", mmap_mode="r")
            if vectors.shape != (len(rows), summary["dim"]):
                raise ValueError(f"vectors.npy has the shape {vectors.shape} instead of {(len(rows), summary['dim'])}")
            return cls(corpus, rows, vectors, summary["descriptor"], summary["fingerprint"])
