"""secagg inside Flower, NVFlare and Ray, each in the environment that `make adapters` makes; skipped where it is not.

CI runs the example's Flower app wherever there is that environment, and says so where there is none; the rest is slow.

What runs there is a script beside this file, on this working tree. The scripts print one line of JSON.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENVIRONMENTS = Path(os.environ.get("SECAGG_ENVIRONMENTS", ROOT / "build/envs"))
STEP = 2e-5
"""Of the mean: the clip range in 2^19 steps, for weights of 100 to 500 among at most 1000.

Ten times that for evaluations, whose weights are 10 to 50.
"""


def run(environment: str, script: str, *arguments: str, seconds: int = 600) -> dict[str, Any]:
    """The last line that a script of this folder prints, in an environment."""
    python = ENVIRONMENTS / environment / "bin/python"
    if not python.exists():
        pytest.skip(f"no environment with {environment}: make adapters makes it in {ENVIRONMENTS}")
    done = subprocess.run(
        [python, HERE / script, *arguments],
        capture_output=True,
        text=True,
        timeout=seconds,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def test_the_flower_app_of_the_examples_has_the_plain_mean():
    told = run("flower", "flower_example.py")
    assert np.allclose(told["weight"], told["plain"], atol=STEP)
    assert told["exchanges"] == 13


@pytest.mark.slow
def test_flowers_strategies_get_what_a_plain_grid_gives_them():
    told = run("flower", "flower_in_process.py")
    for name in ("FedAvg", "FedAvgM", "FedProx", "FedAdam", "FedAdagrad", "FedYogi"):
        assert told[name]["apart"]["weight"] < 1e-4, name
        assert told[name]["apart"]["batches"] < 0.01, name  # adaptive strategies move whole numbers by fractions
        assert told[name]["metrics"][0]["loss"] == pytest.approx(told[name]["metrics"][1]["loss"], abs=1e-4)
        assert told[name]["exchanges"] == 18, "six a round"
    assert told["without evaluation"] == [[1, 2, 3], 20], "every round has its sum, with one exchange more"
    waits, included = told["of the dead"]
    assert waits <= 2, "no pile of transcripts waits for a dead node"
    assert included == ["site-0", "site-1", "site-2", "site-3"]
    assert told["told again"] == ["one"]
    assert np.allclose(told["weights"], told["plain"], atol=STEP)
    assert told["records"] == ["secagg"], "an app's record reaches the server"
    assert told["evaluated"] == {}
    assert "in clear" in told
    assert "secure aggregation only" in told["in clear"]
    assert told["too few"] == [], "a round without a sum is an empty one"
    assert told["then"] == ["batches", "weight"]
    assert told["odd"] == [2, 2, 2], "one node's odd record costs nobody the round"
    assert told["with an old name"] == ["site-0", "site-1", "site-2", "site-3"], "nobody speaks in another's name"
    for included, said in told["told otherwise"]:
        assert included == ["site-0", "site-1", "site-2", "site-3"], (
            "a node trains on what all were told, or not at all"
        )
        assert [reason for reason in said if "another model or config" in reason] == said
        assert said
    for (metrics, plain), records, _, apart in told["summed"]:
        assert metrics["accuracy"] == pytest.approx(plain["accuracy"], abs=10 * STEP), (
            "evaluations come out as in clear"
        )
        assert records == ["secagg", "secagg-evaluation"], "and none leaves in clear"
        assert apart < 1e-4
    assert [exchanges for _, _, exchanges, _ in told["summed"]] == [24, 27], "twelve a round, fourteen without privacy"
    assert told["another model"] == 0
    assert ["as this site computed it" in reason for reason in told["said of it"]] == [True]
    folder, none, grid = told["misused"]
    assert "in braces stands what this node's config has, partition-id" in folder
    assert none.startswith("folder is None: give the name of a node's folder")
    assert grid == "grid is None: give Flower's, which the ServerApp's main gets"
    assert told["evaluated in clear"] == ["metrics", "secagg"], "an app's arrays leave in no evaluation"


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("--private",), ("--drop", "--actors", "2")], ids=["all", "one dies"])
def test_a_simulation_of_flower_over_several_actors(arguments):
    told = run("flower", "flower_simulated.py", *arguments)
    assert np.allclose(told["weight"], told["plain"], atol=STEP)
    assert told["batches"] == 6
    assert told["exchanges"] == (12 if "--private" in arguments else 13)


@pytest.mark.slow
@pytest.mark.parametrize("app", [(), ("--page",)], ids=["an app", "the page's lines"])
def test_a_deployment_of_flower_goes_on_without_a_supernode_that_is_killed_while_it_trains(app):
    told = run("flower", "flower_deployed.py", "--kill", *app, seconds=900)
    assert np.allclose(told["weight"], told["plain"], atol=STEP)
    assert "--page" in app or told["exchanges"] == 12


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("--private",), ("--drop",), ("--poc", "--private", "--drop")], ids=" ".join)
def test_nvflares_recipe_in_the_simulator_and_in_processes_of_which_one_is_killed(arguments):
    told = run("nvflare", "nvflare_job.py", *arguments)
    assert np.allclose(told["weight"], told["plain"], atol=STEP)
    assert told["batches"] == 6
    assert told["again"] == ["old", "new"], "what a failed call brought goes with the next one"
    assert told["still called"] == ["site-1"], "the next call to that site is still out"
    nothing = [0, [], None]
    assert told["odd"] == [*[nothing] * 5, [1, ["ab"], "r"], nothing], "a site's odd answer ends no server"


@pytest.mark.slow
def test_masks_from_a_cluster_are_the_same():
    told = run("ray", "ray_masks.py")
    assert told["equal"]
    assert told["left out"] == told["dropped"]
    assert told["repr"] == "<RayExecutor>"


@pytest.mark.slow
def test_sites_on_a_cluster_train_the_same_model_and_one_that_dies_drops_out_of_one_round():
    told = run("ray", "ray_sites.py")
    assert told["same model"]
    assert told["included"] == [4, 4]
    assert told["exact"] == [None, None], "what a site masked does not leave it"
    assert told["killed"]
    assert told["included with a death"] == [3, 4]
    assert told["dropped"] == [1, 0]
