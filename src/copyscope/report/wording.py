"""Words of the report: numbers as text, technical terms explained.

Wording follows the field's glossary: a caption belongs to a training image, a prompt to a generated one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

ABSENT = "–"

#: For `str.translate`: control characters, and those that turn the direction of writing, would hide what a name holds
#: (`gnp.exe` after U+202E reads `exe.png`). They show as the replacement character.
VISIBLE = {
    code: "\ufffd"
    for code in [*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
    if chr(code) not in "\t\n"
}

#: Technical word -> plain words. Sections of the page list the ones they use.
TERMS = {
    "replication": "a generated image reproduces the content of a training image.",
    "replication rate": "the share of readable generated images that are flagged as copies.",
    "corrected rate": "an estimate of the true share of copies: the flagged share, corrected for copies that are not "
    "seen and for false alarms. Both were measured. Without held-out or control images false alarms cannot be "
    "measured; then there is only an upper bound, which counts them as copies.",
    "sensitivity": "of copies of training images that were made on purpose (planted), altered in one way, the share "
    "that is flagged. Where it is small, silence says little about copies of that kind.",
    "likeness": "a generated image that is nearer to the training set than images of the base model are, but no nearer "
    "than training images are to one another: the same subject, not the same picture. It counts apart.",
    "held-out images": "real images of the same kind that the model was not trained on: no image of theirs is a copy.",
    "control images": "images that the base model made from the same prompts, before it saw the training images.",
    "look-alike": "a calibration image that scores as high as a light copy of a training image does. If it shows the "
    "same picture, it keeps copies from standing out; if it shows another one, it shows how alike chance gets.",
    "95 % interval": "the range that holds the true value in 95 of 100 such audits. Unreadable images count "
    "against the model: the upper end is what would hold had every one of them been a copy.",
    "n": "how many images a number rests on.",
    "similarity": "how alike two whole images are to a network trained to recognise edited copies: 1 is the same "
    "image, values near 0 are unrelated. Higher means more alike; it is not a probability.",
    "pixel score": "a second look, pixel by pixel, with the two images laid over each other: 1 is the same picture.",
    "score": "similarity and pixel score taken together; the verdict orders images by it.",
    "p-value": "how often an image that is no copy would score at least this high. A small value is hard to explain "
    "without copying.",
    "false discovery rate (FDR)": "of the images flagged as copies, the share expected to be flagged wrongly.",
    "near-duplicate group": "training images that show practically the same picture. Group size 1 means that an image "
    "has no such neighbour.",
    "next best": "the most alike training image outside the match's own near-duplicate group. It shows how alike "
    "ordinary, unrelated images get.",
    "generated → train": "for each generated image, its highest similarity to any training image.",
    "baseline (train → train)": "for each training image, its highest similarity to another training image outside its "
    "own near-duplicate group: ordinary resemblance inside the data set.",
    "held-out → train": "for each real image not trained on, its highest similarity to any training image.",
    "control → train": "for each image of the base model, its highest similarity to any training image.",
    "threshold": "the fixed line that the protocol draws on the similarity. It is a convention from the "
    "literature; the verdict rests on the calibration.",
    "std": "standard deviation: how widely the scores are spread.",
    "p75, p90, p95": "percentiles: 75, 90 or 95 of 100 images score below this value.",
    "exact": "images of the group that agree in every pixel.",
    "full duplication": "the same image comes back with the same caption.",
    "partial duplication": "the same image comes back with differing captions.",
    "uncaptioned": "the images of the group carry no captions.",
    "Pearson": "correlation along a straight line, from -1 to 1; 0 is no relation.",
    "Spearman": "correlation of the ranks, from -1 to 1: does one rise whenever the other does?",
    "odds ratio": "by how much the odds of being copied multiply when a cause grows by one standard deviation (SD) and "
    "all other causes stay as they are. 1 is no effect. The odds are those of one generated image whose prompt is a "
    "caption of the training image; where prompts are no training captions, those of being copied by any image.",
    "entropy": "how varied the grey values of an image are: flat pictures have little.",
    "JPEG size": "how much space the image needs as a JPEG: busy images need more.",
    "total variation": "how much neighbouring pixels differ, summed over the image.",
    "mixed": "entropy times the square root of the JPEG size, a measure of complexity from the literature.",
    "times copied": "how many of the generated images were flagged as copies of this training image.",
    "caption sharing": "how many other training images carry the same, or nearly the same, caption.",
    "group-aware": "the same test, comparing with the second-nearest group rather than the second-nearest image.",
    "blind": "the test sees fewer than half of the copies of that group size.",
    "Fréchet distance": "how far the generated images as a whole lie from the training images as a whole; lower is "
    "closer. Comparable only inside one descriptor's space.",
    "precision and recall": "precision: the share of generated images that look like training data; recall: the share "
    "of the training data's variety that is reached.",
    "diversity": "mean dissimilarity between two images of the same set; higher is more varied.",
    "text-image alignment": "how well generated images fit their prompts.",
}

#: Which words the note of a section explains, in the order of the section.
SECTION_TERMS = {
    "verdict": [
        "replication",
        "replication rate",
        "corrected rate",
        "95 % interval",
        "n",
        "p-value",
        "false discovery rate (FDR)",
        "held-out images",
        "control images",
        "sensitivity",
        "likeness",
    ],
    "gallery": ["similarity", "pixel score", "score", "p-value", "near-duplicate group", "next best"],
    "similarity": [
        "generated → train",
        "baseline (train → train)",
        "held-out → train",
        "control → train",
        "threshold",
        "std",
        "p75, p90, p95",
    ],
    "look-alikes": ["look-alike", "similarity", "pixel score", "score", "near-duplicate group"],
    "duplicates": ["near-duplicate group", "exact", "full duplication", "partial duplication", "uncaptioned"],
    "why": ["Pearson", "Spearman", "odds ratio", "p-value", "entropy", "JPEG size", "total variation", "mixed"],
    "risk": [
        "times copied",
        "caption sharing",
        "near-duplicate group",
        "entropy",
        "JPEG size",
        "total variation",
        "mixed",
    ],
    "tests": ["group-aware", "blind", "near-duplicate group"],
    "quality": ["Fréchet distance", "precision and recall", "diversity", "text-image alignment"],
}

#: The same for the page of a lint, where some words mean something else.
LINT_TERMS = TERMS | {
    "repeats": "the images of a near-duplicate group beyond the first.",
    "95 % interval": "the range that holds the true share in 95 of 100 such data sets. Unreadable images count in its "
    "upper end as if each of them repeated another one.",
}

LINT_SECTION_TERMS = {
    "summary": ["repeats", "95 % interval", *SECTION_TERMS["duplicates"], "caption sharing"],
    "duplicates": SECTION_TERMS["duplicates"],
    "risk": [term for term in SECTION_TERMS["risk"] if term != "times copied"],
}

#: Action -> (what it is called, what to do), in the order they are shown.
ACTIONS = {
    "deduplicate": ("Deduplicate", "Keep one image of the near-duplicate group, or lower the weight of the others."),
    "recaption": ("Recaption", "Give the image several, more general captions, so that no single text calls it up."),
    "drop": (
        "Drop",
        "Take the image out of the training set: neither duplication nor its caption explains the copying.",
    ),
    "review": (
        "Review",
        "Compare the training image with the generated ones. Leave it out if it may not be copied at all.",
    ),
    "keep": ("Keep", "Nothing to do: no generated image copies this image."),
}

#: Answer -> (class of its look, sign before it).
ANSWERS = {
    "copies": ("bad", "■"),
    "suspicious": ("loud", "◆"),
    "no copies found": ("good", "●"),
    "cannot tell": ("open", "▲"),
}

#: Method of calibration -> what its images are called.
CALIBRATORS = {
    "held-out": "real images not trained on (held-out)",
    "controls": "images of the base model (controls)",
    "baseline": "the training set itself (baseline)",
}

#: Kind of planted copy -> (what it is called, what was done to the picture).
KINDS = {
    "light": ("Light copy", "softened, noise, a shift of a few pixels, JPEG: as a model reproduces a picture"),
    "crop": ("Crop", "60 to 75 % of each side, JPEG"),
    "mirror": ("Mirrored", "left and right exchanged, hues turned"),
    "recolour": ("Recoloured", "grey, or colour channels exchanged"),
    "overlay": ("Covered", "a fifth covered by one colour"),
    "rotate": ("Turned", "by 10 degrees or a quarter turn"),
    "part": ("Part of another picture", "set at a quarter of the area into another picture"),
}

#: Kinds of which so large a share must be seen before silence means anything.
MUST_SEE, SEEN = ("light", "crop"), 0.8

#: Said of animations and documents, on every page that compares files.
FRAMES = "Frames of an animation (GIF, WebP, APNG) and pages of a TIFF after the first: the first stands for the file."

#: p-value of images that are not flagged, yet are worth a look. Of images that copy nothing, this share has it.
NEAR = 0.05

#: What no audit of this kind tests.
UNTESTED = (
    "Other prompts, seeds and settings. A prompt chosen to call up a training image can give another rate.",
    "Training images outside the given set, such as those of the base model that was fine-tuned.",
    "Style, a person's likeness, trade marks. Looking alike in style is not replication and is not measured here.",
    FRAMES,
)


#: What no look at a data set alone can tell.
LINT_UNTESTED = (
    "Any model. What it copies also depends on how it is trained and prompted: run copyscope audit on its images.",
    "Whether look-alikes are one picture. In a set of one style, such as icons, different ones can form a group.",
    "Repeats of a part only: an object, face or logo that comes back in otherwise different pictures.",
    "Training images outside the given set, such as those of the base model that is to be fine-tuned.",
    FRAMES,
)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a finite number, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any) -> str:
    """Number with three significant digits; whole numbers in full; a dash where it is not known."""
    if not is_number(value):
        return ABSENT
    if isinstance(value, int) or (value == int(value) and abs(value) >= 1000):
        return f"{int(value):,}"
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.2e}"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", "−")


def score(value: Any) -> str:
    """Score or correlation with three decimals."""
    return f"{value:.3f}".replace("-", "−") if is_number(value) else ABSENT


def sentence(text: Any) -> str:
    """Make a text a sentence: a capital first, a full stop last."""
    said = str(text or "").strip()
    return said[:1].upper() + said[1:] + ("" if said.endswith((".", "!", "?")) or not said else ".")


def percent(value: Any) -> str:
    """Share as per cent, finer for small shares: 0.0042 -> `0.42 %`."""
    if not is_number(value):
        return ABSENT
    share = 100 * value
    digits = 0 if share in (0, 100) else 2 if abs(share) < 1 or abs(share) > 99 else 1
    return f"{share:.{digits}f} %".replace("-", "−")


def p_value(value: Any) -> str:
    """p-value with three or four decimals, or `< 0.0001`."""
    if not is_number(value):
        return ABSENT
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}" if value < 0.01 else f"{value:.3f}"


def placed(box: Any) -> str:
    """Place and area of a box in words: `upper left, 25 %`.

    Args:
        box: left, top, width, height, in shares of the picture; None = the whole picture, said by nothing.
    """
    if not box:
        return ""
    left, top, width, height = box
    # Windows are half as wide as the picture, so that their middles lie between a quarter and three quarters.
    across, down = left + width / 2, top + height / 2
    words = "upper" if down < 0.4 else "lower" if down > 0.6 else "middle"
    side = "left" if across < 0.4 else "right" if across > 0.6 else "middle"
    return f"{words if words == side else f'{words} {side}'}, {100 * width * height:.0f} %"


def interval(estimate: Any, style: str = "number") -> str:
    """Interval of an estimate: `0.39 to 0.43`, or nothing where none is known."""
    if not isinstance(estimate, Mapping):
        return ""
    low, high = estimate.get("low"), estimate.get("high")
    if not (is_number(low) and is_number(high)):
        return ""
    write = {"number": number, "score": score, "percent": percent}[style]
    return f"{write(low)} to {write(high)}"


def copies_said(n: int, answer: str) -> str:
    """Phrase for the number of copies, or suspicious images as the answer says, of an action's training images."""
    one, more = ("suspicious image", "suspicious images") if answer == "suspicious" else ("copy", "copies")
    if not n:
        return f"No {more} among the generated images."
    return f"{number(n)} {one if n == 1 else more} among the generated images."


