"""Peak memory of a client and of the server, each in a process of its own; Linux only.

python tests/benchmarks/bench_memory.py [--huge]

Peak is the process's largest resident set above what it held once everything was imported. The client's is held
against its input (float32), its output (y) and 32 MB; the server's, for n = 4, 8 and 16, must not grow with n beyond
keys and shares. --huge: a round of five clients with 1e8 values each, one of which drops out; about 5 GB in all. This
file is the driver, which carries bytes between processes in small pieces, and with --party one of the parties.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from bench_round import Meter, one_round, policy_for, update_of

import secagg
from secagg import wire
from secagg.encoding import Buffer
from secagg.messages import Reports
from secagg.quantize import dequantize

CLIENT_LIMIT_MB = 32
GROWTH_LIMIT_MB = 2  # from n = 4 to n = 16: keys, bundles and headers of twelve more clients are 0.4 MB with X-Wing
PIECE = 1 << 20


@dataclass(frozen=True)
class Setting:
    """What every process must know to build the same policy and roster. Its keys protect nobody."""

    clients: int
    length: int
    suite: str
    bits: int
    dropped: int = 0

    @property
    def names(self) -> list[str]:
        return [f"site-{i:03d}" for i in range(self.clients)]

    def key(self, name: str) -> secagg.SigningKey:
        return secagg.SigningKey.from_bytes(hashlib.sha256(name.encode()).digest())

    def round(self) -> tuple[secagg.Policy, secagg.PinnedRoster, secagg.RoundContext]:
        policy = policy_for(self.clients, self.length, secagg.Suite(self.suite), bits=self.bits)
        roster = secagg.PinnedRoster({name: self.key(name).verify_key for name in self.names})
        return policy, roster, secagg.RoundContext("run", 1, 0, bytes(32), bytes(32))


def resident(field: str) -> int:
    """Bytes of VmRSS (now) or VmHWM (the most so far); getrusage would begin with what the parent once held."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise SystemExit("this benchmark reads /proc/self/status, which only Linux has")


# --- A party, in a process of its own ----------------------------------------------------------------------------


class Party:
    """Reads commands, one line of JSON each, and answers with a line or with a number of bytes and these bytes."""

    def __init__(self, setting: Setting) -> None:
        one_round(policy_for(3, 10, secagg.Suite(setting.suite)), 0, Meter())  # first calls import and allocate
        self.setting, self.meter = setting, Meter()
        self.commands, self.answers = sys.stdin.buffer, sys.stdout.buffer
        self.start = resident("VmRSS")

    def serve(self) -> None:
        for line in self.commands:
            command = json.loads(line)
            getattr(self, command.pop("do"))(**command)
            self.answers.flush()

    def read(self, size: int) -> bytearray:
        data = bytearray(size)
        self.commands.readinto(data)
        return data

    def tell(self, answer: object) -> None:
        self.answers.write(json.dumps(answer).encode() + b"\n")

    def send(self, pieces: tuple[Buffer, ...]) -> None:
        self.tell(sum(map(len, pieces)))
        for piece in pieces:
            self.answers.write(piece)

    def report(self) -> None:
        self.tell({"bytes": resident("VmHWM") - self.start, "seconds": self.meter.spent["own"]})


class Client(Party):
    def __init__(self, setting: Setting, name: str) -> None:
        super().__init__(setting)
        policy, roster, context = setting.round()
        self.index = setting.names.index(name)
        self.session = secagg.ClientSession(
            policy, name, setting.key(name), roster, secagg.unchecked_round(context), secagg.MemoryStore()
        )

    def begin(self) -> None:
        with self.meter.of("own"):
            pieces = wire.parts(self.session.start())
        self.send(pieces)

    def hear(self, size: int) -> None:
        message = wire.decode_from_server(self.read(size))
        update = update_of(self.index, self.setting.length) if isinstance(message, Reports) else None
        with self.meter.of("own"):
            if update is not None:
                self.session.provide(update)
            reply = self.session.receive(message)
            pieces = () if reply is None else wire.parts(reply)
        self.send(pieces)


class Server(Party):
    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.policy, roster, context = setting.round()
        self.session = secagg.ServerSession(self.policy, roster, context)
        self.replies: dict[str, Any] = {}
        self.encoded: tuple[Any, tuple[Buffer, ...]] = (None, ())

    def hear(self, name: str, size: int) -> None:
        data = self.read(size)
        with self.meter.of("own"):
            self.session.receive(name, wire.decode_from_client(data))
        self.tell("heard")

    def close(self) -> None:
        with self.meter.of("own"):
            self.replies = dict(self.session.close_step())
        self.tell({"step": self.session.step, "finished": self.session.finished, "replies": list(self.replies)})

    def give(self, name: str) -> None:
        """What goes to everybody is encoded once."""
        with self.meter.of("own"):
            reply = self.replies.pop(name)
            if reply is not self.encoded[0]:
                self.encoded = (reply, wire.parts(reply))
        self.send(self.encoded[1])

    def check(self) -> None:
        """Whether every value of the sum is within one step for each input: quantisation rounds up or down."""
        total, step = self.session.result, self.policy.clip_range / self.policy.largest_value
        generators = [np.random.default_rng(self.setting.names.index(name)) for name in self.session.included]
        worst, size = 0.0, 1 << 20
        for first in range(0, len(total), size):
            part = total[first : first + size]
            inputs = [2 * generator.random(len(part), dtype=np.float32) - 1 for generator in generators]
            found = dequantize(part, replace(self.policy, length=len(part)))
            worst = max(worst, float(np.abs(found - np.sum(inputs, axis=0, dtype=np.float64)).max()))
        self.tell(worst < len(generators) * step)


