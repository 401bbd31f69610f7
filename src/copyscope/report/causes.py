"""Copied training images counted by what may explain the copying, in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Kind of cause -> what a person would say of such an image, in the order they are shown.
KINDS = {
    "full": "The picture is in the set several times, each time with the same caption.",
    "partial": "The picture is in the set several times, with different captions.",
    "uncaptioned": "The picture is in the set several times, without captions.",
    "caption": "The picture is there once, and hardly any other picture has its caption.",
    "unknown": "The picture is there once, and its caption is common or missing: no cause is known.",
}


def kind_of(action: str, duplication: str | None, group_size: int | None) -> str:
    """Kind of cause of a copied training image: the first that applies, as its risk card decides the action.

    Args:
        action: of its risk card.
        duplication: of its near-duplicate group.
        group_size: of the group; 1 or None = it has no near-duplicates.
    """
    if (group_size or 1) > 1 and duplication in KINDS:
        return str(duplication)
    return "caption" if action == "recaption" else "unknown"


def causes(risk: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """One row a kind that occurs: what is said of it, training images, generated images that copy them, and the share.

    Args:
        risk: the page's columns of risk cards.
    """
    found: dict[str, list[int]] = {}
    columns = (risk[name] for name in ("times_copied", "action", "duplication", "group_size"))
    for times, action, duplication, size in zip(*columns, strict=True):
        if times:
            found.setdefault(kind_of(str(action), duplication, size), []).append(times)
    n = sum(map(len, found.values()))
    return [
        {"said": said, "n_train": len(found[kind]), "n_copies": sum(found[kind]), "share": len(found[kind]) / n}
        for kind, said in KINDS.items()
        if kind in found
    ]
