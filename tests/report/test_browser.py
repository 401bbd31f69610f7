"""The report in a real browser: it opens quietly, and its lists filter, sort, search and page."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from copyscope.curation.decisions import Decisions
from copyscope.report import lookup, render, render_lint, wording
from tests.audits import (
    HOSTILE,
    FakeResult,
    bare_audit,
    captions_of,
    digest_of,
    make_audit,
    make_lint,
    make_lookup,
    other_audit,
)

pytest_plugins = ("tests.browser",)
pytestmark = pytest.mark.browser


@pytest.fixture(scope="session")
def audit() -> FakeResult:
    return make_audit()


@pytest.fixture(scope="session")
def report(audit: FakeResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(audit, tmp_path_factory.mktemp("report"))


def save(audit: FakeResult, folder: Path) -> Path:
    path = folder / "report.html"
    path.write_text(render(audit), encoding="utf-8")
    return path


def choose(page: Any, name: str, field: str, value: str) -> None:
    control = page.locator(f'form[data-list="{name}"] [name="{field}"]')
    control.fill(value) if field == "q" else control.select_option(value)


def cards(page: Any, name: str = "gallery") -> list[str]:
    return page.locator(f"#{name}-rows > *").evaluate_all("cards => cards.map(card => card.dataset.id)")


def counted(page: Any, name: str = "gallery") -> str:
    return page.locator(f'form[data-list="{name}"] output').inner_text()


@pytest.mark.parametrize("size", ["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_opens_at_any_size_in_both_schemes(visit: Any, report: Path, size: str, scheme: str) -> None:
    page = visit(report, size, scheme).page
    assert page.locator("h1").inner_text().startswith("24 of 239 generated images")
    assert page.evaluate("document.documentElement.scrollWidth") == page.viewport_size["width"]
    lightness = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).reduce((a, b) => a + +b, 0) / 3"
    )
    assert (lightness < 60) == (scheme == "dark")
    for y in range(0, page.evaluate("document.body.scrollHeight"), 2000):
        page.evaluate(f"scrollTo(0, {y})")
    assert page.evaluate("[...document.images].filter(image => image.complete).every(image => image.naturalWidth > 0)")


def test_hostile_names_show_as_text_and_run_nothing(visit: Any, report: Path) -> None:
    page = visit(report).page
    choose(page, "gallery", "filter", "all")
    for text in HOSTILE[:6]:
        choose(page, "gallery", "q", text)
        card = page.locator("#gallery-rows > *").nth(cards(page).index(text))
        assert card.locator("figcaption bdi").first.text_content() == text
        assert text in card.locator(".said").first.text_content()
    assert page.evaluate("window.hacked") is None
    assert page.locator("#gallery-rows script, #gallery-rows [onerror]").count() == 0


def test_filter_sort_search_and_paging(visit: Any, report: Path, audit: FakeResult) -> None:
    page = visit(report).page
    table = audit.tables["generated"].to_pylist()
    assert counted(page) == "24 of 240"
    assert len(cards(page)) == 12
    first = cards(page)
    page.locator("#gallery-pager button", has_text="Next").click()
    assert set(first).isdisjoint(cards(page))
    assert page.locator("#gallery-pager").inner_text().split("\n")[1] == "Page 2 of 2"
    assert page.locator("#gallery-pager button", has_text="Next").is_disabled()

    choose(page, "gallery", "filter", "near")
    near = [
        row
        for row in table
        if not row["copied"] and row["error"] is None and (row["p_value"] <= 0.05 or row["score"] >= 0.5)
    ]
    assert counted(page) == f"{len(near)} of 240"

    choose(page, "gallery", "filter", "all")
    assert counted(page) == "240 in all"
    known = {row["id"].translate(wording.VISIBLE): row for row in table}
    choose(page, "gallery", "sort", "score")
    scores = [known[name]["score"] for name in cards(page)]
    assert scores == sorted((row["score"] for row in table if row["score"] is not None), reverse=True)[:12]
    choose(page, "gallery", "sort", "id")
    choose(page, "gallery", "q", "sample_0001")
    assert cards(page) == [f"sample_{i:05d}.png" for i in range(10, 20)]
    choose(page, "gallery", "q", "THING photo")
    assert counted(page) == f"{sum('photo of thing' in row['prompt'] for row in table)} of 240"
    choose(page, "gallery", "q", "no such image")
    assert cards(page) == [None]
    assert "Nothing matches." in page.locator("#gallery-rows").inner_text()
    page.locator('form[data-list="gallery"] [name="q"]').press("Enter")
    page.locator('form[data-list="gallery"]  [data-clear]').click()
    assert counted(page) == "24 of 240"


def test_overlay_and_difference(visit: Any, report: Path) -> None:
    page = visit(report).page
    assert page.locator("#gallery-rows .frame.both").count() == 0
    page.locator("label", has_text="Overlay").click()
    assert page.locator("#gallery-rows .frame.both.overlay").count() == 12
    upper = page.locator("#gallery-rows .upper").first
    assert upper.evaluate("image => image.style.opacity") == "0.5"
    page.locator("#gallery-rows input[type=range]").first.fill("80")
    assert upper.evaluate("image => image.style.opacity") == "0.8"
    page.locator("label", has_text="Difference").click()
    assert upper.evaluate("image => getComputedStyle(image).mixBlendMode") == "difference"
    boxes = (
        page.locator("#gallery-rows .frame.both")
        .first.locator("> *")
        .evaluate_all("all => all.map(one => JSON.stringify(one.getBoundingClientRect()))")
    )
    assert boxes[0] == boxes[1]


def test_no_column_is_cut_on_a_phone(visit: Any, report: Path) -> None:
    page = visit(report, "phone").page
    cut = "all => all.filter((one) => one.scrollWidth > one.clientWidth + 1).map((one) => one.ariaLabel)"
    assert page.locator(".scroll").count() > 3
    assert page.locator(".scroll").evaluate_all(cut) == []
    cell = page.locator("#similarity tbody tr").first.locator("td").nth(1)
    assert cell.evaluate("one => getComputedStyle(one, '::before').content") == '"mean"'


def test_the_viewer_enlarges_a_pair_and_follows_keys(visit: Any, report: Path) -> None:
    page = visit(report).page
    box = page.locator("#viewer")
    page.locator(".worst .zoom").first.click()
    assert box.is_visible()
    assert page.locator("#viewer-title").inner_text() == "Pair 1 of 24"
    first = cards(page)
    assert box.locator("figcaption bdi").first.text_content() == first[0]
    page.keyboard.press("ArrowRight")
    assert box.locator("figcaption bdi").first.text_content() == first[1]
    page.keyboard.press("d")
    assert box.locator(".frame.both.difference").count() == 1
    page.keyboard.press("s")
    assert box.locator(".frame.both.slider .upper").evaluate("one => one.style.clipPath") == "inset(0px 50% 0px 0px)"
    box.locator("input[type=range]").fill("80")
    assert box.locator(".upper").evaluate("one => one.style.clipPath") == "inset(0px 20% 0px 0px)"
    page.keyboard.press("ArrowLeft")  # on the slider
    assert page.locator("#viewer-title").inner_text() == "Pair 2 of 24"
    box.locator(".marker input").focus()
    page.keyboard.press("d")
    assert box.locator(".frame.slider").count() == 1, "typing a note is no key"
    page.keyboard.press("Escape")
    assert not box.is_visible()
    page.locator("#gallery-rows .zoom").nth(4).click()  # the third card: two buttons each
    assert page.locator("#viewer-title").inner_text() == "Pair 3 of 24"


def test_the_headline_leads_to_the_suspicious_images(visit: Any, report: Path) -> None:
    page = visit(report).page
    said = page.locator(".counts a").nth(1)
    n = said.locator(".num").inner_text()
    said.click()
    assert counted(page) == f"{n} of 240"
    assert set(page.locator("#gallery-rows .flag").all_inner_texts()) == {"◇ suspicious, not flagged"}


def test_a_link_holds_filter_sort_search_and_page(visit: Any, report: Path) -> None:
    page = visit(report).page
    choose(page, "gallery", "filter", "all")
    choose(page, "gallery", "sort", "id")
    choose(page, "gallery", "q", "sample")
    page.locator("#gallery-pager button", has_text="Next").click()
    seen, address = cards(page), page.evaluate("location.hash")
    assert address == "#gallery?q=sample&filter=all&sort=id&page=2"
    other = visit(report).page
    other.evaluate(f"location.hash = {address!r}")
    other.wait_for_function("document.querySelector('#gallery-pager span').textContent.startsWith('Page 2')")
    assert cards(other) == seen
    other.evaluate("location.hash = '#gallery?filter=nonsense&page=<b>'")
    other.wait_for_function("document.querySelector('#gallery-pager span').textContent.startsWith('Page 1')")
    assert counted(other) == "24 of 240"


def saved(page: Any, button: Any) -> str:
    with page.expect_download() as download:
        button.click()
    path: Path = download.value.path()
    return path.read_bytes().decode()


def test_rows_that_are_shown_are_saved_as_csv(visit: Any, report: Path, audit: FakeResult) -> None:
    page = visit(report).page
    choose(page, "gallery", "sort", "score")
    rows = list(csv.DictReader(io.StringIO(saved(page, page.locator("#gallery [data-csv]")))))
    assert [row["id"] for row in rows][:12] == cards(page)
    assert len(rows) == 24
    assert {"similarity", "pixel_score", "score", "p_value", "match", "suspicious"} <= rows[0].keys()
    known = {row["id"].translate(wording.VISIBLE): row for row in audit.tables["generated"].to_pylist()}
    assert float(rows[0]["similarity"]) == known[rows[0]["id"]]["score"]
    table = saved(page, page.locator("#similarity .save button"))
    assert table.startswith("Series,n,mean,std,p75")


def test_text_that_a_spreadsheet_would_run_is_saved_as_text(visit: Any, tmp_path: Path) -> None:
    audit = make_audit(40, 3)
    rows = audit.tables["generated"].set_column(1, "prompt", [["=1+1", '+2"', "-3,\n"] + ["fine"] * 37])
    page = visit(save(FakeResult(audit.summary, audit.tables | {"generated": rows}), tmp_path)).page
    found = csv.DictReader(io.StringIO(saved(page, page.locator("#gallery [data-csv]")), newline=""))
    assert {row["prompt"] for row in found} == {"'=1+1", "'+2\"", "'-3,\n"}


def image(corpus: str, name: str) -> dict[str, str]:
    return {"id": name, "sha256": digest_of(corpus, name)}


def test_marks_are_kept_and_saved_as_decisions(visit: Any, report: Path, tmp_path: Path) -> None:
    page = visit(report).page
    panel = page.locator("#gallery [data-marks]")
    assert not panel.is_visible()
    choose(page, "gallery", "q", "sample_0001")
    ids = cards(page)
    matches = page.locator("#gallery-rows figure:nth-child(2) figcaption bdi").all_text_contents()
    mark = page.locator("#gallery-rows .marker")
    mark.nth(0).get_by_role("button", name="Another picture").click()
    mark.nth(1).get_by_role("button", name="Licensed").click()
    mark.nth(1).get_by_role("textbox").fill("bought “2025”")
    mark.nth(2).get_by_role("textbox").fill("a note alone")
    mark.nth(3).get_by_role("button", name="The same picture").click()
    mark.nth(3).get_by_role("button", name="The same picture").click()
    assert panel.locator("[data-said]").inner_text() == (
        "2 marks of yours, and 1 note without a mark, which the file leaves out"
    )
    text = saved(page, panel.locator("[data-save]"))
    (tmp_path / "decisions.jsonl").write_text(text, encoding="utf-8")
    decisions = Decisions.read(tmp_path / "decisions.jsonl")
    assert [one.verdict for one in decisions.listed] == ["different", "licensed"]
    assert decisions.errors == ()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line.pop("when")[:2] for line in lines] == ["20", "20"]
    assert lines == [
        {"verdict": "different", "images": [image("generated", ids[0]), image("train", matches[0])]},
        {"verdict": "licensed", "images": [image("train", matches[1])], "why": "bought “2025”"},
    ]
    page.reload()
    choose(page, "gallery", "q", "sample_0001")
    pressed = page.locator("#gallery-rows [aria-pressed=true]")
    assert pressed.all_inner_texts() == ["Another picture", "Licensed: no harm"]
    assert page.locator("#gallery-rows .marker input").nth(2).input_value() == "a note alone"
    panel.locator("[data-forget]").click()
    assert pressed.count() == 0


def test_marks_of_groups_name_all_images(visit: Any, tmp_path: Path) -> None:
    path = tmp_path / "lint.html"
    path.write_text(render_lint(make_lint()), encoding="utf-8")
    page = visit(path).page
    page.locator("#groups-rows .marker").first.get_by_role("button", name="Another picture").click()
    line = json.loads(page.locator("#duplicates [data-marks] pre").text_content())
    groups = make_lint().tables["groups"].to_pylist()
    assert [one["id"] for one in line["images"]] == [row["id"].translate(wording.VISIBLE) for row in groups[:4]]
    assert line["verdict"] == "different"


def test_other_lists_and_the_links_between_them(visit: Any, report: Path) -> None:
    from playwright.sync_api import expect

    page = visit(report).page
    assert (counted(page, "groups"), counted(page, "risk"), counted(page, "failures")) == (
        "10 in all",
        "14 in all",
        "3 in all",
    )
    choose(page, "groups", "filter", "partial")
    assert cards(page, "groups") == ["1", "4", "7"]
    choose(page, "failures", "q", "not an image")
    assert page.locator("#failures-rows tr").count() == 1
    page.locator("#actions button", has_text="Show these cards").nth(1).click()
    assert counted(page, "risk") == "3 of 14"
    assert set(page.locator("#risk-rows .action").all_inner_texts()) == {"Recaption"}
    name = cards(page, "risk")[0]
    page.locator("#risk-rows button", has_text="Its copies").first.click()
    assert page.locator('form[data-list="gallery"] [name="q"]').input_value() == name
    assert counted(page) != "0 of 240"
    page.locator("#gallery-rows button", has_text="Its group").first.click()
    assert counted(page, "groups") == "1 of 10"
    details = page.locator("details[data-action=keep]")
    details.locator("summary").click()
    expect(details.locator("pre")).to_have_text(re.compile(r"^(train/img_\d+\.jpg\s?){6}$"))


def test_theme_button_goes_round_and_is_remembered(visit: Any, report: Path) -> None:
    page = visit(report).page
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    page.locator("#theme").click()
    assert page.evaluate(colour) == light
    page.locator("#theme").click()
    assert page.locator("#theme").inner_text() == "Theme: dark"
    assert page.evaluate(colour) != light


def test_without_scripts_the_verdict_and_the_copies_are_there(visit: Any, report: Path) -> None:
    page = visit(report, scripts=False).page
    assert page.locator("h1").is_visible()
    assert page.locator("noscript tbody tr").count() == 24
    shots = page.locator("noscript img, .worst img")
    assert shots.count() == 18
    assert shots.evaluate_all("all => all.every(one => one.complete && one.naturalWidth > 0)")
    assert not page.locator("form.controls, .pager, #theme").filter(visible=True).count()


@pytest.mark.parametrize(
    "make", [bare_audit, lambda: make_audit(40, 0), lambda: FakeResult({}, {})], ids=["bare", "clean", "void"]
)
@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_poor_audits_open(visit: Any, make: Callable[[], FakeResult], size: str, tmp_path: Path) -> None:
    page = visit(save(make(), tmp_path), size).page
    assert page.locator("h1").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == page.viewport_size["width"]


def test_ten_thousand_images_open_and_only_one_page_is_built(visit: Any, tmp_path: Path) -> None:
    page = visit(save(make_audit(10_000, 1_500, 100), tmp_path)).page
    choose(page, "gallery", "filter", "all")
    assert counted(page) == "10,000 in all"
    choose(page, "gallery", "q", "sample_09876")
    assert cards(page) == ["sample_09876.png"]
    assert page.locator("article").count() < 60


def test_measures_carry_the_units_of_the_findings(visit: Any, report: Path) -> None:
    page = visit(report).page
    assert "entropy, bits" in page.locator("#risk-rows dt").all_inner_texts()
    assert page.locator("#why .scatters").text_content().count("entropy (bits)") == 1


def test_a_prompt_stands_beside_the_captions_of_the_training_image(visit: Any, report: Path) -> None:
    page = visit(report).page
    name = "train/img_00013.jpg"  # behind fewer than three cards
    choose(page, "gallery", "q", captions_of("train/" + HOSTILE[5])[0])
    card = page.locator("#gallery-rows > *").first
    said = card.locator(".compare > .said")
    assert said.count() == 2
    assert said.nth(0).inner_text().startswith("Prompt")
    assert captions_of("train/" + HOSTILE[5])[0] in said.nth(1).inner_text()
    boxes = [said.nth(place).bounding_box() for place in (0, 1)]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    choose(page, "risk", "q", captions_of(name)[0])
    assert captions_of(name)[0] in page.locator("#risk-rows > *").first.locator(".compare").inner_text()


@pytest.mark.parametrize("size", ["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_lint_page_opens_and_its_lists_work(visit: Any, size: str, scheme: str, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    path = tmp_path / "lint.html"
    path.write_text(render_lint(make_lint()), encoding="utf-8")
    page = visit(path, size, scheme).page
    assert page.locator("h1").inner_text().startswith("30 of 247")
    assert page.evaluate("document.documentElement.scrollWidth") == page.viewport_size["width"]
    assert (counted(page, "groups"), counted(page, "risk"), counted(page, "failures")) == (
        "10 in all",
        "14 in all",
        "2 in all",
    )
    assert page.locator("#risk .times").count() == 0
    assert "entropy, nats" in page.locator("#risk-rows dt").all_inner_texts()
    page.locator("#actions button", has_text="Show these cards").last.click()
    assert counted(page, "risk") == "6 of 14"
    assert set(page.locator("#risk-rows .action").all_inner_texts()) == {"Recaption"}
    page.locator("#actions button", has_text="Show these cards").first.click()
    page.locator("#risk-rows button", has_text="Its group").first.click()
    assert counted(page, "groups") == "1 of 10"
    choose(page, "failures", "q", "not an image")
    assert page.locator("#failures-rows tr").count() == 1
    page.locator("details[data-action=rest] summary").click()
    rest = page.locator("details[data-action=rest] pre")
    expect(rest).not_to_be_empty()
    groups = make_lint().tables["groups"].to_pylist()
    expected = [row["id"].translate(wording.VISIBLE) for place, row in enumerate(groups) if place % 4]
    assert rest.text_content() == "\n".join(expected)


def test_lint_page_without_scripts_lists_the_cards(visit: Any, tmp_path: Path) -> None:
    path = tmp_path / "lint.html"
    path.write_text(render_lint(make_lint()), encoding="utf-8")
    page = visit(path, scripts=False).page
    assert page.locator("noscript tbody tr").count() == 14
    assert page.locator("noscript tbody tr").first.inner_text().split("\t")[1] == "Deduplicate"


def test_links_lead_to_the_card_of_the_group_where_the_match_has_none(visit: Any, tmp_path: Path) -> None:
    audit = make_audit(60, 24)
    name, other = f"train/{HOSTILE[5]}", "train/img_00040.jpg"  # one in a group whose other members have cards
    risk = audit.tables["risk"]
    kept = [row["id"] != name for row in risk.to_pylist()]
    generated = audit.tables["generated"]
    matches = [*generated["match"].to_pylist()[:-2], other, None]
    generated = generated.set_column(generated.column_names.index("match"), "match", [matches])
    page = visit(
        save(FakeResult(audit.summary, audit.tables | {"risk": risk.filter(kept), "generated": generated}), tmp_path)
    ).page
    choose(page, "gallery", "q", name)
    ids = cards(page)
    assert len(ids) == 3
    page.locator("#gallery-rows button", has_text="Risk card of the match").first.click()
    (card,) = cards(page, "risk")
    assert card != name
    page.locator("#risk-rows button", has_text="Its copies").first.click()
    assert set(ids) < set(cards(page))
    choose(page, "gallery", "q", other)
    assert cards(page) != [None]
    assert page.locator("#gallery-rows button", has_text="Risk card of the match").count() == 0


@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_a_lookup_draws_boxes_where_they_are(visit: Any, tmp_path: Path, size: str) -> None:
    path = tmp_path / "report.html"
    path.write_text(lookup.render(make_lookup()), encoding="utf-8")
    page = visit(path, size).page
    assert page.evaluate("document.documentElement.scrollWidth") == page.viewport_size["width"]
    assert (counted(page, "pictures"), len(cards(page, "pictures"))) == ("40 in all", 12)

    def box(card: int, figure: int, part: str) -> dict[str, float]:
        found: dict[str, float] = (
            page.locator("#pictures-rows > *").nth(card).locator(".pair").first.locator("figure").nth(figure)
            .locator(part).first.evaluate("one => one.getBoundingClientRect().toJSON()")
        )  # fmt: skip
        return found

    picture, line = box(0, 0, "image"), box(0, 0, "rect.line")
    # Twice as wide as high, so that a square frame leaves room above and below; the line is 2.5 pixels wide.
    assert picture["width"] == pytest.approx(2 * picture["height"], abs=0.1)
    assert line["left"] == pytest.approx(picture["left"] + picture["width"] / 2, abs=2)
    assert line["width"] == pytest.approx(picture["width"] / 2, abs=3)
    assert line["top"] == pytest.approx(picture["top"] + picture["height"] / 4, abs=2)
    source, part = box(3, 1, "image"), box(3, 1, "rect.line")
    assert source["width"] == pytest.approx(source["height"], abs=0.1)
    assert part["width"] == pytest.approx(source["width"] / 2, abs=3)
    assert page.locator("#pictures-rows > *").nth(6).locator(".pair svg").count() == 0
    first = page.locator("#pictures-rows > *").first
    assert (
        first.locator("svg").first.get_attribute("aria-label")
        == f"picture {HOSTILE[0]}, middle right, 25 % of it in a box"
    )
    assert first.locator(".why").inner_text() == "Fills a part of the picture: middle right, 25 %."
    first.locator("summary", has_text="The next 2 matches").click()
    assert first.locator(".next-match").count() == 2
    assert first.locator(".next-match bdi").first.text_content() == f"train/{HOSTILE[2]}"
    assert page.evaluate("document.documentElement.scrollWidth") == page.viewport_size["width"]
    for wanted, n in (("flagged", 6), ("boxed", 3), ("failed", 2)):
        choose(page, "pictures", "filter", wanted)
        assert counted(page, "pictures") == f"{n} of 40"
    assert "truncated file" in page.locator("#pictures-rows").inner_text()
    choose(page, "pictures", "filter", "all")
    choose(page, "pictures", "q", "picture_37")
    assert "no preview" in page.locator("#pictures-rows").inner_text()
    assert page.evaluate("window.hacked") is None


def test_a_lookup_without_scripts_is_still_a_table(visit: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(lookup.render(make_lookup()), encoding="utf-8")
    page = visit(path, scripts=False).page
    assert page.locator("noscript tbody tr").count() == 40


@pytest.mark.parametrize("size", ["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("answer", ["suspicious", "cannot tell", "likeness"])
def test_other_answers_open_at_any_size(visit: Any, tmp_path: Path, answer: str, size: str, scheme: str) -> None:
    page = visit(save(other_audit(answer), tmp_path), size, scheme).page
    assert page.locator(".answer").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == page.viewport_size["width"]


def test_suspicious_is_louder_than_cannot_tell(visit: Any, tmp_path: Path) -> None:
    def ground(answer: str) -> str:
        page = visit(save(other_audit(answer), tmp_path)).page
        found: str = page.locator(".answer").evaluate("one => getComputedStyle(one).backgroundColor")
        return found

    assert ground("suspicious") != ground("cannot tell")


def test_flags_and_filters_follow_the_answer(visit: Any, tmp_path: Path) -> None:
    page = visit(save(other_audit("suspicious"), tmp_path)).page
    assert counted(page) == "6 of 40"
    assert set(page.locator("#gallery-rows .flag").all_inner_texts()) == {"◆ suspicious"}
    page = visit(save(other_audit("likeness"), tmp_path)).page
    for wanted, n, said in (
        ("likeness", 2, "likeness: the same subject, not the same picture"),
        ("blank", 1, "blank: one colour, set apart"),
        ("copies", 6, "■ copy"),
    ):
        choose(page, "gallery", "filter", wanted)
        assert counted(page) == f"{n} of 40"
        assert set(page.locator("#gallery-rows .flag").all_inner_texts()) == {said}


def test_ticked_look_alikes_become_a_list_of_ids(visit: Any, report: Path, audit: FakeResult) -> None:
    page = visit(report).page
    assert counted(page, "look-alikes") == "30 in all"
    ids = [row["id"] for row in audit.tables["look_alikes"].to_pylist()]
    assert cards(page, "look-alikes") == ids[:12]
    assert page.locator("#look-alikes-rows img").count() == 24
    picked = page.locator("#look-alikes-list")
    assert not picked.is_visible()
    page.locator("#look-alikes-rows input").nth(3).check()
    page.locator("#look-alikes-rows input").nth(0).check()
    page.locator("#look-alikes-pager button", has_text="Next").click()
    page.locator("#look-alikes-rows input").nth(2).check()
    assert picked.inner_text() == "\n".join([ids[0], ids[3], ids[14]])
    assert page.locator("#look-alikes-said").inner_text() == "3 images to leave out:"
    page.locator("#look-alikes-pager button", has_text="Previous").click()
    assert page.locator("#look-alikes-rows input").nth(3).is_checked(), "a tick stays when pages turn"
    page.locator("#look-alikes-rows input").nth(3).uncheck()
    assert picked.inner_text() == "\n".join([ids[0], ids[14]])
    choose(page, "look-alikes", "sort", "verified")
    assert cards(page, "look-alikes")[0] == ids[-1]
    assert page.evaluate("window.hacked") is None


def test_repeated_outputs_show_their_pictures(visit: Any, report: Path) -> None:
    page = visit(report).page
    assert page.locator("#repeated .strip img").count() == 4
    assert page.locator("#repeated .strip img").first.get_attribute("src").startswith("data:image/webp;base64,")
