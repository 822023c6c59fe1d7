"""A whole round in one hand: a lying server and its clients, who tell each other everything, write a transcript.

`forge` makes the records of a round from secrets that it draws itself, without the code of client, server or session,
and lets a twist change any of them before it is signed, so that whatever comes later is consistent with the lie.
"""

import hashlib
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from secagg.context import RoundContext, next_head
from secagg.encoding import digest, vector_digest
from secagg.keys import ChannelKey, MaskKey
from secagg.masking import (
    pair_commitment,
    pair_mask_seed,
    self_commitment,
    self_mask_seed,
    share_commitment,
    slot_values,
)
from secagg.merkle import tree
from secagg.messages import (
    AcceptedInput,
    AdvertiseKeys,
    Attestation,
    Confirmation,
    Header,
    IncludedSet,
    Receipt,
    Result,
    Roster,
    ShareReport,
    UnmaskingShares,
    headers_hash,
)
from secagg.packing import dtype_for, pack
from secagg.prg import Stream, apply_masks
from secagg.quantize import quantize
from secagg.roster import session_id
from secagg.shamir import split
from secagg.steps import SHARE_KEYS, SHARE_REPORT, STEPS, UNMASKING
from secagg.store import NEVER
from secagg.transcript.record import (
    Closing,
    OpenedPair,
    Opening,
    PublishedBundle,
    PublishedShares,
    Record,
    blocks,
    encode_record,
)
from secagg.transcript_files import Writer
from tests.support.cohort import SERVER_KEY, Cohort

Twist = Callable[[str, object], object]
"""Sender and what it is about to say, to what it says; None: nothing."""


