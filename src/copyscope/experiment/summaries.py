"""Keys and types of the summary of an experiment; `docs/json.md` is made of them."""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

from copyscope.detection.summaries import ProtocolSummary
from copyscope.stats import EstimateDict


class ArmRow(TypedDict):
    """An arm of an experiment."""

    arm: Annotated[str, "name of its folder below `arms/`"]
    label: Annotated[str, "its name and the grid's values for people"]
    name: Annotated[str | None, "its name in the list of arms; null where none are listed"]
    run: Annotated[str, "name of the folder of its training below `runs/`; arms of one training share it"]
    first: Annotated[
        str | None,
        "the arm it is compared with: the first one listed, of its seed and grid values; null for that one and "
        "where none are listed",
    ]
    values: Annotated[dict[str, Any], "dotted key -> value, of the list of arms and of the grid"]
    seed: Annotated[int, "of training and sampling"]
    error: Annotated[str | None, "why it failed"]
    recheck_error: Annotated[str | None, "why its recheck failed; its other numbers stand"]
    answer: Annotated[str | None, "of its audit"]
    n_generated: Annotated[int | None, "images generated"]
    n_missing: Annotated[int | None, "of them, those that cannot be read"]
    n_train: Annotated[int | None, "training images"]
    steps: Annotated[int | None, "steps trained"]
    train_seconds: Annotated[float | None, "how long that took"]
    seconds: Annotated[float | None, "how long the arm took, recheck left out"]
    estimates: Annotated[
        dict[str, EstimateDict],
        "name -> Estimate: [all of them](#estimates-of-an-arm), in every arm; `n` is 0 where there is none",
    ]


class LeaderboardRow(TypedDict):
    """A row of the leaderboard: an arm, its seeds as one."""

    label: Annotated[str, "the arm; its plain model is the first one listed"]
    stage: Annotated[str, "`plain`, or where it differs from that: `training`, `sampling`, `both`"]
    seeds: Annotated[list[int], "its seeds"]
    estimates: Annotated[
        dict[str, EstimateDict], "those of the arm; over several seeds the mean with Student's interval, n seeds"
    ]
    fewer_copies: Annotated[
        dict[str, Any], "estimate: share of the plain model's copies that is gone, by `replication_rate_fixed`"
    ]
    dearer: Annotated[dict[str, Any], "estimate: share by which `general_frechet_distance` is above the plain model's"]
    excess: Annotated[dict[str, Any], "estimate: the same, once `real_frechet_distance` is taken off both"]
    frontier: Annotated[bool, "no other row of the same plain model has both fewer copies and less excess"]


Contrast = TypedDict(
    "Contrast",
    {
        "key": Annotated[str, "that key; `arm` for listed arms"],
        "from": Annotated[str, "value of the arm compared with, or its name"],
        "to": Annotated[str, "value of the arm, or its name"],
        "at": Annotated[str, "all that both have in common"],
        "seed": Annotated[int | None, "of both; null for the mean over seeds"],
        "measure": Annotated[str, "which estimate"],
        "difference": Annotated[float | None, "the arm's less that of the one compared with"],
        "low": Annotated[float | None, "its interval at 95 %"],
        "high": Annotated[float | None, "its interval at 95 %"],
        "n": Annotated[int, "pairs of images, or seeds"],
        "p_value": Annotated[float | None, "of no difference"],
    },
)


class CurveRow(TypedDict):
    """Replication of samples at a checkpoint."""

    arm: Annotated[str, "which arm"]
    step: Annotated[int, "after how many steps"]
    value: Annotated[float, "replication rate"]
    low: Annotated[float, "its interval at 95 %"]
    high: Annotated[float, "its interval at 95 %"]
    n: Annotated[int, "samples"]


class ExperimentSummary(TypedDict):
    """Summary of an experiment."""

    schema: Annotated[str, "`copyscope.experiment/1`"]
    copyscope: Annotated[str, "version that made it"]
    created: Annotated[str, "when, ISO 8601, UTC"]
    seconds: Annotated[float, "of all arms together"]
    name: Annotated[str, "as in the TOML file"]
    about: Annotated[str, "as in the TOML file"]
    sentence: Annotated[str, "what came of it in words"]
    n_arms: Annotated[int, "arms"]
    n_done: Annotated[int, "of them, those finished"]
    n_failed: Annotated[int, "of them, those that failed"]
    protocol: Annotated[ProtocolSummary, "as in an audit"]
    calibration: Annotated[str, "how the verdicts were calibrated, in words"]
    measures: Annotated[dict[str, str], "name of an estimate -> what it is"]
    arms: Annotated[list[ArmRow], "one an arm, finished or not; numbers are null where it is not"]
    leaderboard: Annotated[
        list[LeaderboardRow],
        "of listed arms, the seeds of each as one row: those with a Fréchet distance, ranked by copies, those with "
        "an excess above 5 % last",
    ]
    contrasts: Annotated[
        list[Contrast],
        "paired differences: of arms that differ in one key of the grid, and of each listed arm to the first "
        "listed one",
    ]
    curves: Annotated[list[CurveRow], "replication of samples at a checkpoint of an arm, where training was watched"]
    recipe: Annotated[dict[str, Any], "the TOML file with its settings, versions and commit"]
