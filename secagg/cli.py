"""The `secagg` command: keys, a roster, what a policy means, and a demonstration in one process.

Must never: print a signing key, or show a traceback where a sentence will do.
"""

import os
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from secagg import wire
from secagg.encoding import HASH_BYTES
from secagg.errors import ConfigError, SecAggError
from secagg.keys import MLKEM_PUBLIC_BYTES, SigningKey, envelope_length
from secagg.masking import PAIR_PLAINTEXT_BYTES, SHARES_PLAINTEXT_BYTES, Vector
from secagg.messages import (
    NONCE_BYTES,
    SIGNATURE_BYTES,
    AcceptedInput,
    AdvertiseKeys,
    Attestation,
    Attestations,
    Bundle,
    Confirmation,
    EncryptedShares,
    FromClient,
    FromServer,
    Header,
    IncludedSet,
    Receipt,
    Reports,
    Result,
    Roster,
    ShareInbox,
    ShareReport,
    UnmaskingShares,
)
from secagg.policy import PinnedRoster, Policy, Suite
from secagg.prg import Stream
from secagg.quantize import quantize
from secagg.session import ClientSession, ServerSession
from secagg.shamir import SHARE_BYTES
from secagg.state import MASKED_INPUT_COLLECTION, MemoryStore, RoundContext

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Secure aggregation against a server that lies: vectors are added, and nobody sees any one of them.",
)
_out = Console()
_say = partial(_out.print, soft_wrap=True)  # a sentence is one line, whatever the terminal's width
_errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)


def main() -> None:
    """Entry point of the `secagg` command."""
    app()


@contextmanager
def _sentences() -> Iterator[None]:
    """Ends the command with one sentence and status 1 where something expected went wrong."""
    try:
        yield
    except SecAggError as error:
        _errors.print(f"secagg: {error}")
        raise typer.Exit(1) from None
    except OSError as error:
        _errors.print(f"secagg: {error.filename}: {error.strerror}")
        raise typer.Exit(1) from None


def _print_version(wanted: bool) -> None:
    if wanted:
        _out.print(f"secagg {version('secagg')}", highlight=False)
        raise typer.Exit