def forge(
    cohort: Cohort,
    silent: Mapping[str, str] | None = None,
    context: RoundContext | None = None,
    vectors: bool = True,
    only_headers: bool = False,
    released: Mapping[str, bytes] | None = None,
    **twists: Twist,
) -> list[Record]:
    """The records of a round, but for the closing one.

    `released` is what each site says that it released last: nothing where it is not named. Twists: opening,
    advertisement, share_b and share_s (lists), bundle (named "dealer>peer"), header, report, values, y, input,
    attestation, release, pair, total, receipt, confirmation, members (of "U2" to "U6").
    """
    policy, keys, silent = cohort.policy, cohort.keys, silent or {}
    context = context or cohort.context()
    slot = context.slot(session_id(policy, cohort.roster))
    hybrid = policy.suite.value != "X25519"

    def talking(step: str) -> list[str]:
        return [u for u in cohort.ids if u not in silent or STEPS.index(silent[u]) > STEPS.index(step)]

    def said(kind: str, sender: str, value):
        return twists[kind](sender, value) if kind in twists else value

    def signed(kind: str, sender: str, message):
        message = said(kind, sender, message)
        return message if message is None else message.sign(keys[sender])

    def everybody(kind: str, senders: Iterable[str], make: Callable) -> dict:
        messages = ((u, signed(kind, u, make(u))) for u in senders)
        return {u: message for u, message in messages if message is not None}

    # AdvertiseKeys
    mask_keys = {u: MaskKey(policy.suite) for u in cohort.ids}
    nonces = iter(secrets.token_bytes(16) for _ in cohort.ids)
    u1 = talking(STEPS[0])
    advertised = everybody(
        "advertisement",
        u1,
        lambda u: AdvertiseKeys(
            slot,
            u,
            ChannelKey(policy.suite).public,
            mask_keys[u].dh_public,
            mask_keys[u].kem_public,
            next(nonces),
            (released or {}).get(u, NEVER),
        ),
    )
    roster = Roster(tuple(advertised[u] for u in sorted(advertised)))
    dealers, positions = talking(SHARE_KEYS), roster.positions

    # ShareKeys, ShareReport
    seeds = {u: secrets.token_bytes(32) for u in dealers}
    held = {
        (kind, dealer): dict(
            zip(
                roster.others(dealer),
                said(
                    f"share_{kind}",
                    dealer,
                    split(secret, policy.threshold, [positions[v] for v in roster.others(dealer)]),
                ),
                strict=True,
            )
        )
        for dealer in dealers
        for kind, secret in (("b", seeds[dealer]), ("s", mask_keys[dealer].seed))
    }

    def pair_secret(u: str, v: str) -> bytes:
        dealer, recipient = roster.pair(u, v)
        return mask_keys[dealer].pair_secret(recipient) if hybrid else b""

    def bundle(dealer: str, peer: str) -> PublishedBundle:
        deals = hybrid and roster.pair(dealer, peer).dealer == dealer
        return said(
            "bundle",
            f"{dealer}>{peer}",
            PublishedBundle(
                secrets.token_bytes(32),
                secrets.token_bytes(32) if deals else b"",
                share_commitment(slot, roster.hash, dealer, peer, "s", held["s", dealer][peer]),
                share_commitment(slot, roster.hash, dealer, peer, "b", held["b", dealer][peer]),
                pair_commitment(slot, dealer, peer, pair_secret(dealer, peer)) if deals else b"",
            ),
        )

    dealt = {dealer: tuple(bundle(dealer, peer) for peer in roster.others(dealer)) for dealer in dealers}
    headers = everybody(
        "header",
        dealers,
        lambda u: Header(
            slot, roster.hash, u, self_commitment(slot, u, seeds[u]), tree([b.digest() for b in dealt[u]])[0]
        ),
    )
    roster2 = headers_hash(headers[u] for u in sorted(headers))
    sharers = said("members", "U2", talking(SHARE_REPORT))
    reports = everybody("report", sharers, lambda u: ShareReport(slot, roster.hash, roster2, u))
    sharers_hash = digest("sharers", sorted(reports))

    # MaskedInputCollection
    round_id = context.round_id(slot, roster2, sharers_hash)
    u3 = said("members", "U3", talking(STEPS[3]))

    plain = {
        u: said(
            "values",
            u,
            np.concatenate(
                [quantize(cohort.updates[u], policy, u, Stream.seeded(7, u))[0], slot_values(policy, round_id)]
            ),
        )
        for u in u3
    }

    def masked(u: str) -> bytes:
        vector = plain[u].copy()
        add, subtract = [self_mask_seed(roster.hash, round_id, u, seeds[u])], []
        for v in reports:
            if v != u and v in dealers:
                exchanged = mask_keys[u].exchange(advertised[v].mask_dh_pk)
                seed = pair_mask_seed(roster.hash, round_id, (u, v), exchanged, pair_secret(u, v))
                (add if u < v else subtract).append(seed)
        apply_masks(vector, add, subtract)
        return said("y", u, pack(vector, policy.bits))

    ys = {u: masked(u) for u in u3}
    inputs = everybody(
        "input",
        u3,
        lambda u: AcceptedInput(round_id, roster.hash, roster2, sharers_hash, u, vector_digest("masked-vector", ys[u])),
    )
    included = IncludedSet(tuple(inputs[u] for u in sorted(inputs)))
    dropped = sorted(set(reports) & set(dealers) - set(u3))

    # ConsistencyCheck and Unmasking
    u4 = said("members", "U4", [u for u in talking(STEPS[4]) if u in u3])
    attestations = everybody("attestation", u4, lambda u: Attestation(included.attested, u))
    u5 = said("members", "U5", [u for u in talking(UNMASKING) if u in u4])
    releases = everybody(
        "release",
        u5,
        lambda u: UnmaskingShares(
            round_id,
            included.attested,
            u,
            seeds[u],
            {v: held["b", v][u] for v in sorted(u3) if v != u},
            {w: held["s", w][u] for w in dropped},
            {w: pair_secret(u, w) for w in dropped} if hybrid else {},
        ),
    )
    pairs = [
        OpenedPair(u, w, pair_secret(u, w))
        for u in sorted(set(u3) - set(u5))
        for w in dropped
        if hybrid and roster.pair(u, w).dealer == u
    ]
    pairs = said("pair", "", pairs)

    # Result
    total = said("total", "", pack(np.sum(list(plain.values()), axis=0, dtype=dtype_for(policy.bits)), policy.bits))
    total_hash = Result.hash_of(total)
    head = next_head(context.previous_head, round_id, included.attested, total_hash)
    receipt = said(
        "receipt",
        "",
        Receipt(
            context.training_run,
            context.round_number,
            round_id,
            included.attested,
            total_hash,
            context.previous_head,
            head,
        ),
    )
    receipt = receipt.sign(SERVER_KEY) if cohort.signed else receipt
    u6 = said("members", "U6", [u for u in u3 if u not in silent])
    confirmations = everybody("confirmation", u6, lambda u: Confirmation(head, u))

    opening = said("opening", "", Opening.of(policy, cohort.roster.hash(), context, vectors))
    if only_headers:
        return [opening, *in_order(headers)]
    shares = {u: PublishedShares(headers[u], dealt[u]) for u in headers}
    return [
        opening,
        *in_order(advertised),
        *in_order(shares),
        *in_order(reports),
        *(record for u in sorted(inputs) for record in (inputs[u], *(blocks(ys[u], policy) if vectors else ()))),
        *in_order(attestations),
        *in_order(releases),
        *pairs,
        receipt,
        *blocks(total, policy),
        *in_order(confirmations),
    ]


def in_order(messages: Mapping[str, Record]) -> list[Record]:
    return [messages[u] for u in sorted(messages)]


def resigned(cohort: Cohort, message):
    """A message signed again by whom it names."""
    return message.sign(cohort.keys[message.client_id])


def written(
    path: Path,
    records: Iterable[Record | bytes],
    signing_key=SERVER_KEY,
    closing: Callable[[Closing], Closing] | None = None,
) -> Path:
    """Chain, seal and write records; bytes are written as they are. `closing` changes the last record, unsigned."""
    with open(path, "wb") as file:
        writer = Writer(file)
        for record in records:
            writer.write(record if isinstance(record, bytes) else encode_record(record))
        if closing is None:
            writer.close(signing_key)
        else:
            writer.write(encode_record(closing(Closing(writer._link))))
    return path


def other_hash(what: bytes) -> bytes:
    return hashlib.sha256(what).digest()


def changed(records: list[Record], kind: type, sender: str, change: Callable) -> list[Record]:
    """The records with one of them changed after everything was signed."""
    return [
        change(record) if isinstance(record, kind) and getattr(record, "client_id", "") == sender else record
        for record in records
    ]


__all__ = ["changed", "forge", "in_order", "other_hash", "replace", "resigned", "written"]
