"""What is given runs no code: specs of an index, a run, an experiment, a recipe, thresholds; folders of models."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from copyscope import Corpus, Index, model_folders, parts, recipes
from copyscope.cli import main
from copyscope.detection.index import manifest as index_files
from copyscope.diffusion import thresholds
from copyscope.errors import InputError, PartError
from copyscope.experiment.plan import plan
from copyscope.trust import check_spec, check_specs
from tests.models import tiny_clip, tiny_stable_diffusion, tiny_torchscript

SOURCE = Path(__file__).parents[1]
PICTURE = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A module that leaves a file where it is imported, as nobody may; gives that file."""
    mark = tmp_path / "imported"
    (tmp_path / "evilmod.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass X: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield mark
    sys.modules.pop("evilmod", None)


@pytest.fixture
def index(world, tmp_path):
    return Index.build(Corpus.open(world.train).take(range(12)), tmp_path / "index", "phash").folder


def ask_for(index, spec):
    """Put a descriptor into the manifest, with a digest that holds."""
    manifest = index_files.read_manifest(index)
    index_files.write_manifest(index, manifest | {"protocol": spec, "descriptor": spec})


def two_lines(caught):
    assert len(str(caught.value).splitlines()) == 2
    assert "--trust-parts" in str(caught.value)


def refused(*arguments):
    """The command ends with two lines that say how to allow it."""
    found = CliRunner().invoke(main.app, [str(each) for each in arguments])
    assert isinstance(found.exception, PartError), found.output
    assert "--trust-parts" in str(found.exception)
    return str(found.exception)


# Specs


@pytest.mark.parametrize(
    "spec",
    ["evilmod:X", " evilmod:X(a=1)", "a.evilmod:X", "sscd(weights='w.pt')", "sscd('w.pt')", "sscd(  weights = 'w.pt' )",
     "clip('folder')", "clip(model='folder')"],
)  # fmt: skip
def test_parts_from_outside_and_weights_by_path_are_refused_without_an_import(spec, evil):
    with pytest.raises(PartError) as caught:
        check_spec("descriptors", spec, "The index")
    two_lines(caught)
    assert not evil.exists()


@pytest.mark.parametrize(
    "spec",
    ["sscd", "sscd-288", "sscd(size=256, crop=224, norm='half')", "sscd(weights='')", "no-such", 7, None],
)
def test_parts_of_the_shelf_pass_and_what_is_wrong_is_left_to_the_loader(spec):
    check_spec("descriptors", spec, "The index")


def test_specs_are_found_by_their_fields_wherever_they_are(evil):
    check_specs({"audit": {"protocol": "phash"}, "sample": {"mitigations": ["dcr-2023:RT"]}, "name": "a.b:C"}, "x.toml")
    for tables in (
        {"audit": {"protocol": "evilmod:X"}},
        {"train": {"mitigations": ["gaussian_noise", "evilmod:X"]}},
        {"grid": {"train.model": ["small_unet", "evilmod:X"]}},
        {"arms": [{"name": "a"}, {"sample": {"signals": ["evilmod:X"]}}]},
        {"arms": [{"sample.mitigations": ["evilmod:X()"]}]},
        {"train": {"model": "small_unet(weights='evil')"}},
    ):
        with pytest.raises(PartError) as caught:
            check_specs(tables, "x.toml")
        two_lines(caught)
    assert not evil.exists()


def test_a_spec_that_is_nested_or_long_without_end_is_no_spec():
    for spec in ("sscd(" + "(" * 100_000, "sscd(" + "[" * 5000 + "]" * 5000 + ")", "sscd(size=" + "-" * 200_000 + "1)"):
        with pytest.raises(PartError, match="not a part spec") as caught:
            parts.load("descriptors", spec)
        assert len(str(caught.value)) < 2000


# An index


@pytest.mark.parametrize("spec", ["evilmod:X", "evilmod:X(weights='w.pt')"])
def test_an_index_imports_nothing_that_it_names(index, evil, spec):
    ask_for(index, spec)
    with pytest.raises(PartError) as caught:
        Index.open(index).match([PICTURE])
    two_lines(caught)
    refused("match", SOURCE / "docs" / "report.webp", "--index", index)
    refused("serve", index, "--port", "0")
    assert not evil.exists()
    with pytest.raises(PartError, match="not a part of the shelf"):
        Index.open(index, trust_parts=True).match([PICTURE])
    assert evil.exists()


def test_an_index_loads_no_weights_that_it_names(index, world, tmp_path):
    script = tiny_torchscript(index / "w.pt")
    ask_for(index, f"sscd(weights={str(script)!r})")
    with pytest.raises(PartError) as caught:
        Index.open(index).match([PICTURE])
    two_lines(caught)
    with pytest.raises(PartError, match="weights"):
        Index.open(index).add(world.held_out)
    script.unlink()
    own = f"sscd(weights={str(tiny_torchscript(tmp_path / 'own.pt'))!r}, size=32)"
    few = Corpus.open(world.train).take(range(8))
    # What was typed in this call is loaded, and the index that is built can be asked at once.
    assert Index.build(few, tmp_path / "mine", own).match([PICTURE], 1, local=False)
    assert "--trust-parts" in refused("match", world.generated, "--index", tmp_path / "mine")
    done = CliRunner().invoke(
        main.app,
        ["match", str(world.train), "--index", str(tmp_path / "mine"), "--trust-parts", "--no-local", "--json"],
    )
    assert done.exit_code == 0, done.output


# A run, an experiment, a recipe, thresholds


def run_of(folder, model):
    from copyscope.diffusion.recipe import TrainRecipe

    folder.mkdir()
    (folder / "summary.json").write_text("{}")
    values = recipes.as_dict(TrainRecipe()) | {"model": model}
    (folder / "recipe.json").write_text(json.dumps({"recipe": values}))
    return folder


@pytest.mark.parametrize("model", ["evilmod:X", "small_unet(weights='w')"])
def test_a_run_loads_no_model_but_one_of_the_shelf(tmp_path, evil, model):
    from copyscope.diffusion.generate import generate
    from copyscope.diffusion.run import Run

    folder = run_of(tmp_path / "run", model)
    with pytest.raises(PartError) as caught:
        Run.open(folder)
    two_lines(caught)
    with pytest.raises(PartError, match="trust"):
        generate(folder, tmp_path / "made")
    refused("generate", folder, "-o", tmp_path / "made")
    assert Run.open(folder, trust_parts=True).recipe.model == model
    assert not evil.exists()


@pytest.mark.parametrize(
    "text", ["[]", "3", '{"recipe": 3}', '{"recipe": []}', '{"recipe": {"steps": []}}', "[" * 9999]
)
def test_a_damaged_recipe_of_a_run_is_two_lines(tmp_path, text):
    from copyscope.diffusion.run import Run

    folder = run_of(tmp_path / "run", "small_unet")
    (folder / "recipe.json").write_text(text)
    with pytest.raises(InputError, match="\n") as caught:
        Run.open(folder)
    assert len(str(caught.value).splitlines()) == 2


def test_an_experiment_takes_parts_of_the_shelves_and_what_is_typed(tmp_path, evil, world):
    toml = tmp_path / "x.toml"
    toml.write_text(f"name = 'x'\n[data]\ntrain = {str(world.train)!r}\n[audit]\nprotocol = 'evilmod:X'\n")
    with pytest.raises(PartError) as caught:
        plan(toml)
    two_lines(caught)
    for command in ("run", "status", "report"):
        refused("experiment", command, toml)
    assert not evil.exists()
    # A setting is typed in the call.
    toml.write_text(f"name = 'x'\n[data]\ntrain = {str(world.train)!r}\n")
    with pytest.raises(PartError, match="not a part of the shelf"):
        plan(toml, settings=["audit.protocol=evilmod:X"])
    assert evil.exists()


def test_a_recipe_of_a_file_takes_parts_of_the_shelves(tmp_path, evil, world):
    (tmp_path / "x.toml").write_text("[train]\nmodel = 'evilmod:X'\n[sample]\nmitigations = ['evilmod:X']\n")
    refused("train", world.train, "-o", tmp_path / "run", "--recipe", tmp_path / "x.toml")
    refused("generate", "small_unet", "-o", tmp_path / "made", "--recipe", tmp_path / "x.toml")
    (tmp_path / "p.txt").write_text("a\n")
    refused("guard", "calibrate", "small_unet", "--prompts", tmp_path / "p.txt", "-o", tmp_path / "t.json",
            "--recipe", tmp_path / "x.toml")  # fmt: skip
    assert not evil.exists()


def test_thresholds_name_signals_of_the_shelf(tmp_path, evil):
    line = thresholds.Threshold(1.0, 0.01, 100, 0)
    thresholds.Thresholds("model", "settings", {"evilmod:X": line}).save(tmp_path / "t.json")
    with pytest.raises(PartError) as caught:
        thresholds.Thresholds.load(tmp_path / "t.json", "model", "settings")
    two_lines(caught)
    assert thresholds.Thresholds.load(tmp_path / "t.json", "model", "settings", trust_parts=True).signals
    assert not evil.exists()


# Folders of models


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("unet/my_unet.py", "raise SystemExit"),
        ("pipeline.PY", ""),
        ("text_encoder/state.pkl", ""),
        ("model_index.json", {"unet": ["my_unet", "MyUNet"]}),
        ("model_index.json", {"unet": ["os", "path"]}),
        ("model_index.json", {"_class_name": ["pipeline", "Mine"]}),
        ("text_encoder/config.json", {"auto_map": {"AutoModel": "modeling_mine.Mine"}}),
        ("tokenizer/tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["mine.Mine", None]}}),
        ("model_index.json", "[" * 100_000),
    ],
)
def test_a_pipeline_with_code_of_its_own_is_refused(pipeline, tmp_path, file, text):
    from copyscope.diffusion.models.stable_diffusion import StableDiffusion

    folder = shutil.copytree(pipeline, tmp_path / "pipeline")
    model_folders.refuse_code(folder)
    if isinstance(text, dict):
        before = json.loads((folder / file).read_text()) if (folder / file).is_file() else {}
        text = json.dumps(before | text)
    (folder / file).write_text(text)
    with pytest.raises(InputError) as caught:
        _ = StableDiffusion(str(folder)).network
    assert len(str(caught.value).splitlines()) == 2


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return tiny_stable_diffusion(tmp_path_factory.mktemp("sd") / "sd1")


