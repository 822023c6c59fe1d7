"""The small text files that people keep and compare: keys, rosters and policies, in TOML.

Here is what they say; `secagg.writing` writes them. Must never: show a signing key, or take a secret one that others
can read.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from secagg.arguments import must_be
from secagg.encoding import Field, encode
from secagg.errors import ConfigError
from secagg.keys import SigningKey, verify
from secagg.policy import Policy
from secagg.roster import PinnedRoster
from secagg.text import read_text
from secagg.toml import from_toml
from secagg.writing import owners_only

PathLike: TypeAlias = "str | Path"
_Read = TypeVar("_Read")


def _parsed(path: PathLike, what: str, build: Callable[[dict[str, Any]], _Read]) -> _Read:
    """Read a TOML file and let `build` make something of it; ConfigError with `what` where it holds something else.

    No frame that a crash report could show holds the text, which may be a key: the error is raised anew outside.
    """
    must_be(path, (str, Path), "path", "give the name of a file")
    try:
        return build(from_toml(read_text(Path(path))))
    except ConfigError as error:
        told = str(error)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        told = f"{path} is not {what}"
    raise ConfigError(told if told.startswith(str(path)) else f"{path}: {told}")


# --- Keys ---------------------------------------------------------------------------------------------------------


def secret_text(client_id: str, key: SigningKey) -> str:
    """The text of a file with a signing key."""
    return f'id = "{client_id}"\nsigning_key = "{key.export().hex()}"\n'


def public_text(client_id: str, key: SigningKey) -> str:
    """The text of a file with its verify key."""
    return f'id = "{client_id}"\nverify_key = "{key.verify_key.hex()}"\n'


def load_key(path: PathLike) -> tuple[str, SigningKey]:
    """Id and signing key in a file that `secagg keygen` wrote.

    Raises:
        ConfigError: it holds none, or others can read it.
        OSError: it cannot be read.
    """
    must_be(path, (str, Path), "path", "give the name of a file")
    owners_only(Path(path))

    def build(entries: dict[str, Any]) -> tuple[str, SigningKey]:
        """Id and key; raises what `_parsed` turns into a sentence."""
        key = SigningKey.from_bytes(bytes.fromhex(entries["signing_key"]))
        PinnedRoster({entries["id"]: key.verify_key})
        return entries["id"], key

    return _parsed(path, "a file with a signing key; `secagg keygen` writes one", build)


def load_public_key(path: PathLike) -> tuple[str, bytes]:
    """Id and verify key in a .pub file.

    Raises:
        ConfigError: it holds none, or a secret one.
        OSError: it cannot be read.
    """

    def build(entries: dict[str, Any]) -> tuple[str, bytes]:
        """Id and verify key; raises what `_parsed` turns into a sentence."""
        if "signing_key" in entries:
            raise ConfigError("it holds a SECRET key; ask the client for its .pub file")
        client_id, key = entries["id"], bytes.fromhex(entries["verify_key"])
        PinnedRoster({client_id: key})
        return client_id, key

    return _parsed(path, "a public key file; `secagg keygen` writes one", build)


# --- The roster ---------------------------------------------------------------------------------------------------


def roster_text(pinned: PinnedRoster) -> str:
    """The text of a roster file: one line for each client, with its verify key in hexadecimal."""
    return "\n".join(["[clients]", *(f'"{client_id}" = "{key.hex()}"' for client_id, key in pinned.items()), ""])


def load_roster(path: PathLike) -> PinnedRoster:
    """The roster in a file that `secagg roster` wrote; what else is in the file does not matter.

    Raises:
        ConfigError: it holds no roster.
        OSError: it cannot be read.
    """
    return _parsed(
        path,
        "a roster; `secagg roster` writes one",
        lambda entries: PinnedRoster({name: bytes.fromhex(key) for name, key in entries["clients"].items()}),
    )


@dataclass(frozen=True)
class Federation:
    """A roster, and what a training run adds to it: pinned out of band by every party.

    Attributes:
        training_run: name of the run whose rounds are counted.
        server_key: the server's Ed25519 verify key, 32 bytes.
        pinned: every client's verify key.
        number: of this roster among those that the server's operator published; 0 where nobody counts.
        signature: of `server_key` over all of it, 64 bytes; none where it was written by hand.
    """

    training_run: str
    server_key: bytes
    pinned: PinnedRoster
    number: int = 0
    signature: bytes = b""

    def signed(self, key: SigningKey) -> "Federation":
        """The same with the server's signature."""
        return replace(self, signature=key.sign(self._statement))

    @property
    def holds(self) -> bool:
        """Whether the signature is the server's."""
        return verify(self.server_key, self._statement, self.signature)

    @property
    def _statement(self) -> bytes:
        roster: list[list[Field]] = [[client_id, key] for client_id, key in self.pinned.items()]
        return encode("federation", self.training_run, self.server_key, self.number, roster)


def federation_text(federation: Federation) -> str:
    """The text of a federation file, which is a roster file as well."""
    head = f'training_run = "{federation.training_run}"\nserver_key = "{federation.server_key.hex()}"\n'
    if federation.signature:
        head += f'number = {federation.number}\nsignature = "{federation.signature.hex()}"\n'
    return head + "\n" + roster_text(federation.pinned)


def read_federation(path: PathLike) -> Federation:
    """The federation in a file; what else is in the file does not matter.

    Raises:
        ConfigError: it holds none, or one that was changed after it was signed.
        OSError: it cannot be read.
    """
    pinned = load_roster(path)

    def build(entries: dict[str, Any]) -> Federation:
        """The federation; raises what `_parsed` turns into a sentence."""
        run, key = str(entries["training_run"]), bytes.fromhex(entries["server_key"])
        signature = bytes.fromhex(entries.get("signature", ""))
        federation = Federation(run, key, pinned, int(entries.get("number", 0)), signature)
        if signature and not federation.holds:
            raise ConfigError("it was changed after the coordinator signed it; ask for the file again")
        return federation

    return _parsed(path, "a federation file: a roster with training_run and server_key", build)


# --- The policy ---------------------------------------------------------------------------------------------------


def policy_text(policy: Policy) -> str:
    """The text of a policy file; `load_policy` makes an equal policy of it, to the last bit of every number."""
    return policy.to_toml()


def load_policy(path: PathLike) -> Policy:
    """The policy in a file; what else is in the file does not matter.

    Raises:
        ConfigError: it holds none, one that lacks a field or has an unknown one, or one that cannot be safe.
        OSError: it cannot be read.
    """
    what = "a policy; write a table [policy] with the fields of secagg.Policy"
    return _parsed(path, what, lambda entries: Policy.from_table(entries["policy"]))
