"""Caption overlap: how many images share a caption, or nearly share one.

One pass over the captions of a set counts for some of its images, the asked ones. Images become classes: of a caption
that streams past it matters which of the asked captions it equals, and which it nearly agrees with. That depends on
those of its words that an asked caption has too, and on the number of the others, alone.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from copyscope.machine import Progress

NEAR = 0.8
"""Least Jaccard similarity of the word sets of two captions that nearly agree; counted in integers, as 4/5."""
NEAR_LIMIT = 100
"""A caption stops looking after this many distinct near ones, which bounds memory: counts beyond are lower bounds."""
PIECE = 65_536
_BLOCK = 4_000_000  # entries of a sparse product held at one time
_PAIRS = 2**18  # of a caption that streams past and one that is held, looked at at one time

Numbers = NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class CaptionSharing:
    """Caption overlap of images [n].

    Attributes:
        shared: [n], how many other images share one of the image's captions.
        near_shared: [n], how many further ones nearly do.
    """

    shared: NDArray[np.int64]
    near_shared: NDArray[np.int64]


def normalise(caption: str) -> str:
    """Normalise a caption for comparison: NFKC, case folded, runs of punctuation and white space to one space."""
    # Nearly all captions are plain: what they are folded to is known.
    folded = caption.lower() if caption.isascii() else _folded(caption)
    return " ".join(folded.translate(_spaced).split())


def _folded(caption: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", caption).casefold())


def caption_sharing(
    read: Callable[[Numbers], list[list[str] | None]], n: int, asked: Numbers, progress: Progress | None = None
) -> CaptionSharing:
    """Count the images that share, or nearly share, a caption with each of some images.

    Two images share a caption if one of the first's equals one of the second's once normalised; they nearly share one
    if two of theirs have word sets of Jaccard similarity >= 0.8. Captions of nothing but punctuation count as none.
    Words are split at white space, so that captions in scripts without it are shared only when equal. Near captions are
    found by a prefix-filtered join (Bayardo, Ma & Srikant 2007) with the positional filter of Xiao et al. 2008.

    Memory is that of the captions asked about and of a piece of the others, time is linear in n. A caption asked about
    stops looking after NEAR_LIMIT near ones that differ in their words, of those words that some caption asked about
    has: counts beyond are lower bounds.

    Args:
        read: positions [k] -> their captions; None for an image without any.
        n: number of images.
        asked: positions [m] of the images to count for.
        progress: called with a label, the number done and the total.

    Returns:
        Counts [m]; `near_shared` leaves out the images in `shared`.
    """
    # Number the captions asked about, and hold them with their word sets.
    numbers: dict[str, int] = {}
    uses: list[list[int]] = []
    for start in range(0, len(asked), PIECE):
        uses += _numbered(read(asked[start : start + PIECE]), numbers)
    same, near = _Classes(), _Classes()
    for text in range(len(numbers)):
        same.of(np.array([text], np.int32))
    held = _Held(list(numbers), near)
    # Go over all captions: an image counts for the set of held captions that it leads to.
    for start in range(0, n, PIECE):
        there: dict[str, int] = {}
        rows = _numbered(read(np.arange(start, min(start + PIECE, n))), there)
        counts = np.fromiter((len(row) for row in rows), np.int64, len(rows))
        texts = np.fromiter((text for row in rows for text in row), np.int64, int(counts.sum()))
        row = np.repeat(np.arange(len(rows)), counts)
        own = np.fromiter((numbers.get(text, -1) for text in there), np.int64, len(there))
        same.count(row, own[texts])
        near.count(row, held.near(list(there))[texts])
        if progress:
            progress("captions", min(start + PIECE, n), n)
    # Images that lead to a caption of mine, over equal captions and over near ones.
    bags = [sorted({held.bag[text] for text in row}) for row in uses]
    shared = _others(uses, len(numbers), same, n)
    return CaptionSharing(shared, _others(bags, len(held.sizes), near, n) - shared)


class _Spaced(dict[int, Any]):
    """Translation table filled on use: punctuation (Unicode category P) to a space, all else to itself."""

    def __missing__(self, code: int) -> Any:
        self[code] = " " if unicodedata.category(chr(code)).startswith("P") else code
        return self[code]


_spaced = _Spaced()


def _incidence(rows: list[list[int]], width: int) -> Any:
    """Sparse 0/1 matrix [n width] with ones where `rows` says."""
    from scipy import sparse

    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)])
    columns = np.fromiter((column for row in rows for column in row), dtype=np.int64, count=int(starts[-1]))
    return sparse.csr_matrix((np.ones(len(columns), dtype=bool), columns, starts), shape=(len(rows), width))


def _alike(uses: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The class of each image [n] and the first image of each class [c]: images that use [n t] the same are one."""
    uses.sort_indices()
    classes: dict[bytes, int] = {}
    of_image = np.empty(uses.shape[0], dtype=np.int64)
    for image in range(len(of_image)):
        row = uses.indices[uses.indptr[image] : uses.indptr[image + 1]]
        of_image[image] = classes.setdefault(row.tobytes(), len(classes))
    return of_image, np.unique(of_image, return_index=True)[1].astype(np.int64)


