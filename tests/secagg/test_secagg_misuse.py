"""What an importer gets wrong is told in one sentence: what it is, where it stands, and what is wanted."""

import multiprocessing.pool
import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import secagg
from secagg import Field, Layout, wire
from secagg.federated import layout_for, model_hash, values_for
from secagg.home import Home, Task, trial

KEYS = {name: secagg.SigningKey.generate() for name in "abc"}
SERVER = secagg.SigningKey.generate()
PINNED = secagg.PinnedRoster({name: key.verify_key for name, key in KEYS.items()})
GIVEN = {"project": "p", "clients": 3, "length": 3, "clip_range": 1.0, "server_key": SERVER.verify_key}
POLICY = secagg.Policy(**GIVEN)
CONTEXT = secagg.RoundContext("run", 1, 0, bytes(32), bytes(32))
START = secagg.RoundBook("run", bytes(32), SERVER, 1).start(bytes(32))


def policy(**changes):
    return secagg.Policy(**GIVEN | changes)


def client(**changes):
    own = {"policy": POLICY, "me": "a", "signing_key": KEYS["a"], "pinned": PINNED, "store": secagg.MemoryStore()}
    return secagg.ClientSession(**own | {"opened": secagg.unchecked_round(CONTEXT)} | changes)


def opened(**changes):
    own = {"policy": POLICY, "pinned": PINNED, "training_run": "run", "start": START, "store": secagg.MemoryStore()}
    return secagg.open_round(**own | {"model_hash": bytes(32), "task_hash": bytes(32)} | changes)


def server(**changes):
    own = {"policy": POLICY, "pinned": PINNED, "round_context": CONTEXT, "signing_key": SERVER}
    return secagg.ServerSession(**own | changes)


def driver(**changes):
    own = {"policy": POLICY, "me": "a", "signing_key": KEYS["a"], "pinned": PINNED, "store": secagg.MemoryStore()}
    return secagg.ClientDriver(**own | {"training_run": "run", "task_hash": bytes(32)} | changes)


def serving(**changes):
    own = {"policy": POLICY, "pinned": PINNED, "book": secagg.RoundBook("run", bytes(32), SERVER, 1)}
    return secagg.ServerDriver(**own | changes)


MODEL = {"w": np.zeros(3, np.float32)}


def layout(arrays=MODEL, **changes):
    return layout_for(arrays, **{"clip_range": 0.1, "largest_weight": 10} | changes)


def values(arrays=MODEL, weight=1, metrics=None):
    return values_for(layout(), arrays, weight, metrics or {}, MODEL)


def folders(sites=("a", "b", "c"), folder="nowhere", **changes):
    return trial(folder, sites, **{"layout": layout()} | changes)


class RayPool:
    """With the signature of ray.util.multiprocessing.Pool."""

    def map(self, func, iterable, chunksize=None):
        raise AssertionError("refused before")


RayPool.__module__, RayPool.__qualname__ = "ray.util.multiprocessing.pool", "Pool"

