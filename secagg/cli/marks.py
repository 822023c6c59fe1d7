"""`secagg marks`: what a data set remembers between rounds, and how its operator lets it go on after a broken one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from secagg.cli.terminal import app, sentences
from secagg.cli.verify_transcript import Files, OwnPolicy, OwnRoster, verified
from secagg.client import accept_exposure
from secagg.encoding import HASH_BYTES
from secagg.errors import ConfigError
from secagg.files import load_key
from secagg.sqlite import SqliteStore
from secagg.store import Marks
from secagg.terminal import App, say
from secagg.transcript import accept

_TYPED_DIGITS = 8

marks = App("A data set's marks: look, replay a round, accept one.")
app.add_typer(marks, name="marks")

StoreFile = Annotated[Path, typer.Argument(metavar="STORE", help="The store of the data set; it must exist.")]


@marks.command()
def show(store: StoreFile) -> None:
    """Show what it joined, released, replayed and accepted."""
    with sentences():
        opened = SqliteStore.existing(store)
        with opened, opened.transaction() as marked:
            lines = list(_lines(marked))
        for line in [f"Data set {opened.data_set}.", *lines]:
            say(line)


def _lines(marked: Marks) -> Iterator[str]:
    release, replayed = marked.open_release, 0
    if release is None:
        yield "No round is open."
    for round_id, sent in marked.releases.items():
        if marked.replayed(round_id):
            replayed += 1
            continue
        accepted = "; its operator accepted that, once" if marked.accepted(round_id) else ""
        if release is not None and round_id == release.round_id:
            yield f"Open: shares were sent for {sent.name}, and its transcript was not replayed{accepted}."
        else:
            told = "and only rounds on its model still wait for its transcript"
            yield f"Passed over: shares were sent for {sent.name}, {told}{accepted}."
        yield f"  round id {round_id.hex()}"
    if replayed:
        rounds = "1 round" if replayed == 1 else f"{replayed} rounds"
        yield f"Replayed: {rounds}; only another run on the very model of such a round needs it accepted by name."
    for session, run in marked.runs:
        (number, attempt), (finished, head) = marked.joined(session, run), marked.head(session, run)
        joined = f"joined last: round {number}, attempt {attempt}" if number else "never joined"
        logged = f"log up to round {finished}, head {head.hex()}" if finished else "no finished round in the log"
        yield f"Run {run} of session {session.hex()}: {joined}; {logged}."
    for round_id, unused in marked.acceptances.items():
        yield f"Accepted: round {round_id.hex()}, {'not used yet' if unused else 'used'}."


@marks.command()
def replay(store: StoreFile, files: Files, roster: OwnRoster, policy: OwnPolicy) -> None:
    """Mark rounds as replayed, by their transcripts.

    What holds is marked; later attempts of its run need not wait.
    """
    with sentences():
        with SqliteStore.existing(store) as opened:
            accepted = accept(verified(files, roster, policy, quiet=False), opened)
            with opened.transaction() as marked:
                release = marked.open_release
        for report in accepted:
            say(f"Replayed: {report}, round id {report.round_id.hex()}.")
        if release is not None:
            left = f"Still open: {release.name}, round id {release.round_id.hex()}; none of these files is of it."
            say(left)


@marks.command(name="accept")
def accept_one(
    store: StoreFile,
    round_id: Annotated[str, typer.Argument(help="The round, 64 hexadecimal digits, as the error or `show` names it.")],
    client: Annotated[str, typer.Option("--id", help="Id of this site in the roster.")],
    key: Annotated[Path, typer.Option(help="The site's signing key, as `secagg keygen` wrote it.")],
    other: Annotated[bool, typer.Option("--other", help="It is a round of which another site says this.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Accept the exposure of one round, by its name.

    For a round that no replay clears. It counts for one contribution.
    """
    with sentences():
        accepted = _round_id(round_id)
        name, signing_key = load_key(key)
        if name != client:
            raise ConfigError(f"{key} is the key of {name}, not of {client}; use this site's own")
        with SqliteStore.existing(store) as opened:
            with opened.transaction() as marked:
                sent, replayed = marked.releases.get(accepted), marked.replayed(accepted)
            if sent is not None:
                what = f"This site sent unmasking shares for {sent.name}"
            elif other:
                what = f"Another site sent unmasking shares for round {accepted.hex()}"
            else:
                raise ConfigError(
                    "this data set sent no shares for that round; `secagg marks show` names what is open, and --other "
                    "is for a round of another site"
                )
            known = "its sum is in a transcript" if replayed else "nobody has shown that its sum was not kept"
            say(f"{what}, and {known}.")
            instead = "" if replayed else " Where there is a transcript, replay it first."
            say(
                "Whoever has it can subtract from it the sum of a rerun that lacks one site, and read what that site "
                f"sent, if enough other operators accept as well.{instead}"
            )
            digits = accepted.hex()[:_TYPED_DIGITS]
            if not yes and typer.prompt(f"Type the first {_TYPED_DIGITS} digits of the round id to accept") != digits:
                raise ConfigError("these are not the digits; nothing was accepted")
            accept_exposure(opened, signing_key, client, accepted)
        say(f"Accepted for one contribution: round {accepted.hex()}.")


def _round_id(text: str) -> bytes:
    try:
        round_id = bytes.fromhex(text)
    except ValueError:
        round_id = b""
    if len(round_id) != HASH_BYTES:
        raise ConfigError("a round id has 64 hexadecimal digits; `secagg marks show` prints it whole")
    return round_id