def out_of_reach(calibration: Mapping[str, Any]) -> str:
    """Sentence on why no image can be called a copy by its score: the line lies below the least p-value there is.

    Args:
        calibration: of an audit's summary.

    Returns:
        "" where images can be called copies.
    """
    line, n = calibration.get("line"), calibration.get("n")
    # The least p-value is that of an image that scores above all calibration images.
    if not (is_number(line) and is_number(n)) or 1 / (n + 1) <= line * (1 + 1e-12):
        return ""
    return (
        f"No image can be called a copy by its score: that takes a p-value of {p_value(line)} or less, and with "
        f"{number(n)} calibration images the least there can be is {p_value(1 / (n + 1))}."
    )


def kinds(sensitivity: Any) -> list[dict[str, Any]]:
    """Rows of the table of planted copies: kind, its name, what was done, the Estimate, and whether it must be seen."""
    found = []
    for kind, estimate in (sensitivity or {}).items():
        name, done = KINDS.get(kind, (kind, ""))
        found.append({"kind": kind, "name": name, "done": done, "estimate": estimate, "must": kind in MUST_SEE})
    return found


def lint_said(action: str, summary: Mapping[str, Any]) -> str:
    """Phrase for what the records of an action stand for, before training."""
    found = summary.get("duplicates") or {}
    n_groups, n_images = found.get("n_groups"), found.get("n_images_in_groups")
    if action == "deduplicate" and is_number(n_groups) and is_number(n_images):
        can_go = f"{number(n_images - n_groups)} can go. Look at the groups first."
        return f"One card a group. The groups hold {number(n_images)} images; {can_go}"
    if action == "recaption":
        return "One card an image. They have no near-duplicates."
    return ""


