from __future__ import annotations

from pathlib import Path

from copyscope import demo
from copyscope.data.corpus import Corpus
from copyscope.stats import proportion
from tests.json_types import check


def test_it_trains_and_makes_images_of_known_and_unknown_captions_and_goes_on(world, tmp_path, monkeypatch):
    data = {"train": str(world.train), "held_out": str(world.held_out), "n_train": 6, "n_held_out": 8, "size": 64}
    monkeypatch.setattr(demo, "DATA", data)
    monkeypatch.setattr(demo, "N_PROMPTS", 3)
    made = demo.make(tmp_path / "demo", steps=1)
    assert (len(made.train), len(made.held_out), len(made.generated)) == (6, 8, 6)
    assert made.origin == [*made.train.ids[:3], None, None, None]
    captions = [*made.train.captions[:3], *made.held_out.captions[:3]]
    assert made.generated.prompts == [each[0] for each in captions]
    monkeypatch.chdir(tmp_path)
    assert demo.make(Path("demo"), steps=1).generated.ids == made.generated.ids


def test_copies_are_counted_by_where_the_prompt_came_from(world):
    generated = Corpus.open(world.generated).take(range(6))
    ids = generated.ids
    made = demo.Made(generated, generated, generated, ["a", "b", "c", "d", None, None])
    copies = [{"id": ids[0], "match": "a"}, {"id": ids[1], "match": "z"}, {"id": ids[5], "match": "a"}]
    found = demo.score(made, {"copies": copies})
    truth = {name: each.as_dict() for name, each in found.items()}
    check("demo", {"summary": {}, "truth": truth, "report": "report.html"})
    assert found == {"known": proportion(2, 4), "own": proportion(1, 2), "unknown": proportion(1, 2)}