@app.callback()
def options(
    show: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of every command."""


# --- Keys and rosters --------------------------------------------------------------------------------------------


@app.command()
def keygen(
    client_id: Annotated[str, typer.Argument(help="Id of the client, as it will stand in the roster.")],
    folder: Annotated[Path, typer.Option(help="Where to write ID.signing (secret, 0600) and ID.pub.")] = Path(),
) -> None:
    """Make a signing key for one client."""
    with _sentences():
        key = SigningKey.generate()
        PinnedRoster({client_id: key.verify_key})
        secret, public = folder / f"{client_id}.signing", folder / f"{client_id}.pub"
        _write_new(secret, f'id = "{client_id}"\nsigning_key = "{key.export().hex()}"\n', mode=0o600)
        _write_new(public, f'id = "{client_id}"\nverify_key = "{key.verify_key.hex()}"\n', mode=0o644)
        _say(
            f"{secret}: keep this file on this machine\n{public}: give this one to whoever assembles the roster",
        )


@app.command()
def roster(
    public: Annotated[list[Path], typer.Argument(help="The .pub file of every client.")],
    out: Annotated[Path, typer.Option(help="The roster to write.")] = Path("roster.toml"),
) -> None:
    """Assemble public keys into the roster that every party pins."""
    with _sentences():
        keys: dict[str, bytes] = {}
        for path in public:
            client_id, key = _read_public(path)
            if client_id in keys:
                raise ConfigError(f"{path}: a second key of {client_id}; give each client's file once")
            keys[client_id] = key
        lines = [f'"{client_id}" = "{key.hex()}"' for client_id, key in PinnedRoster(keys).items()]
        _write_new(out, "\n".join(["[clients]", *lines, ""]), mode=0o644)
        _say(f"{out}: {len(keys)} clients; compare it with every site by voice before the first round")


def _write_new(path: Path, text: str, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise ConfigError(f"{path} exists already; move it away first, nothing was overwritten") from None
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(text)


def _read_public(path: Path) -> tuple[str, bytes]:
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
        if "signing_key" in entries:
            raise ConfigError(f"{path} holds a SECRET key; ask the client for its .pub file")
        client_id, key = entries["id"], bytes.fromhex(entries["verify_key"])
        PinnedRoster({client_id: key})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is not a public key file; `secagg keygen` writes one") from None
    return client_id, key


# --- What a policy means -----------------------------------------------------------------------------------------

_Clients = Annotated[int, typer.Option(help="n, the pinned cohort.")]
_Corrupt = Annotated[int, typer.Option(help="c, clients that may collude with the server.")]
_Length = Annotated[int, typer.Option(help="d, values per vector.")]
_Suite = Annotated[Suite, typer.Option(help="Post-quantum hybrid or classic.")]


@app.command()
def policy(
    clients: _Clients,
    max_corrupt: _Corrupt = 1,
    min_survivors: Annotated[int, typer.Option(help="Inputs in a sum at least; 0: the smallest safe number.")] = 0,
    length: _Length = 100_000,
    bits: Annotated[int, typer.Option(help="Width of the modulus.")] = 32,
    value_bits: Annotated[int, typer.Option(help="Width of one quantised value.")] = 16,
    suite: _Suite = Suite.MLKEM768_X25519,
) -> None:
    """Explain a policy: who must collude, how many may drop out, and what it costs."""
    with _sentences():
        chosen = Policy(
            project="explained",
            clients=clients,
            length=length,
            clip_range=1.0,
            max_corrupt=max_corrupt,
            min_survivors=min_survivors,
            suite=suite,
            bits=bits,
            value_bits=value_bits,
        )
        table = Table(title=f"{clients} clients, {suite.value}", show_header=False)
        for what, value in _explanation(chosen):
            table.add_row(what, value)
        _out.print(table)


def _explanation(policy: Policy) -> Iterator[tuple[str, str]]:
    n, t, survivors = policy.clients, policy.threshold, policy.min_survivors
    breaking = min(2 * t - n, survivors - 1)
    up, down = traffic(policy)
    vector = -(-(policy.length + policy.slots) * policy.bits // 8)
    yield "To read one input", f"the server and {breaking} clients must collude; with {policy.max_corrupt} it cannot"
    yield "To open a sum", f"{t} of {n} clients must attest the same included set and release shares"
    yield "A sum holds", f"at least {survivors} inputs, of which at least {survivors - policy.max_corrupt} are honest"
    yield "Dropouts survived", f"{n - survivors}"
    yield "Bits", f"{policy.bits} on the wire; {policy.bits_needed} are needed, so that no sum of {n} inputs wraps"
    yield "Bytes per client up", f"{up:,} and the masked vector of {vector:,}"
    yield "Bytes per client down", f"{down:,} and the sum of {vector:,}"


def traffic(policy: Policy) -> tuple[int, int]:
    """Bytes that one client sends and receives in a round without dropouts, vector and sum left out.

    Measured on messages of the right shape, for a client in the middle of the roster, with ids of 8 letters.
    """
    ids = [f"client{i:02x}" for i in range(policy.clients)]
    up, down = _shaped(policy, ids)
    return sum(len(wire.encode(m)) for m in up), sum(len(wire.encode(m)) for m in down)


def _shaped(policy: Policy, ids: list[str]) -> tuple[list[FromClient], list[FromServer]]:
    h, signature, n, me = bytes(HASH_BYTES), bytes(SIGNATURE_BYTES), len(ids), ids[len(ids) // 2]
    hybrid = policy.suite is Suite.MLKEM768_X25519
    kem = bytes(MLKEM_PUBLIC_BYTES + 32)
    shares, pair = (bytes(envelope_length(policy.suite, k)) for k in (SHARES_PLAINTEXT_BYTES, PAIR_PLAINTEXT_BYTES))
    plain = Bundle(shares, b"", h, h, b"")
    paired = Bundle(shares, pair, h, h, h) if hybrid else plain
    bundles = (plain,) * (n // 2) + (paired,) * (n - 1 - n // 2)
    keys = (kem, bytes(32), kem) if hybrid else (bytes(32), bytes(32), b"")
    advertisements = tuple(AdvertiseKeys(h, i, *keys, bytes(NONCE_BYTES), signature) for i in ids)
    headers = tuple(Header(h, h, i, h, h * (n - 1), signature) for i in ids)
    reports = tuple(ShareReport(h, h, h, i, signature=signature) for i in ids)
    inputs = tuple(AcceptedInput(h, h, h, h, i, h, signature) for i in ids)
    attestations = tuple(Attestation(h, i, signature) for i in ids)
    opened = {i: bytes(SHARE_BYTES) for i in ids if i != me}
    receipt = Receipt("run", 1, h, h, h, h, h, signature)
    up: list[FromClient] = [
        advertisements[0],
        EncryptedShares(headers[0], bundles),
        reports[0],
        attestations[0],
        UnmaskingShares(h, h, me, h, opened, {}, {}, signature),
        Confirmation(h, me, signature),
    ]
    # The masked input without its vector is an accepted input, which only the server sends.
    down: list[FromServer] = [
        Roster(advertisements),
        ShareInbox(headers, bundles),
        Reports(reports),
        IncludedSet(inputs),
        Attestations(attestations),
        Result(b"", receipt),
    ]
    return up, down


# --- Demonstration -----------------------------------------------------------------------------------------------


@dataclass
class _Step:
    """What one step of the demonstration took."""

    name: str
    heard: int = 0
    up: int = 0
    down: int = 0
    seconds: float = 0.0


@dataclass
class _Demo:
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
        while not self.server.finished:
            step, since = _Step(self.server.step), time.perf_counter()
            for client_id, data in outgoing.items():
                if step.name == MASKED_INPUT_COLLECTION and client_id in self.silent:
                    continue
                step.heard, step.up = step.heard + 1, step.up + len(data)
                self.server.receive(client_id, wire.decode_from_client(data))
            outgoing = {}
            for client_id, message in self.server.close_round().items():
                data = wire.encode(message)
                step.down += len(data)
                if reply := self.clients[client_id].receive(wire.decode_from_server(data)):
                    outgoing[client_id] = wire.encode(reply)
            step.seconds = time.perf_counter() - since
            self.steps.append(step)

    @property
    def wrong(self) -> int:
        """In how many places the result differs from the plain sum of the included, quantised vectors."""
        plain = np.sum([self.plain[i] for i in self.server.included], axis=0, dtype=np.uint64)
        plain &= np.uint64((1 << self.policy.bits) - 1)
        return self.policy.length if self.server.result is None else int(np.sum(plain != self.server.result))


@app.command()
def demo(
    clients: _Clients = 8,
    drop: Annotated[int, typer.Option(min=0, help="Clients that fall silent after they shared their keys.")] = 2,
    length: _Length = 100_000,
    max_corrupt: _Corrupt = 1,
    suite: _Suite = Suite.MLKEM768_X25519,
) -> None:
    """Add vectors of clients in this process, with dropouts, and check the sum."""
    with _sentences():
        if drop > clients:
            raise ConfigError(f"--drop {drop}: there are only {clients} clients")
        shown = _prepare(clients, drop, length, max_corrupt, suite)
        shown.run()
        _show(shown)
        if shown.wrong:
            raise ConfigError(f"the sum is wrong in {shown.wrong} of {length} places: please report this")


def _prepare(clients: int, drop: int, length: int, max_corrupt: int, suite: Suite) -> _Demo:
    ids = [f"site-{i:0{len(str(clients))}d}" for i in range(1, clients + 1)]
    policy = Policy(
        project="demo", clients=clients, length=length, clip_range=1.0, max_corrupt=max_corrupt, suite=suite
    )
    keys = {client_id: SigningKey.generate() for client_id in ids}
    pinned = PinnedRoster({client_id: key.verify_key for client_id, key in keys.items()})
    context = RoundContext("demo", 1, 0, bytes(HASH_BYTES), bytes(HASH_BYTES))
    sessions = {i: ClientSession(policy, i, keys[i], pinned, context, MemoryStore()) for i in ids}
    shown = _Demo(policy, frozenset(ids[clients - drop :]), ServerSession(policy, pinned, context), sessions)
    for client_id, session in sessions.items():
        update, rounding = 2 * Stream().uniform(length) - 1, Stream().words(1).tobytes() * 8
        session.provide(update, stream=Stream(rounding))
        shown.plain[client_id] = quantize(update, policy, client_id, Stream(rounding))[0]
    return shown


_QUANTUM = {
    Suite.MLKEM768_X25519: ", and no more with a quantum computer later",
    Suite.X25519: "; with a quantum computer later, every vector that was recorded",
}


def _show(shown: _Demo) -> None:
    policy, server = shown.policy, shown.server
    table = Table(title=f"{policy.clients} clients, {policy.length:,} values, {policy.suite.value}")
    for heading in ("step", "heard", "ms", "bytes up", "bytes down"):
        table.add_column(heading, justify="left" if heading == "step" else "right")
    for step in shown.steps:
        numbers = (f"{step.heard}", f"{1000 * step.seconds:.0f}", f"{step.up:,}", f"{step.down:,}")
        table.add_row(step.name, *numbers)
    _out.print(table)
    n, corrupt, silent = len(server.included), policy.max_corrupt, ", ".join(server.dropped) or "nobody"
    exact = "equals" if not shown.wrong else f"differs in {shown.wrong} places from"
    _say(f"Dropped out after ShareKeys: {silent}.")
    _say(f"The sum of {n} vectors {exact} the plain sum of the same quantised vectors, bit for bit.")
    colluding = "1 colluding site" if corrupt == 1 else f"{corrupt} colluding sites"
    for observer, learns in (
        ("The server", f"learns the sum of {n} vectors and who took part, and no single vector."),
        ("An included site", "learns that sum and who took part."),
        ("A dropped site", "learns who else shared keys; its masked vector stays masked, even if it arrives late."),
        ("The server", f"with {colluding} learns the sum of the other {n - corrupt} vectors."),
        ("An eavesdropper", f"learns sizes and times{_QUANTUM[policy.suite]}."),
    ):
        _say(f"[bold]{observer}[/bold] {learns}")