MISUSES = [
    (lambda: client().provide(None), "the update is None; give an array of numbers"),
    (lambda: client().provide("secret"), "the update is a str; give an array of numbers"),
    (lambda: client().provide([1, 2, 3]), "the update is int64 of shape (3,); the policy needs float32 or float64"),
    (lambda: client().provide([[1.0], [2.0, 3.0]]), "its rows differ in length"),
    (lambda: client().provide(torch.zeros(3, dtype=torch.int64)), "declare Field.counts"),
    (lambda: client().provide(torch.zeros(3, 3)), "of shape (3, 3); the policy needs float32 or float64 of shape (3,)"),
    (lambda: client().provide(torch.zeros(3).to_sparse()), "a tensor that numpy cannot hold"),
    (lambda: client().provide(np.ma.masked_array(np.zeros(3), [1, 0, 0])), "a sum knows no masks"),
    (lambda: client().provide({"gradient": np.zeros(3)}), "has the field 'gradient', which the policy's layout"),
    (lambda: client(me=1), "me is an int: give this client's id"),
    (lambda: client(me="z"), "client 'z' is not in the roster"),
    (lambda: client(signing_key=bytes(32)), "signing_key is bytes: give a secagg.SigningKey"),
    (lambda: client(pinned=dict(PINNED)), "pinned is a dict: give a secagg.PinnedRoster"),
    (lambda: client(opened=CONTEXT), "opened is a RoundContext: give what secagg.open_round returns"),
    (lambda: client(store=None), "store is None: give a secagg.SqliteStore"),
    (lambda: client(policy={}), "policy is a dict: give a secagg.Policy"),
    (lambda: client(executor=2), "executor is an int: give a concurrent.futures.Executor"),
    (
        lambda: client(executor=RayPool()),
        "executor is a ray.util.multiprocessing.pool.Pool, whose map takes one iterable",
    ),
    (
        lambda: server(executor=multiprocessing.pool.ThreadPool(1)),
        "multiprocessing.pool.ThreadPool, whose",
    ),
    (lambda: client().receive(wire.encode(START)), "decode it first, with secagg.wire.decode_from_server"),
    (lambda: server().receive("a", b""), "decode it first, with secagg.wire.decode_from_client"),
    (lambda: server(round_context=None), "round_context is None: give RoundBook.context(model_hash)"),
    (lambda: server(signing_key=bytes(32)), "signing_key is bytes: give the server's secagg.SigningKey"),
    (lambda: opened(start=wire.encode(START)), "start is bytes: give the server's message, from secagg.wire"),
    (lambda: opened(store=None), "store is None: give a secagg.SqliteStore"),
    (lambda: opened(model_hash="00" * 32), "model_hash is a str: give 32 bytes"),
    (lambda: policy(suite="X25519"), "suite is a str: give secagg.Suite.MLKEM768_X25519 or secagg.Suite.X25519"),
    (lambda: policy(clients="3"), "clients = '3': give a whole number, not a str"),
    (lambda: policy(clients=300), "clients = 300: secure aggregation needs 3 to 256 clients"),
    (lambda: policy(clip_range="1"), "clip_range = '1': give a number, not a str"),
    (lambda: policy(clip_range=None), "clip_range = None: give a number, not None"),
    (lambda: policy(bits=None), "bits = None: give a whole number, not None"),
    (lambda: policy(weights=[1.0, 2.0, 3.0]), "weights is a list: give a mapping of client ids to weights"),
    (lambda: policy(weights={1: 2.0}), "the client id 1 of a weight is an int"),
    (lambda: policy(weights={"a": "2"}), "weight of a = '2': give a number"),
    (lambda: policy(server_key=SERVER), "server_key is a SigningKey: give the 32 bytes"),
    (lambda: policy(layout={"x": 3}), "layout is a dict: give a secagg.Layout"),
    (lambda: secagg.PinnedRoster({1: bytes(32)}), "client id 1 is an int: give a text"),
    (lambda: secagg.PinnedRoster(["a", "b"]), "the roster is a list: give a mapping of client ids to verify keys"),
    (lambda: secagg.PinnedRoster({"a": KEYS["a"]}), "verify key of a is a SigningKey: give the 32 bytes"),
    (lambda: secagg.RoundContext("run", "1", 0, bytes(32), bytes(32)), "round_number = '1': give a whole number"),
    (lambda: secagg.RoundBook("run", bytes(32), None, 1), "signing_key is None: give the server's secagg.SigningKey"),
    (lambda: secagg.dequantize([1, 2, 3], POLICY), "the sum is a list; the policy says uint32 of shape (3,)"),
    (lambda: secagg.means(np.zeros(3, np.uint32), POLICY, ()), "a mean of nobody"),
    (lambda: secagg.SigningKey.from_bytes("00" * 32), "the seed is a str: give 32 bytes"),
    (lambda: secagg.SqliteStore(None, "data"), "path is None: give the name of a file"),
    (lambda: client(store=secagg.MemoryStore), "store is the class MemoryStore: give a secagg.SqliteStore"),
    (lambda: secagg.SqliteStore("/", "data"), "store /: is a folder; name the file"),
    (lambda: secagg.load_roster(None), "path is None: give the name of a file"),
    (lambda: secagg.Policy.from_toml("[clients]"), "the text is not a policy"),
    (lambda: secagg.Policy.from_json('{"policy": {"project": "p"}}'), "the policy lacks the field 'clients'"),
    (lambda: driver(training_run=1), "training_run is an int: give the run's name"),
    (lambda: driver(task_hash=bytes(31)), "task_hash has 31 bytes: give 32 bytes"),
    (lambda: driver(patience="60"), "patience = '60': give a number, not a str"),
    (lambda: driver(executor=2), "executor is an int: give a concurrent.futures.Executor"),
    (lambda: driver().receive("start"), "data is a str: give the bytes that the other side sent"),
    (lambda: driver().receive(None), "data is None: give the bytes"),
    (lambda: serving(attempts="3"), "attempts = '3': give a whole number, not a str"),
    (lambda: serving(step_seconds="60"), "step_seconds = '60': give a number, not a str"),
    (lambda: serving(input_seconds=-1), "input_seconds = -1: must be a positive finite number"),
    (lambda: serving(executor=RayPool()), "whose map takes one iterable"),
    (lambda: serving(policy=policy(clients=4)), "the roster lists 3 clients and the policy says clients = 4"),
    (lambda: serving().receive("a", "text"), "data is a str: give the bytes"),
    (lambda: serving().begin(bytes(31)), "model_hash has 31 bytes: give 32 bytes"),
    (lambda: secagg.simulate({"a": np.zeros(3)}, POLICY, drop="a"), "drop is a str: give ids"),
    (lambda: secagg.simulate({"a": np.zeros(3)}, POLICY, drop=1), "drop is an int: give ids"),
    (lambda: layout(None), "the model is None: give arrays by name"),
    (lambda: layout([np.zeros(3)]), "the model is a list: give arrays by name"),
    (lambda: layout({}), "the model has no arrays"),
    (lambda: layout({"w": [0, 0]}), "the model's 'w' is a list: give a numpy array or a torch tensor"),
    (lambda: layout({"w": np.array([None])}), "the model's 'w' is an array of object; give an array of numbers"),
    (lambda: layout({"w": np.zeros(3, complex)}), "the model's 'w' holds complex numbers"),
    (lambda: layout({1: np.zeros(3)}), "the array's name 1 is an int: give a text"),
    (lambda: layout(largest_weight=float("nan")), "largest_weight = nan: must be a positive finite number"),
    (lambda: layout(metrics=["loss"]), "metrics is a list: give numbers by name"),
    (lambda: layout(metrics={3: 1.0}), "the metric's name 3 is an int: give a text"),
    (lambda: layout(metrics={"loss": None}), "clip range of the metric 'loss' = None: give a number"),
    (lambda: values({"w": [0.0] * 3}), "the model's 'w' is a list: give a numpy array or a torch tensor"),
    (lambda: values(metrics=[0.5]), "metrics is a list: give numbers by name"),
    (lambda: folders("abc"), "sites is a str: give the names of the sites, as a list"),
    (lambda: folders(5), "sites is an int: give the names"),
    (lambda: folders([1, 2, 3]), "site 1 is an int: give its name, a text"),
    (lambda: folders(["a", "b", "b"]), "two parties have the name 'b'"),
    (lambda: folders(["a", "b", "server"]), "two parties have the name 'server'"),
    (lambda: folders(layout=MODEL), "layout is a dict: make it with secagg.federated.layout_for"),
    (lambda: folders(task={"private": True}), "task is a dict: give a secagg.home.Task"),
    (lambda: folders(folder=None), "folder is None: give the name of a folder"),
    (lambda: Home.read(None), "folder is None: give the name of a party's folder"),
    (lambda: Task(evaluate="sum", evaluation={"a": "x"}), "[task.evaluation] a = 'x': give a number, not a str"),
    (lambda: Task(evaluate="sum", evaluation={1: 1.0}), "[task.evaluation] 1 is an int: give the metric's name"),
    (lambda: Layout([3]), "the layout is a list; give a mapping"),
    (lambda: Layout({"x": np.zeros(3)}), "'x' is an array of float64; make it with secagg.Field.floats"),
    (lambda: Layout({}), "the layout has no field"),
    (lambda: Field.floats("3", clip_range=1.0), "shape = '3': give a whole number or a tuple"),
    (lambda: Field.floats((0,), clip_range=1.0), "shape = (0,): a field has at least one value"),
    (lambda: Field.counts(3, largest=1.5), "largest = 1.5: give a whole number, not a float"),
    (lambda: Field.counts(3, largest=0), "the largest count is 1 to 2^45"),
]


