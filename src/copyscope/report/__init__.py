"""Render audit and lint results as one self-contained HTML page.

`render(audit)` and `render_lint(lint)` are pure functions: the same result gives the same bytes. A page loads nothing
and sends nothing (its Content-Security-Policy forbids both), and shows whatever the user's data holds as text.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from . import page_data, plots, wording
from .causes import causes
from .command import command

if TYPE_CHECKING:
    import jinja2

__all__ = ["Result", "render", "render_lint"]

#: In this order: what comes later uses what comes before.
SCRIPTS = ("page.js", "viewer.js", "lists.js")

#: Copies, or risk cards, that a page without scripts lists.
STATIC_ROWS = 50

#: Pairs that a page without scripts shows.
STATIC_PAIRS = 8

#: Repeated outputs that a page shows, and pictures of each.
REPEATS, OF_A_REPEAT = 20, 10


class Result(Protocol):
    """Protocol of a result that has a page, such as an Audit or a Lint."""

    @property
    def summary(self) -> Mapping[str, Any]:
        """The summary, JSON-safe."""

    @property
    def tables(self) -> dict[str, pa.Table]:
        """The tables by name; any may be empty or absent."""


def render(audit: Result) -> str:
    """Render an audit as an HTML page: text that holds everything the page needs.

    Parts that the audit lacks (held-out images, groups, a joint model, quality, previews) are said to be absent.
    """
    from markupsafe import Markup

    previews = page_data.Previews(audit.tables.get("thumbnails"))
    data = page_data.collect(audit.tables, previews, (audit.summary.get("protocol") or {}).get("threshold"))
    data["repeated"] = page_data.repeated(audit.summary, previews, REPEATS, OF_A_REPEAT)
    answer = str((audit.summary.get("verdict") or {}).get("answer"))
    look, sign = wording.ANSWERS.get(answer, wording.ANSWERS["cannot tell"])
    matches = [match for match, flag in zip(data["gallery"]["match"], data["gallery"]["copied"], strict=True) if flag]
    pairs = [_pair(data["gallery"], row, previews) for row in _with_pictures(data["gallery"])[:STATIC_PAIRS]]
    drawn = _scatters(audit.tables.get("complexity"), _units(audit.summary))
    return _page(
        "audit.html.j2",
        audit,
        data,
        previews,
        kind="audit",
        limits=wording.limits(audit.summary),
        actions=_actions(data["risk"], lambda _, times: wording.copies_said(sum(times), answer)),
        figures={name: Markup(figure) for name, figure in _figures(audit).items() if figure},
        scatters=[Markup(figure) for figure in drawn if figure],
        n_copied=len(matches),
        n_matches=len(set(matches)),
        causes=causes(data["risk"]),
        n_near=sum(data["gallery"]["near"]),
        near_level=wording.NEAR,
        static_pairs=pairs,
        worst=_worst(data["gallery"], previews),
        look=look,
        sign=sign,
        kinds=wording.kinds(audit.summary.get("sensitivity")),
        seen=wording.SEEN,
        out_of_reach=wording.out_of_reach(audit.summary.get("calibration") or {}),
        calibrators=wording.CALIBRATORS,
        repeats_shown=REPEATS,
        terms=wording.TERMS,
        section_terms=wording.SECTION_TERMS,
    )


def _with_pictures(gallery: Mapping[str, list[Any]]) -> list[int]:
    """Rows whose two images have previews, in the order of the page."""
    both = zip(gallery["img"], gallery["match_img"], strict=True)
    return [row for row, places in enumerate(both) if None not in places]


def _pair(gallery: Mapping[str, list[Any]], row: int, previews: page_data.Previews) -> dict[str, Any]:
    """A generated image and its match, as the page shows them without a script."""
    kept = {name: gallery[name][row] for name in ("id", "match", "score", "verified", "p_value")}
    shown = {name: previews.shown(gallery[name][row]) for name in ("img", "match_img")}
    return kept | shown | {"flagged": bool(gallery["copied"][row])}


def _worst(gallery: Mapping[str, list[Any]], previews: page_data.Previews) -> dict[str, Any] | None:
    """The first pair, large where there is a large picture; None where no pair can be shown."""
    row = next(iter(_with_pictures(gallery)), None)
    if row is None:
        return None
    found = _pair(gallery, row, previews) | {"row": row}
    for name, large, place in (("img", "img_large", "place"), ("match_img", "match_large", "match_place")):
        at = gallery[large][row] if gallery[large][row] is not None else gallery[name][row]
        found |= {place: at, name: previews.take(at)}
    return found


def render_lint(lint: Result) -> str:
    """Render a lint as an HTML page, of the same make as an audit's; it has no section on generated images."""
    previews = page_data.Previews(lint.tables.get("thumbnails"))
    data = page_data.collect(lint.tables, previews)
    actions = _actions(data["risk"], lambda action, _: wording.lint_said(action, lint.summary))
    titles = {one["action"]: one["title"] for one in actions}
    n_repeated = sum(size - 1 for size in data["groups"]["size"])
    static = zip(*(data["risk"][name][:STATIC_ROWS] for name in ("id", "action", "reason")), strict=True)
    return _page(
        "lint.html.j2",
        lint,
        data,
        previews,
        kind="lint",
        limits=wording.lint_limits(lint.summary),
        actions=[one | {"rest": n_repeated if one["action"] == "deduplicate" else 0} for one in actions],
        n_repeated=n_repeated,
        static_cards=[
            {"id": one, "action": titles.get(str(action), action), "reason": reason} for one, action, reason in static
        ],
        terms=wording.LINT_TERMS,
        section_terms=wording.LINT_SECTION_TERMS,
    )


