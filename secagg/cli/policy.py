"""`secagg policy`: who must collude, how many may drop out, and what it costs in bytes and seconds.

The bytes are counted on messages of the right shape, the seconds estimated from a short calibration.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from secagg import wire
from secagg.cli.cost import Cost
from secagg.cli.terminal import app, sentences
from secagg.encoding import HASH_BYTES
from secagg.field import Kind
from secagg.files import load_policy
from secagg.keys import MLKEM_PUBLIC_BYTES, envelope_length
from secagg.masking import PAIR_PLAINTEXT_BYTES, SHARES_PLAINTEXT_BYTES
from secagg.merkle import tree
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
from secagg.packing import packed_size
from secagg.policy import Policy, Suite
from secagg.shamir import SHARE_BYTES
from secagg.terminal import AsJson, out, say_json

Clients = Annotated[int, typer.Option(help="n, the pinned cohort.")]
Corrupt = Annotated[int, typer.Option(help="c, clients that may collude with the server.")]
Length = Annotated[int, typer.Option(help="d, values per vector.")]
Suites = Annotated[Suite, typer.Option(help="Post-quantum hybrid or classic.")]


@app.command()
def policy(
    clients: Annotated[int, typer.Option(help="n, the pinned cohort. Needed without --file.")] = 0,
    max_corrupt: Corrupt = 1,
    min_survivors: Annotated[int, typer.Option(help="Inputs in a sum at least; 0: the smallest safe number.")] = 0,
    length: Length = 100_000,
    bits: Annotated[int, typer.Option(help="Width of the modulus; 0: what the sum needs.")] = 0,
    value_bits: Annotated[int, typer.Option(help="Width of one quantised value.")] = 16,
    suite: Suites = Suite.MLKEM768_X25519,
    file: Annotated[
        Path | None, typer.Option(help="A policy file: its fields are explained, other options do not count.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Explain a policy: who must collude, what it costs."""
    with sentences():
        if file is not None:
            chosen = load_policy(file)
        else:
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
        rows = dict((*explanation(chosen), *seconds(chosen)))
        if as_json:
            say_json(rows)
            return
        table = Table(title=f"{chosen.clients} clients, {chosen.suite.value}", show_header=False)
        for what, value in rows.items():
            table.add_row(what, value)
        out.print(table)


def explanation(policy: Policy) -> Iterator[tuple[str, str]]:
    """Rows of the table that says what a policy means: a name and a sentence each."""
    n, t, survivors = policy.clients, policy.threshold, policy.min_survivors
    breaking = min(2 * t - n, survivors - 1)
    up, down = traffic(policy)
    vector = packed_size(policy.length + policy.slots, policy.bits)
    yield "To read one input", f"the server and {breaking} clients must collude; with {policy.max_corrupt} it cannot"
    yield "To open a sum", f"{t} of {n} clients must attest the same included set and release shares"
    yield "A sum holds", f"at least {survivors} inputs, of which at least {survivors - policy.max_corrupt} are honest"
    yield "Dropouts survived", f"{n - survivors}"
    yield "Bits", f"{policy.bits} on the wire; {policy.bits_needed} are needed, so that no sum of {n} inputs wraps"
    if policy.layout is not None:
        yield from fields(policy)
    yield "Bytes per client up", f"{up:,} and the masked vector of {vector:,}"
    yield "Bytes per client down", f"{down:,} and the sum of {vector:,}"


def fields(policy: Policy) -> Iterator[tuple[str, str]]:
    """Rows with what each field of a layout holds, and how many bits a sum of it needs."""
    for name, field in policy.fields.items():
        match field.kind:
            case Kind.FLOAT:
                weighed = f", weighted by up to {policy.largest_weight:g}" if policy.largest_weight != 1 else ""
                step = field.step(policy.largest_weight)
                what = f"floats within {field.number:g}{weighed}, each client right to {step:.2g}"
            case Kind.COUNT:
                what = f"counts of 0 to {field.number:.0f}, exact"
            case Kind.WEIGHT:
                what = f"private weight of 0 to {field.number:g}, right to {field.step():.2g}; half of it loses one bit"
            case Kind.INTEGER:
                what = f"integers as they are, each worth {field.number:g}"
        yield f"Field {name}", f"{field.size:,} {what}; {field.bits_needed(policy.clients)} bits"


def seconds(policy: Policy) -> Iterator[tuple[str, str]]:
    """Rows of the table that says how many seconds a round takes here; measures for less than a second."""
    cost = Cost(policy)
    most = policy.clients - policy.min_survivors
    yield "Seconds per client", f"about {cost.client():.2g} on this machine, dropouts or not; training left out"
    yield "Seconds, server", f"about {cost.server(0):.2g} without dropouts, {cost.server(most):.2g} with {most}"
    yield "These seconds", "are estimated from primitives measured just now, on one core; networks and disks left out"


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
    advertisements = tuple(AdvertiseKeys(h, i, *keys, bytes(NONCE_BYTES), h, signature=signature) for i in ids)
    headers = tuple(Header(h, h, i, h, h, signature) for i in ids)
    _, by_place = tree([h] * (n - 1))
    paths = by_place[n // 2 - 1 : n // 2] * (n // 2) + by_place[n // 2 : n // 2 + 1] * (n - 1 - n // 2)
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
        ShareInbox(headers, bundles, paths),
        Reports(reports),
        IncludedSet(inputs),
        Attestations(attestations),
        Result(b"", receipt),
    ]
    return up, down
