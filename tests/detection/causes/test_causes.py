"""Causes on matches made by hand, so that every card, reason and row can be told beforehand."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import beta

from copyscope import parts
from copyscope.data.corpus import Corpus
from copyscope.detection.causes import causes as module
from copyscope.detection.causes import exposure as exposure_module
from copyscope.detection.causes.causes import COMPLEXITY, ImageFacts, causes
from copyscope.detection.causes.exposure import Exposure, exposure
from copyscope.detection.dedup.groups import Groups, representatives
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.detection.matching.match import Matches
from copyscope.detection.measures import Item, complexity_view
from copyscope.detection.search.exact import Nearest
from copyscope.imaging import images
from copyscope.stats import proportion
from tests.worlds import write_metadata

# Training positions (0-based among the readable): 0 1 2 are one group with its caption, 3 4 another with captions of
# their own, 5 6 a third, the rest are single. Position p is file t{p + 1}: t00 cannot be read.
KIND = ["full", "partial", "uncaptioned"]
LABEL = np.array([0, 0, 0, 1, 1, 2, 2, *range(3, 26)])
STRIP = 20
# What each readable generated image is most similar to, and what it matches once verified; the first four are copies.
TOP = np.array([1, 1, 2, 9, 9, 15, STRIP, 3])
MATCH = np.array([1, 1, 2, 10, 9, 15, STRIP, 3])
COPIED = np.array([True] * 4 + [False] * 4)


def captions_of(position):
    if position < 3:
        return ["a fox in the snow"]
    if position in (5, 6):
        return []
    return [" ".join([f"word{position}"] * (position + 1))]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(matches, verdict, groups, pictures by training position)."""
    root, rng = tmp_path_factory.mktemp("causes"), np.random.default_rng(0)
    pictures = [rng.integers(0, 8 * position + 9, (40, 30, 3), dtype=np.uint8) for position in range(len(LABEL))]
    pictures[STRIP] = rng.integers(0, 256, (1, 4000, 3), dtype=np.uint8)
    for name in ("train", "generated"):
        (root / name).mkdir()
    for position, picture in enumerate(pictures):
        (root / "train" / f"t{position + 1:02d}.png").write_bytes(images.encode(picture, "png"))
    (root / "train" / "t00.png").write_bytes(b"")
    rows = [{"file_name": "t00.png"}]
    rows += [
        {"file_name": f"t{position + 1:02d}.png", "captions": captions_of(position)} for position in range(len(LABEL))
    ]
    write_metadata(root / "train", rows)
    prompts = ["unread", "one", "two", "one", "", "five", "six", "seven", "eight"]
    for number in range(9):
        (root / "generated" / f"g{number}.png").write_bytes(images.encode(pictures[0][: number + 3], "png"))
    write_metadata(
        root / "generated", [{"file_name": f"g{number}.png", "prompt": text} for number, text in enumerate(prompts)]
    )

    def described(name):
        corpus = Corpus.open(root / name)
        rows = np.arange(1, len(corpus))
        return Embeddings(corpus, rows, np.zeros((len(rows), 2), np.float32), "by hand", "")

    train, generated = described("train"), described("generated")
    groups = Groups(train.corpus, train.rows, LABEL, np.ones(len(LABEL), np.int64), [*KIND, *["none"] * 23], 0.75, 0)
    score = np.stack([np.linspace(0.9, 0.2, 8), np.linspace(0.89, 0.19, 8)], axis=1).astype(np.float32)
    index = np.stack([TOP, np.where(MATCH == TOP, 0, MATCH)], axis=1)
    verified = np.where(index == MATCH[:, None], 0.95, 0.1).astype(np.float32)
    matches = Matches(generated, train, Nearest(index, score), verified, np.full(8, 0), np.full(8, 0.1, np.float32))
    np.testing.assert_array_equal(matches.match, MATCH)
    judged = SimpleNamespace(copied=COPIED, answer="copies")
    return matches, judged, groups, pictures


@pytest.fixture(scope="module")
def found(made):
    return causes(*made[:3])