def _page(template: str, result: Result, data: dict[str, Any], previews: page_data.Previews, **more: Any) -> str:
    """The page of `template`, given what all pages show and what only this one does (`more`)."""
    from markupsafe import Markup

    summary = result.summary
    style, script = _file("page.css"), _script()
    page = (
        _environment()
        .get_template(template)
        .render(
            s=summary,
            style=Markup(style),
            script=Markup(script),
            policy=_policy(style, script),
            data=Markup(page_data.embed(data | {"units": _units(summary)})),
            images=Markup(page_data.embed(previews.uris)),
            previews_left_out=previews.left_out,
            result_key=_key(summary),
            again=command(more["kind"], summary) if more["kind"] in ("audit", "lint") else "",
            recipe=json.dumps(summary.get("recipe") or {}, indent=2, ensure_ascii=False, sort_keys=True, default=str),
            action_filters=[(one["action"], one["title"].lower()) for one in more["actions"]],
            count={name: len(columns["id"]) for name, columns in data.items()},
            static_rows=STATIC_ROWS,
            **more,
        )
    )
    # File names may hold bytes that are no text (lone surrogates); the page must still be valid UTF-8.
    return page.translate(wording.VISIBLE).encode("utf-8", "replace").decode()


def _key(summary: Mapping[str, Any]) -> str:
    """Name of a result, under which the browser keeps the reader's marks."""
    said = [summary.get(name) for name in ("schema", "created", "protocol", "recipe")]
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _script() -> str:
    """The files of the page's script, in one scope of their own."""
    texts = "\n".join(_file(name) for name in SCRIPTS)
    return f'"use strict";\n(() => {{\n{texts}}})();\n'


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_file),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.ChainableUndefined,
    )
    for filter_ in (
        wording.number,
        wording.score,
        wording.percent,
        wording.p_value,
        wording.interval,
        wording.sentence,
        wording.placed,
    ):
        environment.filters[filter_.__name__] = filter_
    environment.filters["span"] = _span
    environment.tests["known"] = wording.is_number
    return environment


def _policy(style: str, script: str) -> str:
    """Content-Security-Policy: this script and this style sheet run, embedded images show, all else is forbidden."""
    style_hash, script_hash = (
        "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'" for text in (style, script)
    )
    return (
        f"default-src 'none'; img-src data:; style-src {style_hash}; script-src {script_hash}; "
        "base-uri 'none'; form-action 'none'"
    )


def _span(estimate: Any, start: float, stop: float) -> dict[str, float] | None:
    """Where an estimate and its interval lie on an axis from start to stop, in per cent of its length."""
    if not isinstance(estimate, Mapping):
        return None
    places = {
        key: round(100 * min(max((estimate[key] - start) / (stop - start), 0.0), 1.0), 2)
        for key in ("value", "low", "high")
        if wording.is_number(estimate.get(key))
    }
    if "low" not in places or "high" not in places:
        return None
    # An interval narrower than a hair would not be seen.
    found = {"low": places["low"], "width": max(round(places["high"] - places["low"], 2), 0.6)}
    return found | {"mark": places["value"]} if "value" in places else found


def _actions(risk: Mapping[str, list[Any]], said: Callable[[str, list[int]], str]) -> list[dict[str, Any]]:
    """Actions in a fixed order, each with how many cards it has; `said` tells more from their `times_copied`."""
    known = [*wording.ACTIONS, *sorted({str(action) for action in risk["action"]} - set(wording.ACTIONS))]
    found = []
    for action in known:
        times = [
            times or 0 for times, one in zip(risk["times_copied"], risk["action"], strict=True) if str(one) == action
        ]
        title, advice = wording.ACTIONS.get(action, (action, ""))
        if times:
            under = said(action, times)
            found.append({"action": action, "title": title, "advice": advice, "n": len(times), "under": under})
    return found


def _figures(audit: Result) -> dict[str, str]:
    table = audit.tables.get("histograms")
    names, scores = np.asarray(page_data.column(table, "series"), dtype=object), page_data.column(table, "score")
    values = np.asarray([np.nan if score is None else score for score in scores], dtype=np.float64)
    series = {name: values[names == name] for name in plots.SERIES}
    threshold = (audit.summary.get("protocol") or {}).get("threshold")
    joint = (audit.summary.get("findings") or {}).get("joint") or {}
    return {
        "histograms": plots.histograms(series, threshold),
        "tails": plots.tails(series, threshold),
        "forest": plots.forest(joint.get("effects") or []),
    }


def _units(summary: Mapping[str, Any]) -> dict[str, str]:
    """Unit of each measure, as an audit's findings or a lint name it."""
    found = (summary.get("findings") or {}).get("correlations") or []
    return {str(row.get("measure")): str(row.get("unit") or "") for row in found} | (summary.get("units") or {})


def _scatters(table: pa.Table | None, units: Mapping[str, str]) -> list[str]:
    """One drawing for each complexity measure in the table."""
    numbers = {name: _floats(table, name) for name in _measures(table)}
    copied = np.asarray([bool(flag) for flag in page_data.column(table, "copied")], dtype=bool)
    score = _floats(table, "score")
    return [
        plots.scatter(name.replace("_", " "), units.get(name, ""), values, score, copied)
        for name, values in numbers.items()
    ]


def _measures(table: pa.Table | None) -> list[str]:
    if table is None:
        return []
    numeric = [
        field.name for field in table.schema if pa.types.is_floating(field.type) or pa.types.is_integer(field.type)
    ]
    return [name for name in numeric if name != "score"]


def _floats(table: pa.Table | None, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray([np.nan if value is None else value for value in page_data.column(table, name)], dtype=np.float64)
