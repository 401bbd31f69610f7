"""An audit as one self-contained HTML page.

`render(audit)` is a pure function of the audit: the same audit gives the same bytes. The page loads nothing and sends
nothing (its Content-Security-Policy forbids both), and shows whatever the user's data holds as text.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from . import plots, rows, wording

if TYPE_CHECKING:
    import jinja2

__all__ = ["Auditlike", "render"]

#: Copies that a page without scripts lists.
STATIC_COPIES = 50


class Auditlike(Protocol):
    """What the report needs of an audit; `copyscope.copying.audit.Audit` is one."""

    @property
    def summary(self) -> dict[str, Any]:
        """The audit's summary, JSON-safe."""

    @property
    def tables(self) -> dict[str, pa.Table]:
        """The audit's tables by name; any may be empty or absent."""


def render(audit: Auditlike) -> str:
    """The audit as an HTML page: text that holds everything the page needs.

    Parts that the audit lacks (held-out images, groups, a joint model, quality, previews) are said to be absent.
    """
    from markupsafe import Markup

    summary = audit.summary
    previews = rows.Previews(audit.tables.get("thumbnails"))
    data = rows.collect(audit.tables, previews)
    actions = _actions(data["risk"])
    style, script = _file("page.css"), _file("page.js")
    page = _template().render(
        s=summary,
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
        data=Markup(rows.embed(data)),
        images=Markup(rows.embed(previews.uris)),
        previews_left_out=previews.left_out,
        recipe=json.dumps(summary.get("recipe") or {}, indent=2, ensure_ascii=False, sort_keys=True, default=str),
        limits=wording.limits(summary),
        actions=actions,
        action_filters=[(one["action"], one["title"].lower()) for one in actions],
        figures={name: Markup(figure) for name, figure in _figures(audit).items() if figure},
        scatters=[Markup(figure) for figure in _scatters(audit.tables.get("complexity")) if figure],
        n_copied=sum(data["gallery"]["copied"]),
        n_matches=len(
            {match for match, copied in zip(data["gallery"]["match"], data["gallery"]["copied"], strict=True) if copied}
        ),
        count={name: len(columns["id"]) for name, columns in data.items()},
        static_copies=STATIC_COPIES,
        terms=wording.TERMS,
        section_terms=wording.SECTION_TERMS,
    )
    # File names may hold bytes that are no text (lone surrogates); the page must still be valid UTF-8.
    return page.translate(wording.VISIBLE).encode("utf-8", "replace").decode()


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


@functools.cache
def _template() -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_file),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.ChainableUndefined,
    )
    for filter_ in (wording.number, wording.score, wording.percent, wording.p_value, wording.interval):
        environment.filters[filter_.__name__] = filter_
    environment.filters["span"] = _span
    environment.tests["known"] = wording.is_number
    return environment.get_template("page.html.j2")


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


def _actions(risk: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Actions in a fixed order, each with how many training images and how many copies it concerns."""
    known = [*wording.ACTIONS, *sorted({str(action) for action in risk["action"]} - set(wording.ACTIONS))]
    found = []
    for action in known:
        times = [
            times or 0 for times, one in zip(risk["times_copied"], risk["action"], strict=True) if str(one) == action
        ]
        title, advice = wording.ACTIONS.get(action, (action, ""))
        if times:
            found.append({"action": action, "title": title, "advice": advice, "n": len(times), "copies": sum(times)})
    return found


def _figures(audit: Auditlike) -> dict[str, str]:
    table = audit.tables.get("histograms")
    names, scores = np.asarray(rows.column(table, "series"), dtype=object), rows.column(table, "score")
    values = np.asarray([np.nan if score is None else score for score in scores], dtype=np.float64)
    series = {name: values[names == name] for name in plots.SERIES}
    threshold = (audit.summary.get("protocol") or {}).get("threshold")
    joint = (audit.summary.get("findings") or {}).get("joint") or {}
    return {
        "histograms": plots.histograms(series, threshold),
        "tails": plots.tails(series, threshold),
        "forest": plots.forest(joint.get("effects") or []),
    }


def _scatters(table: pa.Table | None) -> list[str]:
    """One drawing for each complexity measure in the table."""
    units = {"entropy": "bits", "jpeg_size": "bytes"}
    numbers = {name: _floats(table, name) for name in _measures(table)}
    copied = np.asarray([bool(flag) for flag in rows.column(table, "copied")], dtype=bool)
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
    return np.asarray([np.nan if value is None else value for value in rows.column(table, name)], dtype=np.float64)
