"""A client app as anybody writes it, and one line for secure aggregation."""

import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from secagg.flower import secagg_mod

app = ClientApp(mods=[secagg_mod()])


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train a line; a node that a test wants to lose says that it trains, and waits for that."""
    site = context.node_config["site"]
    if trains := context.node_config.get("dies"):
        Path(trains).touch()
        time.sleep(600)
    model = message.content["arrays"]["weight"].numpy()
    trained = model * np.float32(0.9) + np.random.default_rng(site).uniform(-0.05, 0.05, model.shape).astype(np.float32)
    metrics = MetricRecord({"num-examples": 100 * (site + 1), "loss": 0.5 + site / 10})
    arrays = ArrayRecord({"weight": Array(trained)})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
