"""The Flower app of examples/, both its sides in one process for two rounds; run in Flower's environment by a test.

Prints a line of JSON: what the app wrote, and what a plain mean gives.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "examples/flower_app"))

from flower_deployed import SHAPE, SITES, plain_mean
from flower_in_process import Loopback
from flwr.app import Context, RecordDict
from sumapp import client, server

from secagg.federated import layout_for
from secagg.home import trial


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    layout = layout_for(
        {"weight": np.zeros(SHAPE, np.float32)}, clip_range=0.5, largest_weight=1000, metrics={"loss": 10.0}
    )
    trial(folder, [f"site-{i}" for i in range(SITES)], layout)
    out = folder / "out.json"
    config = {"secagg": str(folder / "server"), "strategy": "FedAvg", "rounds": 2, "sites": SITES}
    network = Loopback(client.app)
    network.run_config = {**config, "evaluate": 0.0, "out": str(out)}
    network.config = lambda site: {"site": site, "secagg": str(folder / f"site-{site}")}
    server.app(network, Context(1, 0, {}, RecordDict(), network.run_config))
    told = json.loads(out.read_text())
    print(json.dumps({**told, "plain": plain_mean(SITES, 2, set())}), flush=True)


if __name__ == "__main__":
    main()
