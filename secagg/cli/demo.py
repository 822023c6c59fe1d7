"""`secagg demo`: a round of many clients in this process, over wire bytes, with dropouts and a transcript."""

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.table import Table

from secagg import wire
from secagg.cli.policy import Clients, Corrupt, Length, Suites
from secagg.cli.terminal import app, sentences
from secagg.client import open_round
from secagg.context import GENESIS, RoundContext
from secagg.encoding import HASH_BYTES
from secagg.errors import ConfigError
from secagg.files import policy_text, roster_text
from secagg.keys import SigningKey
from secagg.masking import Vector
from secagg.messages import RoundStart
from secagg.packing import dtype_for, modulo
from secagg.policy import Policy, Suite
from secagg.prg import Stream
from secagg.roster import PinnedRoster
from secagg.session import ClientSession, ServerSession
from secagg.steps import MASKED_INPUT_COLLECTION
from secagg.store import MemoryStore
from secagg.terminal import out, plain, say
from secagg.transcript_files import Recorder
from secagg.writing import write_new

RUN = "demo"
NOTHING = bytes(HASH_BYTES)
"""Hash of the model and of the task: there are none."""


@dataclass
class _Step:
    """Time and bytes of one step of the demonstration."""

    name: str
    heard: int = 0
    up: int = 0
    down: int = 0
    seconds: float = 0.0


@dataclass
class Demo:
    """One round of n clients in this process, over wire bytes."""

    policy: Policy
    silent: frozenset[str]
    server: ServerSession
    clients: dict[str, ClientSession]
    plain: dict[str, Vector] = field(default_factory=dict)
    steps: list[_Step] = field(default_factory=list)

    def run(self) -> None:
        """Play the round; `silent` clients stop after ShareReport."""
        outgoing = {client_id: wire.encode(client.start()) for client_id, client in self.clients.items()}
        while outgoing:
            step, since = _Step(self.server.step), time.perf_counter()
            for client_id, data in outgoing.items():
                if step.name == MASKED_INPUT_COLLECTION and client_id in self.silent:
                    continue
                step.heard, step.up = step.heard + 1, step.up + len(data)
                self.server.receive(client_id, wire.decode_from_client(data))
            outgoing = {}
            for client_id, message in ({} if self.server.finished else self.server.close_step()).items():
                data = wire.encode(message)
                step.down += len(data)
                if reply := self.clients[client_id].receive(wire.decode_from_server(data)):
                    outgoing[client_id] = wire.encode(reply)
            step.seconds = time.perf_counter() - since
            self.steps.append(step)

    @property
    def wrong(self) -> int:
        """In how many places the result differs from the plain sum of the included, quantised vectors."""
        plain = np.zeros(self.policy.length, np.uint64)
        for client_id in self.server.included:
            plain += self.plain[client_id]
        modulo(plain, self.policy.bits)
        return self.policy.length if self.server.result is None else int(np.sum(plain != self.server.result))


@app.command()
def demo(
    clients: Clients = 8,
    drop: Annotated[int, typer.Option(min=0, help="Clients that fall silent after they shared their keys.")] = 2,
    length: Length = 100_000,
    max_corrupt: Corrupt = 1,
    suite: Suites = Suite.MLKEM768_X25519,
    transcript: Annotated[
        Path | None, typer.Option(help="Write the round's public transcript here, its roster and policy beside it.")
    ] = None,
) -> None:
    """Add vectors in this process, and check the sum.

    Some clients drop out on the way.
    """
    with sentences():
        if drop > clients:
            raise ConfigError(f"--drop {drop}: there are only {clients} clients")
        with ExitStack() as recording:
            shown = _prepare(clients, drop, length, max_corrupt, suite, transcript, recording)
            shown.run()
        _show(shown)
        if shown.wrong:
            raise ConfigError(f"the sum is wrong in {shown.wrong} of {length} places: please report this")
        if transcript is not None:
            roster, policy = _beside(transcript)
            say(f"Now verify it: secagg verify-transcript {transcript} --roster {roster} --policy {policy}")


