"""A Flower simulation under secure aggregation, with FedAvg and with others; run in Flower's environment by a test.

python flower_simulated.py STRATEGY [--drop] prints a line of JSON: what the strategy had, and what a plain mean gives.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp, strategy
from flwr.simulation import run_simulation

from secagg.federated import layout_for
from secagg.flower import SecAggGrid, secagg_mod
from secagg.home import Task, trial

SITES = 5
MODEL = {"weight": np.zeros((3, 4), np.float32), "batches": np.zeros((), np.int64)}


def trained(site: int, model: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], int, float]:
    """What a site makes of a model, its number of examples and its loss."""
    change = np.random.default_rng(site).uniform(-0.05, 0.05, (3, 4)).astype(np.float32)
    arrays = {"weight": model["weight"] * np.float32(0.9) + change, "batches": model["batches"] + 3}
    return arrays, 100 * (site + 1), 0.5 + site / 10


def client_app(folder: str, dead: int) -> ClientApp:
    app = ClientApp(mods=[secagg_mod(folder + "/site-{partition-id}")])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        site = context.node_config["partition-id"]
        if site == dead:
            raise RuntimeError("this site lost its power")
        model = {name: array.numpy() for name, array in message.content["arrays"].items()}
        arrays, examples, loss = trained(site, model)
        content = {
            "arrays": ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()}),
            "metrics": MetricRecord({"num-examples": examples, "loss": loss}),
        }
        return Message(RecordDict(content), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 10, "accuracy": 0.5})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("strategy", default="FedAvg", nargs="?")
    parser.add_argument("--drop", action="store_true")
    parser.add_argument("--private", action="store_true")
    parser.add_argument("--evaluate", default="refuse")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--actors", type=int, default=1)
    options = parser.parse_args()
    folder = tempfile.mkdtemp()
    layout = layout_for(MODEL, clip_range=0.5, largest_weight=1000, metrics={"loss": 10.0})
    trial(folder, [f"site-{i}" for i in range(SITES)], layout, Task(private=options.private, evaluate=options.evaluate))
    server, seen = ServerApp(), {}

    @server.main()
    def run(grid: Grid, context: Context) -> None:
        secure = SecAggGrid(grid, context, Path(folder, "server"), step_seconds=120)
        fractions = {} if options.evaluate == "clear" else {"fraction_evaluate": 0.0}
        chosen = getattr(strategy, options.strategy)(
            min_train_nodes=SITES,
            min_available_nodes=SITES,
            **fractions,
            **({"proximal_mu": 0.1} if options.strategy == "FedProx" else {}),
        )
        began = time.perf_counter()
        initial = ArrayRecord({name: Array(array) for name, array in MODEL.items()})
        result = chosen.start(secure, initial, num_rounds=options.rounds, train_config=ConfigRecord({"lr": 0.1}))
        seen.update(
            seconds=time.perf_counter() - began,
            exchanges=secure.exchanges,
            weight=result.arrays["weight"].numpy().tolist(),
            batches=result.arrays["batches"].numpy().tolist(),
            metrics={number: dict(record) for number, record in result.train_metrics_clientapp.items()},
            evaluated={number: dict(record) for number, record in result.evaluate_metrics_clientapp.items()},
        )

    run_simulation(
        server,
        client_app(folder, dead=4 if options.drop else -1),
        SITES,
        backend_config={"client_resources": {"num_cpus": 2 / options.actors}, "init_args": {"num_cpus": 2}},
    )
    model, sites = MODEL, range(SITES - options.drop)
    for _ in range(options.rounds):
        made = [trained(site, model) for site in sites]
        whole = sum(examples for _, examples, _ in made)
        model = {
            name: sum(arrays[name] * np.float64(examples / whole) for arrays, examples, _ in made) for name in MODEL
        }
        model["weight"] = model["weight"].astype(np.float32)
    seen["plain"] = model["weight"].tolist()
    print(json.dumps(seen), file=sys.stdout, flush=True)


if __name__ == "__main__":
    main()
