"""Strategies under secure aggregation and without it, on one grid that plays all nodes; run in Flower's environment.

Prints a line of JSON: by strategy, the largest difference between the two models after three rounds; then what a server
gets to see, and what a node says to one that asks in clear.
"""

import copy
import json
import tempfile
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, strategy
from flwr.supercore.task_identity import TaskIdentity

from secagg.errors import ConfigError
from secagg.federated import layout_for
from secagg.flower import SecAggGrid, secagg_mod
from secagg.home import Task, trial
from secagg.transcript.record import looks_like

TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 0  # what a running app would have set
SITES = 5
SERVER = Context(1, 0, {}, RecordDict(), {"local-epochs": 2})
NEXT = {"FedAvgM": "server"}
MODEL = {"weight": np.zeros((3, 4), np.float32), "batches": np.zeros((), np.int64)}


class Loopback(Grid):
    """Answers every message at once, in this process. `seen` keeps what nodes sent, as the server gets it."""

    run, dead, run_config = None, 0, SERVER.run_config

    def __init__(self, app: ClientApp) -> None:
        self.app, self.replies, self.seen, self.silent = app, {}, [], set()

    def lie(self, message, context): ...
    def config(self, site):
        return {"partition-id": site}

    def set_run(self, run): ...
    def create_message(self, *_, **__): ...
    def get_node_ids(self):
        return [100 + site for site in range(SITES)]

    def push_messages(self, messages):
        ids = []
        for message in messages:
            node = message.metadata.dst_node_id
            ids.append(f"{len(self.seen)}-{node}")
            message.metadata.__dict__["_message_id"] = ids[-1]
            context = Context(1, node, self.config(node - 100), RecordDict(), dict(self.run_config))
            self.lie(message, context)
            try:
                if node == self.dead:
                    raise ConnectionError("nobody is there")
                reply = self.app(message, context)
            except Exception as error:
                reply = Message(Error(0, f"{type(error).__name__}: {error}"), reply_to=message)
            self.seen.append(reply)
            if node not in self.silent:
                self.replies[ids[-1]] = reply
        return ids

    def pull_messages(self, message_ids):
        return [self.replies.pop(each) for each in message_ids if each in self.replies]

    def send_and_receive(self, messages, *, timeout=None):
        return self.pull_messages(self.push_messages(messages))


def client(mods: list, evaluates: bool = True) -> ClientApp:
    app = ClientApp(mods=mods)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        site = context.node_config["partition-id"]
        model = {name: array.numpy() for name, array in message.content["arrays"].items()}
        change = np.random.default_rng(site).uniform(-0.05, 0.05, (3, 4)).astype(np.float32)
        arrays = {"weight": model["weight"] * np.float32(0.9) + change, "batches": model["batches"] + 3}
        content = {
            "arrays": ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()}),
            "metrics": MetricRecord({"num-examples": 100 * (site + 1), "loss": 0.5 + site / 10}),
        }
        return Message(RecordDict(content), reply_to=message)

    if not evaluates:
        return app

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        site = context.node_config["partition-id"]
        metrics = MetricRecord({"num-examples": 10 * (site + 1), "accuracy": 0.5 + site / 100})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


class Lying(Loopback):
    """A node lies: `says` makes its replies, and they are the last to come."""

    liar, says = 104, staticmethod(lambda content: content)

    def push_messages(self, messages):
        ids = super().push_messages(messages)
        for each in ids:
            reply = self.replies.get(each)
            if each.endswith(f"-{self.liar}") and reply is not None and reply.has_content():
                reply.content = self.says(reply.content)
        return ids

    def pull_messages(self, message_ids):
        return super().pull_messages(sorted(message_ids))


def advertised(network: Loopback, node: int) -> bytes:
    """The first message of a node, which everybody gets to see in the next step."""
    replies = (reply for reply in network.seen if reply.metadata.src_node_id == node and reply.has_content())
    return next(iter(next(replies).content["secagg"].values())).data


