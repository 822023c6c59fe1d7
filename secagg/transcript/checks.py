"""What must hold of a transcript: one function per check, in the order in which they run.

Nothing in the file is taken on trust: policy and keys are the reader's own, hashes are those that `reading` computed
anew, and the sum is done again. T-03 (of the opening), T-18, T-19 (within a file) and T-20 are in `reading` and
`vectors`, because the file cannot be read without them; T-21 is about all files together and in `judging`. It shares
the primitives with the protocol, and not a line with the server. Must never: need a secret that the round did not
release. Specification: docs/spec.md, section "Transcripts"; the ids are the rows of its table. In each, `told` is the
transcript: what somebody says that happened.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from secagg.encoding import HASH_BYTES, digest
from secagg.keys import check_public, verify
from secagg.masking import (
    pair_commitment,
    pair_mask_seed,
    self_commitment,
    self_mask_seed,
    share_commitment,
    slot_values,
)
from secagg.merkle import tree
from secagg.messages import Attestation, Header, Receipt, UnmaskingShares
from secagg.packing import modulo
from secagg.prg import apply_masks
from secagg.transcript.facts import Transcript
from secagg.transcript.record import Record, name_of, sender_of
from secagg.transcript.violation import ViolationError

# Each returns how many things it looked at, None where it could not, or raises a ViolationError.


def t01_chain(told: Transcript) -> int | None:
    """T-01: the chain over all records ends where the closing record says, under the signature of the server key."""
    closing, key = told.closing, told.policy.server_key
    if closing is None or closing.link != told.link:
        raise ViolationError("T-01", "the chain does not end where the closing record says: the file was changed")
    if not verify(key, closing.statement(), closing.signature) if key else closing.signature:
        raise told.wrong("T-01", closing, "the closing record is not sealed by the server key of the policy")
    return len(told.numbers) + told.vectors.blocks


def t02_confirmations(told: Transcript) -> int | None:
    """T-02: receipt and confirmations are of the head recomputed here; at least q members of U3 confirmed it."""
    context, receipt = told.context, told.result
    hashes = (told.round_id, told.attested, told.total_hash, context.previous_head, told.head)
    if receipt.statement() != Receipt(context.training_run, context.round_number, *hashes).statement():
        raise told.wrong("T-02", receipt, "the receipt is about another round, set of clients or sum")
    for client_id, confirmation in told.confirmations.items():
        if client_id not in told.inputs:
            raise told.wrong("T-02", confirmation, "a client confirms that is not included")
        if confirmation.head != told.head:
            raise told.wrong("T-02", confirmation, "another head is confirmed than this file gives")
    if len(told.confirmations) < told.policy.threshold:
        missing = ", ".join(sorted(told.inputs.keys() - told.confirmations.keys()))
        raise ViolationError(
            "T-02", f"{len(told.confirmations)} of {told.policy.threshold} needed confirmed; silent: {missing}"
        )
    return 1 + len(told.confirmations)


def t03_parameters(told: Transcript) -> int | None:
    """T-03: your policy and roster and this context make the slot that the sites signed."""
    if told.context.slot(told.reader.session) != told.slot:
        raise ViolationError("T-03", "the sites signed another policy, roster, run, round number or attempt", 0)
    return 2


def t04_signatures(told: Transcript) -> int | None:
    """T-04: every message is signed by the site that it names, for this slot, roster, sharers and round."""
    count = 0
    for record, message, bound in _signed(told):
        client_id = sender_of(record)
        if any(getattr(message, name) != getattr(told, name) for name in bound):
            raise told.wrong("T-04", record, f"the {name_of(record)} is bound to another slot or round")
        key = told.pinned.get(client_id, b"") if client_id else told.policy.server_key
        if not verify(key, message.statement(), message.signature):
            raise told.wrong("T-04", record, f"the {name_of(record)} carries no signature of its sender")
        count += 1
    for sent in told.shares.values():
        root, _ = tree([bundle.digest() for bundle in sent.bundles])
        complete = sent.header.client_id in told.roster.by_id and len(sent.bundles) == len(told.roster.by_id) - 1
        if not complete or sent.header.bundles_root != root:
            raise told.wrong("T-04", sent, "the bundles are not those of the signed header")
    return count


def _signed(told: Transcript) -> Iterator[tuple[Record, Any, tuple[str, ...]]]:
    """Every signed record, the message that the signature is over, and what it must share with the round."""
    kinds: tuple[tuple[Mapping[str, Any], tuple[str, ...]], ...] = (
        (told.headers, ("slot", "roster1")),
        (told.advertisements, ("slot",)),
        (told.reports, ("slot", "roster1", "roster2")),
        (told.inputs, ("roster1", "roster2", "sharers_hash")),
        (told.attestations, ()),
        (told.releases, ("round_id",)),
        (told.confirmations, ()),
    )
    for records, bound in kinds:
        for record in records.values():
            yield record, record, bound
    for sent in told.shares.values():
        yield sent, sent.header, ("slot", "roster1")
    if told.receipt is not None and told.policy.server_key:
        yield told.receipt, told.receipt, ("round_id",)


def t05_fresh(told: Transcript) -> int | None:
    """T-05: no key, nonce, commitment, digest or masked vector occurs twice.

    Over files only what a client makes once a round is remembered, by 16 bytes of a hash: what it makes for each peer
    is bound to the slot.
    """
    where = str(told.context.at(told.reader.session))
    here: set[bytes] = set()
    for record, what, value in _supposed_fresh(told):
        if value in here:
            raise told.wrong("T-05", record, f"a {what} was seen before, in this round")
        here.add(value)
    for record, what, value in _once_a_round(told):
        earlier = told.past.seen.setdefault(digest("fresh", value)[:16], where)
        if earlier is not where:
            raise told.wrong("T-05", record, f"a {what} was seen before, in {earlier}")
    return len(here)


def _supposed_fresh(told: Transcript) -> Iterator[tuple[Record, str, bytes]]:
    yield from _once_a_round(told)
    for record, header in _headers(told):
        yield record, "root of bundles", header.bundles_root
    for sent in told.shares.values():
        for bundle in sent.bundles:
            yield sent, "share commitment", bundle.mask_key_commitment
            yield sent, "share commitment", bundle.self_seed_commitment
            if bundle.pair_commitment:
                yield sent, "pair commitment", bundle.pair_commitment


def _once_a_round(told: Transcript) -> Iterator[tuple[Record, str, bytes]]:
    for entry in told.advertisements.values():
        for what, value in (
            ("channel key", entry.channel_pk),
            ("mask key", entry.mask_dh_pk),
            ("mask key", entry.mask_kem_pk),
            ("nonce", entry.nonce),
        ):
            if value:
                yield entry, what, value
    for record, header in _headers(told):
        yield record, "self seed commitment", header.self_commitment
    for accepted in told.inputs.values():
        yield accepted, "masked vector", accepted.y_hash
    for released in told.releases.values():
        for seed in released.excess_seeds:
            yield released, "seed of excess noise", seed


def _headers(told: Transcript) -> Iterator[tuple[Record, Header]]:
    yield from ((header, header) for header in told.headers.values())
    yield from ((sent, sent.header) for sent in told.shares.values())


def t06_points(told: Transcript) -> int | None:
    """T-06: every key is canonical, of the suite and contributory, so that no shared secret is zero."""
    for entry in told.advertisements.values():
        if not check_public(told.policy.suite, entry.channel_pk, entry.mask_dh_pk, entry.mask_kem_pk):
            raise told.wrong("T-06", entry, "a public key is one that no honest client can have made")
    return len(told.advertisements)


def t07_model(told: Transcript) -> int | None:
    """T-07: every input is for one round, recomputed from model, task and previous head."""
    expected = told.context.round_id(told.slot, told.roster2, told.sharers_hash)
    for accepted in told.inputs.values():
        if accepted.round_id != expected:
            raise told.wrong("T-07", accepted, "the input was masked for another model, task or previous head")
    return len(told.inputs)


def t08_envelopes(told: Transcript) -> int | None:
    """T-08: every envelope occurs once, by its hash, a pair secret is sealed exactly where due, hashes are whole."""
    seen: set[bytes] = set()
    for dealer, sent in told.shares.items():
        for peer, bundle in zip(told.roster.others(dealer), sent.bundles, strict=True):
            due = told.hybrid and told.roster.pair(dealer, peer).dealer == dealer
            always = (bundle.shares_hash, bundle.mask_key_commitment, bundle.self_seed_commitment)
            lengths = [len(value) for value in (*always, bundle.pair_hash, bundle.pair_commitment)]
            if lengths != [HASH_BYTES] * 3 + [due * HASH_BYTES] * 2:
                raise told.wrong("T-08", sent, f"the bundle for {peer} lacks a hash or has one too many")
            for envelope in filter(None, (bundle.shares_hash, bundle.pair_hash)):
                if envelope in seen:
                    raise told.wrong("T-08", sent, f"the envelope for {peer} was sent before")
                seen.add(envelope)
    return len(seen)


def t09_sets(told: Transcript) -> int | None:
    """T-09: U1, dealers, U2, U3, U4 and U5 lie within one another, the first four of at least min_survivors."""
    nested: list[tuple[str, Mapping[str, Record], int]] = [
        ("U1", told.advertisements, told.policy.min_survivors),
        ("the dealers", told.shares, told.policy.min_survivors),
        ("U2", told.reports, told.policy.min_survivors),
        ("U3", told.inputs, told.policy.min_survivors),
        ("U4", told.attestations, 0),
        ("U5", told.releases, 0),
    ]
    outer: Iterable[str] = told.pinned
    for name, members, need in nested:
        if outsiders := sorted(members.keys() - set(outer)):
            raise told.wrong("T-09", members[outsiders[0]], f"{outsiders[0]} is in {name} and not in the set before")
        if len(members) < need:
            raise ViolationError("T-09", f"{name} has {len(members)} members and the policy needs {need}")
        outer = members
    for report in told.reports.values():
        if report.complaint:
            raise told.wrong("T-09", report, f"it complains of {report.complaint!r}, which ends an attempt")
    return len(nested)


def t10_one_set(told: Transcript) -> int | None:
    """T-10: one U3, attested by a quorum of its members; whoever released shares released them for it."""
    named: list[Attestation | UnmaskingShares] = [*told.attestations.values(), *told.releases.values()]
    for record in named:
        if record.attested != told.attested:
            raise told.wrong("T-10", record, f"the {name_of(record)} is for another set of included clients")
    if len(told.attestations) < told.policy.threshold:
        raise ViolationError("T-10", f"{len(told.attestations)} of {told.policy.threshold} needed attested U3")
    return len(told.attestations) + len(told.releases)


def t11_never_both(told: Transcript) -> int | None:
    """T-11: of nobody both kinds of share: b of the included, s of the dropped, pair secrets of those, nothing else."""
    for client_id, message in told.releases.items():
        lists = (list(message.self_seed_shares), list(message.mask_key_shares), list(message.pair_secrets))
        paired = told.dropped if told.hybrid else []
        if lists != (sorted(told.inputs.keys() - {client_id}), told.dropped, paired):
            raise told.wrong("T-11", message, "shares are released of the wrong clients")
        if len(message.excess_seeds) not in (0, told.policy.excess(len(told.inputs))):
            raise told.wrong("T-11", message, "seeds are disclosed of noise that this sum needs")
    for pair in (*told.pairs.keys() - set(told.pairs_to_open), *set(told.pairs_to_open) - told.pairs.keys()):
        sentence = f"the pair secret of {pair[0]} and {pair[1]} is opened without need, or missing"
        raise ViolationError("T-11", sentence, sender=pair[0])
    return len(told.releases)


def t12_commitments(told: Transcript) -> int | None:
    """T-12: every share, b_u and r matches its commitment; t shares give the committed b_u and the advertised keys."""
    count, slot, roster1 = 0, told.slot, told.roster1
    for holder, message in told.releases.items():
        for kind, released in (("b", message.self_seed_shares), ("s", message.mask_key_shares)):
            for dealer, share in released.items():
                bundle = told.bundles[dealer][holder]
                promised = bundle.mask_key_commitment if kind == "s" else bundle.self_seed_commitment
                if share_commitment(slot, roster1, dealer, holder, kind, share) != promised:
                    raise told.wrong("T-12", message, f"a share of {dealer} does not match its commitment")
                count += 1
    for client_id, seed in told.secrets.self_seeds.items():
        if self_commitment(slot, client_id, seed) != told.shares[client_id].header.self_commitment:
            record = told.releases.get(client_id, told.shares[client_id])
            raise told.wrong("T-12", record, "it released, or dealt shares of, another self seed than it committed to")
    for client_id, key in told.secrets.mask_keys.items():
        advertised = told.advertisements[client_id]
        if (key.dh_public, key.kem_public) != (advertised.mask_dh_pk, advertised.mask_kem_pk):
            raise told.wrong("T-12", told.shares[client_id], "it dealt shares of another mask key than it advertised")
    for (dropped, survivor), secret in told.secrets.pair_secrets.items() if told.hybrid else ():
        dealer, recipient = told.roster.pair(dropped, survivor)
        if pair_commitment(slot, dealer, recipient, secret) != told.bundles[dealer][recipient].pair_commitment:
            raise told.wrong("T-12", told.shares[dealer], f"the pair secret with {recipient} misses its commitment")
        if dealer == dropped and secret != told.secrets.mask_keys[dealer].pair_secret(recipient):
            told.notes.append(f"{dealer} dealt {recipient} a pair secret that is not its mask key's, to no effect")
    return count + len(told.inputs) + len(told.dropped) + len(told.secrets.pair_secrets)


def t13_sum(told: Transcript) -> int | None:
    """T-13: the masked vectors are those that were signed, and without their masks they add up to the sum."""
    if told.vectors.remainder is None:
        return None
    for client_id, accepted in told.inputs.items():
        if told.vectors.hashes[client_id] != accepted.y_hash:
            raise told.wrong("T-13", accepted, "the masked vector is not the one that was signed")
    opened, advertised = told.secrets, told.advertisements
    add: list[bytes] = []
    subtract = [self_mask_seed(told.roster1, told.round_id, u, seed) for u, seed in opened.self_seeds.items()]
    for (dropped, survivor), secret in opened.pair_secrets.items():
        exchanged = opened.mask_keys[dropped].exchange(advertised[survivor].mask_dh_pk)
        seed = pair_mask_seed(told.roster1, told.round_id, (survivor, dropped), exchanged, secret)
        (subtract if survivor < dropped else add).append(seed)
    apply_masks(told.vectors.remainder, add, subtract)
    modulo(told.vectors.remainder, told.policy.bits)
    if wrong := int(np.count_nonzero(told.vectors.remainder)):
        raise told.wrong("T-13", told.result, f"the sum is not that of the inputs in {wrong} of its values")
    return len(told.inputs)


def t14_range(told: Transcript) -> int | None:
    """T-14: the constant slots add up, and every value is one that so many clipped inputs can add up to."""
    policy = told.policy
    constants = slot_values(policy, told.round_id)
    expected = modulo(constants * constants.dtype.type(len(told.inputs)), policy.bits)
    if told.vectors.slots != expected.tolist():
        raise told.wrong("T-14", told.result, "the constant slots do not add up")
    for (name, field), (low, high) in zip(policy.fields.items(), told.vectors.ranges, strict=True):
        least, largest = policy.possible(field, told.inputs)
        if not least <= low <= high <= largest:
            where = "" if policy.layout is None else f" of the field {name!r}"
            sentence = f"a value of the sum{where} is larger than clipped inputs can add up to"
            raise told.wrong("T-14", told.result, sentence)
    return policy.length + policy.slots


def t19_rounds(told: Transcript) -> int | None:
    """T-19, across files of a run: a later round or attempt, and the previous head that the file before left."""
    context = told.context
    last, head = told.past.last.get(context.training_run, (None, b""))
    if last is not None:
        if (context.round_number, context.attempt) <= (last.round_number, last.attempt):
            raise ViolationError("T-19", "the round does not come after that of the file before", 0)
        if context.previous_head != head:
            raise ViolationError("T-19", "the previous head is not the one that the file before leads to", 0)
    return len(told.numbers) + told.vectors.blocks


def t22_claims(told: Transcript) -> int | None:
    """T-22: a site that says it released shares for a round of this session shows the quorum that attested it."""
    count = 0
    for advertised in told.advertisements.values():
        for claim in advertised.exposing:
            proven = len(claim.endorsers(told.pinned)) >= told.policy.threshold
            if claim.session == told.reader.session and not proven:
                raise told.wrong("T-22", advertised, "it claims a release that no quorum attested")
            count += 1
    return count


WHAT = {
    "T-01": "the file is whole, and sealed by the server's key",
    "T-02": "sites confirmed the result recomputed here",
    "T-03": "policy and roster are yours, and the sites signed them and this round",
    "T-04": "every message is signed by its site for this round",
    "T-05": "keys, nonces, commitments and masked vectors are fresh",
    "T-06": "public keys are sound",
    "T-07": "one model, task and previous head",
    "T-08": "every envelope was sent once",
    "T-09": "sets of clients nest and are large enough",
    "T-10": "a quorum attested one set of inputs",
    "T-11": "nobody's two kinds of share were released",
    "T-12": "shares, seeds and keys match their commitments",
    "T-13": "the sum is that of the masked vectors, bit for bit",
    "T-14": "the sum lies in its range, and its constant slots add up",
    "T-18": "vectors are quantised and packed as the policy says",
    "T-19": "records and rounds follow one another",
    "T-20": "every record has its one encoding",
    "T-21": "the files are all rounds of which sites say that they released shares",
    "T-22": "a site that names an earlier release shows that a quorum attested it",
}
"""What each check says, for people."""

CHECKS: dict[str, Callable[[Transcript], int | None]] = {
    "T-19": t19_rounds,
    "T-01": t01_chain,
    "T-02": t02_confirmations,
    "T-03": t03_parameters,
    "T-04": t04_signatures,
    "T-05": t05_fresh,
    "T-06": t06_points,
    "T-07": t07_model,
    "T-08": t08_envelopes,
    "T-09": t09_sets,
    "T-10": t10_one_set,
    "T-11": t11_never_both,
    "T-12": t12_commitments,
    "T-13": t13_sum,
    "T-14": t14_range,
    "T-22": t22_claims,
}
"""What runs once a file is read, in this order; T-18 to T-20 hold by then."""

OF_BURNED = ("T-19", "T-01", "T-03", "T-04", "T-05")
"""Those of them that apply to a round without a sum, of which there are headers only."""
