"""Row 3 in the service: text of the other side, and of a certificate, is made fit to be shown as it enters."""

import dataclasses
import datetime as dt
import json
from typing import get_args

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg.rpc.tls import site_named_by
from secagg.service import dialogue, events
from secagg.service.dialogue import FROM_COORDINATOR, FROM_MEMBER, SENTENCE, Dialogue
from secagg.service.errors import DialogueError
from secagg.service.serving import as_line
from tests.support.hostile_text import HOSTILE, acting

BOTH = [*FROM_MEMBER, *FROM_COORDINATOR]
SAID = [message for message in BOTH if issubclass(message, dialogue.Said)]
READY = {"task": "0" * 64, "policy": "0" * 64, "roster": "0" * 64}


def told(kind: str, payload: bytes) -> list[str]:
    """Every text in a message, or the sentence that refuses it."""
    try:
        message = Dialogue(BOTH).read(kind, payload, "site-a")
    except DialogueError as error:
        return [str(error)]
    return [value for value in vars(message).values() if isinstance(value, str)]


@settings(max_examples=60, deadline=None)
@given(text=HOSTILE, said=st.sampled_from(SAID))
def test_a_reason_is_one_line_of_bounded_length_or_is_refused(text, said):
    payload = json.dumps({"reason": text}).encode()
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # half a character is in no JSON
        with pytest.raises(DialogueError, match=f"^site-a sent a malformed {said.__name__} message; it was ignored$"):
            Dialogue(BOTH).read(said.kind, payload, "site-a")
        return
    message = Dialogue(BOTH).read(said.kind, payload, "site-a")
    assert not acting(message.reason)
    assert len(message.reason) <= SENTENCE
    assert "\n" not in message.reason
    assert said.unpacked(said.because(message.reason).packed(), "site-a").reason == message.reason


@settings(max_examples=60, deadline=None)
@given(text=HOSTILE, kind=st.sampled_from([message.kind for message in BOTH]), raw=st.binary(max_size=60))
def test_anything_else_is_understood_or_refused_in_a_sentence(text, kind, raw):
    said = [
        {"release": text, "run": text, **READY},
        {"sites": [text], "seconds": 1.0},
        {"reason": text, "complete": True},
    ]
    for payload in (raw, text.encode("utf-8", "surrogatepass"), *(json.dumps(each).encode() for each in said)):
        assert not acting("".join(told(kind, payload)))
    assert Dialogue(BOTH).read(text, raw) is None or text in {message.kind for message in BOTH}


@settings(max_examples=20, deadline=None)
@given(text=HOSTILE)
def test_every_event_is_one_line_of_json(text):
    for kind in get_args(events.Event):
        known = {"str": text, "tuple[str, ...]": (text,), "int": 1, "float": 1.0, "bool": True, "float | None": None}
        filled = {
            f.name: known.get(str(getattr(f.type, "__name__", f.type)), {text: 1.0}) for f in dataclasses.fields(kind)
        }
        assert as_line(kind(**filled)).isascii()
        assert "\n" not in as_line(kind(**filled))


KEY = ec.generate_private_key(ec.SECP256R1())


def certificate(*names: str) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each) for each in names])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(KEY.public_key())
    made = made.serial_number(1).not_valid_before(dt.datetime(2026, 1, 1)).not_valid_after(dt.datetime(2036, 1, 1))
    made = made.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    return made.sign(KEY, hashes.SHA256()).public_bytes(Encoding.PEM)


@settings(max_examples=25, deadline=None)
@given(text=HOSTILE)
def test_a_certificate_of_any_name_is_a_name_or_a_reason(text):
    try:
        one, two = certificate(text[:64]), certificate(text[:64], "site-a")
    except ValueError:  # no certificate has such a name
        return
    assert site_named_by(one) == text[:64]
    with pytest.raises(ValueError, match="has 2 common names") as refused:
        site_named_by(two)
    assert str(refused.value).isprintable()
