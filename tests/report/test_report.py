"""The report as text: what it says, and that nothing of the user's data acts. `test_report_browser.py` opens it."""

from __future__ import annotations

import base64
import copy
import hashlib
import html.parser
import json
import re
from collections.abc import Callable
from importlib import resources
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from copyscope.report import STATIC_PAIRS, lookup, page_data, plots, render, render_lint, terminal, wording
from tests.audits import (
    HOSTILE,
    FakeResult,
    bare_audit,
    captions_of,
    make_audit,
    make_lint,
    make_lookup,
    other_audit,
    table,
)

VOID = {"meta", "link", "input", "br", "img", "hr"}


class Outline(html.parser.HTMLParser):
    """Elements of a page, each `(tag, attributes)`; complains of tags that do not nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("script", "style"):
            self.text.append(data)


@pytest.fixture(scope="session")
def audit() -> FakeResult:
    return make_audit()


@pytest.fixture(scope="session")
def page(audit: FakeResult) -> str:
    return render(audit)


def embedded(page: str, name: str) -> Any:
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


# The page as text


def test_rendering_again_gives_the_same_bytes(audit: FakeResult, page: str) -> None:
    assert render(FakeResult(copy.deepcopy(audit.summary), dict(audit.tables))) == page


@pytest.mark.parametrize(
    "write",
    [
        lambda: render(make_audit()),
        lambda: render(bare_audit()),
        lambda: render(make_audit(40, 0)),
        lambda: render(other_audit("suspicious")),
        lambda: render(other_audit("cannot tell")),
        lambda: render(other_audit("likeness")),
        lambda: render(FakeResult({}, {})),
        lambda: render_lint(make_lint()),
        lambda: render_lint(FakeResult({}, {})),
        lambda: lookup.render(make_lookup()),
        lambda: lookup.render(FakeResult({}, {})),
    ],
    ids=[
        "audit",
        "bare",
        "clean",
        "suspicious",
        "cannot tell",
        "likeness",
        "void",
        "lint",
        "void lint",
        "look-up",
        "void look-up",
    ],
)
def test_page_is_well_formed_and_its_references_hold(write: Callable[[], str]) -> None:
    outline = Outline(write())
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in outline.elements:
        wanted = (attributes.get("aria-labelledby") or "").split()
        href = attributes.get("href") or ""
        assert set(wanted) | ({href[1:]} if href.startswith("#") else set()) <= set(ids)
        assert all(match in ids for match in re.findall(r"url\(#(.+?)\)", attributes.get("clip-path") or ""))


def test_user_data_makes_no_element_handler_or_link(page: str) -> None:
    outline = Outline(page)
    tags = [tag for tag, _ in outline.elements]
    assert (tags.count("script"), tags.count("style")) == (3, 1)
    shots = [attributes.get("src") or "" for tag, attributes in outline.elements if tag == "img"]
    assert len(shots) == 2 + 2 * STATIC_PAIRS
    assert all(re.fullmatch(r"data:image/webp;base64,[A-Za-z0-9+/=]+", shot) for shot in shots)
    for _, attributes in outline.elements:
        assert not any(name.startswith("on") or name in ("style", "action") for name in attributes)
        assert (attributes.get("href") or "#").startswith(("#", "data:,"))
    shown = "".join(outline.text)
    for text in (HOSTILE[0], HOSTILE[2], HOSTILE[5]):
        assert text in shown


def test_policy_allows_this_script_and_style_and_nothing_else(page: str) -> None:
    policy = next(a["content"] for tag, a in Outline(page).elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        text = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert text is not None
        digest = base64.b64encode(hashlib.sha256(text[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_data_in_the_page_is_the_audit(audit: FakeResult, page: str) -> None:
    gallery = embedded(page, "data")["gallery"]
    known = {row["id"].translate(wording.VISIBLE): row for row in audit.tables["generated"].to_pylist()}
    assert set(gallery["id"]) == set(known)
    for place, name in enumerate(gallery["id"]):
        assert gallery["score"][place] == known[name]["score"]
        assert gallery["copied"][place] == known[name]["copied"]
    assert gallery["copied"][:24] == [1] * 24
    assert gallery["score"][:24] == sorted(gallery["score"][:24], reverse=True)
    assert gallery["error"][-1] == "truncated file"
    images = embedded(page, "images")
    assert images[gallery["img"][1]].startswith("data:image/webp;base64,")
    worst = [a for tag, a in Outline(page).elements if tag == "img" and "data-place" in a]
    assert [int(a["data-place"] or -1) for a in worst] == [gallery["img"][0], gallery["match_img"][0]]
    assert [images[int(a["data-place"] or -1)] for a in worst] == [None, None], "the worst pair is not there twice"
    assert gallery["captions"][gallery["match"].index("train/img_00010.jpg")] == captions_of("train/img_00010.jpg")
    risk = embedded(page, "data")["risk"]
    assert risk["captions"][risk["id"].index("train/img_00014.jpg")] == captions_of("train/img_00014.jpg")


def test_the_first_screen_says_what_was_audited_and_shows_the_worst_pair(page: str) -> None:
    outline = Outline(page)
    shown = "".join(outline.text)
    first = shown[shown.index("Copyscope audit ") : shown.index("Replication rate: copies found")]
    for text in (
        f"Release {HOSTILE[0]}", f"flowers-lora {HOSTILE[5]}", "Before the gate.", "data/train", "b" * 12,
        "24 flagged as copies", "suspicious, not flagged", "The worst pair: similarity 0.98", "data/held-out",
        "Crops that would be seen",
    ):  # fmt: skip
        assert text in first
    assert "".join(re.findall("<title>(.*?)</title>", page)).startswith("Copyscope Release &lt;script&gt;")


def test_suspicious_images_are_counted_as_the_filter_shows_them(audit: FakeResult, page: str) -> None:
    rows = audit.tables["generated"].to_pylist()
    near = {
        row["id"].translate(wording.VISIBLE)
        for row in rows
        if not row["copied"] and row["error"] is None and (row["p_value"] <= 0.05 or row["score"] >= 0.5)
    }
    gallery = embedded(page, "data")["gallery"]
    assert {one for one, flag in zip(gallery["id"], gallery["near"], strict=True) if flag} == near
    assert f"{len(near)} suspicious, not flagged" in text_of(page)


def test_cannot_tell_shows_no_rate_of_nothing() -> None:
    page = render(other_audit("cannot tell"))
    assert not re.search(r'(class="num"|<dd)>0 %', page)
    assert "Replication ratenot known" in text_of(page)
    assert re.search(r'(class="num"|<dd)>0 %', render(make_audit(40, 0))), "no copies found says its rate"


def test_a_result_of_before_without_about_has_a_page() -> None:
    audit = make_audit(40, 3)
    shown = text_of(render(FakeResult({k: v for k, v in audit.summary.items() if k != "about"}, audit.tables)))
    assert "Copyscope audit" in shown
    assert "digest" not in shown


TEXTS = st.text() | st.sampled_from(HOSTILE)


@given(st.recursive(st.none() | TEXTS | st.integers() | st.booleans(), st.lists, max_leaves=8))
def test_embedded_json_reads_back_and_cannot_end_its_element(data: Any) -> None:
    text = page_data.embed(data)
    assert "<" not in text
    assert json.dumps(json.loads(text)) == json.dumps(visible(data))


def visible(data: Any) -> Any:
    if isinstance(data, list):
        return [visible(one) for one in data]
    return data.translate(wording.VISIBLE) if isinstance(data, str) else data


def test_hidden_characters_show() -> None:
    assert page_data.embed("a\x00b\u202ec") == '"a\ufffdb\ufffdc"'


def test_a_line_that_no_p_value_reaches_is_said_and_not_shown_as_one() -> None:
    audit = make_audit(40, 12)
    calibration = audit.summary["calibration"] | {"n": 30, "line": 0.0025}
    shown = text_of(render(FakeResult(audit.summary | {"calibration": calibration}, audit.tables)))
    why = "No image can be called a copy by its score: that takes a p-value of 0.0025 or less, and with 30 calibration"
    assert shown.count(f"{why} images the least there can be is 0.032.") == 2
    assert "None could be seen." in shown
    assert "An image is flagged from" not in shown
    reached = audit.summary | {"calibration": calibration | {"n": 399}}
    assert "An image is flagged from a p-value of 0.0025 down." in text_of(render(FakeResult(reached, audit.tables)))


def test_without_calibration_the_corrected_rate_is_an_upper_bound_alone() -> None:
    audit = make_audit(40, 12)
    calibration = audit.summary["calibration"] | {"method": "baseline"}
    rate = {"value": 0.075, "low": 0.0, "high": 0.219, "n": 40}
    summary = audit.summary | {"calibration": calibration, "estimated_rate": rate}
    shown = text_of(render(FakeResult(summary, audit.tables)))
    assert "at most 21.9 %" in shown
    assert "no estimate of copying" in shown
    assert "7.5 %" not in shown
    assert "Corrected for copies not seen" not in shown


def test_the_terminal_says_why_nothing_is_seen_and_what_a_rate_is() -> None:
    calibration = {"differs": None, "n_look_alikes": 0, "n": 30, "line": 0.0025, "method": "held-out"}
    rate = {"value": 0.075, "low": 0.0, "high": 0.219, "n": 40}
    summary = {"calibration": calibration, "sensitivity": {"light": {"value": 0.0}}, "estimated_rate": rate}
    (said,) = terminal.audit_warnings(summary)
    assert "0.0025 or less, and with 30 calibration images the least there can be is 0.032. So none" in said
    assert terminal.corrected(summary) == "7.5% [0.0%, 21.9%] n=40"
    summary["calibration"] = calibration | {"n": 500, "method": "baseline"}
    assert terminal.audit_warnings(summary) == []
    assert terminal.corrected(summary).startswith("at most 21.9%, false alarms included")


def test_both_pages_say_that_the_first_frame_stands_for_a_file() -> None:
    for limits in (wording.limits({}), wording.lint_limits({})):
        assert sum("the first stands for the file" in one for one in limits["untested"]) == 1


def text_of(page: str) -> str:
    return " ".join("".join(Outline(page).text).split())


def test_verdict_is_the_heading_with_rate_interval_and_calibration(page: str) -> None:
    shown = " ".join("".join(Outline(page).text).split())
    for text in (
        "24 of 239 generated images reproduce training images.",
        "10.0 % 95 % interval 8.0 % to 12.0 %",
        "they reproduce 8 training images",
        "real images not trained on (held-out)",
        "20 look-alikes of training images were removed",
        "3 were left out by hand",
        "An image is flagged from a p-value of 0.013 down.",
        "Corrected for copies not seen and for false alarms 11.0 % 95 % interval 8.0 % to 14.0 %",
        "at least 6.0 % of the generated images are nearer to the training set than held-out images are",
    ):
        assert text in shown


def shown_text(page: str) -> str:
    return " ".join("".join(Outline(page).text).split())


def test_sensitivity_stands_beside_the_rate_with_a_mark_at_what_must_be_seen(page: str) -> None:
    shown = shown_text(page)
    for name, done, value in (
        ("Light copy", "softened", "95.0 % 90.0 % to 100 %"),
        ("Crop", "60 to 75 % of each side", "81.0 % 76.0 % to 86.0 %lower end below 80 %"),
        ("Part of another picture", "set at a quarter of the area", "30.0 % 25.0 % to 35.0 %"),
    ):
        assert re.search(rf"{name} ?{done}[^0-9]*{re.escape(value)}|{name} ?{done}.{{0,80}}{re.escape(value)}", shown)
    assert shown.count("lower end below 80 %") == 1
    table = re.search(r'<table class="kinds">.*?</table>', page, re.DOTALL)
    assert table is not None
    marks = [f'<rect class="zero" x="{80}"' in row for row in table[0].split("<tr>")[2:]]
    assert marks == [True, True] + [False] * 5
    assert "of planted ones at a quarter of the area 30.0 % were seen" in shown


def test_an_unknown_kind_of_planted_copy_is_shown_by_its_name(audit: FakeResult) -> None:
    sensitivity = audit.summary["sensitivity"] | {"<b>melted</b>": audit.summary["sensitivity"]["part"]}
    found = render(FakeResult(audit.summary | {"sensitivity": sensitivity}, audit.tables))
    assert "<b>melted</b>" in shown_text(found)


def test_suspicious_has_a_look_of_its_own_and_says_what_would_settle_it() -> None:
    page = render(other_audit("suspicious"))
    shown = shown_text(page)
    assert 'class="answer answer-loud"' in page
    for text in (
        "6 of 39 readable generated images are suspiciously near to a training image.",
        "What would settle it: real images of the same kind",
        "the training set itself (baseline)",
        "the verdict is not calibrated",
    ):
        assert text in shown
    assert "readable generated images are flagged as copies" not in shown
    assert "Of the flagged images, at most" not in shown
    assert 'id="look-alikes"' not in page


def test_reasons_are_listed_where_there_are_several() -> None:
    shown = shown_text(render(other_audit("cannot tell")))
    assert "Why it cannot tellThe held-out images are of another kind than the generated ones.39 readable" in shown
    assert "How many copies would be seen was not measured." in shown
    assert "What would settle it: It would take held-out images" in shown
    assert "not known the sensitivity was not measured" in shown
    assert "how much this verdict’s silence is worth is not known" in shown
    first = other_audit("cannot tell")
    first.summary["verdict"]["reasons"] = first.summary["verdict"]["reasons"][:1]
    assert "Why it cannot tell" not in shown_text(render(first))


@pytest.mark.parametrize("trusted", [False, True])
def test_held_out_images_of_another_kind_are_a_warning(audit: FakeResult, trusted: bool) -> None:
    summary = copy.deepcopy(audit.summary)
    summary["calibration"]["differs"] = "Their median similarity is 0.1, that of the generated images 0.4."
    summary["recipe"]["options"]["trust_held_out"] = trusted
    page = render(FakeResult(summary, audit.tables))
    assert 'class="warning"' in page
    shown = shown_text(page)
    assert "Held-out images of another kind. Their median similarity is 0.1" in shown
    assert ("trusted all the same" in shown) == trusted


def test_look_alikes_lie_beside_the_training_image_they_are_like(audit: FakeResult, page: str) -> None:
    rows_shown = embedded(page, "data")["look_alikes"]
    assert rows_shown["id"] == [row["id"].translate(wording.VISIBLE) for row in audit.tables["look_alikes"].to_pylist()]
    assert [place is not None for place in rows_shown["img"]] == [True] * 24 + [False] * 6
    assert all(place is not None for place in rows_shown["match_img"][:24])
    shown = shown_text(page)
    assert "30 of 180 held-out images score as high as a light copy" in shown
    assert "--held-out DIR --held-out-exclude FILE" in shown
    assert 'id="look-alikes"' not in render(make_audit(40, 0))
    assert "Control images that look like" in shown_text(render(other_audit("likeness")))


def test_controls_likenesses_and_blank_images_are_counted_and_filtered() -> None:
    page = render(other_audit("likeness"))
    shown = shown_text(page)
    for text in (
        "2 more are likenesses: the same subject, not the same picture.",
        "1 blank image is set apart, in no rate.",
        "images of the base model (controls)",
        "control → train",
        "nearer to the training set in 90.0 % (85.0 % to 95.0 %); chance gives 50 %",
        "of which blank",
    ):
        assert text in shown
    filters = [a["value"] for tag, a in Outline(page).elements if tag == "option"][:5]
    assert filters == ["copies", "likeness", "near", "blank", "all"]
    gallery = embedded(page, "data")["gallery"]
    assert (sum(gallery["likeness"]), sum(gallery["blank"])) == (2, 1)
    other = embedded(render(make_audit(40, 2)), "data")["gallery"]
    assert other["likeness"] == other["blank"] == [0] * 40


def test_the_papers_own_number_warns_where_it_disagrees(page: str) -> None:
    assert "The 95th percentile of similarity is above the rest." in shown_text(page)
    assert 'class="warning"' not in page
    assert 'class="warning" dir="auto">The 95th percentile' in render(make_audit(40, 0))


def test_repeated_outputs_are_listed_with_their_prompts(audit: FakeResult, page: str) -> None:
    shown = shown_text(page)
    assert "The model makes one picture again and again, in 4 images." in shown
    assert "4 images4 prompts" in shown
    strips = embedded(page, "data")["repeated"]
    assert strips["ids"] == [audit.tables["generated"]["id"].to_pylist()[30:34]]
    assert all(place is not None for place in strips["img"][0])
    for none in (None, {"n_groups": 0, "groups": []}):
        found = render(FakeResult(audit.summary | {"repeated_outputs": none}, audit.tables))
        assert 'id="repeated"' not in found


def test_what_is_absent_is_said_to_be_absent() -> None:
    shown = " ".join("".join(Outline(render(bare_audit())).text).split())
    for text in (
        "cannot tell", "72 readable images", "not known", "no held-out images were given", "No near-duplicate groups",
        "No joint model was fitted", "No risk cards", "not computed", "No similarities to draw",
    ):  # fmt: skip
        assert text in shown
    assert "NaN" not in shown
    assert "None" not in shown


def test_an_undecodable_path_still_gives_valid_text(audit: FakeResult) -> None:
    summary = audit.summary | {"recipe": {"generated": "runs/\udcff"}}
    assert "runs/?" in render(FakeResult(summary, audit.tables)).encode("utf-8").decode()


def test_templates_are_package_data() -> None:
    folder = resources.files("copyscope.report")
    templates = [f"{name}.html.j2" for name in ("page", "audit", "lint", "lookup", "guard", "sections", "macros")]
    for name in (*templates, "page.css", "page.js"):
        assert folder.joinpath(name).is_file()
    script = folder.joinpath("page.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|fetch\(|XMLHttp", script)
    assert not any("|safe" in folder.joinpath(name).read_text().replace(" ", "") for name in templates)


def test_every_section_explains_its_words(page: str) -> None:
    shown = "".join(Outline(page).text)
    for section, terms in wording.SECTION_TERMS.items():
        assert f'<section id="{section}"' in page
        for term in terms:
            assert wording.TERMS[term] in shown


# The page of a lint


@pytest.fixture(scope="session")
def lint_page() -> str:
    return render_lint(make_lint())


def test_lint_page_says_what_was_found_and_what_to_do(lint_page: str) -> None:
    shown = " ".join("".join(Outline(lint_page).text).split())
    for text in (
        "30 of 247 readable images repeat another one",
        "12.1 % 95 % interval 8.1 % to 16.1 %",
        "of which unreadable2",
        "full duplication4 partial duplication3 uncaptioned3 with exact repeats5",
        "Images with captions240 without7 share a caption31 nearly share one12",
        "8 Deduplicate",
        "The groups hold 40 images; 30 can go.",
        "6 Recaption",
        "2 of 249 images",
        "run this lint again",
        "2 images that could not be read: what repeats them would not be seen.",
    ):
        assert text in shown
    assert "Copyscope lint: 10 near-duplicate groups" in lint_page


def test_lint_page_has_no_section_on_generated_images(lint_page: str) -> None:
    outline = Outline(lint_page)
    ids = {attributes["id"] for tag, attributes in outline.elements if tag == "section"}
    assert ids == {"summary", "actions", "duplicates", "risk", "failures", "read", "recipe", "limits"}
    shown = "".join(outline.text)
    assert not re.search(r"times copied|copied at least once|among the generated images|None|NaN", shown)
    for section, terms in wording.LINT_SECTION_TERMS.items():
        assert section in ids
        assert all(wording.LINT_TERMS[term] in shown for term in terms)


def test_lint_page_shows_hostile_names_as_text_and_keeps_its_policy(lint_page: str) -> None:
    outline = Outline(lint_page)
    tags = [tag for tag, _ in outline.elements]
    assert (tags.count("script"), tags.count("style"), tags.count("img")) == (3, 1, 0)
    assert f"data/{HOSTILE[2]}" in "".join(outline.text)
    style = re.search(r"<style>(.*?)</style>", lint_page, re.DOTALL)
    assert style is not None
    assert base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode() in lint_page


def test_cards_come_in_the_order_of_the_table_where_nothing_else_decides(lint_page: str) -> None:
    risk = embedded(lint_page, "data")["risk"]
    assert risk["id"] == [row["id"].translate(wording.VISIBLE) for row in make_lint().tables["risk"].to_pylist()]
    assert risk["times_copied"] == [None] * 14
    assert embedded(lint_page, "data")["units"] == {"entropy": "nats"}


# The page of a look-up


@pytest.fixture(scope="session")
def lookup_page() -> str:
    return lookup.render(make_lookup())


def test_a_lookup_lists_every_picture_likely_copies_first_and_unreadable_ones_last(lookup_page: str) -> None:
    data = embedded(lookup_page, "data")["pictures"]
    assert len(data["id"]) == len(set(data["id"])) == 40
    assert data["id"][:2] == [HOSTILE[0], HOSTILE[1]]
    known = [value for value in data["combined"] if value is not None]
    assert known == sorted(known, reverse=True)
    assert data["error"][-2:] == ["truncated file", HOSTILE[1]]
    assert data["error"][:-2] == [None] * 38
    assert (data["flagged"], data["boxed"]) == ([1] * 6 + [0] * 34, [1] * 3 + [0] * 37)
    assert [len(hits) for hits in data["hits"]] == [lookup.SHOWN] * 38 + [0, 0]
    assert [place is None for place in data["img"]] == [False] * 37 + [True] * 3
    assert data["size"][0] == [96, 48]
    images = embedded(lookup_page, "images")
    assert len(images) == 37 + 3, "a training image is kept once"


def test_a_lookup_says_where_the_boxes_are(lookup_page: str) -> None:
    hits = embedded(lookup_page, "data")["pictures"]["hits"]
    assert (hits[0][0]["box"], hits[0][0]["placed"]) == ([0.5, 0.25, 0.5, 0.5], "middle right, 25 %")
    assert (hits[0][0]["source"], hits[0][0]["source_placed"]) == (None, "")
    assert (hits[3][0]["box"], hits[3][0]["placed"]) == (None, "")
    # Of an image twice as wide as high, the second quarter from the left is the left half of the middle square.
    assert hits[3][0]["source"] == [0, 0, 0.5, 1]
    assert hits[3][0]["source_placed"] == "middle left, 25 %"
    assert "6 of 38 readable images have a match" in lookup_page
    assert "about 1 % are expected" in lookup_page
    for term in lookup.SECTION_TERMS["pictures"]:
        assert lookup.TERMS[term] in "".join(Outline(lookup_page).text)


def test_a_lookup_without_scripts_says_the_first_match_or_the_error(lookup_page: str) -> None:
    found = re.search(r"<noscript>.*?</noscript>", lookup_page, re.DOTALL)
    assert found is not None
    said = " ".join("".join(Outline(found[0]).text).split())
    assert f"{HOSTILE[0]}train/{HOSTILE[1]}0.0050middle right, 25 %" in said
    assert "truncated file" in said


@pytest.mark.parametrize(
    ("box", "size", "seen"),
    [
        ((0, 0, 1, 1), (10, 10), [0, 0, 1, 1]),
        ((0.25, 0.5, 0.5, 0.5), (10, 10), [0.25, 0.5, 0.5, 0.5]),
        ((0.5, 0.0, 0.5, 0.5), (20, 10), [0.5, 0, 0.5, 0.5]),
        ((0.0, 0.5, 0.5, 0.5), (10, 40), [0, 0.5, 0.5, 0.5]),
        ((0.0, 0.0, 0.2, 1.0), (40, 10), None),
        ((0.0, 0.0, 0.5, 0.5), None, None),
    ],
)
def test_a_box_is_seen_in_the_middle_square(box: Any, size: Any, seen: Any) -> None:
    found = lookup.in_square(box, size)
    assert found == (None if seen is None else pytest.approx(seen))


@pytest.mark.parametrize(
    ("box", "text"),
    [
        ((0, 0, 0.5, 0.5), "upper left, 25 %"),
        ((0.5, 0.5, 0.5, 0.5), "lower right, 25 %"),
        ((0.25, 0.25, 0.5, 0.5), "middle, 25 %"),
        ((0.25, 0.0, 0.5, 0.4), "upper middle, 20 %"),
        ((0.0, 0.2, 0.4, 0.6), "middle left, 24 %"),
        (None, ""),
    ],
)
def test_a_place_in_words(box: Any, text: str) -> None:
    assert wording.placed(box) == text


def test_a_strip_of_pictures_ends_with_the_last_one_there_is() -> None:
    shots = table(corpus=["train"] * 2, id=["a", "c"], image=[b"\xff\xd8\xff"] * 2)
    groups = table(
        id=list("abcdxy"), group=[0] * 4 + [1] * 2, size=[4] * 4 + [2] * 2, exact=[1] * 6, duplication=["full"] * 6,
        captions=[[]] * 6,
    )  # fmt: skip
    assert page_data.collect({"groups": groups}, page_data.Previews(shots))["groups"]["img"] == [[0, None, 1], []]


def test_captions_come_from_the_row_or_else_from_another_table() -> None:
    generated = table(id=["g", "h"], match=["a", "b"], match_captions=[["own"], None], copied=[True, True])
    groups = table(id=["a", "b"], group=[0, 0], size=[2, 2], exact=[1, 1], captions=[["other"], ["other"]])
    found = page_data.collect({"generated": generated, "groups": groups}, page_data.Previews(None))
    assert found["gallery"]["captions"] == [["own"], ["other"]]
    risk = table(id=["b", "z"], action=["keep", "keep"], captions=[None, None])
    assert page_data.collect({"risk": risk, "groups": groups}, page_data.Previews(None))["risk"]["captions"] == [
        ["other"],
        [],
    ]


def test_previews_keep_to_their_budget_and_to_known_formats() -> None:
    jpeg = b"\xff\xd8\xff" + b"0" * 99
    shots = table(corpus=["train"] * 4, id=list("abcd"), image=[jpeg, b"<svg onload=x>", jpeg, jpeg])
    previews = page_data.Previews(shots, budget=400)
    assert [previews.place("train", one) for one in "abcadx"] == [0, None, 1, 0, None, None]
    assert previews.left_out == 1
    assert all(uri.startswith("data:image/jpeg;base64,") for uri in previews.uris)


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (wording.percent, 0.0042, "0.42 %"),
        (wording.percent, 1, "100 %"),
        (wording.percent, None, "–"),
        (wording.p_value, 3e-7, "< 0.0001"),
        (wording.p_value, 0.00123, "0.0012"),
        (wording.score, -0.4, "−0.400"),
        (wording.number, 12345, "12,345"),
        (wording.number, 0.0, "0"),
        (wording.number, float("nan"), "–"),
        (wording.interval, {"low": 1, "high": None}, ""),
        (wording.sentence, "no loose chains", "No loose chains."),
        (wording.sentence, "Cut at hubs.", "Cut at hubs."),
        (wording.sentence, None, ""),
    ],
)
def test_numbers_in_words(write: Callable[[Any], str], value: Any, text: str) -> None:
    assert write(value) == text


# Drawings


def test_drawings_take_their_colours_from_the_page() -> None:
    rng = np.random.default_rng(0)
    series = {"generated": rng.beta(4, 9, 300), "baseline": rng.beta(3, 9, 300), "held-out": rng.beta(3, 9, 300)}
    for drawing in (plots.histograms(series, 0.5), plots.tails(series, 0.5)):
        assert all(f"stroke-{role}" in drawing for role in ("generated", "baseline", "heldout"))
        assert ">threshold 0.5</text>" in drawing
        assert not re.search(r"#0102|style=|<style|#000000", drawing)


def test_drawings_with_nothing_to_draw_are_empty() -> None:
    nothing = np.array([])
    assert plots.histograms({"generated": nothing}, 0.5) == plots.tails({}, None) == plots.forest([]) == ""
    assert plots.scatter("entropy", "bits", np.array([np.nan]), np.array([1.0]), np.array([True])) == ""
    assert plots.forest([{"name": "x", "odds_ratio": {"value": None, "low": None, "high": None}}]) == ""


def test_scatter_draws_a_bounded_number_of_points() -> None:
    x = np.linspace(0, 1, 10_000)
    drawing = plots.scatter("entropy", "bits", x, x, x > 0.5)
    assert plots.MAX_POINTS < drawing.count("<use") <= 2 * plots.MAX_POINTS + 60
    assert "10,000 generated images" in drawing


def test_one_score_and_negative_scores_can_be_drawn() -> None:
    assert "generated, n = 1<" in plots.histograms({"generated": np.array([0.3])}, None)
    assert "<svg" in plots.tails({"generated": np.array([-0.4, 1.0, 1.0])}, 0.5)
