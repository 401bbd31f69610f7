"""Command `serve`."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from copyscope.errors import InputError
from copyscope.machine import cores

from .options import DecisionsFile, DeviceName, IndexFolder, TrustParts, Workers, read_decisions


def serve(
    folder: IndexFolder,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen at; others than this machine need a token.")
    ] = ("127.0.0.1"),
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 = any that is free.")] = 8321,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", metavar="FILE", help="File of the token that clients send; or COPYSCOPE_TOKEN."),
    ] = None,
    max_megabytes: Annotated[float, typer.Option("--max-megabytes", min=0.001, help="Largest image, as sent.")] = 20,
    max_megapixels: Annotated[float, typer.Option("--max-megapixels", min=0.001, help="The same, decoded.")] = 50,
    max_aspect: Annotated[
        float, typer.Option("--max-aspect", min=1, help="Longer side over shorter one, at most.")
    ] = 100,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="Longest time for one request.")] = 30,
    rate: Annotated[float, typer.Option("--rate", help="Share of unseen images that may be called copies.")] = 0.01,
    k: Annotated[int, typer.Option("-k", min=1, max=100, help="Matches an image.")] = 10,
    local: Annotated[
        bool, typer.Option("--local/--no-local", help="Look for copies in parts of the images too.")
    ] = True,
    queue: Annotated[int, typer.Option("--queue", min=0, help="Requests that may wait; beyond, clients get 503.")] = 16,
    decisions: DecisionsFile = None,
    trust_parts: TrustParts = False,
    workers: Workers = None,
    device: DeviceName = None,
) -> None:
    """Answer over HTTP: an image is posted to /check, its verdict and its matches come back.

    Ends on Ctrl-C or SIGTERM, once the requests under way are answered.
    """
    if not 0 < rate < 1:
        raise InputError(f"--rate is a share between 0 and 1, not {rate}.\nFor 1 % write --rate 0.01")
    from copyscope.detection.index.index import Index
    from copyscope.serve.app import Settings, run

    settings = Settings(
        host,
        port,
        _token(token_file),
        int(max_megabytes * 2**20),
        int(max_megapixels * 1e6),
        seconds,
        k,
        rate,
        local,
        workers or cores(),
        queue,
        max_aspect,
    )
    index = Index.open(folder, trust_parts=trust_parts, decisions=read_decisions(decisions))
    if not run(index, settings):
        # A thread that hangs in a library is not waited for.
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(0)


def _token(file: Path | None) -> str | None:
    """The token of a file, else of the environment, else none."""
    where = str(file or "COPYSCOPE_TOKEN")
    try:
        text = file.read_text(encoding="utf-8") if file else os.environ.get("COPYSCOPE_TOKEN")
    except (OSError, ValueError) as error:
        raise InputError(f"{where} cannot be read: {error}.\nName a file that holds the token") from None
    if text is None:
        return None
    if not re.fullmatch(r"[!-~]+", token := text.strip()):
        raise InputError(
            f"The token in {where} is empty, or holds a space or a letter beyond ASCII.\n"
            'Make one: python -c "import secrets; print(secrets.token_urlsafe())"'
        )
    return token
