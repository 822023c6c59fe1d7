"""`secagg keygen` and `secagg roster`: identities, and the roster that every party pins.

Must never: print a signing key, or overwrite a file.
"""

from pathlib import Path
from typing import Annotated

import typer

from secagg.cli.terminal import app, sentences
from secagg.errors import ConfigError
from secagg.files import public_text, read_public, roster_text, secret_text, write_new
from secagg.keys import SigningKey
from secagg.policy import PinnedRoster
from secagg.terminal import say


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
        write_new(secret, secret_text(client_id, key), mode=0o600)
        write_new(public, public_text(client_id, key))
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
        write_new(out, roster_text(PinnedRoster(keys)))
        say(f"{out}: {len(keys)} clients; compare it with every site by voice before the first round")
