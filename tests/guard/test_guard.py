"""The guard: copies are never handed out, all else is as without it, and every decision is on record."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import threading
import types

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import copyscope
from copyscope import Corpus, Guard, Index, Policy, parts, recipes
from copyscope.cli import main
from copyscope.detection.index.index import Hit
from copyscope.diffusion import applied
from copyscope.diffusion.generate import SampleRecipe, sample
from copyscope.diffusion.models.empirical import Empirical
from copyscope.diffusion.observed import fingerprint
from copyscope.diffusion.thresholds import Threshold, Thresholds
from copyscope.errors import InputError, PartError, Refused
from copyscope.guard import log as guard_log
from copyscope.guard import retries
from copyscope.guard.calls import Attempt
from copyscope.guard.log import read_log, summed_up
from copyscope.imaging import images
from copyscope.report.guard import render
from tests.json_types import check
from tests.models import tiny_stable_diffusion
from tests.pipelines import loaded, train_and_held_out

TEXTS = ["a red fish", "two blue houses by the sea", "a dog"]
RESEEDS = Policy(ladder=((),))
ASKED = {"num_inference_steps": 3, "height": 32, "width": 32}


class Listed:
    """An index that takes for copies the pictures for which `listed` is true; counts what it is shown."""

    def __init__(self, listed, p_value=0.001):
        self.listed, self.p_value, self.seen = listed, p_value, 0

    def match(self, pictures):
        self.seen += len(pictures)
        return [
            [Hit("t.png", 0.9, 0.8, 0.85, self.p_value if self.listed(picture) else 0.5, (0, 0, 0.5, 0.5), None, "t")]
            for picture in pictures
        ]


class Painter:
    """A function that makes pictures of one value; the values of each prompt in turn. Records its calls."""

    def __init__(self, **values):
        self.values, self.calls = {text.replace("_", " "): iter(each) for text, each in values.items()}, []

    def __call__(self, prompts, size=8, seed=None):
        texts = [prompts] if isinstance(prompts, str) else prompts
        self.calls.append((prompts, seed))
        # Words that mitigations put in are numbers.
        plain = [" ".join(word for word in text.split() if not word.isdigit()) for text in texts]
        return [np.full((size, size, 3), next(self.values[text]), np.uint8) for text in plain]


def is_copy(picture):
    return picture.mean() >= 200


def values(images):
    return [None if image is None else int(np.asarray(image).mean()) for image in images]


def actions(records):
    return [(record.row, record.attempt, record.action) for record in records]


# Functions


def test_only_the_copies_are_made_again_and_none_is_handed_out():
    painter = Painter(a=[1], b=[200, 201, 2], c=[202, 3])
    guarding = Guard(Listed(is_copy), RESEEDS)
    assert values(guarding(painter)(["a", "b", "c"], size=4)) == [1, 2, 3]
    assert [prompts for prompts, _ in painter.calls] == [["a", "b", "c"], ["b"], ["c"], ["b"]]
    assert actions(guarding.records) == [
        (0, 0, "delivered"), (1, 0, "redone"), (2, 0, "redone"), (1, 1, "redone"), (2, 1, "delivered"),
        (1, 2, "delivered"),
    ]  # fmt: skip
    record = guarding.records[1]
    assert (record.match, record.score, record.combined, record.p_value, record.box) == (
        "t.png", 0.9, 0.85, 0.001, (0, 0, 0.5, 0.5),
    )  # fmt: skip


def test_a_function_without_a_seed_that_gives_the_same_is_not_asked_for_it_again():
    """With other words it is asked once, and where these change nothing either, no more."""
    calls, of_numbers = [], {True: 7, False: 200}

    def fixed(prompt):
        calls.append(prompt)
        return np.full((8, 8, 3), 200, np.uint8)

    guarding = Guard(Listed(is_copy))
    with pytest.raises(Refused) as caught:
        guarding(fixed)("b")
    assert [len(prompt.split()) for prompt in calls] == [1, 1, 3]
    assert [record.action for record in guarding.records] == ["redone", "redone", "refused"]
    first, second = str(caught.value).split("\n")
    assert "takes no seed and gives the same each time" in first
    assert "`seed` or `generator`" in second

    def worded(prompt):
        calls.append(prompt)
        return np.full((8, 8, 3), of_numbers[any(word.isdigit() for word in prompt.split())], np.uint8)

    calls.clear()
    assert values([Guard(Listed(is_copy))(worded)("b")]) == [7]
    assert [len(prompt.split()) for prompt in calls] == [1, 1, 3]
    calls.clear()
    with pytest.raises(Refused, match="takes no seed"):
        Guard(Listed(is_copy), RESEEDS)(fixed)("b")
    assert len(calls) == 2


def test_a_function_without_a_seed_that_varies_has_all_its_tries():
    level = iter(range(200, 210))

    def varied(prompt):
        return np.full((8, 8, 3), next(level), np.uint8)

    with pytest.raises(Refused, match="in every try"):
        Guard(Listed(is_copy), RESEEDS)(varied)("b")
    assert next(level) == 205


def test_the_ladder_is_gone_up_in_order_and_its_last_rung_holds():
    painter = Painter(b=[200] * 5)
    ladder = ((), ("random_numbers(n=1, probability=1.0)",), ("random_numbers(n=3, probability=1.0)",))
    guarding = Guard(Listed(is_copy), Policy(ladder=ladder, tries=5, refuse="none"))
    assert guarding(painter)("b") == [None]
    assert [len(prompts.split()) for prompts, _ in painter.calls] == [1, 1, 2, 4, 4]
    assert painter.calls[3][0] != painter.calls[4][0], "each try draws anew"
    assert [record.rung for record in guarding.records] == [(), (), ladder[1], ladder[2], ladder[2]]
    assert {record.prompt for record in guarding.records} == {"b"}


def test_an_image_made_again_must_be_further_from_all_training_images():
    class Graded:
        def match(self, pictures):
            p_values = [0.03 if is_copy(picture) else 0.1 if picture.mean() >= 100 else 0.5 for picture in pictures]
            return [[Hit("t.png", 0.9, 0.8, 0.85, p_value, None, None, "t")] for p_value in p_values]

    for again, wanted in ((0.2, [100, 1]), (0.05, [100, 150]), (0.01, [100, 150])):
        guarding = Guard(Graded(), dataclasses.replace(RESEEDS, rate=0.05, rate_again=again))
        assert values(guarding(Painter(a=[100], b=[200, 150, 1]))(["a", "b"])) == wanted


def test_tries_and_seconds_are_a_budget(monkeypatch):
    painter = Painter(b=[200] * 9)
    with pytest.raises(Refused, match="1 of 1 images"):
        Guard(Listed(is_copy), dataclasses.replace(RESEEDS, tries=3))(painter)("b")
    assert len(painter.calls) == 3
    now = iter(range(0, 1000, 4))
    monkeypatch.setattr(retries, "clock", lambda: next(now))
    with pytest.raises(Refused) as refused:
        # The clock is read when the call begins, and before and after each try.
        Guard(Listed(is_copy), dataclasses.replace(RESEEDS, tries=99, seconds=15))(painter)("b")
    assert actions(refused.value.records) == [(0, 0, "redone"), (0, 1, "refused")]
    assert len(painter.calls) == 5


def test_refused_images_are_blank_or_none_and_the_others_are_there():
    for refuse, put in (("blank", 0), ("none", None)):
        painter = Painter(a=[1], b=[200, 200])
        guarding = Guard(Listed(is_copy), dataclasses.replace(RESEEDS, tries=2, refuse=refuse))
        images = guarding(painter)(["a", "b"])
        assert values(images) == [1, put]
        assert refuse == "none" or images[1].shape == images[0].shape
    painter = Painter(a=[1], b=[200, 200])
    with pytest.raises(Refused) as refused:
        Guard(Listed(is_copy), dataclasses.replace(RESEEDS, tries=2))(painter)(["a", "b"])
    assert values(refused.value.images) == [1, None], "those that are none are not lost"
    assert actions(refused.value.records) == [(0, 0, "delivered"), (1, 0, "redone"), (1, 1, "refused")]


def test_images_come_in_the_form_the_function_has():
    def one(prompt):
        return np.full((4, 4, 3), 1, np.uint8)

    def array(prompt, generator=None):
        return torch.rand(2, 4, 4, 3, generator=generator).numpy()

    guarding = Guard(Listed(lambda picture: False), RESEEDS)
    assert guarding(one)("a").shape == (4, 4, 3)
    assert guarding(array)(prompt="a").shape == (2, 4, 4, 3)
    assert not np.array_equal(guarding(array)("a"), guarding(array)("a")), "each call has seeds of its own"


def test_the_same_seed_gives_the_same_and_another_does_not():
    def noisy(prompts, seed):
        return list(np.random.default_rng(seed).integers(0, 256, (len(prompts), 4, 4, 3), dtype=np.uint8))

    def made(seed):
        policy = Policy(seed=seed, ladder=((),), tries=40)
        return np.stack(Guard(Listed(lambda picture: picture[0, 0, 0] > 99), policy)(noisy)(TEXTS))

    assert np.array_equal(made(1), made(1))
    assert not np.array_equal(made(1), made(2))
    assert made(1)[:, 0, 0, 0].max() <= 99


def test_a_seed_of_the_callers_holds_for_the_first_try_alone():
    painter = Painter(b=[200, 1])
    Guard(Listed(is_copy), RESEEDS)(painter)("b", 8, 7)
    seeds = [seed for _, seed in painter.calls]
    assert seeds[0] == 7
    assert seeds[1] not in (7, None)


def test_a_hit_without_a_p_value_is_a_copy_and_a_picture_without_hits_is_none():
    painter = Painter(a=[1, 1], b=[200, 1])
    listed = Listed(is_copy)
    listed.match = lambda pictures: [[Hit("t", 0.9, *[None] * 6)] if is_copy(each) else [] for each in pictures]
    guarding = Guard(listed, RESEEDS)
    assert values(guarding(painter)(["a", "b"])) == [1, 1]
    assert [(record.score, record.combined, record.p_value, record.match) for record in guarding.records[:2]] == [
        (None, None, None, None), (0.9, None, None, "t"),
    ]  # fmt: skip


def test_threads_call_one_function_one_at_a_time(tmp_path):
    under_way, most, log = [], [], tmp_path / "log.jsonl"
    guarding = Guard(Listed(is_copy), RESEEDS, log=log)

    def slow(prompt, seed):
        under_way.append(1)
        most.append(len(under_way))
        threading.Event().wait(0.01)
        under_way.pop()
        return [np.zeros((4, 4, 3), np.uint8)]

    threads = [threading.Thread(target=lambda: guarding(slow)("a")) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert sorted(record.call for record in read_log(log)) == list(range(6))


# The log


def test_every_decision_is_a_line_of_the_log_and_prompts_may_be_hashed(tmp_path):
    log = tmp_path / "log.jsonl"
    guarding = Guard(Listed(is_copy), dataclasses.replace(RESEEDS, hash_prompts=True), log=log)
    guarding(Painter(b=[200, 1]))("b")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["schema"] for row in rows] == ["copyscope.guard_log/2"] * 2
    assert {row["prompt"] for row in rows} == {hashlib.sha256(b"b").hexdigest()}
    assert read_log(log) == guarding.records
    Guard(Listed(is_copy), RESEEDS, log=log)(Painter(b=[1]))("b")
    assert len(read_log(log)) == 3, "a log is gone on with"
    with log.open("a") as file:
        file.write('{"schema": "copys')
    assert len(read_log(log)) == 3


def test_lines_that_were_not_written_whole_are_skipped_and_counted(tmp_path):
    log = tmp_path / "log.jsonl"
    guarding = Guard(Listed(is_copy), RESEEDS, log=log)
    guarding(Painter(a=[1] * 3))(["a"] * 3)
    first, second, third = (line.encode() for line in log.read_text().splitlines())
    cut = '{"schema": "copyscope.guard_log/2", "prompt": "\u00e9'.encode()[:-1]
    for torn, records, n_unreadable in (
        ([first, second[:50], third, b""], [0, 2], 1),
        ([first, second[:50] + third, b""], [0, 2], 1),  # Whoever appends does not know of the tear.
        ([first, cut, cut + second, cut + cut + third, b""], [0, 1, 2], 3),
        ([first[:9], second, third[:-1]], [1], 2),
        ([first, bytes(700) + second, bytes(99), b""], [0, 1], 1),
        ([first, second, third], [0, 1, 2], 0),  # The last byte alone is missing.
        ([first[:50]], [], 1),
        ([cut], [], 1),
        ([], [], 0),
    ):
        log.write_bytes(b"\n".join(torn))
        found = guard_log.load(log)
        assert ([record.row for record in found.records], found.n_unreadable) == (records, n_unreadable)
        assert read_log(log) == found.records
        # And so it goes on on a line of its own.
        Guard(Listed(is_copy), RESEEDS, log=log)(Painter(a=[1]))("a")
        assert [record.row for record in read_log(log)] == [*records, 0]
        assert guard_log.load(log).n_unreadable == n_unreadable
    assert guard_log.load(log).n_unreadable == 0
    log.write_bytes(b"\n".join([first, second[:50], third, b""]))
    found = CliRunner().invoke(main.app, ["report", str(log)])
    assert found.exit_code == 0, found.output
    assert "1 line of the log could not be read" in (tmp_path / "log.html").read_text()
    assert "of the log could not be read" not in render(summed_up(guarding.records))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("call", "1"), ("row", True), ("attempt", None), ("attempt", 10**30), ("rung", "ab"), ("rung", [None]),
        ("prompt", 1), ("prompt", "\ud800"), ("seed", "x"), ("seed", 0.5), ("score", {"": None}), ("combined", [None]),
        ("p_value", math.nan), ("match", []), ("box", 1), ("box", ["a"] * 4),
        ("box", [0.0, 1.0, 1.0]), ("signals", []), ("signals", {"s": "x"}),
        ("flagged", None), ("copy", 1), ("look", "x"), ("action", None), ("seconds", None), ("seconds", 10**30),
        ("time", 5),
    ],
)  # fmt: skip
def test_a_line_of_a_log_with_a_value_that_no_guard_writes_is_left_out_and_counted(tmp_path, name, value):
    log = tmp_path / "guard.jsonl"
    Guard(Listed(is_copy), RESEEDS, log=log)(Painter(a=[1]))("a")
    (line,) = log.read_text().splitlines()
    log.write_text("\n".join([line, json.dumps(json.loads(line) | {name: value}), line, ""]))
    found = guard_log.load(log)
    assert (len(found.records), found.n_unreadable) == (2, 1)
    guard_log.as_table(found.records)
    summed_up(found.records, found.n_unreadable)


def test_logs_of_version_1_keep_their_meaning(tmp_path):
    log = tmp_path / "log.jsonl"
    guarding = Guard(Listed(is_copy), RESEEDS, log=log)
    guarding(Painter(a=[1] * 3))(["a"] * 3)
    rows = [json.loads(line) | {"schema": "copyscope.guard_log/1"} for line in log.read_text().splitlines()]
    for row in rows:
        del row["combined"]
    # The combined score; the similarity, where there was no second look; nothing alike.
    for row, score, p_value in zip(rows, (0.85, 0.9, None), (0.01, None, None), strict=True):
        row.update(score=score, p_value=p_value)
    first, second, third = (json.dumps(row).encode() for row in rows)
    log.write_bytes(b"\n".join([first, second[:90] + second, third, b""]))
    # A newer guard goes on with the file.
    guarding(Painter(a=[1]))("a")
    found = guard_log.load(log)
    assert [(each.score, each.combined, each.p_value) for each in found.records] == [
        (None, 0.85, 0.01), (0.9, None, None), (None, None, None), (0.9, 0.85, 0.5),
    ]  # fmt: skip
    assert found.n_unreadable == 1
    assert summed_up(found.records).summary["n_images"] == 4
    newer = json.dumps(found.records[-1].as_dict() | {"schema": "copyscope.guard_log/3"})
    log.write_text(newer + "\n")
    with pytest.raises(InputError, match="no log"):
        read_log(log)


def test_a_full_disk_is_told_and_the_log_goes_on_after_it(tmp_path, monkeypatch):
    log, room = tmp_path / "log.jsonl", [math.inf]
    write = os.write

    def full(file, data):
        # The system takes what there is room for, and a part of it at a time.
        taken = min(len(data), 100, room[0])
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        room[0] -= taken
        return write(file, data[:taken])

    monkeypatch.setattr(os, "write", full)
    guarding = Guard(Listed(is_copy), RESEEDS, log=log)
    guarded = guarding(Painter(a=[1] * 9))
    assert values(guarded("a")) == [1]
    assert log.read_bytes().endswith(b"}\n")
    for left in (130, 0):
        room[0] = left
        with pytest.raises(InputError, match="No space left"):
            guarded("a")
    room[0] = math.inf
    assert values(guarded("a")) == [1]
    assert [record.call for record in read_log(log)] == [0, 3]
    assert guard_log.load(log).n_unreadable == 1
    assert [record.call for record in guarding.records] == [0, 3], "what is not on record is not handed out"


def test_a_log_may_be_a_pipe_or_written_only(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    Guard(Listed(is_copy), RESEEDS, log=tmp_path / "pipe")(Painter(a=[1]))("a")
    assert json.loads(os.read(reader, 10_000))["call"] == 0
    os.close(reader)


def test_a_record_is_of_the_type_documented(tmp_path):
    guarding = Guard(Listed(is_copy), RESEEDS, log=tmp_path / "log.jsonl")
    guarding(Painter(a=[1]))("a")
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert lines
    for line in lines:
        check("guard log", json.loads(line))


def test_what_is_no_log_is_refused(tmp_path):
    (tmp_path / "other.jsonl").write_text('{"schema": "other"}\n')
    for path in (tmp_path / "other.jsonl", tmp_path / "none.jsonl"):
        with pytest.raises(InputError, match="no log"):
            read_log(path)
    with pytest.raises(InputError, match="Cannot write"):
        Guard(Listed(is_copy), log=tmp_path / "none" / "log.jsonl")


def test_a_report_of_a_log_counts_images_and_rungs(tmp_path):
    log = tmp_path / "log.jsonl"
    policy = Policy(ladder=((), ("random_numbers(probability=1.0)",)), tries=3, refuse="none")
    guarding = Guard(Listed(is_copy), policy, log=log)
    guarding(Painter(a=[1], b=[200, 200, 3], c=[200, 200, 200]))(["a", "b", "c"])
    summary = summed_up(read_log(log)).summary
    assert (summary["n_images"], summary["n_tries"], summary["n_stopped"]) == (3, 7, 0)
    assert summary["first_copies"]["value"] == pytest.approx(2 / 3)
    assert summary["refused"]["value"] == pytest.approx(1 / 3)
    assert [(row["rung"], row["tries"], row["passed"]["value"]) for row in summary["rungs"]] == [
        ("first try", 3, pytest.approx(1 / 3)), ("another seed", 2, 0), ("random_numbers(probability=1.0)", 2, 0.5),
    ]  # fmt: skip
    found = CliRunner().invoke(main.app, ["report", str(log)])
    assert found.exit_code == 0, found.output
    table = pq.read_table(tmp_path / "log.parquet")
    assert [dict(row, signals=dict(row["signals"])) for row in table.to_pylist()] == [
        dict(dataclasses.asdict(record), rung=list(record.rung), flagged=[], box=[0, 0, 0.5, 0.5])
        for record in guarding.records
    ]
    page = (tmp_path / "log.html").read_text()
    assert "Of 3 images asked for, 2 were handed out, 1 refused." in page
    assert page.count('<tr><th scope="row">2') == 6, "a row a try but for the plain delivery"
    assert page.count('class="part" x="0" y="0" width="0.5" height="0.5"') == 6
    assert page.count("upper left, 25 %") == 6
    assert CliRunner().invoke(main.app, ["report", str(tmp_path / "log.html")]).exit_code != 0


# What is refused before


@pytest.mark.parametrize(
    "values",
    [{"rate": -0.1}, {"rate_again": 1.0}, {"tries": 0}, {"ladder": ()}, {"ladder": ("random_numbers",)},
     {"seconds": float("nan")}, {"refuse": "never"}, {"signals": "no"}, {"look_at": (0.5, 0.5)},
     {"look_at": (1.0,)}, {"seed": -1}],
)  # fmt: skip
def test_a_policy_that_cannot_be(values):
    with pytest.raises(InputError, match=next(iter(values)) if "ladder" not in values else "rung"):
        Policy(**values)


def test_a_policy_is_read_from_toml():
    found = recipes.changed(Policy(), ['ladder=[[], ["random_numbers(n=4)"]]', "look_at=[0.5]", "refuse=blank"])
    assert found == Policy(ladder=((), ("random_numbers(n=4)",)), look_at=(0.5,), refuse="blank")


def test_a_function_takes_mitigations_of_the_prompt_alone_and_cannot_be_watched():
    with pytest.raises(InputError, match="acts inside"):
        Guard(Listed(is_copy), Policy(ladder=(("delayed_guidance",),)))(Painter())
    with pytest.raises(PartError):
        Guard(Listed(is_copy), Policy(ladder=(("nonsense",),)))(Painter())
    with pytest.raises(InputError, match="cannot be watched"):
        Guard(Listed(is_copy), Policy(look_at=(0.5,)))(Painter())
    with pytest.raises(InputError, match="no prompt"):
        Guard(Listed(is_copy))(Painter())(7)


# Pipelines


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_stable_diffusion(tmp_path_factory.mktemp("sd") / "sd1", "sd1")


@pytest.fixture
def pipe(folder):
    return loaded(folder)


def generators(n, seed=0):
    return [torch.Generator().manual_seed(seed + row) for row in range(n)]


def arrays(images):
    return np.stack([np.asarray(image) for image in images])


@contextlib.contextmanager
def counted(pipe):
    """The rows that the network is asked about, in each call."""
    rows = []
    hook = pipe.unet.register_forward_pre_hook(lambda module, told: rows.append(len(told[0])))
    yield rows
    hook.remove()


@pytest.mark.parametrize("look_at", [(), (0.5,)])
def test_clean_images_are_those_of_the_pipeline_bit_by_bit(pipe, look_at):
    bare = pipe(TEXTS, generator=generators(3), **ASKED)
    guarding = Guard(Listed(lambda picture: False), dataclasses.replace(RESEEDS, look_at=look_at))
    found = guarding(pipe)(TEXTS, generator=generators(3), **ASKED)
    assert type(found) is type(bare)
    assert np.array_equal(arrays(found.images), arrays(bare.images))
    found = guarding(pipe)(TEXTS, generator=generators(3), output_type="np", return_dict=False, **ASKED)
    assert found[0].shape == (3, 32, 32, 3)
    assert np.array_equal((found[0] * 255).round().astype(np.uint8), arrays(bare.images))


def test_without_a_generator_the_policy_seeds_each_image(pipe):
    def made(seed):
        return arrays(Guard(Listed(lambda picture: False), Policy(seed=seed))(pipe)(TEXTS, **ASKED).images)

    assert np.array_equal(made(1), made(1))
    assert not np.array_equal(made(1), made(2))
    guarding = Guard(Listed(lambda picture: False))
    first = guarding(pipe)(TEXTS, **ASKED).images
    seeds = [record.seed for record in guarding.records]
    again = pipe(TEXTS, generator=[torch.Generator().manual_seed(seed) for seed in seeds], **ASKED).images
    assert np.array_equal(arrays(first), arrays(again)), "what a record says makes the image"


def test_a_copy_alone_is_made_again_with_its_own_prompt_and_the_mitigations_of_the_rung(pipe):
    bare = arrays(pipe(TEXTS[:2], num_images_per_prompt=2, generator=generators(4), **ASKED).images)
    told = []
    encode, pipe.encode_prompt = (
        pipe.encode_prompt,
        lambda *args, **kwargs: told.append(args or kwargs) or encode(*args, **kwargs),
    )
    policy = Policy(ladder=(("random_numbers(n=2, probability=1.0)",),))
    listed = Listed(lambda picture: np.array_equal(picture, bare[2]))
    guarding = Guard(listed, policy)
    with counted(pipe) as rows:
        found = arrays(guarding(pipe)(TEXTS[:2], num_images_per_prompt=2, generator=generators(4), **ASKED).images)
    assert np.array_equal(found[[0, 1, 3]], bare[[0, 1, 3]])
    assert not np.array_equal(found[2], bare[2])
    assert rows == [8] * 3 + [2] * 3
    prompt = told[-1]["prompt"]
    assert isinstance(prompt, list)
    assert len(prompt) == 1
    assert prompt[0] != TEXTS[1]
    assert [word for word in prompt[0].split() if not word.isdigit()] == TEXTS[1].split()
    assert actions(guarding.records)[2:] == [(2, 0, "redone"), (3, 0, "delivered"), (2, 1, "delivered")]


def test_several_images_of_one_prompt_are_made_again_together(pipe):
    options = ASKED | {"num_images_per_prompt": 3, "negative_prompt": "x"}
    bare = arrays(pipe("a red fish", generator=generators(3), **options).images)
    guarding = Guard(Listed(lambda picture: any(np.array_equal(picture, each) for each in bare[1:])), RESEEDS)
    with counted(pipe) as rows:
        found = arrays(guarding(pipe)("a red fish", generator=generators(3), **options).images)
    assert rows == [6] * 3 + [4] * 3
    assert np.array_equal(found[0], bare[0])
    assert not any(np.array_equal(one, other) for one in found[1:] for other in bare)


@pytest.mark.parametrize("kind", ["sdxl", "sd3", "flux"])
def test_pipelines_of_every_family_are_guarded(kind, tmp_path):
    pipe = loaded(tiny_stable_diffusion(tmp_path / kind, kind))
    options = {} if kind == "flux" else {"negative_prompt": ["x", "y"]}
    options |= ASKED | {"prompt_2": TEXTS[1:]}
    bare = arrays(pipe(TEXTS[:2], generator=generators(2), **options).images)
    policy = Policy(ladder=(("random_numbers(n=2, probability=1.0)",),), look_at=(0.5,))
    guarding = Guard(Listed(lambda picture: np.array_equal(picture, bare[1])), policy)
    found = arrays(guarding(pipe)(TEXTS[:2], generator=generators(2), **options).images)
    assert np.array_equal(found[0], bare[0])
    assert not np.array_equal(found[1], bare[1])
    assert actions(guarding.records) == [(0, 0, "delivered"), (1, 0, "redone"), (1, 1, "delivered")]


def test_embeddings_and_images_to_start_from_go_with_their_row(pipe):
    from diffusers import StableDiffusionImg2ImgPipeline

    states, negative = pipe.encode_prompt(TEXTS[:2], "cpu", 1, True)
    options = ASKED | {"prompt_embeds": states, "negative_prompt_embeds": negative}
    bare = arrays(pipe(generator=generators(2), **options).images)
    guarding = Guard(Listed(lambda picture: np.array_equal(picture, bare[1])), RESEEDS)
    found = arrays(guarding(pipe)(generator=generators(2), **options).images)
    seed = guarding.records[-1].seed
    again = options | {"prompt_embeds": states[1:], "negative_prompt_embeds": negative[1:]}
    alone = arrays(pipe(generator=torch.Generator().manual_seed(seed), **again).images)
    assert np.array_equal(found, [bare[0], alone[0]])

    # Numbers cannot be put into embeddings: the rung is another seed alone, and the record says so.
    numbers = Policy(ladder=(("random_numbers(n=2, probability=1.0)",),))
    guarding = Guard(Listed(lambda picture: np.array_equal(picture, bare[1])), numbers)
    guarding(pipe)(generator=generators(2), **options)
    assert [record.rung for record in guarding.records] == [(), (), ()]
    assert guarding.records[-1].action == "delivered"

    changing = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    changing.set_progress_bar_config(disable=True)
    pictures = [Image.fromarray(np.full((32, 32, 3), value, np.uint8)) for value in (50, 200)]
    options = {"num_inference_steps": 4, "strength": 0.5}
    bare = arrays(changing(TEXTS[:2], pictures, generator=generators(2), **options).images)
    guarding = Guard(Listed(lambda picture: np.array_equal(picture, bare[1])), RESEEDS)
    found = arrays(guarding(changing)(TEXTS[:2], pictures, generator=generators(2), **options).images)
    seed = guarding.records[-1].seed
    generator = torch.Generator().manual_seed(seed)
    alone = arrays(changing([TEXTS[1]], [pictures[1]], generator=generator, **options).images)
    assert np.array_equal(found, [bare[0], alone[0]])


def test_a_look_at_the_estimate_saves_the_steps_that_are_left(pipe):
    # Never finished: a copy at each look, and none at the end of a try that is not looked at.
    guarding = Guard(Listed(lambda picture: True), Policy(ladder=((),), tries=2, look_at=(0.5,), refuse="blank"))
    with counted(pipe) as rows:
        (image,) = guarding(pipe)("a red fish", num_inference_steps=6, height=32, width=32).images
    assert len(rows) == 2 * 3
    assert np.asarray(image).shape == (32, 32, 3)
    assert not np.asarray(image).any()
    assert [(record.look, record.action) for record in guarding.records] == [(0.5, "redone"), (0.5, "refused")]
    with counted(pipe) as rows:
        pipe("a red fish", num_inference_steps=6, height=32, width=32)
    assert len(rows) == 6, "the pipeline is as it was"


@pytest.mark.parametrize(("scale", "rung"), [(1.0, ()), (7.5, ("delayed_guidance(start=0.5)",))])
def test_a_rung_that_wants_guidance_acts_where_there_is_some(pipe, scale, rung):
    seen = iter([True, False])
    guarding = Guard(Listed(lambda picture: next(seen)), Policy(ladder=(("delayed_guidance(start=0.5)",),)))
    guarding(pipe)("a red fish", guidance_scale=scale, **ASKED)
    assert [record.rung for record in guarding.records] == [(), rung]


def test_what_a_pipeline_frees_and_returns_at_the_end_it_does_after_a_stop_too(pipe, tmp_path):
    freed = []
    pipe.maybe_free_model_hooks = lambda: freed.append(1)
    policy = Policy(ladder=((),), tries=2, look_at=(0.4,), refuse="none")
    guarding = Guard(Listed(lambda picture: True), policy)
    guarding(pipe)("a red fish", **ASKED)
    assert freed == [1, 1]
    for kind in ("sdxl", "sd3", "flux"):
        other = loaded(tiny_stable_diffusion(tmp_path / kind, kind))
        made = Guard(Listed(lambda picture: True), policy)(other)("a red fish", **ASKED)
        assert type(made) is type(other("a red fish", **ASKED))
        assert made.images == [None]


def test_an_image_that_is_no_copy_lets_its_batch_end(pipe):
    seen = iter([True, False, True, False, False, False])
    guarding = Guard(Listed(lambda picture: next(seen)), Policy(ladder=((),), look_at=(0.5,)))
    with counted(pipe) as rows:
        guarding(pipe)(TEXTS[:2], num_inference_steps=4, height=32, width=32)
    # At the look one of two, at the end one of two; the other try is looked at, and ends.
    assert rows == [4] * 4 + [2] * 4
    assert actions(guarding.records) == [(0, 0, "redone"), (1, 0, "delivered"), (0, 1, "delivered")]


def test_a_signal_above_its_line_is_logged_or_counts(pipe):
    from copyscope.guard.pipeline_call import PipelineCall

    line = Threshold(0.0, 0.01, 100, 0)
    lines = Thresholds(fingerprint(PipelineCall.model(pipe)), "", {"text_conditional_norm": line})
    guarding = Guard(Listed(lambda picture: False), RESEEDS, thresholds=lines)
    guarding(pipe)("a red fish", **ASKED)
    (record,) = guarding.records
    assert record.flagged == ("text_conditional_norm",)
    assert record.signals["text_conditional_norm"] > 0
    assert record.action == "delivered"
    policy = dataclasses.replace(RESEEDS, signals="hit", tries=2)
    with pytest.raises(Refused):
        Guard(Listed(lambda picture: False), policy, thresholds=lines)(pipe)("a red fish", **ASKED)
    other = dataclasses.replace(lines, model="other")
    with pytest.raises(InputError, match="another model"):
        Guard(Listed(lambda picture: False), thresholds=other)(pipe)


@pytest.mark.parametrize(("share", "of_missing"), [(None, ("a",)), (0.5, ())], ids=["finished", "stopped"])
def test_signals_flag_their_own_images_and_missing_scores_of_finished_tries_alone(share, of_missing):
    lines = Thresholds("", "", {name: Threshold(1.0, 0.01, 100, 0) for name in "ab"})
    made = Attempt([None] * 3, share, signals={"a": np.array([2.0, 0.5, np.nan]), "b": np.array([0.0, 3.0, 0.0])})
    call = types.SimpleNamespace(guard=types.SimpleNamespace(thresholds=lines))
    assert retries.GuardedCall._flagged(call, made, 3) == [("a",), ("b",), of_missing]


def test_what_a_pipeline_cannot_be_guarded_for_is_said_before(pipe):
    guarded = Guard(Listed(is_copy))(pipe)
    with pytest.raises(InputError, match="latent"):
        guarded("a", output_type="latent", **ASKED)
    with pytest.raises(InputError, match="no prompt"):
        guarded(**ASKED)
    with pytest.raises(TypeError):
        guarded("a", height=32, prompt="b")
    with pytest.raises(InputError, match="nearest"):
        Guard(Listed(is_copy), Policy(ladder=(("antimemorization_guidance",),)))(pipe)


# Models of ours


@pytest.fixture(scope="module")
def model():
    return parts.load("models", "small_unet(size=16, components=16, channels=(32,))")


RECIPE = SampleRecipe(steps=4, guidance=2.0)


def bare_images(model, texts, seeds, **changes):
    recipe = dataclasses.replace(RECIPE, n_images=len(texts), **changes)
    return np.stack(sample(model, model.condition(texts), seeds, recipe, prompts=texts))


def test_images_of_a_model_are_those_of_sample_and_copies_are_made_again(model):
    bare = bare_images(model, TEXTS, [5, 6, 7])
    rung = "random_numbers(n=2, probability=1.0)"
    guarding = Guard(Listed(lambda picture: np.array_equal(picture, bare[1])), Policy(ladder=((rung,),)))
    found = guarding(model)(TEXTS, RECIPE, seeds=[5, 6, 7])
    assert np.array_equal(found[0], bare[0])
    assert np.array_equal(found[2], bare[2])
    record = guarding.records[-1]
    assert (record.row, record.rung, record.action) == (1, (rung,), "delivered")
    parts_of = applied.load([rung], "sampling", model)
    text = parts_of.caption([TEXTS[1]], lambda number: applied.sampling_rngs([record.seed], number)[0])
    assert text != TEXTS[1]
    alone = bare_images(model, [text], [record.seed], mitigations=(rung,))
    assert np.array_equal(found[1], alone[0])
    assert [record.seed for record in guarding.records[:3]] == [None] * 3
    guarding(model)("a dog", RECIPE)
    assert guarding.records[-1].seed is not None


def test_steps_of_a_model_are_watched_and_looked_at(model):
    lines = Thresholds(fingerprint(model), "", {"text_conditional_norm": Threshold(-1.0, 0.01, 100, 0)})
    policy = Policy(ladder=((), ("delayed_guidance(start=0.5)",)), tries=3, look_at=(0.5,), refuse="blank")
    guarding = Guard(Listed(lambda picture: True), policy, thresholds=lines)
    (image,) = guarding(model)("a dog", RECIPE)
    assert (image.shape, image.dtype, image.max()) == ((16, 16, 3), np.uint8, 0)
    assert [(record.look, record.flagged) for record in guarding.records] == [
        (0.5, ("text_conditional_norm",)), (0.5, ("text_conditional_norm",)), (0.5, ()),
    ]  # fmt: skip
    unguided = dataclasses.replace(RECIPE, guidance=1.0)
    guarding(model)("a dog", unguided)
    assert [record.rung for record in guarding.records[3:]] == [(), (), ()]


def test_what_a_model_cannot_be_asked_is_said(model):
    guarded = Guard(Listed(is_copy))(model)
    with pytest.raises(InputError, match="2 seeds for 1 prompts"):
        guarded("a", RECIPE, seeds=[1, 2])
    for prompts in ([], 7, [7]):
        with pytest.raises(InputError, match="no prompt"):
            guarded(prompts)
    with pytest.raises(InputError, match="nearest"):
        Guard(Listed(is_copy), Policy(ladder=(("antimemorization_guidance",),)))(model)


# A real index

KINDS = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusionImg2ImgPipeline")


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_stops_a_pipelines_copies_and_leaves_its_other_images_as_they_are(kind, tmp_path):
    pipe = loaded(tiny_stable_diffusion(tmp_path / "sd", "sdxl" if "XL" in kind else "sd1"))
    options = ASKED
    if "Img2Img" in kind:
        from diffusers import StableDiffusionImg2ImgPipeline

        pipe = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        start = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        options = {"image": Image.fromarray(start), "num_inference_steps": 4, "strength": 0.75}
    assert type(pipe).__name__ == kind
    others = pipe("a red fish", num_images_per_prompt=47, generator=generators(47, 100), **options).images
    bare = arrays(pipe(TEXTS, generator=generators(3), **options).images)
    train, held = train_and_held_out(tmp_path, [bare[1]], others)
    index = Index.build(train, tmp_path / "index", "sscd-distilled", held_out=held)

    guarding = Guard(index, Policy(rate=0.03))
    found = arrays(guarding(pipe)(TEXTS, generator=generators(3), **options).images)
    assert np.array_equal(found[[0, 2]], bare[[0, 2]])
    assert not np.array_equal(found[1], bare[1])
    assert all(hits[0].p_value > 0.03 for hits in index.match(list(found)))
    first = guarding.records[1]
    assert (first.row, first.match, first.action) == (1, "000.png", "redone")
    assert guarding.records[-1].action == "delivered"
    assert {record.row for record in guarding.records if record.attempt} == {1}


# And the perfect copier


def test_the_perfect_copier_hands_out_no_copy(world, tmp_path):
    train = Corpus.open(world.train).take(range(30))
    index = Index.build(train, tmp_path / "index", "sscd-distilled", held_out=world.held_out)
    model = Empirical(str(world.train), size=64)
    other = Empirical(str(world.held_out), size=64)

    def made(prompts, seed=0):
        recipe = SampleRecipe(steps=4)
        # It copies whom it knows by their caption, and else makes a picture of another set.
        return [
            sample(source, source.condition([text]), [seed + row], recipe)[0]
            for row, text in enumerate(prompts)
            for source in [model if text in captions else other]
        ]

    captions = [each[0] for each in train.captions[:3]]
    policy = Policy(rate=0.02, local=False, ladder=((), ("random_numbers(probability=1.0)",)), tries=6)
    guarding = Guard(str(tmp_path / "index"), policy)
    bare = made(captions)
    assert all(hits[0].p_value <= 0.02 for hits in index.match(bare, local=False)), "there is something to guard"
    images = guarding(made)(captions)
    assert all(hits[0].p_value > 0.02 for hits in index.match(images, local=False))
    # A caption that others bear may be drawn from outside the index.
    assert {record.action for record in guarding.records if record.attempt == 0} == {"redone"}
    with pytest.raises(InputError, match="calibration images"):
        Guard(index, Policy(rate=0.001))


def test_a_rate_of_nothing_finds_the_image_itself_with_no_calibration(world, tmp_path):
    train = Corpus.open(world.train).take(range(5))
    index = Index.build(train, tmp_path / "index", "sscd-distilled")
    guarding = Guard(index, Policy(rate=0, rate_again=0, local=False))
    itself, other = (images.decode(Corpus.open(folder).read(0)) for folder in (world.train, world.held_out))
    black = np.zeros((64, 64, 3), np.uint8)
    cut = ((itself.astype(np.float32) / 127.5 - 1) / 2 + 0.5) * 255
    shown = [itself, np.maximum(itself, 1) - 1, cut.astype(np.uint8), other, black]
    assert [guarding.is_copy(hit) for hit in guarding.judge(shown)] == [True, True, True, False, False]
    with pytest.raises(InputError, match="calibration images"):
        Guard(index, Policy())


@pytest.mark.parametrize(
    ("score", "verified", "box", "copy"),
    [(0.999, 0.999, None, True), (0.998, 0.998, None, True), (0.997, 1.0, None, False), (1.0, 0.997, None, False),
     (1.0, 1.0, (0, 0, 0.5, 0.5), False), (1.0, None, None, False)],
)  # fmt: skip
def test_a_training_image_rounded_otherwise_is_a_copy_at_any_rate(score, verified, box, copy):
    guarding = Guard(Listed(is_copy), Policy(rate=0, rate_again=0))
    hit = Hit("t.png", score, verified, 0.9, 0.01, box, None, "t")
    assert guarding.is_copy(hit) is copy
    assert guarding.is_copy(dataclasses.replace(hit, box=None, source_box=box)) is copy


@pytest.mark.parametrize(
    ("p_value", "again", "copy"),
    [(0.05, False, True), (0.0501, False, False), (0.2, True, True), (0.2, False, False), (0.2001, True, False),
     (None, False, True)],
)  # fmt: skip
def test_a_p_value_at_the_rate_is_a_copy(p_value, again, copy):
    guarding = Guard(Listed(is_copy), Policy(rate=0.05, rate_again=0.2))
    hit = Hit("t.png", 0.9, 0.8, 0.85, p_value, None, None, "t")
    assert guarding.is_copy(hit, again) is copy
    assert guarding.is_copy(dataclasses.replace(hit, identical=True, p_value=1.0), again)
    assert not guarding.is_copy(None, again)
    assert not Guard(Listed(is_copy), Policy(rate=0.3, rate_again=0.0)).is_copy(dataclasses.replace(hit, p_value=0.31))
    assert Guard(Listed(is_copy), Policy(rate=0.3, rate_again=0.0)).is_copy(dataclasses.replace(hit, p_value=0.3), True)


def test_the_guard_is_public():
    assert copyscope.Guard is Guard
    assert copyscope.Policy is Policy


def test_a_guard_writes_where_its_log_was_when_it_was_made(tmp_path, monkeypatch):
    (tmp_path / "later").mkdir()
    monkeypatch.chdir(tmp_path)
    guarding = Guard(Listed(is_copy), RESEEDS, log="log.jsonl")
    monkeypatch.chdir(tmp_path / "later")
    guarding(Painter(a=[1]))("a")
    assert len(read_log(tmp_path / "log.jsonl")) >= 1
    assert not list((tmp_path / "later").iterdir())
