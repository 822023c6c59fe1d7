"""The Python in docs/spec.md, executed: every equation holds for every client and pair of real rounds.

The definitions in the text import nothing of secagg; the values on the left come from the code and from what it sent.
"""

import ast
import re
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from secagg import ServerSession, Suite, accept_exposure, keys
from secagg.client import Released
from secagg.keys import MaskKey
from secagg.masking import envelope_info, pair_mask_seed, self_mask_seed, slot_mask, slot_values
from secagg.messages import (
    AdvertiseKeys,
    Attestation,
    EncryptedShares,
    IncludedSet,
    MaskedInput,
    ReleaseClaim,
    Result,
    Roster,
    ShareReport,
)
from secagg.prg import Stream
from secagg.roster import session_id
from secagg.shamir import PRIME
from secagg.steps import STEPS
from secagg.transcript.record import OpenedPair
from tests.support.cohort import SERVER_KEY, Cohort, Disclosing, Play

SPEC = (Path(__file__).parents[2] / "docs/spec.md").read_text()
BLOCKS = re.findall(r"^```python\n(?:# (pairs|clients of U[35])\n)?(.*?)^```", SPEC, re.MULTILINE | re.DOTALL)
DROPPED, SILENT = "site-c", "site-e"
SETS = "ids", "dealers", "U1", "U2", "U3", "U5", "dropped", "disclosing"


