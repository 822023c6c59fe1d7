"""`secagg keygen` and `secagg roster`: identities, and the roster that every party pins.

Must never: print a signing key, or overwrite a file.
"""

import os
import tomllib
from pathlib import Path
from typing import Annotated

import typer

from secagg.cli.terminal import app, say, sentences
from secagg.errors import ConfigError
from secagg.keys import SigningKey
from secagg.policy import PinnedRoster


@app.command()
def keygen(
    client_id: Annotated[str, typer.Argument(help="Id of the client, as it will stand in the roster.")],
    folder: Annotated[Path, typer.Option(help="Where to write ID.signing (secret, 0600) and ID.pub.")] = Path(),
) -> None:
    """Make a signing key for one client."""
    with sentences():
        key = SigningKey.generate()
        PinnedRoster({client_id: key.verify_key})
        secret, public = folder / f"{client_id}.signing", folder / f"{client_id}.pub"
        write_new(secret, f'id = "{client_id}"\nsigning_key = "{key.export().hex()}"\n', mode=0o600)
        write_new(public, f'id = "{client_id}"\nverify_key = "{key.verify_key.hex()}"\n', mode=0o644)
        say(f"{secret}: keep this file on this machine")
        say(f"{public}: give this one to whoever assembles the roster")


@app.command()
def roster(
    public: Annotated[list[Path], typer.Argument(help="The .pub file of every client.")],
    out: Annotated[Path, typer.Option(help="The roster to write.")] = Path("roster.toml"),
) -> None:
    """Assemble public keys into the roster that every party pins."""
    with sentences():
        keys: dict[str, bytes] = {}
        for path in public:
            client_id, key = read_public(path)
            if client_id in keys:
                raise ConfigError(f"{path}: a second key of {client_id}; give each client's file once")
            keys[client_id] = key
        write_new(out, roster_file(PinnedRoster(keys)), mode=0o644)
        say(f"{out}: {len(keys)} clients; compare it with every site by voice before the first round")


def write_new(path: Path, text: str, mode: int) -> None:
    """Write a file that must not exist yet; ConfigError where it does."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise ConfigError(f"{path} exists already; move it away first, nothing was overwritten") from None
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(text)


def read_public(path: Path) -> tuple[str, bytes]:
    """Id and verify key in a .pub file; ConfigError where it holds none, or a secret one."""
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
        if "signing_key" in entries:
            raise ConfigError(f"{path} holds a SECRET key; ask the client for its .pub file")
        client_id, key = entries["id"], bytes.fromhex(entries["verify_key"])
        PinnedRoster({client_id: key})
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is not a public key file; `secagg keygen` writes one") from None
    return client_id, key


def roster_file(pinned: PinnedRoster) -> str:
    """The text of a roster file."""
    lines = [f'"{client_id}" = "{key.hex()}"' for client_id, key in pinned.items()]
    return "\n".join(["[clients]", *lines, ""])


def read_roster(path: Path) -> PinnedRoster:
    """The roster in a file that `secagg roster` wrote; what else is in the file does not matter.

    Raises:
        ConfigError: it holds no roster.
        OSError: it cannot be read.
    """
    try:
        clients = tomllib.loads(path.read_text(encoding="utf-8"))["clients"]
        keys = {client_id: bytes.fromhex(key) for client_id, key in clients.items()}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise ConfigError(f"{path} is not a roster; `secagg roster` writes one") from None
    return PinnedRoster(keys)
