"""Listed arms: what a table may say, what it is called, which run it shares, and what is told before the night."""

from __future__ import annotations

import pytest

from copyscope.errors import CopyscopeError, InputError
from copyscope.experiment import plan, run

TOML = """
name = "listed"
seeds = [0, 1]
[data]
train = "train/"
held_out = "held-out/"
n_held_out = 100
[train]
steps = 40
[sample]
n_images = 30
[audit]
protocol = "sscd-distilled"
{more}
"""
THREE = """
[[arms]]
name = "plain"
[[arms]]
"sample.mitigations" = ["gaussian_noise(scale=0.1)"]
[[arms]]
name = "short"
train.steps = 20
seeds = [1]
"""


def planned(folder, more=THREE, settings=()):
    path = folder / "listed.toml"
    path.write_text(TOML.format(more=more))
    return plan.plan(path, folder / "out", settings)


def test_each_listed_arm_runs_at_every_cell_under_its_seeds(tmp_path):
    found = planned(tmp_path, '[grid]\n"train.duplication" = ["none", "full"]\n' + THREE)
    noise = "sample gaussian_noise(scale=0.1)"
    assert [(arm.name, arm.cell["train.duplication"], arm.seed) for arm in found.arms] == [
        *((name, cell, seed) for name in ("plain", noise) for cell in ("none", "full") for seed in (0, 1)),
        ("short", "none", 1),
        ("short", "full", 1),
    ]
    last = found.arms[-1]
    assert (last.train.steps, last.train.duplication, last.train.seed, last.sample.seed) == (20, "full", 1, 1)
    assert last.values == {"train.steps": 20, "train.duplication": "full"}
    assert (last.label, last.slug) == ("short · full", "short-full-seed1")
    assert (last.value_of("arm"), last.without("arm"), last.without("train.duplication")) == ("short", "full", "short")
    assert found.arms[5].sample.mitigations == ("gaussian_noise(scale=0.1)",)
    assert len({arm.slug for arm in found.arms}) == len(found.arms)


def test_arms_know_the_first_listed_one_of_their_cell_and_seed(tmp_path):
    arms = {arm.slug.rpartition("-seed")[0] + str(arm.seed): arm for arm in planned(tmp_path).arms}
    assert arms["plain0"].first is arms["plain1"].first is None
    assert arms["short1"].first == arms["plain1"].folder
    alone = planned(tmp_path, '[[arms]]\nname = "plain"\nseeds = [0]\n[[arms]]\nname = "other"\n').arms
    assert [arm.first for arm in alone] == [None, alone[0].folder, None]
    assert all(arm.first is None for arm in planned(tmp_path, "").arms)


def test_arms_of_one_training_share_its_run_and_no_others_do(tmp_path):
    plain, again, noised, short = (arm.run for arm in planned(tmp_path).arms if arm.slug != "plain-seed0")
    assert plain.parent == tmp_path / "out" / "runs"
    assert plain == noised
    assert len({plain, again, short}) == 3
    assert plain.name.startswith("small_unet-instance-none-steps40-seed1-")
    said = '[[arms]]\n[[arms]]\nname = "the same, said"\n"train.steps" = 40\n[[arms]]\n"train.flip" = true\n'
    given, same, flipped = (arm.run for arm in planned(tmp_path, said, ["seeds=[0]"]).arms)
    assert given == same != flipped
    other = planned(tmp_path, '[[arms]]\n[[arms]]\n"data.n_train" = 20\n', ["seeds=[0]"]).arms
    assert other[0].run != other[1].run
    # Beside each other: prepared images are alone in their folder.
    assert [arm.images for arm in other] == [tmp_path / "out" / name for name in ("data", "data-n_train=20")]


def test_a_table_has_a_name_in_any_case(tmp_path):
    more = (
        '[[arms]]\n[[arms]]\n"train.mitigations" = ["gaussian_noise(scale=0.1)"]\n[[arms]]\n"data.where" = {kind="x"}\n'
    )
    names = [arm.name for arm in planned(tmp_path, more, ["seeds=[0]"]).arms]
    assert names == ["as given", "train gaussian_noise(scale=0.1)", "where={'kind': 'x'}"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('[[arms]]\nname = "a"\n[[arms]]\nname = "a"\n', "^Arm 'a': two arms have this name"),
        ('[[arms]]\nname = ""\n', "^The name of arm 1 must be text"),
        ('[[arms]]\nname = "a"\n"audit.fdr" = 0.1\n', "^Arm 'a': an arm cannot set 'audit.fdr'"),
        ('[[arms]]\nname = "a"\nsteps = 4\n', "^Arm 'a': an arm cannot set 'steps'"),
        ('[[arms]]\nname = "a"\n"train.stepz" = 4\n', r"^Arm 'a': \[train\] TrainRecipe has no setting 'stepz'"),
        ('[[arms]]\nname = "a"\n"train.steps" = "x"\n', r"^Arm 'a': \[train\] steps must be a whole number"),
        ('[[arms]]\nname = "a"\nseeds = []\n', "^Arm 'a': seeds must be different numbers"),
        ('[[arms]]\nname = "a"\nseeds = [1, 1]\n', "^Arm 'a': seeds must be different numbers"),
        ('[[arms]]\nname = "a"\nseeds = 1\n', "^Arm 'a': seeds must be a list"),
        ('[[arms]]\nname = "a"\n"train.model" = "small_nuet"\n', "^Arm 'a': No part 'small_nuet'"),
        ('[[arms]]\nname = "a"\n"sample.mitigations" = ["gausian_noise"]\n', "^Arm 'a': No part 'gausian_noise'"),
        (
            '[[arms]]\nname = "a"\n"train.mitigations" = ["delayed_guidance"]\n',
            "^Arm 'a': delayed_guidance acts in samp",
        ),
        (
            '[grid]\n"train.steps" = [1, 2]\n[[arms]]\nname = "a"\n"train.steps" = 3\n',
            "^Arm 'a': train.steps is in the grid",
        ),
        ('[[arms]]\nname = "a b"\n[[arms]]\nname = "a_b-4242"\nseeds = 0.5\n', "^Arm 'a_b-4242': seeds must be a list"),
    ],
)
def test_what_is_wrong_is_told_with_the_arm(tmp_path, more, said):
    with pytest.raises(CopyscopeError, match=said):
        planned(tmp_path, more)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["audit.general=-1"], r"\[audit\] general must be at least 0"),
        (["audit.attempts=0"], r"\[audit\] attempts must be at least 1"),
        (["audit.general=101"], "asks for 101 held-out captions, of 100 images"),
        (["audit.general=1", "data.held_out="], "general needs held-out images"),
        (["audit.recheck=1", "arms=[]"], "recheck compares with the first of `arms`, and none"),
    ],
)
def test_what_is_asked_of_the_audit_can_be_had(tmp_path, settings, said):
    with pytest.raises(InputError, match=said):
        planned(tmp_path, settings=settings)


def test_two_arms_never_get_one_folder(tmp_path):
    more = '[grid]\n"train.class_column" = ["b-c", "c"]\n[[arms]]\nname = "a"\n[[arms]]\nname = "a-b"\n'
    with pytest.raises(InputError, match="Two arms would have the folder a-b-c-seed0"):
        planned(tmp_path, more)


def test_the_state_of_listed_arms_is_told(tmp_path):
    path = tmp_path / "listed.toml"
    path.write_text(TOML.format(more=THREE))
    states = run.status(path, tmp_path / "out")
    assert [row["state"] for row in states] == ["to do"] * 5
    assert not (tmp_path / "out").exists()
