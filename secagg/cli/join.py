"""`secagg join`: one party of a federation that sums vectors, as a process that may run for months."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secagg.cli.terminal import app, sentences
from secagg.errors import ConfigError
from secagg.terminal import Proxy, Tls, TlsMode, say
from secagg.terminal import out as screen

if TYPE_CHECKING:
    from secagg.service.dialogue import Finished

GOES_ON = "the same command goes on with this run"
Folder = Annotated[
    Path,
    typer.Argument(
        help="This party's folder: federation.toml, policy.toml, NAME.signing, NAME.pem, NAME.key, authority.pem.",
        show_default=False,
    ),
]
Events = Annotated[
    Path | None,
    typer.Option(help="Append what happens to this file, one JSON object a line.", show_default=False),
]


@app.command()
def join(
    folder: Folder,
    address: Annotated[str, typer.Option("--coordinator", metavar="HOST:PORT", help="Where the coordinator is.")],
    vector: Annotated[
        Path, typer.Option(help="The vector (.npy, .csv, .json), or a folder with one a round: 0001.npy, ...")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for the sums.", show_default=False)] = None,
    patience: Annotated[
        float | None,
        typer.Option(help="Seconds without an answer after which to give up; else never.", show_default=False),
    ] = None,
    proxy: Proxy = None,
    tls: TlsMode = Tls.MTLS,
    events: Events = None,
) -> None:
    """Give one vector a round to a sum.

    `secagg serve` collects it.

    Ends with 0 once the run is complete; 1 after an error; 75 where it ended early. The same command goes on with it.
    """
    with sentences(), ExitStack() as stack:
        from secagg.home import Home
        from secagg.service.errors import StoppedError
        from secagg.service.joining import as_line, join
        from secagg.service.room import outlasting
        from secagg.service.stopping import ENDED_EARLY, end_now, run_until_stopped

        if not vector.exists():
            raise ConfigError(f"{vector}: there is no such file or folder; give --vector what is to be added")
        home = Home.read(folder)
        log = None if events is None else stack.enter_context(events.open("a", encoding="utf-8"))

        def tell(kind: str, facts: dict[str, Any]) -> None:
            """One event: a line of the log, and a sentence."""
            if log is not None:
                log.write(as_line(kind, facts) + "\n")
                log.flush()
            say(f"{kind}: " + ", ".join(f"{name} {value}" for name, value in facts.items()) if facts else kind)

        def live() -> "Finished":
            """Take part until it is over or somebody stops it."""
            return run_until_stopped(
                join(home, address, vector, out, tell, patience=patience, proxy=proxy, mode=tls.value), GOES_ON
            )

        try:
            finished = outlasting(live, folder, lambda text: tell("note", {"text": text}), GOES_ON)
        except StoppedError as stopped:
            say(str(stopped))
            tell("ended", {"status": ENDED_EARLY})
            end_now(ENDED_EARLY)  # not waiting for a thread that reads or computes
        status = 0 if finished.complete else ENDED_EARLY
        tell("ended", {"status": status, "reason": finished.reason})
    screen.file.flush()
    raise typer.Exit(status)
