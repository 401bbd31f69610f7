"""Charts as SVG: scales, places, marks, and text that cannot become an element."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copyscope.report import charts, experiment, leaderboard
from copyscope.report.charts import Chart, Key, Panel, around, linear, logarithmic, rows, short, stairs, steps


def drawn(chart: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(chart.svg("title", "description"))


def panel(name: str = "x", **options: str) -> tuple[Chart, Panel]:
    chart = Chart(name, 400, 300, [Key("one", "copy")])
    return chart, chart.panel(linear(0, 1), linear(0, 10), "across", "up", **options)


def places(drawing: ElementTree.Element, tag: str) -> list[tuple[float, float]]:
    return [(float(each.get("x", "")), float(each.get("y", ""))) for each in drawing.iter(tag)]


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 1, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (-0.2, 1, ["-0.2", "0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (-2, 102, ["0", "20", "40", "60", "80", "100"]),
        (3, 3, ["2.6", "2.8", "3", "3.2", "3.4"]),
        (0, 5e-324, ["-0.4", "-0.2", "0", "0.2", "0.4"]),
    ],
)
def test_linear_ticks_are_round(low: float, high: float, labels: list[str]) -> None:
    assert [label for _, label in linear(low, high).ticks] == labels


@given(st.floats(-1e12, 1e12), st.floats(-1e12, 1e12))
def test_ticks_of_any_range_lie_on_the_axis(low: float, high: float) -> None:
    scale = around([low, high])
    assert 2 <= len(scale.ticks) <= 8
    assert all(-1e-6 <= scale.at(value) <= 1 + 1e-6 for value, _ in scale.ticks)
    assert 0 <= scale.at(low) <= 1


@pytest.mark.parametrize(
    ("low", "high", "between", "labels"),
    [
        (0.01, 1.2, (), ["0.01", "0.1", "1"]),
        (0.3, 7, (2, 5), ["0.5", "1", "2", "5"]),
        (1e-6, 1e6, (), ["1e-06", "0.0001", "0.01", "1", "100", "10000", "1e+06"]),
        (3, 4, (), ["3", "4"]),
    ],
)
def test_logarithmic_ticks(low: float, high: float, between: tuple[int, ...], labels: list[str]) -> None:
    scale = logarithmic(low, high, between=between)
    assert [label for _, label in scale.ticks] == labels
    assert scale.at(low) == 0
    assert scale.at(high) == pytest.approx(1)


def test_points_lie_where_the_axes_say() -> None:
    chart, axes = panel()
    left, bottom = axes.at(0, 0)
    right, top = axes.at(1, 10)
    assert axes.at(0.25, 5) == pytest.approx((left + (right - left) / 4, (bottom + top) / 2))
    assert 0 < left < right < 400
    assert 0 < top < bottom < 300
    axes.marks([(0.25, 5), (float("nan"), 1)], "circle", "copy")
    assert places(drawn(chart), "use") == [pytest.approx(axes.at(0.25, 5), abs=0.01)]


def test_rows_go_from_top_to_bottom() -> None:
    chart = Chart("x", 400, 300)
    axes = chart.panel(linear(0, 1), rows(["first", "second"]), names=True)
    assert axes.at(0, 0)[1] < axes.at(0, 1)[1]
    assert {"first", "second"} < {each.text for each in drawn(chart).iter("text")}


def test_the_last_label_of_an_axis_is_not_cut_off() -> None:
    chart = Chart("x", 400, 300)
    axes = chart.panel(linear(0, 1, lambda value: f"{value:g} of very many"), linear(0, 1))
    label = axes.x.ticks[-1][1]
    assert axes.at(1, 0)[0] + len(label) * charts.SIZE * 0.3 < 400


def test_a_line_leaves_out_what_is_not_finite_and_stays_within_the_axes() -> None:
    chart, axes = panel()
    axes.line([(0, 0), (0.5, float("inf")), (1, 10)], "copy")
    line = list(drawn(chart).iter("polyline"))[-1]
    assert len(line.get("points", "").split()) == 2
    clip = line.get("clip-path", "")
    assert f'id="{clip[5:-1]}"' in chart.svg("", "")


def test_ids_start_with_the_name_and_each_reference_has_its_own() -> None:
    chart = Chart("name", 400, 300, [Key("a", "copy", mark="star"), Key("b", "ink", width=0, mark="square")], panels=2)
    for _ in range(2):
        axes = chart.panel(linear(0, 1), linear(0, 1))
        axes.marks([(0.5, 0.5)], "star", "copy")
        axes.line([(0, 0), (1, 1)], "copy")
    text = chart.svg("title", "description")
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(set(ids)) == len(ids)
    assert all(each.startswith("name-") for each in ids)
    assert set(re.findall(r'(?:href="#|url\(#)([\w-]+)', text)) < set(ids)


def test_text_is_no_markup_and_has_no_control_characters() -> None:
    chart, axes = panel()
    axes.upright(0.5, "ink", "</text><script>&\x00\x1b[2J\u202e")
    text = chart.svg('"><b>', "a\x07<i>")
    ElementTree.fromstring(text)
    assert not re.search("<script|<b>|<i>|[\x00-\x1f\u202e]", text)
    assert "&lt;/text&gt;&lt;script&gt;&amp;??[2J?" in text


def test_style_is_in_attributes_and_colours_are_roles() -> None:
    chart, axes = panel(grid="xy")
    axes.level(5, "muted", "half")
    axes.level(5, "muted", "half", at_left=True)
    axes.area([(0, 0), (1, 0), (1, 1)], "copy", 0.2)
    axes.label((0.5, 5), "here")
    axes.label((0.5, float("inf")), "nowhere")
    text = chart.svg("title", "description")
    assert "style=" not in text
    assert "nowhere" not in text
    assert set(re.findall(r"(?:fill|stroke)-(ink|muted|rule|copy)", text)) == {"ink", "muted", "rule", "copy"}
    assert not re.search(r'(?:fill|stroke)="#', text)


def test_a_long_legend_goes_on_in_a_second_line() -> None:
    few, many = (Chart("x", 400, 300, [Key("a name of some length", "copy")] * n) for n in (2, 9))
    assert many._top > few._top + 15
    right = [x for x, _ in places(ElementTree.fromstring(many.svg("", "")), "text")]
    assert max(right) < 400


@pytest.mark.parametrize("letter", ["a", "概"])
def test_long_names_are_cut(letter: str) -> None:
    assert short(letter * 20) == letter * 20
    cut = short(letter * 100)
    assert cut.endswith("…")
    assert len(cut) == {"a": 42, "概": 26}[letter]


def test_stairs_and_steps() -> None:
    assert stairs([0, 1, 2], [3, 4]) == [(0, 0.0), (0, 3), (1, 3), (1, 4), (2, 4), (2, 0.0)]
    points = [(0.0, 1.0), (2.0, 5.0)]
    assert steps(points, before=True) == [(0, 1), (0, 5), (2, 5)]
    assert steps(points, before=False) == [(0, 1), (2, 1), (2, 5)]
    assert steps([], before=True) == []


def test_the_frontier_leaves_out_rows_without_numbers() -> None:
    known = {"fewer_copies": {"value": 0.5}, "excess": {"value": 0.1}}
    plain = {"label": "plain", "stage": "plain", "frontier": True, **known}
    unknown = plain | {"label": "b", "stage": "both", "frontier": False, "excess": {"value": None}}
    drawing = leaderboard.frontier([plain, unknown])
    # One in the legend of each, one in the axes.
    assert drawing.count("<use") == 3
    assert leaderboard.frontier([]) == ""


def test_arms_in_any_script_are_drawn_with_their_names() -> None:
    rate = {"value": 0.2, "low": 0.1, "high": 0.4, "n": 50}
    forest = experiment._forest([{"name": "概要 <b>", "estimates": {"replication_rate": rate}}])
    assert ">概要 &lt;b&gt;</text>" in forest
    points = [{"arm": "a", "step": step, "value": 0.2, "low": 0.1, "high": 0.3} for step in (0, 100)]
    curves = experiment._curves([*points, {"arm": "a", "step": 200, "value": None}], {"a": "概要"})
    assert ">概要</text>" in curves
    assert curves.count("<use") == 3