class Round:
    """A real round with a dropout and a client that attests but releases nothing.

    `names` is what the equations speak of: a plain value, or {client: value}, or {(client, client): value}.
    """

    def __init__(self, suite: Suite, bits: int, disclosing: bool = True) -> None:
        weights = {"site-a": 0.5, "site-b": 2.0}
        of = Disclosing if disclosing else Cohort
        cohort = of(6, suite=suite, length=11, bits=bits, weights=weights, min_survivors=4)
        self.cohort, self.names, self.told = cohort, {}, []
        earlier = cohort.play().server.receipt
        for client_id, store in cohort.stores.items():
            accept_exposure(store, cohort.keys[client_id], client_id, earlier.round_id)
        self.context = cohort.context(2, head=earlier.head)
        self.play = Play(cohort, silent={DROPPED: STEPS[3], SILENT: STEPS[5]}, context=self.context)
        self.play.server = ServerSession(
            cohort.policy, cohort.roster, self.context, SERVER_KEY, record=self.told.append
        )
        self.play.until("ShareKeys")
        self.of_clients("channel", lambda state: state.channel_key._key)
        self.of_clients("mask_key", lambda state: MaskKey(suite, state.mask_key.seed))
        self.of_clients("s", lambda state: state.mask_key.seed)
        self.play.until("ShareReport")
        self.of_clients("self_seed", lambda state: state.held.self_seed)
        self.of_clients("s_shares", lambda state: dict(state.held.mask_key_shares))
        self.of_clients("b_shares", lambda state: dict(state.held.self_seed_shares))
        self.play.until("Unmasking")
        shown = [
            client._state.slot_masks for client in self.play.clients.values() if isinstance(client._state, Released)
        ]
        self.play.to_the_end()
        self.parameters()
        self.told += shown
        for message in self.told:
            self.message(message)
        for u, v in permutations(cohort.ids, 2):
            self.pair(u, v)
        for u in cohort.ids:
            self.polynomials(u)

    def of_clients(self, name: str, read) -> None:
        self.names[name] = {client_id: read(client._state) for client_id, client in self.play.clients.items()}

    def put(self, index=None, **values) -> None:
        for name, value in values.items():
            if index is None:
                self.names[name] = value
            else:
                self.names.setdefault(name, {})[index] = value

    def first(self, kind: type):
        return next(message for message in self.told if isinstance(message, kind))

    def parameters(self) -> None:
        cohort, policy, context = self.cohort, self.cohort.policy, self.context
        self.put(n=policy.clients, c=policy.max_corrupt, t=policy.threshold, min_survivors=policy.min_survivors)
        self.put(b=policy.bits, d=policy.length, value_bits=policy.value_bits, clip_range=policy.clip_range)
        self.put(suite=policy.suite.value, project=policy.project, H_policy=policy.hash())
        self.put(largest_weight=policy.largest_weight, weight={i: policy.weight(i) for i in cohort.ids})
        self.put(update={i: vector.tolist() for i, vector in cohort.updates.items()})
        self.put(words={i: Stream.seeded(7, i).words(policy.length).view(np.int32).tolist() for i in cohort.ids})
        self.put(x={i: cohort.plain_sum([i]).tolist() for i in cohort.ids})
        self.put(post_quantum=policy.suite is Suite.MLKEM768_X25519, verify_key=dict(cohort.roster))
        self.put(ids=cohort.ids, U1=cohort.ids, dealers=cohort.ids, U2=cohort.ids)
        self.put(U3=list(self.play.server.included), dropped=list(self.play.server.dropped))
        self.put(U5=[u for u in self.play.server.included if u != SILENT])
        assert self.names["dropped"] == [DROPPED]
        self.put(training_run=context.training_run, round_number=context.round_number, attempt=context.attempt)
        self.put(model_hash=context.model_hash, task_hash=context.task_hash, previous_head=context.previous_head)
        receipt, header = self.play.server.receipt, self.first(EncryptedShares).header
        self.put(session=session_id(policy, cohort.roster), slot=header.slot, roster1=header.roster1)
        self.put(roster2=self.first(ShareReport).roster2, sharers=self.first(MaskedInput).sharers_hash)
        self.put(round_id=receipt.round_id, attested=self.first(Attestation).attested, head=receipt.head)
        seeds = dict(self.first(Result).excess_seeds)
        self.put(result=receipt.total_hash, excess_seeds=seeds, disclosing=list(seeds))
        accepted = [message.acceptance() for message in self.told if isinstance(message, MaskedInput)]
        self.put(inputs=IncludedSet(tuple(accepted)).inputs_hash)
        self.put(total=bytes(self.first(Result).total), slots=slot_values(policy, receipt.round_id).tolist())
        self.roster = Roster(tuple(message for message in self.told if isinstance(message, AdvertiseKeys)))

    def message(self, message) -> None:
        if isinstance(message, Result | OpenedPair):
            return
        signed = message.header if isinstance(message, EncryptedShares) else message
        u = signed.client_id
        self.put((type(signed).__name__, u), signed=signed.statement(), signature=signed.signature)
        if isinstance(message, AdvertiseKeys):
            self.put(u, channel_pk=message.channel_pk, mask_dh_pk=message.mask_dh_pk)
            self.put(u, mask_kem_pk=message.mask_kem_pk, nonce=message.nonce, released=message.released)
            self.put(u, exposing=[claim_of(claim) for claim in message.exposing])
            self.put(u, claimed_round=[claim.round_id for claim in message.exposing])
            self.put(u, claimed_attested=[claim.attested for claim in message.exposing])
        elif isinstance(message, MaskedInput):
            seed = self_mask_seed(self.names["roster1"], self.names["round_id"], u, self.names["self_seed"][u])
            self.put(u, y=bytes(message.y), self_mask_seed=seed)
        elif isinstance(message, EncryptedShares):
            self.put(u, self_commitment=signed.self_commitment)
            for v, bundle in zip(self.roster.others(u), message.bundles, strict=True):
                self.put((u, v), envelope=bundle.shares, pair_envelope=bundle.pair)
                self.put((u, v), s_commitment=bundle.mask_key_commitment, b_commitment=bundle.self_seed_commitment)
                self.put((u, v), pair_commitment=bundle.pair_commitment)
                self.put((u, v), bundle_digest=bundle.digest())
            self.put(u, bundles_root=signed.bundles_root)
            for v, path in zip(self.roster.others(u), message.tree[1], strict=True):
                self.put((u, v), path=path)

    def pair(self, u: str, v: str) -> None:
        names, suite = self.names, self.cohort.policy.suite
        dealer = self.roster.pair(u, v).dealer
        exchanged = names["mask_key"][u].exchange(names["mask_dh_pk"][v])
        secret = names["mask_key"][dealer].pair_secret(v if dealer == u else u)
        seed = pair_mask_seed(names["roster1"], names["round_id"], (u, v), exchanged, secret)
        self.put((u, v), dealer_of_pair=dealer, X25519=exchanged, r=secret, pair_seed=seed)
        self.put((u, v), slot_mask=slot_mask(seed, self.cohort.policy))
        self.put((u, v), s_share=names["s_shares"][v][u], b_share=names["b_shares"][v][u])
        of_shares, of_pair = (
            envelope_info(purpose, names["slot"], names["roster1"], u, v) for purpose in ("shares", "pair")
        )
        sealed = names["pair_envelope"][u, v]
        opened = keys._open(suite, names["channel"][v], of_shares, names["envelope"][u, v])
        pair_opened = names["mask_key"][v].open_pair(of_pair, sealed) if sealed else b""
        self.put((u, v), shares_info=of_shares, pair_info=of_pair, opened=opened, pair_opened=pair_opened)

    def polynomials(self, u: str) -> None:
        """Interpolated from the secret and t - 1 shares; the equations hold them against the other shares."""
        for kind, secret in (("s", self.names["s"][u]), ("b", self.names["self_seed"][u])):
            points = [(0, int.from_bytes(secret, "big"))]
            for v in self.roster.others(u)[: self.names["t"] - 1]:
                points.append((self.roster.positions[v], int.from_bytes(self.names[f"{kind}_share"][u, v], "big")))
            self.put(u, **{f"{kind}_polynomial": interpolated(points)})


