"""Errors that say whose fault it is.

`ConfigError` and `IllegalTransitionError` are ours, `ProtocolError` is theirs, `AbortedError` is nobody's. No
message, repr or attribute ever holds a key, a share, a vector or a patient id. Specification: docs/spec.md, section
"Checks": every `ProtocolError` names the row that fired.
"""

from collections.abc import Iterable
from typing import Any


class SecAggError(Exception):
    """Root of everything that secagg raises on purpose; it travels between processes, as those of a pool raise it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.args), self.__dict__


def _again(kind: type[Exception], args: tuple[object, ...]) -> Exception:
    """An error from its text and attributes: what made both was given something else."""
    error = kind.__new__(kind)
    error.args = args
    return error


class ConfigError(SecAggError, ValueError):
    """A policy, key file or argument of ours is wrong or unsafe; nothing has been sent."""


class IllegalTransitionError(SecAggError, RuntimeError):
    """A one-shot state was used twice, or a session was called out of order by its owner."""


class ProtocolError(SecAggError):
    """A peer broke the protocol.

    Attributes:
        check: id of the row in the specification's table of checks, such as ``C-07``.
        culprits: ids of the clients at fault, sorted; empty where the server (or nobody in particular) is.
    """

    def __init__(self, check: str, message: str, culprits: Iterable[str] = ()) -> None:
        super().__init__(f"[{check}] {message}")
        self.check = check
        self.culprits = tuple(sorted(culprits))


class MalformedMessageError(ProtocolError):
    """Bytes or fields that no honest peer can have sent."""


class UnexpectedMessageError(ProtocolError):
    """A well-formed message at the wrong time, from the wrong sender, or a second, different one."""


class AuthenticationError(ProtocolError):
    """A signature, certificate or sealed envelope that does not verify."""


class InconsistentViewError(ProtocolError):
    """Peers were told different things, or less than the policy demands."""


class ShareError(ProtocolError):
    """A share, commitment or reconstructed secret that does not match what was committed."""


class AbortedError(SecAggError):
    """The round ended without a sum and nobody is to blame; `step` is where, by its name in the specification."""

    def __init__(self, step: str, message: str) -> None:
        super().__init__(message)
        self.step = step


class ExposureError(AbortedError):
    """Unmasking shares were sent for a round that nobody has shown to be complete; this site does not go on by itself.

    The site goes on once the transcript of that very round was replayed, or its operator accepted the exposure by name.

    Attributes:
        check: ``C-05`` where this site sent the shares, ``C-26`` where another member of the cohort says it did.
        round_ids: the rounds, 32 bytes each.
    """

    def __init__(self, check: str, step: str, message: str, round_ids: Iterable[bytes]) -> None:
        super().__init__(step, f"[{check}] {message}")
        self.check = check
        self.round_ids = tuple(round_ids)

    def said_by(self, client_ids: Iterable[str]) -> "ExposureError":
        """The same, with who claims it: its operator is whom to ask."""
        message = f"claimed by {', '.join(client_ids)}: " + str(self).removeprefix(f"[{self.check}] ")
        return ExposureError(self.check, self.step, message, self.round_ids)


class ComplaintError(AbortedError):
    """Two clients contradict each other; the next attempt leaves out one end of each complaint.

    Attributes:
        complaints: (accuser, dealer) pairs, sorted; at least one end of each is corrupt.
    """

    def __init__(self, step: str, complaints: Iterable[tuple[str, str]]) -> None:
        self.complaints = tuple(sorted(complaints))
        told = ", ".join(f"{accuser} contradicts {dealer}" for accuser, dealer in self.complaints)
        super().__init__(
            step, f"{step}: {told}; one of the two is at fault: open the next attempt without one end of each"
        )


class TooFewClientsError(AbortedError):
    """Fewer clients are left than the policy's `min_survivors`."""

    def __init__(self, step: str, have: int, need: int) -> None:
        super().__init__(step, f"{step}: {have} clients are left and the policy needs {need}; nothing was opened")
        self.have = have
        self.need = need