def test_a_clip_folder_with_code_of_its_own_is_refused(tmp_path):
    from copyscope.detection.descriptors.clip import Clip

    folder = tiny_clip(tmp_path / "clip")
    assert Clip(str(folder)).dim == 16
    again = shutil.copytree(folder, tmp_path / "again")
    (again / "modeling.py").write_text("")
    with pytest.raises(InputError, match="is code"):
        _ = Clip(str(again)).dim


def test_no_remote_code_is_ever_trusted_and_diffusers_is_recent():
    word = "trust_" + "remote_code"
    files = [
        path for folder in ("src", "tests", "docs", "examples", "benchmarks") for path in (SOURCE / folder).rglob("*")
    ]
    found = [path for path in files if path.suffix in {".py", ".md", ".toml", ".ipynb"} and word in path.read_text()]
    assert not found
    asked = re.search(r'"diffusers>=(\d+)\.(\d+)', (SOURCE / "pyproject.toml").read_text())
    assert (int(asked[1]), int(asked[2])) >= (0, 38)
    tried = re.search(r"^diffusers==(\d+)\.(\d+)", (SOURCE / "constraints.txt").read_text(), re.MULTILINE)
    assert (int(tried[1]), int(tried[2])) >= (int(asked[1]), int(asked[2]))


def test_torchscript_is_said_to_be_code():
    for text in ((SOURCE / "docs" / "parts.md").read_text(), (SOURCE / "docs" / "cli.md").read_text()):
        assert re.search(r"TorchScript\s+is\s+code", text)