def claim_of(claim: ReleaseClaim) -> dict:
    """By the names of the text."""
    values = {name: getattr(claim, name) for name in ("session", "training_run", "round_number", "attempt")}
    hashes = {"model": claim.model_hash, "task": claim.task_hash, "inputs": claim.inputs_hash}
    hashes |= {"sharers": claim.sharers_hash, "roster2": claim.roster2, "previous_head": claim.previous_head}
    return values | hashes | {"attestations": dict(claim.attestations)}


def interpolated(points: list[tuple[int, int]]) -> list[int]:
    """Coefficients, constant first, of the one polynomial through these points over GF(p)."""
    total = [0] * len(points)
    for i, (x_i, y_i) in enumerate(points):
        basis, scale = [1], y_i
        for j, (x_j, _) in enumerate(points):
            if i != j:
                basis = [
                    (a - x_j * b) % PRIME for a, b in zip([0, *basis], [*basis, 0], strict=True)
                ]  # times (x - x_j)
                scale = scale * pow(x_i - x_j, -1, PRIME) % PRIME
        total = [(a + scale * b) % PRIME for a, b in zip(total, basis, strict=True)]
    return total


def evaluated(names: dict) -> list[str]:
    """Runs the whole text; returns the equations that were evaluated, once per client or pair."""
    held, scope = [], dict(names)
    for about, code in BLOCKS:
        for where in places(about, names):
            local = scope | where
            for node in ast.parse(code).body:
                source = ast.unparse(node)
                if isinstance(node, ast.Expr):
                    assert eval(source, local), f"{source}, at {where}"
                    held.append(source)
                else:
                    exec(source, local)
            if not about:
                scope |= {name: value for name, value in local.items() if name not in names and name != "u"}
    return held


def places(about: str, names: dict) -> list[dict]:
    if about == "pairs":
        return [
            {"u": u, "v": v, "dealer": (dealer := names["dealer_of_pair"][u, v]), "recipient": v if dealer == u else u}
            for u, v in permutations(names["U1"], 2)
        ]
    return [{"u": u} for u in names[about.removeprefix("clients of ") or "U1"]]


@pytest.mark.parametrize(
    ("suite", "bits", "disclosing"),
    [(Suite.MLKEM768_X25519, 32, True), (Suite.X25519, 23, False), (Suite.X25519, 41, True)],
)
def test_every_equation_of_the_specification_holds(suite, bits, disclosing):
    held = evaluated(Round(suite, bits, disclosing).names)
    assert len(set(held)) > 30
    assert len(held) > 300


def holds(names: dict) -> bool:
    try:
        evaluated(names)
    except (AssertionError, ArithmeticError, ValueError, TypeError):
        return False
    return True


def test_an_equation_that_does_not_hold_is_noticed():
    names = Round(Suite.MLKEM768_X25519, 32).names
    text = " ".join(code for _, code in BLOCKS)
    spoilt = 0
    for name, value in names.items():
        if not re.search(rf"\b{name}\b", text) or name in (
            "ids",
            "dealers",
            "U1",
            "U2",
            "U3",
            "U5",
            "dropped",
            "disclosing",
        ):
            continue
        index = next(i for i, v in value.items() if "site-b" in i and v) if isinstance(value, dict) else None
        old = value if index is None else value[index]
        if isinstance(old, bool):
            others = [not old]
        else:
            others = [old + 1, old - 1] if isinstance(old, (int, float)) else [old[:-1]]
        assert not all(holds(names | {name: v if index is None else value | {index: v}}) for v in others), name
        spoilt += 1
    assert spoilt > 55
