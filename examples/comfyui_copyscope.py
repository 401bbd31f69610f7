"""A ComfyUI node: images in, images out, those black that `copyscope serve` calls copies, and the verdicts as text.

Put this file into custom_nodes/ and start ComfyUI anew, with a service running:

    copyscope serve train.index

Add *Copyscope* behind VAE Decode, before everything that saves or previews. What was not checked is black too: no
service, an error, too few calibration images to tell. The text says which, a line an image. From the environment, so
that no workflow can change them or send pictures elsewhere: COPYSCOPE_URL (else http://127.0.0.1:8321),
COPYSCOPE_TOKEN, and COPYSCOPE_PASS_UNKNOWN=1 to let through what was not checked.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import urllib.error
import urllib.request

import torch
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


class Copyscope:
    """The node. images: float [n h w c], 0 to 1."""

    CATEGORY = "image"
    FUNCTION = "check"
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("image", "verdicts")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",)}}

    @classmethod
    def IS_CHANGED(cls, image):
        # Never like itself: what the service says of the same image may be another thing next time.
        return float("nan")

    def check(self, image):
        # Filled with what may be shown; an exception ends the workflow.
        found, verdicts = torch.zeros_like(image), []
        for row, each in enumerate(image):
            pixels = (each[..., :3].clamp(0, 1) * 255).round().byte().cpu().numpy()
            shown, said = judge(Image.fromarray(pixels))
            if shown:
                found[row] = each
            verdicts.append(said if shown else f"{said}; replaced by a black image")
        return found, "\n".join(verdicts)


NODE_CLASS_MAPPINGS = {"Copyscope": Copyscope}
NODE_DISPLAY_NAME_MAPPINGS = {"Copyscope": "Copyscope"}
