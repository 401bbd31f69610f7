"""Named protocols: descriptor, preprocessing and thresholds under one name."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from typing import Any

from copyscope import parts
from copyscope.detection.descriptors import Descriptor
from copyscope.errors import MissingExtra, PartError


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A named way to make similarities comparable.

    Attributes:
        name: of the protocol.
        descriptor: the part's spec, preprocessing included.
        threshold: similarity above which the literature says "replication".
        duplicates: similarity from which two training images are near-duplicates.
        about: one sentence.
    """

    name: str
    descriptor: str
    threshold: float
    duplicates: float
    about: str

    def load(self) -> Descriptor:
        """Load the descriptor."""
        part: Descriptor = parts.load("descriptors", self.descriptor)
        return part


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "sscd-288",
            "sscd",
            0.5,
            0.75,
            "SSCD as its authors use it: shorter side 288, ImageNet statistics (beyond 4:1 squeezed to 4:1: up to .02 "
            "off); 0.75 = 90 % precision on DISC",
        ),
        Protocol(
            "sscd-distilled",
            "sscd_distilled",
            0.5,
            0.75,
            "the packaged student of SSCD: several times faster, for a first look or a very large set",
        ),
        Protocol(
            "dcr-2023",
            "sscd(size=256, crop=224, norm='half')",
            0.5,
            0.75,
            "Somepalli et al. 2023 as their code runs it: resize 256, crop 224, mean and deviation 0.5",
        ),
        Protocol(
            "membench",
            "sscd(square=True)",
            0.5,
            0.75,
            "MemBench: 288 x 288 whatever the aspect, ImageNet statistics",
        ),
    )
}


def protocol(name: str) -> Protocol:
    """Protocol of a name, or an unnamed one of a descriptor spec such as "phash" or "sscd(size=320)".

    Raises:
        PartError: it is neither.
    """
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    try:
        descriptor = str(parts.load("descriptors", name))
    except PartError as error:
        close = difflib.get_close_matches(name, PROTOCOLS, 1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        raise PartError(
            f"{name!r} is neither a protocol nor a descriptor: {str(error).splitlines()[0]}\n"
            f"{hint}Protocols: {', '.join(PROTOCOLS)}; descriptors: {', '.join(parts.names('descriptors'))}"
        ) from None
    return Protocol(descriptor, descriptor, 0.5, 0.9 if descriptor.startswith(("phash", "pdq", "clip")) else 0.75, "")


def catalogue(shelf: str | None = None) -> dict[str, list[dict[str, Any]]]:
    """List the protocols and the parts of every shelf.

    Args:
        shelf: only this one; None = all.

    Returns:
        {shelf: [{name, spec, about}]}. A mitigation has besides: `hook`, the name of its base class; `stages`, where it
        acts; `needs`. A signal has `needs`.

    Raises:
        PartError: there is no such shelf.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for name in [shelf] if shelf else ["protocols", *parts.SHELVES]:
        if name == "protocols":
            found[name] = [
                {"name": each.name, "spec": f"{each.descriptor}, threshold {each.threshold:g}", "about": each.about}
                for each in PROTOCOLS.values()
            ]
            continue
        found[name] = [_entry(name, part) for part in parts.names(name)]
    return found


def _entry(shelf: str, name: str) -> dict[str, Any]:
    try:
        cls: Any = parts.part_class(shelf, name)
    except MissingExtra as error:
        return {"name": name, "spec": name, "about": " ".join(str(error).splitlines())}
    about = " ".join((inspect.getdoc(cls) or "").partition("\n\n")[0].split())
    if about.endswith((",", ":")):  # A list follows.
        about = f"{about[:-1]} ..."
    entry: dict[str, Any] = {"name": name, "spec": parts.signature(cls, name), "about": about}
    if hasattr(cls, "stages"):
        entry |= {"hook": parts.base(cls, shelf), "stages": list(cls.stages)}
    if hasattr(cls, "needs"):
        entry["needs"] = list(cls.needs)
    return entry
