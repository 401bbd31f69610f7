"""Random folders of all layouts: no image, caption or weight is lost, and what is not used is named.

COPYSCOPE_LAYOUTS=500 tries that many.
"""

from __future__ import annotations

import os

from copyscope.data.corpus import Corpus
from copyscope.errors import InputError
from tests.data.layouts import make

N = int(os.environ.get("COPYSCOPE_LAYOUTS", "60"))


def wrong(world) -> str:
    """What is wrong with how a folder is read; "" where nothing is."""
    try:
        corpus = Corpus.open(world.opened)
    except InputError as error:
        return f"not opened: {error}"
    found = {content: row for row, content in corpus.stream() if isinstance(content, bytes)}
    weights = corpus.table["weight"].to_pylist()
    unused = {name for entry in corpus.account.unused.values() for name in entry.names}
    said = []
    if len(found) != len(corpus) or found.keys() != world.images.keys():
        said.append(
            f"{len(corpus)} rows, {len(found)} read, {len(world.images)} right: {corpus.table['error'].to_pylist()}"
        )
    for content, captions in world.images.items():
        if content in found and {*corpus.captions[found[content]]} != captions:
            said.append(f"{corpus.ids[found[content]]!r}: {corpus.captions[found[content]]}, not {captions}")
    for content, weight in world.weights.items():
        if content in found and weights[found[content]] != weight:
            said.append(f"{corpus.ids[found[content]]!r}: weight {weights[found[content]]}, not {weight}")
    if lost := {*world.junk} - unused:
        said.append(f"not in the account: {sorted(lost)}")
    if corpus.account.n_captioned != sum(bool(captions) for captions in corpus.captions):
        said.append("the account counts other captions")
    return "; ".join(said)


def test_no_image_no_caption_and_no_weight_is_lost(tmp_path):
    failed = []
    for seed in range(N):
        world = make(tmp_path / str(seed), seed)
        if said := wrong(world):
            failed.append(f"{world.label}: {said}")
    assert not failed, f"{len(failed)} of {N}:\n" + "\n".join(failed[:20])