# --- The driver --------------------------------------------------------------------------------------------------


class Process:
    """One party, seen from the driver."""

    def __init__(self, setting: Setting, name: str) -> None:
        command = [sys.executable, __file__, "--party", name, json.dumps(asdict(setting))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.commands: IO[bytes] = self._process.stdin  # type: ignore[assignment]
        self.answers: IO[bytes] = self._process.stdout  # type: ignore[assignment]

    def ask(self, do: str, **arguments: object) -> Any:
        self.command(do, **arguments)
        return self.answer()

    def command(self, do: str, **arguments: object) -> None:
        self.commands.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        self.commands.flush()

    def answer(self) -> Any:
        line = self.answers.readline()
        if not line:
            raise SystemExit("a party ended early; see its message above")
        return json.loads(line)

    def hear(self, source: "Process", size: int, **arguments: object) -> Any:
        """The next `size` bytes of another party go to this one."""
        self.command("hear", size=size, **arguments)
        while size:
            piece = source.answers.read(min(size, PIECE))
            self.commands.write(piece)
            size -= len(piece)
        self.commands.flush()
        return self.answer()

    def end(self) -> None:
        self.commands.close()
        self._process.wait()


@dataclass(frozen=True)
class Figures:
    """Bytes above the start and CPU seconds: of the server, and of the client for which each is largest."""

    server: dict[str, float]
    client: dict[str, float]
    wall: float


def play(setting: Setting) -> Figures:
    """A whole round between processes; one party works at a time."""
    began = time.perf_counter()
    server = Process(setting, "server")
    clients = {name: Process(setting, name) for name in setting.names}
    gone = set(setting.names[: setting.dropped])
    for name, client in clients.items():
        server.hear(client, client.ask("begin"), name=name)
    finished = False
    while not finished:
        closed = server.ask("close")
        finished = closed["finished"]
        for name in closed["replies"]:
            if closed["step"] == "MaskedInputCollection" and name in gone:
                continue
            size = clients[name].hear(server, server.ask("give", name=name))
            if size:
                server.hear(clients[name], size, name=name)
    reports = [client.ask("report") for name, client in clients.items() if name not in gone]
    figures = Figures(
        server.ask("report"),
        {key: max(report[key] for report in reports) for key in reports[0]},
        time.perf_counter() - began,
    )
    if not server.ask("check"):
        raise SystemExit("the sum is wrong")
    for process in (server, *clients.values()):
        process.end()
    return figures


def ordinary() -> None:
    length, suite, bits = 10**7, secagg.Suite.MLKEM768_X25519.value, 23
    peaks = {}
    for clients in (4, 8, 16):
        figures = play(Setting(clients, length, suite, bits))
        own = (4 * length + bits * length / 8) / 1e6
        above = figures.client["bytes"] / 1e6 - own
        peaks[clients] = figures.server["bytes"] / 1e6
        print(
            f"n={clients:2} d={length} {bits} bits: client peak {figures.client['bytes'] / 1e6:6.1f} MB = "
            f"input and output {own:.1f} MB + {above:.1f} MB, limit {CLIENT_LIMIT_MB} MB: "
            f"{_verdict(above <= CLIENT_LIMIT_MB)}; server peak {peaks[clients]:6.1f} MB"
        )
    growth = peaks[16] - peaks[4]
    print(
        f"server from n=4 to n=16: {growth:+.1f} MB (a vector has {4 * length / 1e6:.0f} MB), "
        f"limit {GROWTH_LIMIT_MB} MB: {_verdict(growth <= GROWTH_LIMIT_MB)}"
    )


def huge() -> None:
    setting = Setting(5, 10**8, secagg.Suite.MLKEM768_X25519.value, 19, dropped=1)
    figures = play(setting)
    for who, figure in (("client", figures.client), ("server", figures.server)):
        print(
            f"n=5 d=1e8, one dropped: {who} peak {figure['bytes'] / 1e6:.0f} MB, {figure['seconds']:.2f} s of CPU time"
        )
    print(
        f"input {4 * setting.length / 1e6:.0f} MB, output {setting.bits * setting.length / 8e6:.0f} MB a client; "
        f"{figures.wall:.0f} s for the whole round, one party at a time; sum checked"
    )


def _verdict(holds: bool) -> str:
    return "reached" if holds else "MISSED"


def main() -> None:
    """Print a line for each size, or be a party."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--huge", action="store_true", help="n = 5, d = 1e8 instead")
    parser.add_argument("--party", nargs=2, metavar=("NAME", "SETTING"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.party:
        name, setting = options.party[0], Setting(**json.loads(options.party[1]))
        (Server(setting) if name == "server" else Client(setting, name)).serve()
    elif options.huge:
        huge()
    else:
        ordinary()


if __name__ == "__main__":
    main()
