# mypy: disable-error-code="type-arg"
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Receipt(_message.Message):
    __slots__ = ("training_run", "round_number", "round_id", "attested", "total_hash", "previous_head", "head", "signature")
    TRAINING_RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_NUMBER_FIELD_NUMBER: _ClassVar[int]
    ROUND_ID_FIELD_NUMBER: _ClassVar[int]
    ATTESTED_FIELD_NUMBER: _ClassVar[int]
    TOTAL_HASH_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_HEAD_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    training_run: str
    round_number: int
    round_id: bytes
    attested: bytes
    total_hash: bytes
    previous_head: bytes
    head: bytes
    signature: bytes
    def __init__(self, training_run: _Optional[str] = ..., round_number: _Optional[int] = ..., round_id: _Optional[bytes] = ..., attested: _Optional[bytes] = ..., total_hash: _Optional[bytes] = ..., previous_head: _Optional[bytes] = ..., head: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class RoundStart(_message.Message):
    __slots__ = ("training_run", "round_number", "attempt", "model_hash", "task_hash", "previous_head", "missed", "signature")
    TRAINING_RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_NUMBER_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    TASK_HASH_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_HEAD_FIELD_NUMBER: _ClassVar[int]
    MISSED_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    training_run: str
    round_number: int
    attempt: int
    model_hash: bytes
    task_hash: bytes
    previous_head: bytes
    missed: _containers.RepeatedCompositeFieldContainer[Receipt]
    signature: bytes
    def __init__(self, training_run: _Optional[str] = ..., round_number: _Optional[int] = ..., attempt: _Optional[int] = ..., model_hash: _Optional[bytes] = ..., task_hash: _Optional[bytes] = ..., previous_head: _Optional[bytes] = ..., missed: _Optional[_Iterable[_Union[Receipt, _Mapping]]] = ..., signature: _Optional[bytes] = ...) -> None: ...

class ReleaseClaim(_message.Message):
    __slots__ = ("session", "training_run", "round_number", "attempt", "model_hash", "task_hash", "previous_head", "roster2", "sharers_hash", "inputs_hash", "attestations")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TRAINING_RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_NUMBER_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    TASK_HASH_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_HEAD_FIELD_NUMBER: _ClassVar[int]
    ROSTER2_FIELD_NUMBER: _ClassVar[int]
    SHARERS_HASH_FIELD_NUMBER: _ClassVar[int]
    INPUTS_HASH_FIELD_NUMBER: _ClassVar[int]
    ATTESTATIONS_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    training_run: str
    round_number: int
    attempt: int
    model_hash: bytes
    task_hash: bytes
    previous_head: bytes
    roster2: bytes
    sharers_hash: bytes
    inputs_hash: bytes
    attestations: _containers.RepeatedCompositeFieldContainer[NamedBytes]
    def __init__(self, session: _Optional[bytes] = ..., training_run: _Optional[str] = ..., round_number: _Optional[int] = ..., attempt: _Optional[int] = ..., model_hash: _Optional[bytes] = ..., task_hash: _Optional[bytes] = ..., previous_head: _Optional[bytes] = ..., roster2: _Optional[bytes] = ..., sharers_hash: _Optional[bytes] = ..., inputs_hash: _Optional[bytes] = ..., attestations: _Optional[_Iterable[_Union[NamedBytes, _Mapping]]] = ...) -> None: ...

class AdvertiseKeys(_message.Message):
    __slots__ = ("slot", "client_id", "channel_pk", "mask_dh_pk", "mask_kem_pk", "nonce", "released", "exposing", "signature")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_PK_FIELD_NUMBER: _ClassVar[int]
    MASK_DH_PK_FIELD_NUMBER: _ClassVar[int]
    MASK_KEM_PK_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    EXPOSING_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    slot: bytes
    client_id: str
    channel_pk: bytes
    mask_dh_pk: bytes
    mask_kem_pk: bytes
    nonce: bytes
    released: bytes
    exposing: _containers.RepeatedCompositeFieldContainer[ReleaseClaim]
    signature: bytes
    def __init__(self, slot: _Optional[bytes] = ..., client_id: _Optional[str] = ..., channel_pk: _Optional[bytes] = ..., mask_dh_pk: _Optional[bytes] = ..., mask_kem_pk: _Optional[bytes] = ..., nonce: _Optional[bytes] = ..., released: _Optional[bytes] = ..., exposing: _Optional[_Iterable[_Union[ReleaseClaim, _Mapping]]] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Roster(_message.Message):
    __slots__ = ("advertisements",)
    ADVERTISEMENTS_FIELD_NUMBER: _ClassVar[int]
    advertisements: _containers.RepeatedCompositeFieldContainer[AdvertiseKeys]
    def __init__(self, advertisements: _Optional[_Iterable[_Union[AdvertiseKeys, _Mapping]]] = ...) -> None: ...

class Bundle(_message.Message):
    __slots__ = ("shares", "pair", "mask_key_commitment", "self_seed_commitment", "pair_commitment")
    SHARES_FIELD_NUMBER: _ClassVar[int]
    PAIR_FIELD_NUMBER: _ClassVar[int]
    MASK_KEY_COMMITMENT_FIELD_NUMBER: _ClassVar[int]
    SELF_SEED_COMMITMENT_FIELD_NUMBER: _ClassVar[int]
    PAIR_COMMITMENT_FIELD_NUMBER: _ClassVar[int]
    shares: bytes
    pair: bytes
    mask_key_commitment: bytes
    self_seed_commitment: bytes
    pair_commitment: bytes
    def __init__(self, shares: _Optional[bytes] = ..., pair: _Optional[bytes] = ..., mask_key_commitment: _Optional[bytes] = ..., self_seed_commitment: _Optional[bytes] = ..., pair_commitment: _Optional[bytes] = ...) -> None: ...

class Header(_message.Message):
    __slots__ = ("slot", "roster1", "client_id", "self_commitment", "bundles_root", "signature")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    ROSTER1_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    SELF_COMMITMENT_FIELD_NUMBER: _ClassVar[int]
    BUNDLES_ROOT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    slot: bytes
    roster1: bytes
    client_id: str
    self_commitment: bytes
    bundles_root: bytes
    signature: bytes
    def __init__(self, slot: _Optional[bytes] = ..., roster1: _Optional[bytes] = ..., client_id: _Optional[str] = ..., self_commitment: _Optional[bytes] = ..., bundles_root: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class EncryptedShares(_message.Message):
    __slots__ = ("header", "bundles")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    BUNDLES_FIELD_NUMBER: _ClassVar[int]
    header: Header
    bundles: _containers.RepeatedCompositeFieldContainer[Bundle]
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., bundles: _Optional[_Iterable[_Union[Bundle, _Mapping]]] = ...) -> None: ...

class ShareInbox(_message.Message):
    __slots__ = ("headers", "bundles", "paths")
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    BUNDLES_FIELD_NUMBER: _ClassVar[int]
    PATHS_FIELD_NUMBER: _ClassVar[int]
    headers: _containers.RepeatedCompositeFieldContainer[Header]
    bundles: _containers.RepeatedCompositeFieldContainer[Bundle]
    paths: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, headers: _Optional[_Iterable[_Union[Header, _Mapping]]] = ..., bundles: _Optional[_Iterable[_Union[Bundle, _Mapping]]] = ..., paths: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ShareReport(_message.Message):
    __slots__ = ("slot", "roster1", "roster2", "client_id", "complaint", "signature")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    ROSTER1_FIELD_NUMBER: _ClassVar[int]
    ROSTER2_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    COMPLAINT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    slot: bytes
    roster1: bytes
    roster2: bytes
    client_id: str
    complaint: str
    signature: bytes
    def __init__(self, slot: _Optional[bytes] = ..., roster1: _Optional[bytes] = ..., roster2: _Optional[bytes] = ..., client_id: _Optional[str] = ..., complaint: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Reports(_message.Message):
    __slots__ = ("reports",)
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    reports: _containers.RepeatedCompositeFieldContainer[ShareReport]
    def __init__(self, reports: _Optional[_Iterable[_Union[ShareReport, _Mapping]]] = ...) -> None: ...

class MaskedInput(_message.Message):
    __slots__ = ("round_id", "roster1", "roster2", "sharers_hash", "client_id", "signature")
    ROUND_ID_FIELD_NUMBER: _ClassVar[int]
    ROSTER1_FIELD_NUMBER: _ClassVar[int]
    ROSTER2_FIELD_NUMBER: _ClassVar[int]
    SHARERS_HASH_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    round_id: bytes
    roster1: bytes
    roster2: bytes
    sharers_hash: bytes
    client_id: str
    signature: bytes
    def __init__(self, round_id: _Optional[bytes] = ..., roster1: _Optional[bytes] = ..., roster2: _Optional[bytes] = ..., sharers_hash: _Optional[bytes] = ..., client_id: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class AcceptedInput(_message.Message):
    __slots__ = ("round_id", "roster1", "roster2", "sharers_hash", "client_id", "y_hash", "signature")
    ROUND_ID_FIELD_NUMBER: _ClassVar[int]
    ROSTER1_FIELD_NUMBER: _ClassVar[int]
    ROSTER2_FIELD_NUMBER: _ClassVar[int]
    SHARERS_HASH_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    Y_HASH_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    round_id: bytes
    roster1: bytes
    roster2: bytes
    sharers_hash: bytes
    client_id: str
    y_hash: bytes
    signature: bytes
    def __init__(self, round_id: _Optional[bytes] = ..., roster1: _Optional[bytes] = ..., roster2: _Optional[bytes] = ..., sharers_hash: _Optional[bytes] = ..., client_id: _Optional[str] = ..., y_hash: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class IncludedSet(_message.Message):
    __slots__ = ("inputs",)
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    inputs: _containers.RepeatedCompositeFieldContainer[AcceptedInput]
    def __init__(self, inputs: _Optional[_Iterable[_Union[AcceptedInput, _Mapping]]] = ...) -> None: ...

class Attestation(_message.Message):
    __slots__ = ("attested", "client_id", "signature")
    ATTESTED_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    attested: bytes
    client_id: str
    signature: bytes
    def __init__(self, attested: _Optional[bytes] = ..., client_id: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Attestations(_message.Message):
    __slots__ = ("attestations",)
    ATTESTATIONS_FIELD_NUMBER: _ClassVar[int]
    attestations: _containers.RepeatedCompositeFieldContainer[Attestation]
    def __init__(self, attestations: _Optional[_Iterable[_Union[Attestation, _Mapping]]] = ...) -> None: ...

class NamedBytes(_message.Message):
    __slots__ = ("client_id", "value")
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    client_id: str
    value: bytes
    def __init__(self, client_id: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...

class UnmaskingShares(_message.Message):
    __slots__ = ("round_id", "attested", "client_id", "self_seed", "self_seed_shares", "mask_key_shares", "pair_secrets", "signature", "excess_seeds")
    ROUND_ID_FIELD_NUMBER: _ClassVar[int]
    ATTESTED_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    SELF_SEED_FIELD_NUMBER: _ClassVar[int]
    SELF_SEED_SHARES_FIELD_NUMBER: _ClassVar[int]
    MASK_KEY_SHARES_FIELD_NUMBER: _ClassVar[int]
    PAIR_SECRETS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    EXCESS_SEEDS_FIELD_NUMBER: _ClassVar[int]
    round_id: bytes
    attested: bytes
    client_id: str
    self_seed: bytes
    self_seed_shares: _containers.RepeatedCompositeFieldContainer[NamedBytes]
    mask_key_shares: _containers.RepeatedCompositeFieldContainer[NamedBytes]
    pair_secrets: _containers.RepeatedCompositeFieldContainer[NamedBytes]
    signature: bytes
    excess_seeds: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, round_id: _Optional[bytes] = ..., attested: _Optional[bytes] = ..., client_id: _Optional[str] = ..., self_seed: _Optional[bytes] = ..., self_seed_shares: _Optional[_Iterable[_Union[NamedBytes, _Mapping]]] = ..., mask_key_shares: _Optional[_Iterable[_Union[NamedBytes, _Mapping]]] = ..., pair_secrets: _Optional[_Iterable[_Union[NamedBytes, _Mapping]]] = ..., signature: _Optional[bytes] = ..., excess_seeds: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("receipt", "excess_seeds")
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    EXCESS_SEEDS_FIELD_NUMBER: _ClassVar[int]
    receipt: Receipt
    excess_seeds: _containers.RepeatedCompositeFieldContainer[NamedBytes]
    def __init__(self, receipt: _Optional[_Union[Receipt, _Mapping]] = ..., excess_seeds: _Optional[_Iterable[_Union[NamedBytes, _Mapping]]] = ...) -> None: ...

class Confirmation(_message.Message):
    __slots__ = ("head", "client_id", "signature")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    head: bytes
    client_id: str
    signature: bytes
    def __init__(self, head: _Optional[bytes] = ..., client_id: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class SlotsFailed(_message.Message):
    __slots__ = ("round_id", "attested")
    ROUND_ID_FIELD_NUMBER: _ClassVar[int]
    ATTESTED_FIELD_NUMBER: _ClassVar[int]
    round_id: bytes
    attested: bytes
    def __init__(self, round_id: _Optional[bytes] = ..., attested: _Optional[bytes] = ...) -> None: ...

class SlotMasks(_message.Message):
    __slots__ = ("round_id", "attested", "client_id", "masks", "signature")
    ROUND_ID_FIELD_NUMBER: _ClassVar[int]
    ATTESTED_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    MASKS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    round_id: bytes
    attested: bytes
    client_id: str
    masks: _containers.RepeatedCompositeFieldContainer[NamedBytes]
    signature: bytes
    def __init__(self, round_id: _Optional[bytes] = ..., attested: _Optional[bytes] = ..., client_id: _Optional[str] = ..., masks: _Optional[_Iterable[_Union[NamedBytes, _Mapping]]] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Abort(_message.Message):
    __slots__ = ("slot", "reason")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    slot: bytes
    reason: str
    def __init__(self, slot: _Optional[bytes] = ..., reason: _Optional[str] = ...) -> None: ...

class FromClient(_message.Message):
    __slots__ = ("advertise_keys", "encrypted_shares", "share_report", "masked_input", "attestation", "unmasking_shares", "confirmation", "slot_masks", "vector")
    ADVERTISE_KEYS_FIELD_NUMBER: _ClassVar[int]
    ENCRYPTED_SHARES_FIELD_NUMBER: _ClassVar[int]
    SHARE_REPORT_FIELD_NUMBER: _ClassVar[int]
    MASKED_INPUT_FIELD_NUMBER: _ClassVar[int]
    ATTESTATION_FIELD_NUMBER: _ClassVar[int]
    UNMASKING_SHARES_FIELD_NUMBER: _ClassVar[int]
    CONFIRMATION_FIELD_NUMBER: _ClassVar[int]
    SLOT_MASKS_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    advertise_keys: AdvertiseKeys
    encrypted_shares: EncryptedShares
    share_report: ShareReport
    masked_input: MaskedInput
    attestation: Attestation
    unmasking_shares: UnmaskingShares
    confirmation: Confirmation
    slot_masks: SlotMasks
    vector: bytes
    def __init__(self, advertise_keys: _Optional[_Union[AdvertiseKeys, _Mapping]] = ..., encrypted_shares: _Optional[_Union[EncryptedShares, _Mapping]] = ..., share_report: _Optional[_Union[ShareReport, _Mapping]] = ..., masked_input: _Optional[_Union[MaskedInput, _Mapping]] = ..., attestation: _Optional[_Union[Attestation, _Mapping]] = ..., unmasking_shares: _Optional[_Union[UnmaskingShares, _Mapping]] = ..., confirmation: _Optional[_Union[Confirmation, _Mapping]] = ..., slot_masks: _Optional[_Union[SlotMasks, _Mapping]] = ..., vector: _Optional[bytes] = ...) -> None: ...

class FromServer(_message.Message):
    __slots__ = ("round_start", "roster", "share_inbox", "reports", "included_set", "attestations", "result", "abort", "slots_failed", "vector")
    ROUND_START_FIELD_NUMBER: _ClassVar[int]
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    SHARE_INBOX_FIELD_NUMBER: _ClassVar[int]
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    INCLUDED_SET_FIELD_NUMBER: _ClassVar[int]
    ATTESTATIONS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FAILED_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    round_start: RoundStart
    roster: Roster
    share_inbox: ShareInbox
    reports: Reports
    included_set: IncludedSet
    attestations: Attestations
    result: Result
    abort: Abort
    slots_failed: SlotsFailed
    vector: bytes
    def __init__(self, round_start: _Optional[_Union[RoundStart, _Mapping]] = ..., roster: _Optional[_Union[Roster, _Mapping]] = ..., share_inbox: _Optional[_Union[ShareInbox, _Mapping]] = ..., reports: _Optional[_Union[Reports, _Mapping]] = ..., included_set: _Optional[_Union[IncludedSet, _Mapping]] = ..., attestations: _Optional[_Union[Attestations, _Mapping]] = ..., result: _Optional[_Union[Result, _Mapping]] = ..., abort: _Optional[_Union[Abort, _Mapping]] = ..., slots_failed: _Optional[_Union[SlotsFailed, _Mapping]] = ..., vector: _Optional[bytes] = ...) -> None: ...
