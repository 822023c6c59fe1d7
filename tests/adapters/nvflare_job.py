"""NVFlare's FedAvg under secure aggregation, in the simulator or in a POC deployment; run in NVFlare's environment.

python nvflare_job.py [--poc] [--drop] prints a line of JSON: the model of the recipe, and what a plain mean gives.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from nvflare_site import Site

from secagg.federated import layout_for
from secagg.home import Task, trial
from secagg.nvflare import SecAggFedAvgRecipe, SecAggServer, _said

SITES = [f"site-{i}" for i in range(1, 6)]
MODEL = {"weight": np.zeros((3, 4), np.float32), "batches": np.zeros((), np.int64)}


def plain(rounds: int, sites: list[str]) -> dict[str, np.ndarray]:
    model = dict(MODEL)
    whole = sum(100 * int(site[5:]) for site in sites)
    for _ in range(rounds):
        total = np.zeros((3, 4))
        for site in sites:
            change = np.random.default_rng(int(site[5:])).uniform(-0.05, 0.05, (3, 4)).astype(np.float32)
            total += (model["weight"] * np.float32(0.9) + change) * np.float64(100 * int(site[5:]) / whole)
        model = {"weight": total.astype(np.float32), "batches": model["batches"] + 3}
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--poc", action="store_true")
    parser.add_argument("--drop", action="store_true")
    parser.add_argument("--private", action="store_true")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    layout = layout_for(MODEL, clip_range=0.5, largest_weight=1000, metrics={"loss": 10.0})
    trial(folder, SITES, layout, Task(private=options.private))
    np.savez(folder / "initial.npz", **MODEL)
    result = folder / "result.npz"
    os.environ["SECAGG_FOLDER"] = str(folder / "{site}")
    os.environ["NVFLARE_POC_WORKSPACE"] = str(folder / "poc")
    recipe = SecAggFedAvgRecipe(
        "secagg-fedavg",
        Site(victim="site-5" if options.drop else "", kill=options.poc),
        str(folder / "server"),
        str(folder / "initial.npz"),
        str(result),
        rounds=options.rounds,
        step_seconds=30.0,
        input_seconds=30.0,
        min_clients=len(SITES) - 1,
    )
    began = time.perf_counter()
    if options.poc:
        from nvflare.recipe import PocEnv, poc_env

        poc_env.SERVICE_START_TIMEOUT = 40  # a slow machine's; then its own log-in waits for five seconds
        environment = PocEnv(num_clients=len(SITES), clients=SITES)
    else:
        from nvflare.recipe import SimEnv

        environment = SimEnv(clients=SITES, num_threads=len(SITES), workspace_root=str(folder / "workspace"))
    recipe.execute(environment)
    try:
        while not result.exists() and time.perf_counter() - began < 400:
            time.sleep(0.5)
    finally:
        if options.poc:
            environment.stop(clean_up=True)
    with np.load(result) as arrays:
        told = {name: array.tolist() for name, array in arrays.items()}
    told["seconds"] = time.perf_counter() - began
    told["plain"] = plain(options.rounds, SITES[: len(SITES) - options.drop])["weight"].tolist()
    odd = (
        None,
        {},
        7,
        [],
        {"parts": 7},
        {"parts": [10**12, None, "x", b"y"], "exposed": [1, "ab"], "reason": "r"},
        {"exposed": 3},
    )
    with SecAggServer(folder / "server") as server:  # a call that fails: what it brought is still to be told
        server._calling, server._later = ["site-1", "site-1"], {"site-1": [b"new"]}
        server._answers.put(("site-1", [b"old"], TimeoutError("late")))
        server._listen()
        told["still called"] = server._calling
        told["again"] = [part.decode() for part in server._later["site-1"]]
    told["odd"] = [[len(parts), rounds, reason] for parts, rounds, reason in map(_said, odd)]
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
