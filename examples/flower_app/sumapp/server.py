"""A server app as anybody writes it, and one line for secure aggregation."""

import json
import time

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp, strategy

from secagg.flower import SecAggGrid

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a strategy by its name, and write down what it had."""
    config = context.run_config
    secure = SecAggGrid(grid, context, config["secagg"])
    began = time.perf_counter()
    result = getattr(strategy, config["strategy"])(
        min_train_nodes=config["sites"], min_available_nodes=config["sites"], fraction_evaluate=config["evaluate"]
    ).start(secure, ArrayRecord({"weight": Array(np.zeros((3, 4), np.float32))}), num_rounds=config["rounds"])
    told = {
        "seconds": time.perf_counter() - began,
        "exchanges": secure.exchanges,
        "weight": result.arrays["weight"].numpy().tolist(),
        "metrics": {number: dict(record) for number, record in result.train_metrics_clientapp.items()},
    }
    with open(config["out"], "w") as file:
        json.dump(told, file)