def lied(told: dict[str, object]) -> None:
    """A node that sends odd records, and one that shows an old advertisement of another client."""
    told["odd"] = []
    odd = (
        ConfigRecord({}),
        ConfigRecord({"reason": 5, "rounds": 7}),
        ConfigRecord({"rounds": ["zz"], "reason": "\x1b"}),
    )
    for record in odd:
        folder = home(private=True)
        network = Lying(secure(folder).app)
        network.says = lambda content, record=record: RecordDict({**content, "secagg-exposed": record})
        told["odd"].append(len(started("FedAvg", SecAggGrid(network, SERVER, Path(folder, "server")), rounds=1).arrays))
    folder = home(private=True)
    network = Lying(secure(folder).app)
    grid = SecAggGrid(network, SERVER, Path(folder, "server"), step_seconds=20)
    started("FedAvg", grid, rounds=1)
    old = advertised(network, 100)
    del grid._client_at[104]  # as after its SuperNode was started again
    network.says = lambda content: RecordDict(
        {"secagg": ArrayRecord({"000": Array("uint8", (len(old),), "secagg", old)})}
    )
    started("FedAvg", grid, rounds=1)
    told["with an old name"] = list(grid._sums["train"].driver.session.included)

    # A server that lies trains one node under another learning rate, model or run config than the others.
    told["told otherwise"] = []
    for lie in (
        lambda message, context: message.content["config"].update({"lr": 0.0}),
        lambda message, context: message.content["arrays"].update({"weight": Array(np.full((3, 4), 1e-7, np.float32))}),
        lambda message, context: context.run_config.update({"local-epochs": 0}),
    ):
        folder = home(private=True)
        network = secure(folder)

        def one_lie(message, context, lie=lie):
            if context.node_id == 104 and "arrays" in message.content:
                message.content = RecordDict({name: copy.deepcopy(record) for name, record in message.content.items()})
                lie(message, context)

        network.lie = one_lie
        grid = SecAggGrid(network, SERVER, Path(folder, "server"), step_seconds=20)
        started("FedAvg", grid, rounds=1)
        said = {reply.error.reason for reply in network.seen if reply.has_error()}
        told["told otherwise"].append([list(grid._sums["train"].driver.session.included), sorted(said)])

    # What an app says of an evaluation beside its metrics stays at the node.
    app = ClientApp(mods=[secagg_mod(home(private=True, evaluate="clear") + "/site-{partition-id}")])

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        arrays, config = ArrayRecord({"update": Array(np.ones(3))}), ConfigRecord({"patient": "7"})
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"metrics": metrics, "arrays": arrays, "config": config}), reply_to=message)

    asked = Message(RecordDict({"arrays": ArrayRecord({n: Array(a) for n, a in MODEL.items()})}), 100, "evaluate")
    told["evaluated in clear"] = sorted(Loopback(app).send_and_receive([asked])[0].content)


def started(name: str, grid: Grid, rounds: int = 3) -> object:
    options = {"FedProx": {"proximal_mu": 0.1}, "FedAvgM": {"server_momentum": 0.9}}.get(name, {})
    chosen = getattr(strategy, name)(min_train_nodes=SITES, min_available_nodes=SITES, **options)
    initial = ArrayRecord({each: Array(array) for each, array in MODEL.items()})
    return chosen.start(grid, initial, num_rounds=rounds, train_config=ConfigRecord({"lr": 0.1}))


def home(**task) -> str:
    layout = layout_for(MODEL, clip_range=0.5, largest_weight=1000, metrics={"loss": 10.0}, value_bits=24)
    return str(trial(tempfile.mkdtemp(), [f"site-{i}" for i in range(SITES)], layout, Task(**task)))


def secure(folder: str, **options) -> Loopback:
    return Loopback(client([secagg_mod(folder + "/site-{partition-id}")], **options))


def evaluated(told: dict[str, object]) -> None:
    """Evaluations in sums of their own, with private updates and without, and a server that evaluates another model."""
    told["summed"] = []
    for private in (True, False):
        folder = home(private=private, evaluate="sum", evaluation={"accuracy": 1.0})
        network = secure(folder)
        grid = SecAggGrid(network, SERVER, Path(folder, "server"))
        found = started("FedAvg", grid, rounds=2)
        plain = started("FedAvg", Loopback(client([])), rounds=2)
        metrics = [dict(result.evaluate_metrics_clientapp[2]) for result in (found, plain)]
        records = {name for reply in network.seen if reply.has_content() for name in reply.content}
        apart = float(np.abs(found.arrays["weight"].numpy() - plain.arrays["weight"].numpy()).max())
        told["summed"].append([metrics, sorted(records), grid.exchanges, apart])
    other = ArrayRecord({"weight": Array(np.full((3, 4), 1e-7, np.float32)), "batches": Array(MODEL["batches"])})
    asked = [
        Message(RecordDict({"arrays": other, "config": ConfigRecord({})}), 100 + site, "evaluate")
        for site in range(SITES)
    ]
    told["another model"] = len(list(grid.send_and_receive(asked)))
    told["said of it"] = sorted({reply.error.reason for reply in network.seen if reply.has_error()})


