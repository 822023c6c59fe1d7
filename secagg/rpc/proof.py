"""Who a site is where its certificate does not say so: where a load balancer ends TLS (mode "tls").

The site signs a fresh challenge of the coordinator with its pinned signing key. The statement names the coordinator by
its own pinned key, so that what one coordinator was told proves nothing to another; the site; its process's session,
which stands for it in every later call; and the challenge, which holds for one call only. What this mode loses beside
mutual TLS is in docs/threat-model.md: whoever ends TLS can read kinds and sizes, and can say in the name of a connected
site, and of the coordinator, all that is not signed.
"""

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from secagg.encoding import encode
from secagg.keys import SigningKey, verify
from secagg.rpc.tls import AUTHORITY, ClientTls

CHALLENGE_BYTES = 32

MTLS, TLS = "mtls", "tls"
"""The modes: a certificate says who calls, or the call's proof does."""

BALANCER = "balancer.pem"
"""Of a site's folder: the authority of whoever ends TLS, where that is not the study's own authority."""


@dataclass(frozen=True)
class Pinned:
    """The keys that a coordinator checks proofs with.

    Args:
        coordinator: its own verify key, 32 bytes, which every site pins.
        sites: the sites' verify keys, by site id.
    """

    coordinator: bytes
    sites: Mapping[str, bytes]

    def proves(self, client_id: str, session: bytes, challenge: bytes, proof: bytes) -> bool:
        """Whether this site signed that the session is its own, for this challenge of this coordinator."""
        key = self.sites.get(client_id)
        return key is not None and verify(key, _statement(self.coordinator, client_id, session, challenge), proof)


@dataclass(frozen=True)
class Prover:
    """A site's own key, and the coordinator that it proves itself to.

    Args:
        signing_key: the site's own.
        coordinator: the coordinator's verify key, 32 bytes, as this site pinned it.
    """

    signing_key: SigningKey = field(repr=False)
    coordinator: bytes

    def prove(self, client_id: str, session: bytes, challenge: bytes) -> bytes:
        """The signature, 64 bytes.

        Raises:
            ValueError: that is no challenge.
        """
        if len(challenge) != CHALLENGE_BYTES:
            raise ValueError(f"a challenge has {CHALLENGE_BYTES} bytes")
        return self.signing_key.sign(_statement(self.coordinator, client_id, session, challenge))


def tls_of(folder: Path, site: str, roster: Collection[str], mode: str) -> ClientTls:
    """What a site shows its coordinator, out of its own folder.

    Args:
        folder: mtls: `authority.pem`, `SITE.pem` and `SITE.key`; tls: `balancer.pem`, or else `authority.pem`.
        site: its id.
        roster: the sites' ids.
        mode: `MTLS` or `TLS`, as the coordinator has it.

    Raises:
        ConfigError: a file is missing, unreadable or expired, or is another site's.
    """
    authority = trusted(folder, mode)
    if mode == MTLS:
        return ClientTls.load(authority, folder / f"{site}.pem", folder / f"{site}.key", roster=roster)
    return ClientTls.without_certificate(authority, site)


def trusted(folder: Path, mode: str) -> Path:
    """The authority file by which a site knows its coordinator, or whoever ends TLS before it."""
    balancer = folder / BALANCER
    return balancer if mode == TLS and balancer.exists() else folder / f"{AUTHORITY}.pem"


def prover_of(signing_key: SigningKey, coordinator: bytes, mode: str) -> Prover | None:
    """What a site proves itself with; arguments as of `Prover`. None in mode mtls."""
    return Prover(signing_key, coordinator) if mode == TLS else None


def fresh_challenge() -> bytes:
    """32 bytes from the operating system, for one call."""
    return secrets.token_bytes(CHALLENGE_BYTES)


def _statement(coordinator: bytes, client_id: str, session: bytes, challenge: bytes) -> bytes:
    return encode("transport-hello", coordinator, client_id, session, challenge)