def complexity_of(picture):
    item = Item(complexity_view(picture), [])
    return [parts.load("measures", name).measure(item) for name in COMPLEXITY]


def test_a_card_stands_for_each_copied_group_under_its_most_copied_member(found):
    first, second = (row for row in found.risk.to_pylist() if row["times_copied"])
    assert (first["id"], first["times_copied"], first["group_size"], first["duplication"]) == ("t02.png", 3, 3, "full")
    assert first["prompts"] == ["one", "two"]
    assert first["captions"] == ["a fox in the snow"]
    assert (first["shared_captions"], first["near_shared_captions"], first["caption_length"]) == (2, 0, 5)
    assert first["action"] == "deduplicate"
    assert "Copied 3 times" in first["reason"]
    assert (first["share_low"], first["share_high"]) == (
        pytest.approx(beta.ppf(0.025, 3, 6)),
        pytest.approx(beta.ppf(0.975, 4, 5)),
    )
    assert (second["id"], second["times_copied"], second["duplication"]) == ("t11.png", 1, "none")
    # Its prompt is empty: nothing to show, and not the prompt of another row.
    assert second["prompts"] == []
    assert second["action"] == "recaption"


def test_each_copy_has_the_reason_of_its_groups_card_and_no_other_image_has_one(found):
    reasons = {row["times_copied"]: row["reason"] for row in found.risk.to_pylist() if row["times_copied"]}
    assert found.reasons == {0: reasons[3], 1: reasons[3], 2: reasons[3], 3: reasons[1]}


def test_groups_that_nobody_copied_have_cards_after_the_copied(found):
    cards = found.risk.to_pylist()
    assert [card["times_copied"] for card in cards] == [3, 1, 0, 0]
    partial, uncaptioned = cards[2:]
    assert (partial["id"], partial["group_size"], partial["duplication"]) == ("t04.png", 2, "partial")
    assert (uncaptioned["id"], uncaptioned["duplication"], uncaptioned["captions"]) == ("t06.png", "uncaptioned", [])
    for card in (partial, uncaptioned):
        assert card["prompts"] == []
        assert card["share_low"] == 0
        assert card["share_high"] == pytest.approx(proportion(0, 8).high)
        assert card["action"] == "deduplicate"
        assert card["reason"].startswith("It is one of 2 near-duplicates")


def test_cards_of_uncopied_groups_are_capped(made, monkeypatch):
    monkeypatch.setattr(module, "UNCOPIED_CARDS", 1)
    assert [card["id"] for card in causes(*made[:3]).risk.to_pylist()] == ["t02.png", "t11.png", "t04.png"]


def test_cards_measure_their_own_picture(made, found):
    for card in found.risk.to_pylist():
        if card["times_copied"]:
            expected = complexity_of(made[3][int(card["id"][1:3]) - 1])
            np.testing.assert_allclose([card[name] for name in COMPLEXITY], expected)


def test_the_complexity_table_joins_generated_images_to_what_each_is_most_similar_to(made, found):
    rows = found.complexity.to_pylist()
    assert found.complexity.column_names == ["id", "match", "score", *COMPLEXITY, "copied"]
    assert [row["id"] for row in rows] == [f"g{number}.png" for number in range(1, 9)]
    assert [row["match"] for row in rows] == [f"t{position + 1:02d}.png" for position in TOP]
    assert [row["copied"] for row in rows] == COPIED.tolist()
    np.testing.assert_allclose([row["score"] for row in rows], made[0].similarity)
    for row, position in zip(rows, TOP, strict=True):
        if position != STRIP:
            np.testing.assert_allclose([row[name] for name in COMPLEXITY], complexity_of(made[3][position]))


def test_a_picture_too_elongated_to_be_measured_has_no_complexity_rather_than_none_of_it(found):
    (row,) = (row for row in found.complexity.to_pylist() if row["match"] == f"t{STRIP + 1:02d}.png")
    assert all(row[name] is None or np.isnan(row[name]) for name in COMPLEXITY)
    assert row["score"] > 0