def _beside(transcript: Path) -> tuple[Path, Path]:
    return transcript.with_suffix(".roster.toml"), transcript.with_suffix(".policy.toml")


def _prepare(
    clients: int, drop: int, length: int, max_corrupt: int, suite: Suite, transcript: Path | None, recording: ExitStack
) -> Demo:
    ids = [f"site-{i:0{len(str(clients))}d}" for i in range(1, clients + 1)]
    server_key = SigningKey.generate()
    policy = Policy(
        project="demo",
        clients=clients,
        length=length,
        clip_range=1.0,
        max_corrupt=max_corrupt,
        suite=suite,
        server_key=server_key.verify_key,
    )
    keys = {client_id: SigningKey.generate() for client_id in ids}
    pinned = PinnedRoster({client_id: key.verify_key for client_id, key in keys.items()})
    context = RoundContext(RUN, 1, 0, NOTHING, NOTHING)
    recorder = None
    if transcript is not None:
        for path, text in zip(_beside(transcript), (roster_text(pinned), policy_text(policy)), strict=True):
            write_new(path, text)
        recorder = recording.enter_context(Recorder(transcript, policy, pinned, context, signing_key=server_key))
    server = ServerSession(policy, pinned, context, server_key, record=recorder)
    start = RoundStart(RUN, 1, 0, NOTHING, NOTHING, GENESIS).sign(server_key)
    sessions = {}
    for client_id in ids:
        store = MemoryStore()
        opened = open_round(policy, pinned, RUN, start, store, model_hash=NOTHING, task_hash=NOTHING)
        sessions[client_id] = ClientSession(policy, client_id, keys[client_id], pinned, opened, store)
    shown = Demo(policy, frozenset(ids[clients - drop :]), server, sessions)
    for client_id, session in sessions.items():
        shown.plain[client_id] = np.zeros(length, dtype_for(policy.bits))
        session.provide(2 * Stream().uniform(length) - 1, copy=shown.plain[client_id])
    return shown


_QUANTUM = {
    Suite.MLKEM768_X25519: ", and no more with a quantum computer later",
    Suite.X25519: "; with a quantum computer later, every vector that was recorded",
}


def _show(shown: Demo) -> None:
    policy, server = shown.policy, shown.server
    table = Table(title=f"{policy.clients} clients, {policy.length:,} values, {policy.suite.value}")
    for heading in ("step", "heard", "ms", "bytes up", "bytes down"):
        table.add_column(heading, justify="left" if heading == "step" else "right")
    for step in shown.steps:
        numbers = (f"{step.heard}", f"{1000 * step.seconds:.0f}", f"{step.up:,}", f"{step.down:,}")
        table.add_row(step.name, *numbers)
    out.print(table)
    n, corrupt, silent = len(server.included), policy.max_corrupt, ", ".join(server.dropped) or "nobody"
    exact = "equals" if not shown.wrong else f"differs in {shown.wrong} places from"
    say(f"Dropped out after ShareKeys: {silent}.")
    say(f"The sum of {n} vectors {exact} the plain sum of the same quantised vectors, bit for bit.")
    colluding = "1 colluding site" if corrupt == 1 else f"{corrupt} colluding sites"
    for observer, learns in (
        ("The server", f"learns the sum of {n} vectors and who took part, and no single vector."),
        ("An included site", "learns that sum and who took part."),
        ("A dropped site", "learns who else shared keys; its masked vector stays masked, even if it arrives late."),
        ("The server", f"with {colluding} learns the sum of the other {n - corrupt} vectors."),
        ("An eavesdropper", f"learns sizes and times{_QUANTUM[policy.suite]}."),
    ):
        say(plain(observer, "bold"), f" {learns}")