def limits(summary: Mapping[str, Any]) -> dict[str, list[str]]:
    """Sentences on what an audit tested and what it did not."""
    protocol = summary.get("protocol") or {}
    n, n_train = number(summary.get("n_generated")), number(summary.get("n_train"))
    tested = [f"Each of {n} generated against each of {n_train} training images, whole to whole, {_by(protocol)}."]
    tested += searched(summary)
    if protocol.get("verify"):
        tested.append(f"The best candidates once more, pixel by pixel after alignment: {protocol['verify']}.")
    tested.append("Near-duplicate training images as one group, so that frequent images do not hide their own copies.")
    looked = summary.get("parts") or {}
    if looked.get("looked"):
        tested.append(f"Parts of the pictures too, such as grids and insets. {sentence(looked.get('why'))}".strip())
    sensitivity = summary.get("sensitivity") or {}
    if sensitivity:
        tested.append(
            f"What would be seen: planted copies of training images in {len(sensitivity)} kinds, "
            f"{number(sum(one['n'] for one in sensitivity.values()))} in all, judged as generated images are."
        )
    untested = list(UNTESTED)
    if part := sensitivity.get("part"):
        untested.append(
            f"Copies of a part only, as far as they are missed: of planted ones at a quarter of the area "
            f"{percent(part['value'])} were seen. A smaller object, face or logo is easily missed."
        )
    else:
        untested.append(
            "Copies of a part only: an object, face or logo placed small in a new picture is easily missed."
        )
    if not sensitivity:
        untested.append("How many copies would be seen. Without that number, silence is no proof.")
    recipe = summary.get("recipe") or {}
    if not recipe.get("held_out") and not recipe.get("control"):
        untested.append(
            "Images that are no copies for certain. Neither held-out nor control images were given, so the training "
            "set's own resemblances stand in for them, and the verdict is not calibrated."
        )
    missing, missing_train = summary.get("n_missing") or 0, summary.get("n_missing_train") or 0
    if missing:
        untested.append(
            f"{number(missing)} generated {'image' if missing == 1 else 'images'} could not be read. They count "
            "against the model in the upper end of the rate's interval."
        )
    if missing_train:
        untested.append(
            f"{number(missing_train)} training {'image' if missing_train == 1 else 'images'} could not be read; "
            "a copy of one of them would not be seen."
        )
    untested.append("The law. This page is a measurement; whether a copy infringes a right is for counsel to say.")
    return {"tested": tested, "untested": untested}


