"""An AUTOMATIC1111 (or Forge) extension: no picture is shown or saved that `copyscope serve` calls a copy.

Put this file into extensions/copyscope/scripts/ of the web UI and start it anew, with a service running:

    copyscope serve train.index

A copy becomes a black picture, and so does what was not checked: no service, an error, too few calibration images to
tell. The console and the line below the pictures say which. From the environment, so that no request can change them:
COPYSCOPE_URL (else http://127.0.0.1:8321), COPYSCOPE_TOKEN, and COPYSCOPE_PASS_UNKNOWN=1 to show what was not checked.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import urllib.error
import urllib.request

from modules import scripts
from PIL import Image


def judge(picture: Image.Image) -> tuple[bool, str]:
    """Whether a picture may be shown, and what was found, in words.

    Raises KeyError, TypeError or IndexError where the answer is not one of the service: it may not be shown then.
    """
    url = os.environ.get("COPYSCOPE_URL", "http://127.0.0.1:8321").rstrip("/")
    token = os.environ.get("COPYSCOPE_TOKEN")
    unknown_pass = os.environ.get("COPYSCOPE_PASS_UNKNOWN") == "1"
    headers = {"Content-Type": "image/png"} | ({"Authorization": f"Bearer {token}"} if token else {})
    file = io.BytesIO()
    picture.convert("RGB").save(file, "png", compress_level=1)
    # Straight to the service: a proxy that the environment names would be shown every picture.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        request = urllib.request.Request(f"{url}/check", file.getvalue(), headers)
        with opener.open(request, timeout=60) as response:
            answer = json.load(response)
    except urllib.error.HTTPError as error:
        return unknown_pass, f"not checked: {url} answers {error.code}, {error.read(500).decode(errors='replace')}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        return unknown_pass, f"not checked: {url} gives no answer ({error}); is `copyscope serve` running?"
    if answer["schema"] != "copyscope.check/1":
        raise KeyError(f"{url} is not a service of Copyscope")
    if answer["copy"] is False:
        return True, "no copy"
    if answer["copy"] is None:
        return unknown_pass, f"cannot tell: too few calibration images for a rate of {answer['rate']:g}"
    return False, f"a copy of {answer['matches'][0]['id']}, p = {answer['p_value']:.2g}"


class Copyscope(scripts.Script):
    """Looks up every picture of a call of the web UI or of its API."""

    def title(self):
        return "Copyscope"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def postprocess_image(self, p, pp, *args):
        # Older web UIs do not know the later hook.
        if not hasattr(scripts.Script, "postprocess_image_after_composite"):
            check(p, pp)

    def postprocess_image_after_composite(self, p, pp, *args):
        check(p, pp)


def check(p, pp):
    """Replaces `pp.image` by a black one of its size, unless it may be shown."""
    # First of all: the web UI goes on after an exception, with what is there.
    picture, pp.image = pp.image, Image.new("RGB", pp.image.size)
    shown, said = judge(picture)
    if shown:
        pp.image = picture
    print(f"Copyscope: {said}{'' if shown else '; replaced by a black picture'}")
    if not shown:
        p.comment(f"Copyscope: {said}")