def misused() -> list[str]:
    """What is said of folders and grids that cannot be meant."""
    asked = Message(RecordDict({"arrays": ArrayRecord({n: Array(a) for n, a in MODEL.items()})}), 100, "train")
    said = [reply.error.reason for reply in Loopback(client([secagg_mod("x/{name}")])).send_and_receive([asked])]
    for wrong in (lambda: secagg_mod(None), lambda: SecAggGrid(None, SERVER, "x")):
        try:
            wrong()
        except ConfigError as error:
            said.append(str(error))
    return said


def main() -> None:
    told: dict[str, object] = {"misused": misused()}
    evaluated(told)
    for name in ("FedAvg", "FedAvgM", "FedProx", "FedAdam", "FedAdagrad", "FedYogi"):
        folder = home(private=name not in ("FedAvg", "FedAvgM"), evaluate="clear", next=NEXT.get(name, "mean"))
        grid = SecAggGrid(secure(folder), SERVER, Path(folder, "server"))
        with_it, plain = started(name, grid), started(name, Loopback(client([])))
        apart = {each: float(np.abs(with_it.arrays[each].numpy() - plain.arrays[each].numpy()).max()) for each in MODEL}
        metrics = [dict(result.train_metrics_clientapp[3]) for result in (with_it, plain)]
        told[name] = {"apart": apart, "metrics": metrics, "exchanges": grid.exchanges}

    # An app that evaluates nothing, and is asked to by FedAvg: what came with that message comes with the next one.
    folder = home()
    grid = SecAggGrid(secure(folder, evaluates=False), SERVER, Path(folder, "server"))
    result = started("FedAvg", grid)
    told["without evaluation"] = [sorted(result.train_metrics_clientapp), grid.exchanges]

    # A node that died gets the newest transcript if it comes back, and the server keeps no pile of them for it.
    folder = home()
    network = secure(folder, evaluates=False)
    grid = SecAggGrid(network, SERVER, Path(folder, "server"))

    def dies(message, context):
        if "config" in message.content and message.content["config"]["server-round"] == 2:
            network.dead = 104

    network.lie = dies
    started("FedAvg", grid, rounds=6)
    waits = sum(map(looks_like, grid._later[104]["secagg"]))
    told["of the dead"] = [waits, list(grid._sums["train"].driver.session.included)]

    # Two messages are at one node, and only the later one is answered: what the earlier one brought is told again.
    network = secure(home())
    network.silent = {100}
    grid = SecAggGrid(network, SERVER, Path(folder, "server"))
    grid._asked = {100: Message(RecordDict(), 100, "train")}
    for part in (b"one", b"two"):
        grid._later = {100: {"secagg": [part]}}
        grid._push({100: {}})
    first, second = grid._waiting
    for at, out in ((second, grid._asked[100]), (first, grid._asked[100])):
        reply = Message(RecordDict(), reply_to=out) if at == second else Message(Error(0, "gone"), reply_to=out)
        reply.metadata.__dict__["_reply_to_message_id"] = at
        grid._hear(reply)
    told["told again"] = [part.decode() for part in grid._later[100]["secagg"]]

    # Whole weights instead of changes; nothing of one site is in what the server gets.
    folder = home(private=True, changes=False)
    network = secure(folder)
    result = started("FedAvg", SecAggGrid(network, SERVER, Path(folder, "server")), rounds=1)
    told["weights"] = result.arrays["weight"].numpy().tolist()
    told["plain"] = started("FedAvg", Loopback(client([])), rounds=1).arrays["weight"].numpy().tolist()
    told["records"] = sorted({name for reply in network.seen if reply.has_content() for name in reply.content})
    told["evaluated"] = {str(number): dict(r) for number, r in result.evaluate_metrics_clientapp.items()}

    # A server that asks in clear, and one that trains on another model than it announced.
    plain = Loopback(client([secagg_mod(home(private=True) + "/site-{partition-id}")]))
    asked = Message(RecordDict({"arrays": ArrayRecord({n: Array(a) for n, a in MODEL.items()})}), 100, "train")
    told["in clear"] = plain.send_and_receive([asked])[0].error.reason

    # Too few nodes: an empty round and not a dead app; the next one with everybody.
    folder = home(private=True)
    network = secure(folder)
    network.silent = {100, 101}
    grid = SecAggGrid(network, SERVER, Path(folder, "server"), step_seconds=0.3, attempts=1)
    told["too few"] = sorted(started("FedAvg", grid, rounds=1).arrays)
    network.silent = set()
    told["then"] = sorted(started("FedAvg", SecAggGrid(network, SERVER, Path(folder, "server")), rounds=1).arrays)
    lied(told)
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