def _reached(uses: Any, back: Any, sizes: Numbers, n: int) -> Numbers:
    """How many of n images each of m rows reaches over a caption.

    Args:
        uses: captions of each row [m t].
        back: leads back from captions to classes of images [t c].
        sizes: images of each class [c].
        n: number of images.
    """
    # Entries that the product below would go through for each row, if none were met twice.
    work = uses.astype(np.int64) @ np.diff(back.indptr).astype(np.int64)
    everyone = back.astype(np.int64) @ sizes == n
    found = np.zeros(uses.shape[0], dtype=np.int64)
    block = np.cumsum(work) // _BLOCK
    for rows in np.split(np.arange(len(found)), np.flatnonzero(np.diff(block)) + 1):
        all_in_one = (uses[rows] @ everyone).astype(bool)  # one caption of all images: the answer is known
        found[rows[all_in_one]] = n
        found[rows[~all_in_one]] = (uses[rows[~all_in_one]] @ back) @ sizes
    return found


def _numbered(captions: list[list[str] | None], numbers: dict[str, int]) -> list[list[int]]:
    """Each row's captions by number, those that are new among `numbers` now."""
    return [
        sorted({numbers.setdefault(text, len(numbers)) for caption in row or () if (text := normalise(caption))})
        for row in captions
    ]


class _Classes:
    """Sets of held captions, and how many images lead to just that set."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._sets: list[bytes] = []
        self._weights: list[int] = []

    def of(self, members: NDArray[np.int32]) -> int:
        """The number of a set, members [k] in order; -1 for the empty one."""
        if not len(members):
            return -1
        key = members.tobytes()
        if key not in self._numbers:
            self._numbers[key] = len(self._sets)
            self._sets.append(key)
            self._weights.append(0)
        return self._numbers[key]

    def count(self, row: Numbers, found: Numbers) -> None:
        """Count images: captions [c] of images `row` [c], in order, lead to the sets `found` [c], -1 for none."""
        row, found = row[found >= 0], found[found >= 0]
        starts = np.flatnonzero(np.diff(row, prepend=-1))
        many = np.diff(starts, append=len(row)) > 1
        for number, times in zip(*np.unique(found[starts[~many]], return_counts=True), strict=True):
            self._weights[number] += int(times)
        ends = np.append(starts[1:], len(row))
        for start, end in zip(starts[many].tolist(), ends[many].tolist(), strict=True):
            number, *others = set(found[start:end].tolist())
            if others:
                sets = [np.frombuffer(self._sets[each], np.int32) for each in (number, *others)]
                number = self.of(np.unique(np.concatenate(sets)))
            self._weights[number] += 1

    def matrix(self, width: int) -> tuple[Any, Numbers]:
        """The sets as a sparse 0/1 matrix [c width], and the images of each [c]."""
        from scipy import sparse

        starts = np.concatenate([[0], np.cumsum([len(each) // 4 for each in self._sets], dtype=np.int64)])
        columns = np.frombuffer(b"".join(self._sets), np.int32)
        ones = np.ones(len(columns), dtype=bool)
        return sparse.csr_matrix((ones, columns, starts), (len(self._sets), width)), np.array(self._weights, np.int64)


def _others(uses: list[list[int]], width: int, classes: _Classes, n: int) -> Numbers:
    """How many of the n images, itself left out, lead to one of an image's own captions; `uses` [m] lists of them."""
    there, weights = classes.matrix(width)
    mine = _incidence(uses, width)
    back = there.T.tocsr()
    # A caption that one image leads to, itself, says nothing: without those most images are alike.
    leads = np.flatnonzero(back.astype(np.int64) @ weights > 1)
    mine = mine[:, leads].tocsr()
    of_image, first = _alike(mine)
    return np.maximum(_reached(mine[first], back[leads], weights, n)[of_image] - 1, 0)