@pytest.mark.parametrize(("misuse", "says"), MISUSES, ids=[says for _, says in MISUSES])
def test_a_misuse_is_told_in_one_sentence(misuse, says):
    with pytest.raises(secagg.ConfigError, match=re.escape(says)) as error:
        misuse()
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_a_trial_is_not_made_over_another_one(tmp_path):
    folders(folder=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(secagg.ConfigError, match="is there already: choose another folder, or remove it"):
        folders(["d", "c", "e"], tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_state_dict_of_torch_is_a_model_as_it_is():
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    state = net.state_dict()
    own = {name: tensor.numpy() for name, tensor in state.items()}
    assert layout(state) == layout(own)
    assert model_hash(state) == model_hash(own)
    given, wanted = (values_for(layout(own), each, 2, {}, own) for each in (net.state_dict(), own))
    assert given.keys() == wanted.keys()
    assert all(np.array_equal(given[name], wanted[name]) for name in wanted)


def test_a_refused_update_leaves_the_session_as_it_was():
    session = client()
    for wrong in (None, [1, 2, 3], np.zeros(4)):
        with pytest.raises(secagg.ConfigError):
            session.provide(wrong)
    session.start()
    assert session.provide(torch.zeros(3, dtype=torch.bfloat16, requires_grad=True)) is None


def test_an_executor_of_any_make_passes_where_its_map_takes_many():
    class Cluster:
        def map(self, function, /, *iterables):
            return map(function, *iterables)

    with ThreadPoolExecutor(1) as threads:
        for executor in (None, threads, Cluster()):
            client(executor=executor)


def test_an_error_travels_between_processes_as_it_is():
    """A pool or a cluster hands an error on in its pickled form."""
    with pytest.raises(secagg.ProtocolError) as raised:
        secagg.open_round(
            POLICY, PINNED, "another", START, secagg.MemoryStore(), model_hash=bytes(32), task_hash=bytes(32)
        )
    error = pickle.loads(pickle.dumps(raised.value))
    assert (type(error), str(error), error.check) == (type(raised.value), str(raised.value), raised.value.check)
