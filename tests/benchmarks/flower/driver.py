"""SecAgg rounds through Flower's own, unmodified code in one process; for bench_flower.py, in Flower's environment.

The server is `SecAggPlusWorkflow`, stage by stage; every client is `secaggplus_mod`, with its state between stages.
Only the network is replaced: `Loopback` hands each message to the client and back. Not on the clock: Flower's protobuf
serialisation on the way (its length is the byte count) and the making of the update. On it: process CPU time.

Reads one request a line from standard input and answers with one line of JSON:
{"n": 100, "d": 1000000, "drop": 0.1, "threshold": 67, "seed": 1}. Set-up and key sharing depend on neither d nor who
drops out later, so that they run once for each (n, threshold, seed), and every request goes on from a copy.
"""

import copy
import json
import logging
import os
import random
import statistics
import sys
import time

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

import flwr
import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.client.mod.secure_aggregation.secaggplus_mod import secaggplus_mod
from flwr.common import Code, FitIns, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.compat.common import recorddict_compat as compat
from flwr.server.client_proxy import ClientProxy
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.strategy import FedAvg
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.server.workflow.secure_aggregation.secaggplus_workflow import SecAggPlusWorkflow, WorkflowState
from flwr.serverapp.grid import Grid
from flwr.supercore.task_identity import TaskIdentity

STAGES = ("setup", "share_keys", "collect_masked_vectors", "unmask")
EXAMPLES = 100  # the weight of every client, so that the weighted mean is the mean


class Proxy(ClientProxy):
    """A client's name, as `configure_fit` wants it."""

    def __init__(self, node: int) -> None:
        super().__init__(str(node))
        self.node_id = node

    def get_properties(self, *_):
        raise NotImplementedError

    get_parameters = fit = evaluate = reconnect = get_properties


class Mean(FedAvg):
    """Asks every node; keeps the mean that the workflow hands over."""

    def __init__(self, nodes: list[int]) -> None:
        super().__init__()
        self.nodes, self.mean = nodes, None

    def configure_fit(self, server_round, parameters, client_manager):
        return [(Proxy(node), FitIns(parameters, {})) for node in self.nodes]

    def aggregate_fit(self, server_round, results, failures):
        self.mean = parameters_to_ndarrays(results[0][1].parameters)[0]
        return results[0][1].parameters, {}


class Loopback(Grid):
    """The clients: CPU seconds by node and stage, bytes sent by node; `inside` is what the server does not pay for."""

    run = None

    def __init__(self, nodes: list[int], states: dict[int, RecordDict]) -> None:
        self.contexts = {node: Context(1, node, {}, states[node], {}) for node in nodes}
        self.client = {node: dict.fromkeys(STAGES, 0.0) for node in nodes}
        self.upload = dict.fromkeys(nodes, 0)
        self.length, self.gone, self.inside = 10, frozenset(), 0.0

    def set_run(self, run): ...
    def create_message(self, *_, **__): ...
    def push_messages(self, messages): ...
    def pull_messages(self, message_ids): ...
    def get_node_ids(self):
        return list(self.contexts)

    def vector(self, node: int) -> np.ndarray:
        return np.random.default_rng(node).uniform(-1, 1, self.length).astype(np.float32)

    def send_and_receive(self, messages, *, timeout=None):
        arrived, replies = time.process_time(), []
        for message in messages:
            node, sent = message.metadata.dst_node_id, recorddict_to_proto(message.content)
            stage = message.content.config_records[RECORD_KEY_CONFIGS][Key.STAGE]
            if node in self.gone:
                continue
            training = 0.0

            def train(asked, _):
                nonlocal training
                began = time.process_time()
                update = ndarrays_to_parameters([self.vector(node)])  # noqa: B023
                answer = FitRes(Status(Code.OK, ""), update, EXAMPLES, {})
                reply = Message(compat.fitres_to_recorddict(answer, True), reply_to=asked)
                training = time.process_time() - began
                return reply

            received = Message(recorddict_from_proto(sent), metadata=message.metadata)
            began = time.process_time()
            reply = secaggplus_mod(received, self.contexts[node], train)
            self.client[node][stage] += time.process_time() - began - training
            answered = recorddict_to_proto(reply.content)
            self.upload[node] += answered.ByteSize()
            replies.append(Message(recorddict_from_proto(answered), metadata=reply.metadata))
        self.inside += time.process_time() - arrived
        return replies


