"""The process that computes on shares, `python -m fedseg.encrypted.engine`: SPU's ABY3 with the other two parties.

It is a process of its own because SPU's waiting cannot be interrupted, and because what its libraries print is not for
people. It speaks with the command that started it over its standard input and output (`frames`), and ends with it.

Each party makes the computation itself, from a program that it has read (`program`): what runs is what it knows, and
nothing in it reveals anything. Weights and pictures are split into shares by their owner, two of three parts to each
party; the answer's shares go to the pictures' owner alone.
"""

import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import IO, Any

import jax
import numpy as np
import spu
from numpy.typing import NDArray
from spu import libspu
from spu.api import Io, Runtime
from spu.utils import frontend

from fedseg.encrypted.arithmetic import run
from fedseg.encrypted.frames import put, take
from fedseg.encrypted.program import Program
from fedseg.errors import ConfigError

VERSION = "1"
"""Of what the parties say to each other."""
DATA, MODEL = 0, 1
PARTIES = 3
PLACES = 20
"""Binary places of a number: with 64 bits, products stay right below 2^22."""
SECRET = libspu.Visibility.VIS_SECRET
_ANSWER = "answer"


class RefusedError(Exception):
    """Why this party goes no further: one sentence."""


class Engine:
    """This party's end of one session; blocks until the other two are there.

    Args:
        setup: what `fedseg.encrypted.session.Engine` sends first.
        tell: what the command is told.
    """

    def __init__(self, setup: dict[str, Any], tell: Callable[..., None]) -> None:
        self._rank, self._tell = int(setup["rank"]), tell
        self._names: list[str] = setup["who"]
        self._link = libspu.link.create_brpc(_described(setup), self._rank)
        self._words = self._link.spawn()  # what the parties say to each other, beside what SPU says
        config = libspu.RuntimeConfig(
            protocol=libspu.ProtocolKind.ABY3, field=libspu.FieldType.FM64, fxp_fraction_bits=PLACES
        )
        self._spu, self._io = Runtime(self._link, config), Io(PARTIES, config)
        self._compiled: dict[int, Any] = {}
        tell({"linked": True})
        self.program, self.study = self._greet(setup)
        self._shapes = sorted(self.program.weights.items())

    def _greet(self, setup: dict[str, Any]) -> tuple[Program, str]:
        """All three say what must be alike; the model's owner says what it serves: the program, and the study."""
        own = {"versions": {"spu": spu.__version__, "jax": jax.__version__, "encrypted protocol": VERSION}}
        own |= {"parties": setup["parties"], "program": setup.get("program", "")}
        found = [json.loads(text) for text in self._words.all_gather(json.dumps(own))]
        for who, said in zip(self._names, found, strict=True):
            for name, mine in own["versions"].items():
                if said["versions"].get(name) != mine:
                    raise RefusedError(
                        f"{who} has {name} {said['versions'].get(name)}, and here is {mine}; use the same"
                    )
            if said["parties"] != own["parties"]:
                raise RefusedError(
                    f"{who} has another parties.toml: another certificate or model hash; use the same file"
                )
        if self._rank == MODEL:
            self._words.send(DATA, setup["study"])
        study = bytes(self._words.recv(MODEL)).decode() if self._rank == DATA else ""
        return Program.read(found[MODEL]["program"]), study

    def take_weights(self, weights: list[NDArray[np.float32]]) -> None:
        """Split the weights, or take this party's shares of them; `weights` in the order of their names."""
        for number, (_, shape) in enumerate(self._shapes):
            self._shared(f"w{number}", MODEL, shape, weights[number] if self._rank == MODEL else None)

    def ask(self, pictures: NDArray[np.float32]) -> NDArray[np.float32]:
        """At the pictures' owner: the network's answer, (k, outputs, ...)."""
        self._to_others(json.dumps(len(pictures)))
        self._compute(len(pictures), pictures)
        shares = [self._spu.get_var(_ANSWER), *(self._received(rank) for rank in range(1, PARTIES))]
        self._forget()
        return np.asarray(self._io.reconstruct(shares), np.float32)

    def follow(self) -> None:
        """At the others: compute until the pictures' owner ends it."""
        while count := json.loads(bytes(self._words.recv(DATA))):
            self._compute(count, None)
            self._sent(DATA, self._spu.get_var(_ANSWER))
            self._forget()
            self._tell({"pictures": count})

    def end(self) -> None:
        """Leave the other two."""
        if self._rank == DATA:
            self._to_others(json.dumps(0))
        self._tell({"end": True})
        self._link.stop_link()

    def _compute(self, count: int, pictures: NDArray[np.float32] | None) -> None:
        if not isinstance(count, int) or not 0 < count <= 1024:
            raise RefusedError("the pictures' owner asked for an impossible number of pictures")
        self._shared("pictures", DATA, (count, *self.program.picture), pictures)
        if count not in self._compiled:
            self._compiled[count] = self._compile(count)
        self._spu.run(self._compiled[count])

    def _compile(self, count: int) -> Any:
        names = [name for name, _ in self._shapes]

        def network(weights: list[Any], pictures: Any) -> Any:
            """The program as one function of everything that is secret."""
            return run(self.program, dict(zip(names, weights, strict=True)), pictures)

        inputs = [np.zeros(shape, np.float32) for _, shape in self._shapes]
        pictures = np.zeros((count, *self.program.picture), np.float32)
        given = [*(f"w{number}" for number in range(len(inputs))), "pictures"]
        executable, _ = frontend.compile(
            frontend.Kind.JAX, network, [inputs, pictures], {}, given, [SECRET] * len(given), lambda out: [_ANSWER]
        )
        return executable

    def _forget(self) -> None:
        for name in ("pictures", _ANSWER):
            self._spu.del_var(name)

    # --- Shares ---------------------------------------------------------------------------------------------------

    def _shared(self, name: str, owner: int, shape: tuple[int, ...], values: NDArray[np.float32] | None) -> None:
        """Give each party its share of the owner's values, and take one's own."""
        if values is not None:
            if values.shape != shape:
                raise RefusedError(f"the program takes {shape} and was given {values.shape}")
            shares = self._io.make_shares(values, SECRET)
            for rank in range(PARTIES):
                if rank != owner:
                    self._sent(rank, shares[rank])
            share = shares[owner]
        else:
            share = self._received(owner)
            meta = libspu.ValueMeta()
            meta.ParseFromString(share.meta)
            if tuple(meta.shape.dims) != shape:
                raise RefusedError(
                    f"{self._names[owner]} sent values of another size than it said; use the same version"
                )
        self._spu.set_var(name, share)

    def _sent(self, rank: int, share: Any) -> None:
        chunks = list(share.share_chunks)
        for part in (share.meta, json.dumps(len(chunks)), *chunks):
            self._words.send(rank, part)

    def _received(self, rank: int) -> Any:
        share = libspu.Share()
        share.meta = bytes(self._words.recv(rank))
        count = json.loads(bytes(self._words.recv(rank)))
        share.share_chunks = [bytes(self._words.recv(rank)) for _ in range(count)]
        return share

    def _to_others(self, text: str) -> None:
        for rank in range(PARTIES):
            if rank != self._rank:
                self._words.send(rank, text)


