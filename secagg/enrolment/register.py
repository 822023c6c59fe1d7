"""The coordinator's register: who was invited, who is approved, who was revoked; one readable file.

Must never: hold a token, or a private key.
"""

import datetime as dt
import fcntl
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from secagg.errors import ConfigError
from secagg.text import read_text
from secagg.toml import from_toml, to_toml
from secagg.writing import PRIVATE, write_whole

_Entry = TypeVar("_Entry")


@dataclass
class Invited:
    """A token that was given out and not used yet: its public half, 32 bytes in hexadecimal."""

    site: str
    token: str
    expires: str


@dataclass
class Member:
    """A site that was approved once.

    Attributes:
        site: its id.
        verify_key: pinned, hexadecimal.
        since: day of its first approval.
        expires: when its last certificate does.
        serials: of all certificates that it ever got, hexadecimal.
        revoked: the day, or "".
        fingerprint: what was compared by telephone at its last approval.
    """

    site: str
    verify_key: str
    since: str
    expires: str
    serials: list[str]
    revoked: str = ""
    fingerprint: str = ""


@dataclass
class Register:
    """See the module.

    Attributes:
        address: where sites reach the coordinator, HOST:PORT.
        hosts: names and addresses in its certificate.
        number: of the last roster that was published.
        revoked: serial numbers of all certificates that were ever taken back, hexadecimal.
        invited, members: by site.
    """

    address: str
    hosts: list[str]
    number: int = 0
    revoked: list[str] = field(default_factory=list)
    invited: dict[str, Invited] = field(default_factory=dict)
    members: dict[str, Member] = field(default_factory=dict)
    _text: str = field(default="", init=False, repr=False)  # as it is in the file

    @classmethod
    def read(cls, path: Path) -> "Register":
        """The register in a file.

        Raises:
            ConfigError: it is missing or damaged.
        """
        try:
            text = read_text(path)
            table = from_toml(text)
            invited = [_entry(Invited, each) for each in table.pop("invited", [])]
            members = [_entry(Member, each) for each in table.pop("members", [])]
            register = cls(
                **table, invited={each.site: each for each in invited}, members={each.site: each for each in members}
            )
        except FileNotFoundError:
            raise ConfigError(f"{path} is missing; give the coordinator's folder, or begin with enrol init") from None
        except (ValueError, TypeError, KeyError):
            raise ConfigError(f"{path} is not a register of sites; bring it back from a backup") from None
        register._text = text
        return register

    def write(self, path: Path) -> None:
        """Write it in one piece, over what was read and nothing else.

        Raises:
            ConfigError: another command changed it meanwhile, such as a revocation beside an approval.
        """
        table = {each.name: getattr(self, each.name) for each in fields(self) if each.init}
        table["invited"] = [asdict(each) for each in self.invited.values()]
        table["members"] = [asdict(each) for each in self.members.values()]
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if (read_text(path) if path.exists() else "") != self._text:
                raise ConfigError(f"{path}: another command changed it meanwhile; nothing was done, run this one again")
            text = to_toml(table)
            write_whole(path, text, PRIVATE)
            self._text = text
        finally:
            os.close(descriptor)

    @property
    def approved(self) -> dict[str, Member]:
        """Members that were not revoked."""
        return {site: member for site, member in self.members.items() if not member.revoked}


def _entry(kind: type[_Entry], table: Mapping[str, Any]) -> _Entry:
    return kind(**{each.name: table[each.name] for each in fields(kind)})  # type: ignore[arg-type]


def today() -> str:
    """The day in UTC."""
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%d")


def moment(when: dt.datetime) -> str:
    """A moment as it is written here."""
    return when.astimezone(dt.UTC).isoformat(timespec="seconds")


def past(written: str) -> bool:
    """Whether a moment is over; text that is none is."""
    try:
        return dt.datetime.fromisoformat(written) < dt.datetime.now(dt.UTC)
    except (ValueError, TypeError):
        return True