class Session:
    """A cohort after set-up and key sharing."""

    def __init__(self, n: int, threshold: int, seed: int) -> None:
        random.seed(seed)
        began = time.perf_counter()
        self.nodes = [1000 + i for i in range(n)]
        self.workflow = SecAggPlusWorkflow(1.0, threshold)  # 1.0: the complete graph
        self.strategy = Mean(self.nodes)
        self.context = LegacyContext(Context(1, 0, {}, RecordDict(), {}), strategy=self.strategy)
        self.context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: 1})
        self.context.state.array_records[MAIN_PARAMS_RECORD] = compat.parameters_to_arrayrecord(
            ndarrays_to_parameters([np.zeros(10, np.float32)]), keep_input=True
        )
        self.state, self.grid = WorkflowState(), Loopback(self.nodes, {node: RecordDict() for node in self.nodes})
        self.server = {stage: self._run(stage, self.grid, self.state) for stage in STAGES[:2]}
        self.wall = time.perf_counter() - began

    def _run(self, stage: str, grid: Loopback, state: WorkflowState) -> float:
        grid.inside, began = 0.0, time.process_time()
        if not getattr(self.workflow, stage + "_stage")(grid, self.context, state):
            raise RuntimeError(f"Flower gave up in {stage}")
        return time.process_time() - began - grid.inside

    def finish(self, d: int, drop: float, seed: int) -> dict[str, object]:
        """Masked vectors and unmasking of a copy, in which a part of the clients sends no masked vector."""
        grid = Loopback(self.nodes, {node: copy.deepcopy(c.state) for node, c in self.grid.contexts.items()})
        grid.client, grid.upload = copy.deepcopy(self.grid.client), dict(self.grid.upload)
        grid.length, grid.gone = d, frozenset(random.Random(seed).sample(self.nodes, round(len(self.nodes) * drop)))
        state, began = copy.deepcopy(self.state), time.perf_counter()
        blank = FitIns(ndarrays_to_parameters([np.zeros(d, np.float32)]), {})
        state.nid_to_fitins = {node: compat.fitins_to_recorddict(blank, True) for node in self.nodes}
        server = self.server | {stage: self._run(stage, grid, state) for stage in STAGES[2:]}
        wall = self.wall + time.perf_counter() - began

        stayed = [node for node in self.nodes if node not in grid.gone]
        mean = sum(grid.vector(node).astype(float) for node in stayed) / len(stayed)
        return {
            "flwr": flwr.__version__,
            "n": len(self.nodes),
            "d": d,
            "drop": drop,
            "t": state.threshold,
            "err": float(np.abs(self.strategy.mean - mean).max()),
            "client_ms": {s: 1e3 * statistics.median(grid.client[node][s] for node in stayed) for s in STAGES},
            "client_total_ms": 1e3 * statistics.median(sum(grid.client[node].values()) for node in stayed),
            "server_ms": {stage: 1e3 * seconds for stage, seconds in server.items()},
            "server_total_ms": 1e3 * sum(server.values()),
            "wall_s": wall,
            "up_total": statistics.median(grid.upload[node] for node in stayed),
        }


def main() -> None:
    logging.getLogger("flwr").setLevel(logging.ERROR)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 0  # what a running app would have set
    Session(4, 3, 0).finish(1000, 0.0, 0)  # first calls import and allocate; nobody's round should pay for that
    key, session = None, None
    for line in sys.stdin:
        request = json.loads(line)
        wanted = (request["n"], request["threshold"], request["seed"])
        if key != wanted:
            key, session = wanted, Session(*wanted)
        print(json.dumps(session.finish(request["d"], request["drop"], request["seed"])), flush=True)


if __name__ == "__main__":
    main()
