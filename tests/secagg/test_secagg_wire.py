"""Bytes: every message comes back as it went, and any other bytes are refused as malformed, never anything else."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from secagg_cohort import RUN, SERVER_KEY, Cohort

from secagg import MalformedMessageError, Suite, wire
from secagg import secagg_pb2 as pb
from secagg.messages import (
    Attestations,
    Bundle,
    Header,
    IncludedSet,
    MaskedInput,
    Receipt,
    Reports,
    Result,
    Roster,
    RoundStart,
    ShareInbox,
    UnmaskingShares,
)


def every_message() -> tuple[list, list]:
    """One whole round with a dropout: what the clients said and what the server said."""
    up, down = [], []
    play = Cohort(5, suite=Suite.MLKEM768_X25519).play(
        silent={"site-c": "MaskedInputCollection"},
        up=lambda step, who, m: up.append(m) or m,
        down=lambda step, who, m: down.append(m) or m,
    )
    start = RoundStart(RUN, 2, 1, *[bytes(32)] * 3, missed=(play.server.receipt,)).sign(SERVER_KEY)
    return up, [*down, start]


FROM_CLIENT, FROM_SERVER = every_message()
KINDS = {type(message): message for message in (*FROM_CLIENT, *FROM_SERVER)}
ENCODED = [wire.encode(message) for message in KINDS.values()]
quick = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def decoded(data: bytes) -> list:
    """What either side makes of these bytes; anything but a message or a MalformedMessageError fails the test."""
    messages = []
    for decode in (wire.decode_from_client, wire.decode_from_server):
        try:
            messages.append(decode(data))
        except MalformedMessageError as error:
            assert error.check in ("M-01", "W-01")  # noqa: PT017
            assert error.culprits == ()  # noqa: PT017
    return messages


def refused(data: bytes) -> None:
    assert decoded(data) == []


def test_all_thirteen_messages_take_part():
    assert len(KINDS) == len(wire._CLIENT_FIELDS) + len(wire._SERVER_FIELDS) == 13


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_message_comes_back_as_it_went(kind):
    message = KINDS[kind]
    data = wire.encode(message)
    assert decoded(data) == [message]
    assert wire.encode(decoded(data)[0]) == data


@pytest.mark.parametrize("message", FROM_CLIENT, ids=lambda message: type(message).__name__)
def test_what_a_client_says_is_never_the_servers_word(message):
    assert isinstance(wire.decode_from_client(wire.encode(message)), type(message))
    with pytest.raises(MalformedMessageError, match="W-01"):
        wire.decode_from_server(wire.encode(message))


@pytest.mark.parametrize("message", FROM_SERVER[-1:] + list(KINDS.values())[6:], ids=lambda m: type(m).__name__)
def test_what_the_server_says_is_never_a_clients_word(message):
    with pytest.raises(MalformedMessageError, match="W-01"):
        wire.decode_from_client(wire.encode(message))


def test_the_two_sides_share_no_field_number():
    client, server = (
        {field.number for field in side.DESCRIPTOR.oneofs_by_name["message"].fields}
        for side in (pb.FromClient, pb.FromServer)
    )
    assert not client & server


@given(st.binary(max_size=200))
@quick
def test_any_bytes_are_a_message_or_malformed(data):
    decoded(data)


@given(st.data())
@quick
def test_damaged_messages_are_other_messages_or_malformed(data):
    original = bytearray(data.draw(st.sampled_from(ENCODED)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(original), 400) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "double"])):
            case "flip":
                original[at] ^= data.draw(st.integers(1, 255))
            case "cut":
                del original[at : at + data.draw(st.integers(1, 40))]
            case "insert":
                original[at:at] = data.draw(st.binary(min_size=1, max_size=8))
            case "double":
                original[at:at] = original[at : at + 20]
        if not original:
            break
    for message in decoded(bytes(original)):
        assert wire.encode(message) == bytes(original)


@pytest.mark.parametrize("data", ENCODED, ids=[kind.__name__ for kind in KINDS])
def test_unknown_fields_second_spellings_and_extra_bytes_are_refused(data):
    refused(data + bytes([15 << 3 | 2, 1, 0]))
    refused(data + bytes([0xF8, 0x7F, 1]))
    refused(data + data)
    refused(data[:-1])
    refused(b"")
    tag, rest = data[:1], data[1:]
    length, used = 0, 0
    for used, byte in enumerate(rest, start=1):
        length |= (byte & 0x7F) << 7 * (used - 1)
        if byte < 0x80:
            break
    body = rest[used:]
    assert len(body) == length
    padded = bytearray(rest[:used])
    padded[-1] |= 0x80
    refused(tag + bytes(padded) + b"\0" + body)
    inner = body + bytes([0xF8, 0x7F, 1])
    refused(tag + varint(len(inner)) + inner)


def varint(value: int) -> bytes:
    groups = []
    while value >= 0x80:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def wrapped(**message) -> bytes:
    envelope = pb.FromClient if next(iter(message)) in wire._CLIENT_FIELDS else pb.FromServer
    return envelope(**message).SerializeToString()


@pytest.mark.parametrize(
    "data",
    [
        wrapped(advertise_keys=pb.AdvertiseKeys(slot=bytes(31), client_id="a", nonce=bytes(16))),
        wrapped(advertise_keys=pb.AdvertiseKeys(slot=bytes(32), client_id="a", nonce=bytes(15))),
        wrapped(advertise_keys=pb.AdvertiseKeys(slot=bytes(32), client_id="", nonce=bytes(16))),
        wrapped(advertise_keys=pb.AdvertiseKeys(slot=bytes(32), client_id="é", nonce=bytes(16))),
        wrapped(advertise_keys=pb.AdvertiseKeys(slot=bytes(32), client_id="a" * 65, nonce=bytes(16))),
        wrapped(encrypted_shares=pb.EncryptedShares()),
        wrapped(result=pb.Result(total=b"sum")),
        wrapped(included_set=pb.IncludedSet()),
        wrapped(
            round_start=pb.RoundStart(
                training_run="", **dict.fromkeys(("model_hash", "task_hash", "previous_head"), bytes(32))
            )
        ),
        wrapped(
            share_report=pb.ShareReport(
                client_id="a", complaint="é", **dict.fromkeys(("slot", "roster1", "roster2"), bytes(32))
            )
        ),
    ],
)
def test_fields_of_the_wrong_shape_are_refused(data):
    with pytest.raises(MalformedMessageError, match="M-01"):
        (wire.decode_from_client if data[0] >> 3 < 9 else wire.decode_from_server)(data)


def parts() -> dict[type, object]:
    """Every message and every message within one."""
    inner = [KINDS[Result].receipt, KINDS[ShareInbox].headers[0], KINDS[ShareInbox].bundles[-1]]
    return KINDS | {type(part): part for part in (*inner, KINDS[IncludedSet].inputs[0])}


@pytest.mark.parametrize("part", parts().values(), ids=lambda part: type(part).__name__)
def test_no_hash_may_be_short(part):
    keys = ("channel_pk", "mask_dh_pk")  # their lengths depend on the suite: C-07, S-05
    hashes = [n for n, v in vars(part).items() if isinstance(v, bytes) and len(v) == 32 and n not in keys]
    assert hashes or not isinstance(part, Receipt | Bundle | Header | MaskedInput)
    for name in set(hashes) & set(type(part).__dataclass_fields__):
        with pytest.raises(MalformedMessageError, match="M-01"):
            replace(part, **{name: getattr(part, name)[:-1]})
    if isinstance(part, Header):
        with pytest.raises(MalformedMessageError, match="M-01"):
            replace(part, digests=(*part.digests[1:], b"short"))


@pytest.mark.parametrize("part", parts().values(), ids=lambda part: type(part).__name__)
def test_an_id_is_1_to_64_ascii_characters(part):
    for client_id in ("", "é", "x" * 65):
        if hasattr(part, "client_id"):
            with pytest.raises(MalformedMessageError, match="M-01"):
                replace(part, client_id=client_id)


@pytest.mark.parametrize("run", ["", "é", "x" * 257])
def test_a_training_run_is_a_short_ascii_name(run):
    for part in (KINDS[RoundStart], KINDS[Result].receipt):
        with pytest.raises(MalformedMessageError, match="M-01"):
            replace(part, training_run=run)


def test_lists_out_of_order_or_with_repeats_are_refused():
    for kind in (Roster, ShareInbox, Reports, IncludedSet, Attestations):
        message = KINDS[kind]
        name, entries = next(iter((n, getattr(message, n)) for n in kind.__dataclass_fields__))
        for wrong in (entries[::-1], (*entries, entries[-1])):
            with pytest.raises(MalformedMessageError, match="M-01"):
                replace(message, **{name: wrong})
    shares = KINDS[UnmaskingShares]
    listed = pb.FromClient.FromString(wire.encode(shares))
    entries = listed.unmasking_shares.self_seed_shares
    entries.add().CopyFrom(entries[0])
    with pytest.raises(MalformedMessageError, match="M-01"):
        wire.decode_from_client(listed.SerializeToString())


@pytest.mark.parametrize("share", [bytes(32), bytes(34), b"\xff" * 33])
def test_a_share_outside_the_field_is_refused(share):
    message = KINDS[UnmaskingShares]
    with pytest.raises(MalformedMessageError, match="M-01"):
        replace(message, self_seed_shares=dict.fromkeys(message.self_seed_shares, share))


def test_only_messages_are_encoded():
    with pytest.raises(TypeError):
        wire.encode(b"bytes")


def test_empty_attestations_and_results_keep_their_kind():
    assert decoded(wire.encode(Attestations(()))) == [Attestations(())]
    assert isinstance(decoded(wire.encode(KINDS[Result]))[0], Result)