class _WordSets(NamedTuple):
    """Word sets [b] as flat arrays, with an entry [w] for each word that the held captions have.

    Attributes:
        owner: [w], which set the entry is of, ascending.
        words: [w], rank of the word by rarity, ascending within a set.
        sizes: [b], words of each set, including those that no held caption has.
    """

    owner: Numbers
    words: Numbers
    sizes: Numbers


class _Postings(NamedTuple):
    """Prefix words of the held word sets, as an inverted list in the order of `key`.

    Attributes:
        key: rank of the word * span + size of its set.
        owner: number of its set.
        left: words of the set from this one on.
    """

    key: Numbers
    owner: Numbers
    left: Numbers


class _Held:
    """The word sets of the captions that are held, found by their rarest words.

    A similarity join: prefix filter (Bayardo, Ma & Srikant 2007), length filter, positional filter (Xiao et al. 2008),
    then the overlap itself. Jaccard >= 4/5 throughout.

    Args:
        texts: normalised captions, all different.
        classes: where sets of word sets are numbered.
    """

    def __init__(self, texts: list[str], classes: _Classes) -> None:
        # The different word sets. As text, for a set of words takes ten times as much memory.
        bags: dict[str, int] = {}
        self.bag = [bags.setdefault(" ".join(sorted(set(text.split()))), len(bags)) for text in texts]
        """The word set of each text."""
        self.sizes = np.fromiter((bag.count(" ") + 1 for bag in bags), np.int64, len(bags))
        # One order of words for all: the rarest first.
        frequency: dict[str, int] = {}
        for bag in bags:
            for word in bag.split():
                frequency[word] = frequency.get(word, 0) + 1
        ordered = sorted(frequency, key=lambda word: (frequency[word], word))
        self._rank = {word: place for place, word in enumerate(ordered)}
        # The word sets as flat arrays.
        self._starts = np.cumsum(self.sizes) - self.sizes
        ranks = (rank for bag in bags for rank in sorted(self._rank[word] for word in bag.split()))
        self._words = np.fromiter(ranks, np.int64, int(self.sizes.sum()))
        owner = np.repeat(np.arange(len(bags)), self.sizes)
        # A key of each set, by which an equal one is known.
        self._mix = np.random.default_rng(0).integers(0, 2**63, len(self._rank) + 1, np.uint64) * np.uint64(2) + 1
        keys = self._keys(_WordSets(owner, self._words, self.sizes))
        self._same = dict(zip(keys.tolist(), range(len(bags)), strict=True))
        # Prefix filter: only the first, rarest words of a set are listed.
        position = np.arange(len(self._words)) - self._starts[owner]
        listed = np.flatnonzero(position < _prefix(self.sizes)[owner])
        self._span = int(self.sizes.max(initial=0)) + 1
        key = self._words[listed] * self._span + self.sizes[owner[listed]]
        listed = listed[np.argsort(key, kind="stable")]
        self._postings = _Postings(np.sort(key), owner[listed], (self.sizes[owner] - position)[listed])
        self._room = np.full(len(bags), NEAR_LIMIT)
        self._classes = classes
        self._known: dict[int, int] = {}

    def near(self, texts: list[str]) -> Numbers:
        """For each of the normalised texts [t] the set of held word sets that it has or nearly has, by number."""
        # Word sets of the texts, of words that are held.
        bags = [set(text.split()) for text in texts]
        size = np.fromiter(map(len, bags), np.int64, len(bags))
        rank = self._rank.get
        words = np.fromiter((rank(word, -1) for each in bags for word in each), np.int64, int(size.sum()))
        owner = np.repeat(np.arange(len(bags)), size)[words >= 0]
        words = words[words >= 0]
        # Without four fifths of its words nothing is near.
        hopeful = 5 * np.bincount(owner, minlength=len(bags)) >= 4 * size
        owner, words = owner[hopeful[owner]], words[hopeful[owner]]
        order = np.argsort(owner * len(self._mix) + words)
        asked = np.flatnonzero(hopeful)
        sets = _WordSets(np.searchsorted(asked, owner[order]), words[order], size[asked])
        # Each different set is looked up once, in whatever piece it comes.
        keys = self._keys(sets)
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        fresh = np.sort([at for at in first.tolist() if int(keys[at]) not in self._known]).astype(np.int64)
        if len(fresh):
            some = np.isin(sets.owner, fresh)
            new = _WordSets(np.searchsorted(fresh, sets.owner[some]), sets.words[some], sets.sizes[fresh])
            self._look_up(new, keys[fresh])
        numbers = np.fromiter((self._known.get(key, -1) for key in keys[first].tolist()), np.int64, len(first))
        found = np.full(len(texts), -1, np.int64)
        found[asked] = numbers[inverse]
        return found

    def _keys(self, sets: _WordSets) -> NDArray[np.uint64]:
        """A number for each word set [b] that no other has: of the words that are held, and of how many there are."""
        sums = np.zeros(len(sets.sizes), np.uint64)
        np.add.at(sums, sets.owner, self._mix[sets.words])
        found: NDArray[np.uint64] = sums + sets.sizes.astype(np.uint64) * self._mix[-1]
        return found

    def _look_up(self, sets: _WordSets, keys: NDArray[np.uint64]) -> None:
        """Take note of the held sets that each of the word sets [b], of the `keys` [b], is near to or equals."""
        # Words that nobody has come first, as the rarest: most word sets have no other in their prefix.
        have = np.bincount(sets.owner, minlength=len(sets.sizes))
        position = np.arange(len(sets.words)) - (np.cumsum(have) - have - (sets.sizes - have))[sets.owner]
        # Prefix filter: two near sets have a word in common among the first of each.
        entry = np.flatnonzero(position < _prefix(sets.sizes)[sets.owner])
        pairs = [np.zeros((0, 2), np.int64)]
        while len(entry):
            low, high = self._listed(sets, entry)
            n = _whole_sets(sets.owner[entry], high - low)
            pairs.append(self._near(sets, position, entry[:n], low[:n], high[:n]))
            entry = entry[n:]
        found = np.concatenate(pairs)
        found = found[np.lexsort((found[:, 1], found[:, 0]))]
        bounds = np.searchsorted(found[:, 0], np.arange(len(sets.sizes) + 1))
        for at, key in enumerate(keys.tolist()):
            members = found[bounds[at] : bounds[at + 1], 1]
            if key in self._same:
                members = np.unique(np.append(members, self._same[key]))
            if len(members):
                self._known[key] = self._classes.of(members.astype(np.int32))

    def _listed(self, sets: _WordSets, entry: Numbers) -> tuple[Numbers, Numbers]:
        """The postings, from low [e] to high [e], of the words `entry` [e].

        Length filter: of held sets that have 4/5 to 5/4 of its words.
        """
        size = sets.sizes[sets.owner[entry]]
        least, most = (4 * size + 4) // 5, np.minimum(5 * size // 4, self._span - 1)
        of_word = sets.words[entry] * self._span
        low = np.searchsorted(self._postings.key, of_word + np.minimum(least, self._span))
        return low, np.maximum(np.searchsorted(self._postings.key, of_word + most, side="right"), low)

    def _near(self, sets: _WordSets, position: Numbers, entry: Numbers, low: Numbers, high: Numbers) -> Numbers:
        """Pairs of a word set and a held one that is near and not the same, among those that share a rare word.

        Args:
            sets: the word sets.
            position: [w], place of each word in its set.
            entry: [e], words whose postings are tried.
            low: [e], first posting of each of these words.
            high: [e], end of its postings.

        Returns:
            [p 2], the number of the set in `sets` and of the held one.
        """
        # Every word with each of its postings.
        times = high - low
        posting = np.repeat(low - (np.cumsum(times) - times), times) + np.arange(times.sum())
        entry = np.repeat(entry, times)
        mine, other = sets.owner[entry], self._postings.owner[posting]
        # Positional filter: the words from here on must be enough for both.
        left = np.minimum(self._postings.left[posting], sets.sizes[mine] - position[entry])
        keep = (left >= _overlap(sets.sizes[mine], self.sizes[other])) & (self._room[other] > 0)
        # Each pair once.
        pairs = np.sort(mine[keep] * len(self.sizes) + other[keep])
        pairs = pairs[np.diff(pairs, prepend=-1) > 0]
        mine, other = pairs // len(self.sizes), pairs % len(self.sizes)
        # Jaccard >= 4/5 by the words in common, and not the same words.
        overlap, size = self._common(sets, mine, other), sets.sizes[mine]
        near = overlap >= _overlap(size, self.sizes[other])
        near &= ~((overlap == self.sizes[other]) & (overlap == size))
        return self._first_few(mine[near], other[near])

    def _common(self, sets: _WordSets, mine: Numbers, other: Numbers) -> Numbers:
        """How many words the sets `mine` [p] and the held ones `other` [p] have in common."""
        lengths = self.sizes[other]
        offsets = np.cumsum(lengths) - lengths
        flat = np.repeat(self._starts[other] - offsets, lengths) + np.arange(lengths.sum())
        wanted = np.repeat(mine, lengths) * len(self._mix) + self._words[flat]
        own = sets.owner * len(self._mix) + sets.words
        hit = own[np.minimum(np.searchsorted(own, wanted), len(own) - 1)] == wanted
        return np.add.reduceat(hit, offsets, dtype=np.int64) if len(offsets) else offsets

    def _first_few(self, mine: Numbers, other: Numbers) -> Numbers:
        """The pairs [p 2] of which the held set has room still; those without any are listed no more."""
        order = np.argsort(other, kind="stable")
        mine, other = mine[order], other[order]
        keep = np.arange(len(other)) - np.searchsorted(other, other) < self._room[other]
        mine, other = mine[keep], other[keep]
        self._room -= np.bincount(other, minlength=len(self._room))
        full = self._room[self._postings.owner] <= 0
        if 2 * np.count_nonzero(full) > len(full):
            self._postings = _Postings(*(each[~full] for each in self._postings))
        return np.stack([mine, other], axis=1)


def _whole_sets(owner: Numbers, pairs: Numbers) -> int:
    """How many entries to take at a time, given the set and the number of pairs of each [e].

    As many as make _PAIRS, but only whole sets, and at least one.
    """
    n = int(np.searchsorted(np.cumsum(pairs), _PAIRS, side="right"))
    if n >= len(owner):
        return len(owner)
    before = int(np.searchsorted(owner, owner[n]))
    return before or int(np.searchsorted(owner, owner[0], side="right"))


def _prefix(size: Numbers) -> Numbers:
    """Two sets of Jaccard >= 4/5 have a word in common among the first so many of each, in any one order of words."""
    return size - (4 * size + 4) // 5 + 1


def _overlap(size: Numbers, other: Numbers) -> Numbers:
    """Words in common that make the Jaccard similarity of sets of so many words 4/5."""
    return (4 * (size + other) + 8) // 9