@pytest.fixture
def modelled(monkeypatch):
    """The (images, generated) tables that were handed to `explain`."""
    seen = []
    plain = module.explain
    monkeypatch.setattr(
        module,
        "explain",
        lambda images, generated, **rest: seen.append((images, generated)) or plain(images, generated),
    )
    return seen


def test_the_model_sees_one_image_a_group_all_copied_groups_among_them(made, modelled):
    causes(*made[:3])
    images = modelled[0][0]
    assert len(images) == len(set(LABEL))
    assert sum(images["copied"].to_pylist()) == 2
    # Groups in order, each by its first image: sizes, captions and their log follow.
    assert images["group_size"].to_pylist() == [3, 2, 2, *[1] * 23]
    np.testing.assert_allclose(images["log_group_size"].to_numpy(), np.log(images["group_size"].to_numpy()))
    assert images["full_duplication"].to_pylist() == [1, *[0] * 25]
    assert images["caption_length"].to_pylist() == [5, 4, 0, *range(8, 31)]
    assert images["copied"].to_pylist() == [label in (0, LABEL[10]) for label in range(26)]
    generated = modelled[0][1]
    assert generated["match"].to_pylist() == [f"t{position + 1:02d}.png" for position in TOP]


def test_controls_are_capped_and_drawn_by_the_seed_but_never_the_copied(made, modelled, monkeypatch):
    monkeypatch.setattr(module, "CONTROLS", 6)
    for seed in (0, 0, 1):
        causes(*made[:3], seed=seed)
    drawn = [table["caption_length"].to_pylist() for table, _ in modelled]
    for (table, _), lengths in zip(modelled, drawn, strict=True):
        assert len(table) == 8
        assert sum(table["copied"].to_pylist()) == 2
        assert {5, 11} <= set(lengths)
    assert drawn[0] == drawn[1] != drawn[2]


def test_advice_follows_from_the_verdict(made):
    matches, judged, groups, _ = made
    proven = causes(matches, judged, groups)
    unproven = causes(matches, SimpleNamespace(copied=judged.copied, answer="suspicious"), groups)
    for found, word in ((proven, "Copied"), (unproven, "Suspiciously near")):
        cards = [card for card in found.risk.to_pylist() if card["times_copied"]]
        assert cards
        assert all(card["action"] != "keep" and card["reason"].startswith(word) for card in cards)
        assert all(reason.startswith(word) for reason in found.reasons.values())
    assert "drop" not in unproven.risk["action"].to_pylist()


def test_without_copies_there_are_no_reasons_and_cards_of_groups_only(made):
    matches, _, groups, _ = made
    none = SimpleNamespace(copied=np.zeros(8, dtype=bool), answer="cannot tell")
    found = causes(matches, none, groups)
    assert found.reasons == {}
    assert [card["id"] for card in found.risk.to_pylist()] == ["t01.png", "t04.png", "t06.png"]
    assert found.findings.joint is None


def test_a_group_is_represented_by_its_first_image(made):
    assert representatives(made[2]).tolist() == [0, 3, 5, *range(7, 30)]


def test_a_profile_leaves_what_it_was_not_asked_to_measure_unknown(made):
    matches, _, groups, pictures = made
    every = np.arange(len(LABEL))
    profile = ImageFacts.of(matches.references, groups, np.array([4, 9]), every)
    np.testing.assert_allclose(profile.complexity[[4, 9]], [complexity_of(pictures[at]) for at in (4, 9)])
    assert np.isnan(np.delete(profile.complexity, [4, 9], axis=0)).all()
    assert profile.card(0)["entropy"] is None
    # What nobody asks about is not held, and what is held is the same.
    few = ImageFacts.of(matches.references, groups, np.array([9, 4]), np.array([1]))
    assert few.asked.tolist() == [1, 4, 9]
    np.testing.assert_array_equal(few.complexity, profile.complexity[[1, 4, 9]])
    assert [few.card(at) for at in (1, 4, 9)] == [profile.card(at) for at in (1, 4, 9)]