CAPTIONS_COUNTED = (
    " Those of the images with a card are looked for among all; how many images share one is told by the share of "
    "100,000 drawn at random."
)


def lint_limits(summary: Mapping[str, Any]) -> dict[str, list[str]]:
    """Sentences on what a lint looked at and what it did not."""
    n, measured, missing = (summary.get(name) for name in ("n_train", "n_measured", "n_missing"))
    by = _by(summary.get("protocol") or {})
    tested = [
        f"Each of {number(n)} training images against each other one, whole to whole, {by}.",
        *searched(summary),
        "Images that agree in every pixel, by their decoded pixels and not by their files.",
        "Captions against each other: the same words, and nearly the same words."
        + (CAPTIONS_COUNTED if (summary.get("search") or {}).get("method") == "cells" else ""),
        f"How plain the pictures are, on {number(measured)} images without near-duplicates and one image a group.",
    ]
    untested = list(LINT_UNTESTED)
    if missing:
        images = "image" if missing == 1 else "images"
        untested.append(f"{number(missing)} {images} that could not be read: what repeats them would not be seen.")
    return {"tested": tested, "untested": untested}


def searched(summary: Mapping[str, Any]) -> list[str]:
    """Sentence on what is missed where not all training images were searched; nothing where they were."""
    search = summary.get("search") or {}
    if search.get("method") != "cells":
        return []
    recall = search["recall"]
    share = f"{percent(recall['value'])} (95 % interval {interval(recall, 'percent')})"
    said = (
        f"They are too many to look at all: only the nearest of {number(search['cells'])} cells were searched, which "
    )
    return [f"{said}finds the nearest training image of {share} of a sample of {number(recall['n'])}."]


def _by(protocol: Mapping[str, Any]) -> str:
    return f"by the descriptor {protocol['descriptor']}" if protocol.get("descriptor") else "by the descriptor"
