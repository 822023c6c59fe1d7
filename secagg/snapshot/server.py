"""A server's session between two steps, sealed: what it goes on from after a crash, with the replies that it gave.

Between two steps a server holds no released share and no seed: kept are the masked sum, what was promised, the replies.
"""

from collections.abc import Mapping
from typing import cast

import numpy as np

from secagg import wire
from secagg.encoding import Buffer, Field
from secagg.errors import IllegalTransitionError
from secagg.keys import SigningKey
from secagg.messages import FromServer, IncludedSet, Reports, Result, Roster, ShareInbox, headers_hash
from secagg.packing import dtype_for, unpack
from secagg.policy import Policy
from secagg.prg import Executor
from secagg.roster import PinnedRoster, session_id
from secagg.server import (
    Advertising,
    Attesting,
    Collected,
    Collecting,
    CollectingInputs,
    Confirming,
    Dealt,
    Promised,
    Reporting,
    Round,
    SharingKeys,
    Unmasking,
)
from secagg.session import ServerSession
from secagg.snapshot import sealed


def snapshot_server(session: ServerSession, signing_key: SigningKey, told: Mapping[str, bytes] | None = None) -> bytes:
    """Seal what a server holds between two steps. The session goes on; `resume_server` goes on from here as well.

    Take one right after each `close_step`, and write it whole to a disk before its replies are sent: then whoever goes
    on from the last one repeats these replies, and none that differs.

    Args:
        session: the server's.
        signing_key: the server's.
        told: the replies of the step as `wire.encode_each` has encoded them, where that is done already.

    Raises:
        IllegalTransitionError: messages of the step were taken, the round is over without a sum, or it looks for who
            poisoned the slots: such a round is burned in any case.
    """
    state = session._state
    if not isinstance(state, Collecting) or state.received:
        raise IllegalTransitionError("a server's session is sealed right after a step was closed")
    told = wire.encode_each(session._replies) if told is None else told
    distinct = {id(data): data for data in told.values()}  # a message to many is one object
    places = {key: index for index, key in enumerate(distinct)}
    replies: list[Field] = [[client_id, places[id(data)]] for client_id, data in sorted(told.items())]
    about = sealed.About("", state.round.context, session.step)
    left_out = sorted(state.round.pinned.keys() - state.expected) if isinstance(state, Advertising) else []
    secret = (type(state).__name__, left_out, sorted(session.dropped), list(distinct.values()), replies, _fields(state))
    return sealed.seal(signing_key, state.round.session, about, secret)


def resume_server(
    snapshot: Buffer, policy: Policy, pinned: PinnedRoster, signing_key: SigningKey, executor: Executor | None = None
) -> tuple[ServerSession, Mapping[str, FromServer]]:
    """The session as it was right after a step was closed, and the replies of that step, to be sent again.

    It has no recorder: what was recorded lay in a file without a name, which the crash took along.

    Args:
        snapshot: what `snapshot_server` gave.
        policy: as it was.
        pinned: as it was.
        signing_key: the server's.
        executor: what expands masks, see `ServerSession`.

    Raises:
        ConfigError: it is no snapshot of this server, or is damaged.
    """
    about, fields = sealed.unseal(signing_key, session_id(policy, pinned), "", snapshot)
    kind, left_out, dropped, distinct, replies, kept = fields
    excluded = list(map(sealed.text, sealed.items(left_out)))
    session = ServerSession(policy, pinned, about.context, signing_key, excluded, executor=executor)
    messages = [wire.decode_from_server(bytes(data)) for data in sealed.items(distinct)]
    pairs = map(sealed.items, sealed.items(replies))
    session._replies = {sealed.text(client_id): messages[sealed.number(index)] for client_id, index in pairs}
    first = session._state
    if isinstance(first, Advertising) and sealed.text(kind) != Advertising.__name__:
        state = _revived(sealed.text(kind), first.round, session._replies, sealed.items(kept))
        _go_on(session, state, tuple(map(sealed.text, sealed.items(dropped))))
    return session, session._replies


def _go_on(session: ServerSession, state: Collecting, dropped: tuple[str, ...]) -> None:
    """Everything that a session knows beside its state follows from it."""
    session._state, session._step, session._dropped = state, state.step, dropped
    session._burned = not isinstance(state, SharingKeys | Reporting | Confirming)
    if isinstance(state, Attesting | Unmasking):
        session._included = tuple(state.collected.included.by_id)
    if isinstance(state, Confirming):
        session._included = tuple(sorted(state.expected))
        session._result, session._receipt, session._finished = state.total, state.result.receipt, True


