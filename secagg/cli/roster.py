"""`secagg roster`: public keys become the roster that every party pins.

Must never: take a secret key, or overwrite a file.
"""

from pathlib import Path
from typing import Annotated

import typer

from secagg.cli.terminal import app, sentences
from secagg.errors import ConfigError
from secagg.files import load_public_key, roster_text
from secagg.roster import PinnedRoster
from secagg.terminal import say
from secagg.writing import write_new


@app.command()
def roster(
    public: Annotated[list[Path], typer.Argument(help="The .pub file of every client.")],
    out: Annotated[Path, typer.Option(help="The roster to write.")] = Path("roster.toml"),
) -> None:
    """Make the roster that every party pins, of public keys."""
    with sentences():
        keys: dict[str, bytes] = {}
        for path in public:
            client_id, key = load_public_key(path)
            if client_id in keys:
                raise ConfigError(f"{path}: a second key of {client_id}; give each client's file once")
            keys[client_id] = key
        write_new(out, roster_text(PinnedRoster(keys)))
        say(f"{out}: {len(keys)} clients; compare it with every site by voice before the first round")
