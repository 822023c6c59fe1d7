"""Errors that say whose fault it is.

`ConfigError` and `IllegalTransitionError` are ours, `ProtocolError` is theirs, `AbortedError` is nobody's. No
message, repr or attribute ever holds a key, a share, a vector or a patient id. Specification: docs/spec.md, section
"Checks": every `ProtocolError` names the row that fired.
"""

from collections.abc import Iterable


class SecAggError(Exception):
    """Root of everything that secagg raises on purpose."""


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
    """The round ended without a sum and nobody is to blame; `round` is the round's name in the specification."""

    def __init__(self, round: str, message: str) -> None:
        super().__init__(message)
        self.round = round


class ComplaintError(AbortedError):
    """Sealed shares did not open; the next attempt leaves out a smallest set of clients that meets every complaint.

    Attributes:
        complaints: (accuser, dealer) pairs, sorted; at least one end of each is corrupt.
    """

    def __init__(self, round: str, complaints: Iterable[tuple[str, str]]) -> None:
        self.complaints = tuple(sorted(complaints))
        told = ", ".join(f"{accuser} could not open the shares of {dealer}" for accuser, dealer in self.complaints)
        super().__init__(round, f"{round}: {told}; open the next attempt without one end of each complaint")


class TooFewClientsError(AbortedError):
    """Fewer clients are left than the policy's `min_survivors`."""

    def __init__(self, round: str, have: int, need: int) -> None:
        super().__init__(round, f"{round}: {have} clients are left and the policy needs {need}; nothing was opened")
        self.have = have
        self.need = need