def _fields(state: Collecting) -> list[Field]:
    """What a state holds at its beginning, beside the replies that opened it."""
    match state:
        case Advertising() | SharingKeys() | Confirming():
            return []
        case Reporting():  # all that was dealt is in the replies
            return [wire.encode(state.dealt.roster)]
        case CollectingInputs():
            return [_dealt(state.dealt)]
        case Attesting() | Unmasking():
            return [_dealt(state.dealt), _collected(state.collected)]
    raise IllegalTransitionError("a server that looks for who poisoned the slots is not resumed: the round is burned")


def _revived(kind: str, round: Round, replies: Mapping[str, FromServer], kept: list[memoryview]) -> Collecting:
    """The state of this name, of what `_fields` listed and of the replies that opened it: to whom, and what."""
    told = next(iter(replies.values()))
    match kind, told:
        case "SharingKeys", Roster():
            return SharingKeys(round, told)
        case "Confirming", Result():
            policy = round.policy
            total = unpack(told.total, policy.length + policy.slots, policy.bits)[: policy.length]
            return Confirming(round, replies, total, told)
        case "Reporting", ShareInbox():
            return Reporting(round, _dealt_in(replies, cast(Roster, wire.decode_from_server(bytes(kept[0])))))
    dealt = _dealt_of(kept[0])
    match kind, told:
        case "CollectingInputs", Reports():
            return CollectingInputs(round, dealt, told)
        case "Attesting", _:
            return Attesting(round, dealt, _collected_of(round.policy, kept[1]))
    return Unmasking(round, dealt, _collected_of(round.policy, kept[1]), replies)


def _dealt(dealt: Dealt) -> list[Field]:
    promised: list[Field] = [
        [dealer, [[peer, *kept] for peer, kept in sent.items()]] for dealer, sent in dealt.bundles.items()
    ]
    return [wire.encode(dealt.roster), dealt.roster2, promised, sealed.named(dealt.self_commitments)]


def _dealt_in(inboxes: Mapping[str, FromServer], roster: Roster) -> Dealt:
    """What was dealt, of the messages that told it to everybody: to whom, and what."""
    found = {reader: inbox for reader, inbox in inboxes.items() if isinstance(inbox, ShareInbox)}
    headers = next(iter(found.values())).headers
    dealers = [header.client_id for header in headers]
    promised: dict[str, dict[str, Promised]] = {dealer: {} for dealer in dealers}
    for reader, inbox in sorted(found.items()):
        others = (dealer for dealer in dealers if dealer != reader)
        for dealer, bundle in zip(others, inbox.bundles, strict=True):
            promised[dealer][reader] = Promised.of(bundle)
    return Dealt(roster, headers_hash(headers), promised, {of.client_id: of.self_commitment for of in headers})


def _dealt_of(field: memoryview) -> Dealt:
    roster, roster2, promised, commitments = sealed.items(field)
    bundles = {}
    for dealer, sent in map(sealed.items, sealed.items(promised)):
        kept = map(sealed.items, sealed.items(sent))
        bundles[sealed.text(dealer)] = {sealed.text(peer): Promised(*map(bytes, rest)) for peer, *rest in kept}
    u1 = cast(Roster, wire.decode_from_server(bytes(roster)))
    return Dealt(u1, bytes(roster2), bundles, sealed.by_name(commitments))


def _collected(collected: Collected) -> list[Field]:
    slots = {who: values.astype(values.dtype.newbyteorder("<")).tobytes() for who, values in collected.slots.items()}
    included, sharers = wire.encode(collected.included), sorted(collected.sharers)
    return [collected.round_id, sharers, included, collected.planes.tobytes(), sealed.named(slots)]


def _collected_of(policy: Policy, field: memoryview) -> Collected:
    round_id, sharers, included, planes, slots = sealed.items(field)
    dtype = dtype_for(policy.bits)
    return Collected(
        bytes(round_id),
        frozenset(map(sealed.text, sealed.items(sharers))),
        cast(IncludedSet, wire.decode_from_server(bytes(included))),
        np.frombuffer(bytes(planes), np.uint8).copy(),
        {who: np.frombuffer(of, dtype.newbyteorder("<")).astype(dtype) for who, of in sealed.by_name(slots).items()},
    )
