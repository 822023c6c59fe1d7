"""`secagg keygen`: the identity of one client.

Must never: print a signing key, or overwrite a file.
"""

from pathlib import Path
from typing import Annotated

import typer

from secagg.cli.terminal import app, sentences
from secagg.files import public_text, secret_text
from secagg.keys import SigningKey
from secagg.roster import PinnedRoster
from secagg.terminal import say
from secagg.writing import PRIVATE, write_new


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
        write_new(secret, secret_text(client_id, key), mode=PRIVATE)
        write_new(public, public_text(client_id, key))
        say(f"{secret}: keep this file on this machine")
        say(f"{public}: give this one to whoever assembles the roster")
