"""`secagg serve`: the coordinator of a federation that sums vectors, as a process that may run for months."""

from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from secagg.cli.terminal import app, sentences
from secagg.terminal import Farewell, Host, Tls, TlsMode, say
from secagg.terminal import out as screen

if TYPE_CHECKING:
    from secagg.service.events import Event


class Transcripts(Enum):
    """What a coordinator keeps of each round for auditors."""

    WHOLE = "whole"
    HASHES = "hashes"
    NONE = "none"


@app.command()
def serve(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Its folder: federation.toml, policy.toml, NAME.signing, coordinator.pem and .key, authority.pem.",
            show_default=False,
        ),
    ],
    rounds: Annotated[int, typer.Option(min=1, help="How many sums are wanted.")] = 1,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 0,
    tls: TlsMode = Tls.MTLS,
    out: Annotated[Path | None, typer.Option(help="Folder for the sums. [default: FOLDER/sums]")] = None,
    patience: Annotated[float, typer.Option(help="Seconds to wait for enough members.")] = 60.0,
    rejoin_seconds: Annotated[float, typer.Option(help="Seconds that a round waits for a missing member, once.")] = 15,
    step_seconds: Annotated[float, typer.Option(help="Deadline of a step of the protocol.")] = 60.0,
    input_seconds: Annotated[float, typer.Option(help="Deadline of the step that waits for vectors.")] = 3600.0,
    grace: Annotated[float, typer.Option(help="Seconds until a step closes without a member that is cut off.")] = 3.0,
    farewell_seconds: Farewell = None,
    transcripts: Annotated[
        Transcripts, typer.Option(help="Keep every round's public transcript: with its vectors, their hashes, or not.")
    ] = Transcripts.WHOLE,
    quota: Annotated[float, typer.Option(help="Gigabytes of all transcripts; the oldest go first.")] = 20.0,
    events: Annotated[
        Path | None,
        typer.Option(help="Append what happens to this file, one JSON object a line.", show_default=False),
    ] = None,
) -> None:
    """Collect a sum of vectors and see none of them.

    Members run `secagg join`, and give one vector a round.

    Everything of the run is in FOLDER: after a crash, a kill or a reboot the same command goes on with it. Ends with 0
    once every round has its sum; 1 after an error; 75 where it ended early.
    """
    how = {
        "host": host,
        "port": port,
        "tls": tls.value,
        "patience": patience,
        "rejoin_seconds": rejoin_seconds,
        "step_seconds": step_seconds,
        "training_seconds": input_seconds,
        "grace": grace,
        "farewell_seconds": farewell_seconds,
        "transcripts": transcripts.value,
        "quota": int(quota * 1e9),
    }
    with sentences():
        status = _serve(folder, rounds, out or folder / "sums", events, how)
    screen.file.flush()
    raise typer.Exit(status)


def _serve(folder: Path, rounds: int, out: Path, events: Path | None, how: dict[str, Any]) -> int:
    """Serve to the end; the exit status."""
    from secagg.home import Home
    from secagg.service.errors import RunFailedError, StoppedError
    from secagg.service.memory import tidy
    from secagg.service.running import Options
    from secagg.service.serving import serving
    from secagg.service.stopping import ENDED_EARLY, end_now, run_until_stopped

    with ExitStack() as stack:
        log = None if events is None else stack.enter_context(events.open("a", encoding="utf-8"))
        options = Options(state=folder, **how)
        tidy()
        coordinator = serving(Home.read(folder), rounds, out, options, lambda event: _told(event, log))
        try:
            say(run_until_stopped(coordinator.run(), "the same command goes on with this run"))
        except StoppedError as stopped:
            say(str(stopped))
            end_now(ENDED_EARLY)
        except RunFailedError as failed:
            with sentences(ENDED_EARLY):
                raise failed
    return 0 if coordinator.complete else ENDED_EARLY


def _told(event: "Event", log: TextIO | None) -> None:
    from secagg.service.events import Listening
    from secagg.service.serving import as_line, sentence

    if log is not None:
        log.write(as_line(event) + "\n")
        log.flush()
    if isinstance(event, Listening):
        say(f"listening on {event.where}")
    elif shown := sentence(event):
        say(shown)
    screen.file.flush()
