"""Parse tar headers defensively: sizes and types are checked before they are used.

`tarfile` goes back and forth by the sizes that headers claim: one of -512 made it read the same header for ever. Here
every step goes forward, sizes are checked before they are used, and headers that extend others are bounded.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import Any, NamedTuple

BLOCK = 512
MAX_HEADER = 1 << 20
"""Bytes of a header that holds a long name or attributes (1 MiB)."""
MAX_HEADERS = 16
"""Headers that may stand before one member."""

_LONG_NAME, _LONG_LINK = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_ATTRIBUTES, _GLOBAL = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE), tarfile.XGLTYPE


class TarDamage(Exception):
    """Reason why no more members can be found, in a few words."""


class Member(NamedTuple):
    """A file in a tar: its name, and where its bytes are. The archive may end before they do."""

    name: str
    offset: int
    size: int


def members(file: Any, length: int) -> Iterator[Member]:
    """Regular files of a tar that is not compressed, in their order.

    Args:
        file: seekable.
        length: its bytes.

    Raises:
        TarDamage: the archive is damaged, cut short, or uses what no data set of images needs (sparse files).
    """
    position, n_headers = 0, 0
    name, size = "", -1
    while True:
        block = _read(file, position, BLOCK)
        if block == bytes(BLOCK):  # a whole archive ends in blocks of zeros
            return
        try:
            # Numbers, their base-256 form and the checksum as `tarfile` has them.
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.TarError, ValueError, OverflowError) as error:
            raise TarDamage(f"no tar: {error}" if position == 0 else "truncated or damaged header") from None
        position += BLOCK
        if header.size < 0:
            raise TarDamage(f"a member of {header.size} bytes")
        if header.type in (_LONG_NAME, _LONG_LINK, *_ATTRIBUTES, _GLOBAL):
            if header.size > MAX_HEADER or (n_headers := n_headers + 1) > MAX_HEADERS:
                raise TarDamage("headers without end")
            content = _read(file, position, header.size)
            position += _whole_blocks(header.size)
            if header.type == _LONG_NAME:
                name = content.partition(b"\0")[0].decode("utf-8", "surrogateescape")
            elif header.type in _ATTRIBUTES:
                name, size = _attributes(content, name, size)
            continue
        if header.type == tarfile.GNUTYPE_SPARSE:
            raise TarDamage("a sparse file, which is not read")
        header.size = header.size if size < 0 else size
        header.name = name or header.name
        name, size, n_headers = "", -1, 0
        # Links, folders and devices have no bytes, whatever they claim; what is of no known type is a file.
        if header.isreg() or header.type not in tarfile.SUPPORTED_TYPES:
            if header.isreg():
                yield Member(header.name, position, header.size)
            position += _whole_blocks(header.size)
            if position > length:
                raise TarDamage("truncated")


def _attributes(content: bytes, name: str, size: int) -> tuple[str, int]:
    r"""Name and size that the records of a POSIX header give, else those given.

    A record is `LENGTH KEY=VALUE\n`; they stand one after the other.
    """
    at = 0
    while at < len(content) and content[at]:
        digits, space, _ = content[at : at + 12].partition(b" ")
        if not space or not digits.isdigit() or not len(digits) + 2 < int(digits) <= len(content) - at:
            raise TarDamage("a damaged header of attributes")
        key, _, value = content[at + len(digits) + 1 : at + int(digits) - 1].partition(b"=")
        at += int(digits)
        if key == b"path":
            name = value.decode("utf-8", "surrogateescape")
        elif key == b"size":
            if not value.isdigit() or len(value) > 18:
                raise TarDamage("a member whose size is no number")
            size = int(value)
        elif key.startswith(b"GNU.sparse."):
            raise TarDamage("a sparse file, which is not read")
    return name, size


def _read(file: Any, position: int, size: int) -> bytes:
    file.seek(position)
    data = bytes(file.read(size))
    if len(data) < size:
        raise TarDamage("truncated")
    return data


def _whole_blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