def prompted(made, prompts):
    """`made` with other prompts of the readable generated images."""
    matches, judged, groups, _ = made
    corpus = matches.queries.corpus.with_column("prompt", ["unread", *prompts])
    return dataclasses.replace(matches, queries=dataclasses.replace(matches.queries, corpus=corpus)), judged, groups


CAPTION = {position: captions_of(position)[0] for position in (3, 4, 10, 15)}
PROMPTS = [
    "A fox, in the snow!",
    "a fox in the snow",
    CAPTION[3],
    CAPTION[10],
    "a fox in the snow",
    CAPTION[15],
    "nothing of the kind",
    CAPTION[4],
]


def test_exposure_counts_the_prompts_that_are_captions_of_each_group(made):
    matches, judged, groups = prompted(made, PROMPTS)
    found = exposure(matches, judged.copied, groups)
    images, copies = np.zeros((2, 26), int)
    # Three of one group's caption, in any spelling, and one of each caption of the next.
    images[[0, 1, LABEL[10], LABEL[15]]] = 3, 2, 1, 1
    copies[[0, LABEL[10]]] = 2, 1
    np.testing.assert_array_equal(found.images, images)
    np.testing.assert_array_equal(found.copies, copies)
    # The third copies the foxes though it was asked for something else.
    assert (found.n, found.n_matched, found.n_other, found.known) == (8, 7, 1, True)
    assert found.notes() == [
        "1 copy is of a training image whose caption was not the prompt: the joint model leaves it out."
    ]


def test_exposure_reads_captions_in_pieces(made, monkeypatch):
    whole = exposure(*_copied(prompted(made, PROMPTS)))
    monkeypatch.setattr(exposure_module, "PIECE", 4)
    pieces = exposure(*_copied(prompted(made, PROMPTS)))
    np.testing.assert_array_equal(pieces.images, whole.images)
    assert pieces.n_matched == whole.n_matched


def _copied(prompted):
    matches, judged, groups = prompted
    return matches, judged.copied, groups


@pytest.mark.parametrize("prompts", [[""] * 8, ["..."] * 8, ["a cat"] * 8, [*PROMPTS[:3], *["a cat"] * 5]])
def test_exposure_is_not_known_where_few_prompts_are_captions(made, modelled, prompts):
    matches, judged, groups = prompted(made, prompts)
    found = exposure(matches, judged.copied, groups)
    assert not found.known
    assert found.notes() == []
    causes(matches, judged, groups)
    assert "n_images" not in modelled[0][0].column_names
    assert len(modelled[0][0]) == 26


def test_the_model_sees_the_groups_that_were_prompts_with_their_counts(made, modelled):
    found = causes(*prompted(made, PROMPTS))
    images = modelled[0][0]
    assert images["group_size"].to_pylist() == [3, 2, 1, 1]
    assert images["n_images"].to_pylist() == [3, 2, 1, 1]
    assert images["n_copies"].to_pylist() == [2, 0, 1, 0]
    assert any("was not the prompt" in note for note in found.findings.notes)


def test_thinning_keeps_all_copies_and_a_share_of_the_rest():
    rng = np.random.default_rng(3)
    images = rng.integers(1, 9, 4000)
    copies = np.where(np.arange(4000) < 50, rng.integers(1, images + 1), 0)
    whole = Exposure(images, copies, 9000, 9000, 0)
    assert whole.thinned(4000, rng) is whole
    thin = whole.thinned(500, rng)
    np.testing.assert_array_equal(thin.copies, copies)
    assert (thin.images >= copies).all()
    assert (thin.images <= images).all()
    assert 400 < (thin.images[50:] > 0).sum() < 600
    # One share for all: in proportion to the images that copy nothing, those of copied groups too.
    share = (thin.images - copies).sum() / (images - copies).sum()
    large = images >= 5
    assert (thin.images - copies)[large].sum() / (images - copies)[large].sum() == pytest.approx(share, rel=0.15)
    assert (thin.images - copies)[:50].sum() == pytest.approx(share * (images - copies)[:50].sum(), abs=12)
