"""The gate of a release: what --fail-over, --fail-on and --allow-cannot-tell let pass, and with which exit code."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import copyscope
from copyscope import Corpus
from copyscope.cli import main
from copyscope.cli.options import EXIT_CANNOT_TELL, EXIT_COPIES, FailOn, gate
from copyscope.errors import InputError
from copyscope.imaging import images
from tests import worlds

FAST = ["-p", "phash", "--sensitivity", "40"]
ANSWERS = ("copies", "suspicious", "no copies found", "cannot tell")


def summary(answer, rate, high, method="held-out", n=100):
    """What the gate reads of an audit."""
    return {
        "calibration": {"method": method, "line": 0.02, "n": n},
        "verdict": {"answer": answer},
        "replication_rate": {"value": rate, "low": 0.0, "high": 1.0, "n": 100},
        "estimated_rate": {"value": rate, "low": 0.0, "high": high, "n": 100},
    }


def code_of(*given, **options):
    """Exit code of the gate; 0 where it lets pass."""
    try:
        gate(*given, **options)
    except typer.Exit as stop:
        return stop.exit_code
    return 0


@pytest.mark.parametrize(
    ("answer", "rate", "high", "fail_on", "allow", "code"),
    [
        ("copies", 0.2, 0.4, "rate", False, EXIT_COPIES),
        ("copies", 0.2, 0.4, "rate", True, EXIT_COPIES),
        ("copies", 0.05, 0.4, "rate", False, 0),
        ("copies", 0.05, 0.4, "upper", False, EXIT_COPIES),
        ("copies", 0.05, 0.1, "upper", False, 0),
        ("no copies found", 0.0, 0.04, "rate", False, 0),
        ("no copies found", 0.0, 0.04, "upper", False, 0),
        ("cannot tell", 0.0, 1.0, "rate", False, EXIT_CANNOT_TELL),
        ("cannot tell", 0.0, 1.0, "upper", False, EXIT_CANNOT_TELL),
        ("cannot tell", None, 1.0, "rate", False, EXIT_CANNOT_TELL),
        ("cannot tell", 0.0, 1.0, "rate", True, 0),
        ("cannot tell", None, 1.0, "upper", True, 0),
        ("suspicious", 0.05, 0.9, "rate", False, EXIT_CANNOT_TELL),
        ("suspicious", 0.05, 0.9, "upper", False, EXIT_CANNOT_TELL),
        ("suspicious", 0.2, 0.9, "rate", False, EXIT_COPIES),
        ("suspicious", 0.2, 0.9, "rate", True, EXIT_COPIES),
        ("suspicious", 0.05, 0.9, "rate", True, 0),
    ],
)
def test_exit_codes_of_the_gate(answer, rate, high, fail_on, allow, code, capsys):
    assert code_of(summary(answer, rate, high), 0.1, FailOn(fail_on), allow) == code
    said = capsys.readouterr().err
    assert ("--fail-over" in said) == (code == EXIT_COPIES)
    assert ("--allow-cannot-tell" in said) == (code == EXIT_CANNOT_TELL)
    if code == EXIT_CANNOT_TELL:
        assert repr(answer) in said


def test_a_gate_stays_shut_where_only_identical_files_can_be_called_copies(capsys):
    """One identical file among images that no score can call copies is no known rate."""
    for blind in ({"method": "baseline"}, {"n": 38}):
        for fail_on in FailOn:
            found = summary("copies", 0.03, 0.6, **blind)
            assert code_of(found, 0.05, fail_on, False) == EXIT_CANNOT_TELL
            assert "So the gate stays shut" in capsys.readouterr().err
            assert code_of(found, 0.05, fail_on, True) == 0
            # Where even the upper end is below the limit, the gate may open.
            assert code_of(found, 0.6, fail_on, False) == 0
        assert code_of(summary("copies", 0.2, 0.6, **blind), 0.05, FailOn.rate, True) == EXIT_COPIES


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("fail_on", list(FailOn))
def test_a_corrected_rate_known_to_be_above_passes_nowhere(answer, fail_on):
    """Two of 42 images found, and 20.8 to 63.7 % at least: more copies must not open the gate."""
    found = summary(answer, 0.048, 0.637)
    found["estimated_rate"]["low"] = 0.208
    for allow in (True, False):
        assert code_of(found, 0.05, fail_on, allow) == EXIT_COPIES
        assert code_of(found, 0.7, fail_on, allow) in (0, EXIT_CANNOT_TELL)


def test_a_rate_on_the_line_passes():
    assert code_of(summary("copies", 0.1, 0.1), 0.1, FailOn.rate, False) == 0
    assert code_of(summary("copies", 0.1, 0.1), 0.1, FailOn.upper, False) == 0


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("fail_on", list(FailOn))
def test_the_gate_opens_without_a_word_only_where_the_answer_is_known(answer, fail_on):
    opened = code_of(summary(answer, 0.0, 0.0), 0.5, fail_on, False) == 0
    assert opened == (answer in ("copies", "no copies found"))


# The whole command


def run(*arguments):
    runner = CliRunner()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["copyscope", *map(str, arguments)])
        found = runner.invoke(main.app, list(map(str, arguments)))
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.exit_code, found.stdout, found.stderr


@pytest.fixture(scope="module")
def faint(tmp_path_factory):
    """A world whose copies are not the same pixels: what stands in for held-out images cannot prove them."""
    return worlds.world(tmp_path_factory.mktemp("faint"), 120, 40, 60, kinds=("blur", "jpeg"), duplicates=(), seed=8)


def answer_of(stdout):
    return json.loads(stdout)["verdict"]["answer"]


def test_copies_found_exit_3_and_below_the_rate_0(world):
    audit = ["audit", world.generated, world.train, "--held-out", world.held_out, *FAST, "--json"]
    code, stdout, stderr = run(*audit, "--fail-over", 0.01)
    assert (code, answer_of(stdout)) == (EXIT_COPIES, "copies")
    assert "replication rate is" in stderr
    assert run(*audit, "--fail-over", 1)[0] == 0
    assert run(*audit, "--fail-over", 0.9, "--fail-on", "rate")[0] == 0


def test_five_images_do_not_open_the_gate(faint, tmp_path):
    """Five images, none of them a copy: the gate of before was green."""
    for name in [name for name, source in faint.truth.items() if source is None][:5]:
        (tmp_path / name).write_bytes((faint.generated / name).read_bytes())
    audit = ["audit", tmp_path, faint.train, "--held-out", faint.held_out, *FAST, "--fail-over", 0.5]
    code, _, stderr = run(*audit)
    assert code == EXIT_CANNOT_TELL
    assert "'cannot tell'" in stderr
    assert run(*audit, "--allow-cannot-tell")[0] == 0


def test_an_unknown_rate_does_not_open_the_gate_either(faint, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"")
    audit = ["audit", tmp_path, faint.train, *FAST, "--fail-over", 1]
    assert run(*audit)[0] == EXIT_CANNOT_TELL
    assert run(*audit, "--allow-cannot-tell")[0] == 0
    assert run(*audit, "--allow-cannot-tell", "--strict")[0] == 1


def test_without_fail_over_no_answer_stops(faint):
    said = {"title": "Release 3", "model": "m@1", "note": "Before the gate."}
    options = [each for name, text in said.items() for each in (f"--{name}", text)]
    code, stdout, _ = run("audit", faint.generated, faint.train, *FAST, "--json", *options)
    assert code == 0
    about = json.loads(stdout)["about"]
    assert {name: about[name] for name in said} == said
    assert [each["set"] for each in about["sets"]] == ["generated", "train"]
    assert all(len(each["digest"]) == 64 for each in about["sets"])


def test_a_rate_that_is_none_is_refused(faint):
    with pytest.raises(Exception, match="share between 0 and 1"):
        run("audit", faint.generated, faint.train, "--fail-over", 5)
    assert run("audit", faint.generated, faint.train, "--fail-on", "lower")[0] == 2


@pytest.mark.parametrize("options", [["--allow-cannot-tell"], ["--fail-on", "upper"]])
def test_options_of_the_gate_are_refused_without_it(faint, options):
    with pytest.raises(InputError, match="--fail-over"):
        run("audit", faint.generated, faint.train, *FAST, *options)


def test_controls_that_are_training_images_are_said(faint, tmp_path):
    """As where the fine-tuning was left on."""
    for name in sorted(path.name for path in faint.train.glob("*.png"))[:3]:
        (tmp_path / f"own-{name}").write_bytes((faint.train / name).read_bytes())
    for path in sorted(faint.held_out.glob("*.png")):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    n = len(list(tmp_path.iterdir()))
    _, stdout, _ = run("audit", faint.generated, faint.train, "--control", tmp_path, *FAST, "--json")
    found = json.loads(stdout)
    assert found["calibration"]["differs"].startswith(f"3 of {n} control images are training images themselves")
    assert found["verdict"]["answer"] != "no copies found"


@pytest.mark.parametrize("blank", [0, 2])
def test_held_out_images_that_are_all_look_alikes_are_named_as_the_cause(world, tmp_path, blank):
    """As where the training set, stored once more, is given as held-out images."""
    (tmp_path / "held").mkdir()
    for path in sorted(world.train.glob("*.png"))[:20]:
        data = images.encode(images.decode(path), "jpeg", 90)
        (tmp_path / "held" / f"{path.stem}.jpg").write_bytes(data)
    for number in range(blank):
        picture = np.full((64, 64, 3), 60 * number, np.uint8)
        (tmp_path / "held" / f"blank-{number}.png").write_bytes(images.encode(picture, "png"))
    generated = Corpus.open(world.generated)
    unseen = [row for row, id in enumerate(generated.ids) if world.truth[id] is None][:6]
    how = {"protocol": "phash", "cache": tmp_path / "cache", "sensitivity": 4}
    verdict = copyscope.audit(generated.take(unseen), world.train, tmp_path / "held", **how).summary["verdict"]
    cause = "All 20 held-out images are training images or look like one: none is left to calibrate on."
    if blank:
        cause = "None of the 22 held-out images can calibrate: 20 are training images or look like one, 2 are blank."
    assert verdict["answer"] == "cannot tell"
    assert verdict["reasons"][0] == cause
    assert cause in verdict["sentence"]
    assert "too few" not in "".join(reason for reason in verdict["reasons"] if "held-out" in reason)
    assert "held-out images that show other things than the training images" in verdict["needed"]