def _described(setup: dict[str, Any]) -> Any:
    """Who is where, with whose certificates: only the other two's are taken, in both directions."""
    described = libspu.link.Desc()
    described.id = "fedseg-encrypted"
    for role, address in setup["addresses"]:
        described.add_party(role, address)
    described.connect_retry_times, described.connect_retry_interval_ms = 1 << 30, 500  # until the command ends it
    described.recv_timeout_ms = 1000 * int(setup["patience"])
    described.enable_ssl = True
    for options in (described.client_ssl_opts, described.server_ssl_opts):
        options.cert.certificate_path, options.cert.private_key_path = setup["certificate"], setup["key"]
        options.verify.ca_file_path, options.verify.verify_depth = setup["others"], 1
    return described


def main() -> None:
    """Serve one session for the command at the other end of the pipes."""
    given, told = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries print where they like

    def tell(said: dict[str, Any], *arrays: NDArray[np.float32]) -> None:
        """Say something to the command."""
        put(told, said, arrays)

    try:
        _serve(given, tell)
    except (RefusedError, ConfigError) as error:
        tell({"error": str(error)})
    except RuntimeError as error:  # SPU's
        tell({"broken": _told(error)})
    finally:
        os._exit(0)  # SPU's threads may wait for somebody who has gone


def _told(error: RuntimeError) -> str:
    """What SPU says, in a few words."""
    text = " ".join(str(error).removeprefix("what:").split())
    return "a party said nothing for too long" if "timeout" in text.lower() else text[:100]


def _serve(given: IO[bytes], tell: Callable[..., None]) -> None:
    first = take(given)
    if first is None:
        return
    setup, weights = first
    words: queue.Queue[Any] = queue.Queue()

    def listen() -> None:
        """Everything that the command says; without it there is nothing to do any more."""
        while (frame := take(given)) is not None:
            words.put(frame)
        os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    engine = Engine(setup, tell)
    tell({"program": engine.program.text(), "study": engine.study})
    engine.take_weights(weights)
    tell({"ready": True})
    if setup["rank"] != DATA:
        engine.follow()
        engine.end()
        return
    while True:
        said, arrays = words.get()
        if said.get("end"):
            engine.end()
            return
        tell({"answer": True}, engine.ask(*arrays))


if __name__ == "__main__":
    main()
