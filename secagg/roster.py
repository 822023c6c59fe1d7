"""The cohort: who takes part under which verify key, pinned out of band, and what names it together with a policy.

Every client holds its own copy; nothing in it is ever taken from the server. Specification: docs/spec.md, section
"Identifiers".
"""

import re
from collections.abc import Iterator, Mapping
from functools import cached_property

from secagg.arguments import must_be
from secagg.encoding import digest
from secagg.errors import ConfigError
from secagg.policy import Policy

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class PinnedRoster(Mapping[str, bytes]):
    """The cohort, pinned out of band: client id to Ed25519 verify key, iterated in bytewise order of the ids.

    Raises:
        ConfigError: an id outside ``[A-Za-z0-9._-]``, a key that is not 32 bytes, or two clients with one key.
    """

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        must_be(keys, Mapping, "the roster", "give a mapping of client ids to verify keys")
        for client_id, key in keys.items():
            must_be(client_id, str, f"client id {client_id!r}", "give a text")
            if not _ID.fullmatch(client_id):
                raise ConfigError(f"client id {client_id!r}: use 1 to 64 ASCII letters, digits, '.', '_' or '-'")
            must_be(key, bytes, f"roster: the verify key of {client_id}", "give the 32 bytes of its verify_key")
            if len(key) != 32:
                raise ConfigError(f"roster: the verify key of {client_id} must have 32 bytes")
        if len(set(keys.values())) != len(keys):
            raise ConfigError("roster: two clients share one verify key")
        self._keys = {client_id: bytes(keys[client_id]) for client_id in sorted(keys)}

    def __getitem__(self, client_id: str) -> bytes:
        return self._keys[client_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def hash(self) -> bytes:
        """H(sorted roster of (id, verify key)), 32 bytes."""
        return self._hash

    @cached_property
    def _hash(self) -> bytes:
        return digest("roster", [[client_id, key] for client_id, key in self._keys.items()])


def session_id(policy: Policy, pinned: PinnedRoster) -> bytes:
    """Session = H(suite | project | H(policy) | H(sorted roster)): 32 bytes.

    Raises:
        ConfigError: the roster does not have the policy's number of clients, or lacks a weighted client.
    """
    if len(pinned) != policy.clients:
        raise ConfigError(f"the roster lists {len(pinned)} clients and the policy says clients = {policy.clients}")
    for client_id in policy.weights:
        if client_id not in pinned:
            raise ConfigError(f"the policy gives a weight to {client_id}, which the roster does not list")
    return digest("session", policy.suite.value, policy.project, policy.hash(), pinned.hash())
