"""`python -m audits`: runs audits, shows what came out, and ends with 0 (holds), 1 (violated) or 2 (no power)."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from audits import report as reports
from audits.base import VERDICTS, Audit, Depth, worst
from audits.running import OUT, Record, all_kept, alone, depth_of, run
from audits.table import AUDITS, COMMANDS, at, named
from secagg.terminal import COULD_NOT_RUN, App, Verifying, any_code_page, errors, out, plain, say, say_json

app = App("Audits: each tries to prove a claim wrong. Exit status: 0 holds, 1 violated, 2 no power, 3 could not begin.")
BROKEN_OFF = 130
_COLOURS = {"holds": "green", "violated": "bold red", "no power": "yellow"}

Seed = Annotated[int, typer.Option(help="Of coins, patients and samples; keys and noise are drawn anew.")]
Folder = Annotated[Path, typer.Option("--out", help="Folder of results, audit.json and audit.html.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print audit.json instead of sentences.")]
Again = Annotated[bool, typer.Option("--again", help="Run also what was run on the same sources before.")]


@app.command(cls=Verifying)
def quick(seed: Seed = 0, to: Folder = OUT, as_json: AsJson = False, again: Again = False) -> None:
    """What fits into ten minutes on one core."""
    _audit(at("quick"), "quick", seed, to, as_json, again)


@app.command(cls=Verifying)
def full(seed: Seed = 0, to: Folder = OUT, as_json: AsJson = False, again: Again = False) -> None:
    """Everything: 45 minutes on one core."""
    _audit(at("full"), "full", seed, to, as_json, again)


@app.command(cls=Verifying)
def report(seed: Seed = 0, to: Folder = OUT, as_json: AsJson = False, full: bool = False) -> None:
    """Write audit.json and audit.html of results of these sources that were kept; run nothing."""
    depth: Depth = "full" if full else "quick"
    _end(all_kept(at(depth), depth, seed, to), depth, seed, to, as_json)


@app.command("list", cls=Verifying)
def list_audits(as_json: AsJson = False) -> None:
    """All audits, how long they take, and which claims they are evidence for."""
    if as_json:
        say_json([{"name": a.name, "title": a.title, "claims": a.claims, "seconds": a.seconds} for a in AUDITS])
        return
    table = Table("audit", "quick", "full", "what it does", box=None, pad_edge=False)
    for audit in AUDITS:
        times = [f"{audit.seconds[depth]} s" if depth in audit.seconds else "" for depth in ("quick", "full")]
        table.add_row(audit.name, *times, audit.title)
    out.print(table)


@app.command("run", cls=Verifying)
def run_named(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Audits, or rooms of them.")],
    seed: Seed = 0,
    to: Folder = OUT,
    as_json: AsJson = False,
    again: Again = False,
    full: Annotated[bool, typer.Option("--full", help="As deep as `full` goes.")] = False,
) -> None:
    """Audits by name: `python -m audits NAME...` is the same."""
    depth: Depth = "full" if full else "quick"
    try:
        chosen = named(names, depth)
    except LookupError as error:
        say(f"audits: {error.args[0]}", console=errors)
        raise typer.Exit(COULD_NOT_RUN) from None
    _audit(chosen, depth, seed, to, as_json, again)


def _audit(chosen: list[Audit], depth: Depth, seed: int, to: Path, as_json: bool, again: bool) -> None:
    """Run audits, show each as it ends, write the files, and end with the status of the worst."""
    seconds = sum(audit.seconds[depth_of(audit, depth)] for audit in chosen)
    say(f"{len(chosen)} audits, about {seconds / 60:.0f} minutes on one core; results in {to}", console=errors)
    done: list[Record] = []
    columns = (SpinnerColumn(), BarColumn(20), TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.description}", markup=False), console=errors, transient=True) as bar:
        shown = bar.add_task("", total=len(chosen))

        def progress(name: str, line: str) -> None:
            """Show what an audit does."""
            bar.update(shown, description=str(plain(f"{name}: {line}", console=errors)))

        try:
            with alone(to):
                for audit, (record, kept) in zip(chosen, run(chosen, depth, seed, to, again, progress), strict=True):
                    done.append(record)
                    bar.update(shown, advance=1, description=audit.name)
                    if not as_json:
                        _show(record, kept)
        except BlockingIOError:
            bar.stop()
            say(f"audits: another run is at work in {to}; wait for it, or give another --out", console=errors)
            raise typer.Exit(COULD_NOT_RUN) from None
        except KeyboardInterrupt:
            bar.stop()
            say(f"Broken off after {len(done)} of {len(chosen)}; the same command goes on from there.", console=errors)
            raise typer.Exit(BROKEN_OFF) from None
    _end(done, depth, seed, to, as_json)


def _show(record: Record, kept: bool) -> None:
    took = "kept" if kept else f"{record.seconds:.0f} s, {record.cpu_seconds:.0f} of work"
    say(plain(f"{record.verdict:9}", _COLOURS[record.verdict]), f" {record.name} ({took}): {record.says}")


def _end(records: list[Record], depth: Depth, seed: int, to: Path, as_json: bool) -> None:
    """Write the files, tell the whole, and end with its status."""
    content = reports.write(records, depth, seed, to)
    verdict = worst(record.verdict for record in records)
    if as_json:
        say_json(content)
    else:
        counts = ", ".join(f"{sum(record.verdict == each for record in records)} {each}" for each in VERDICTS)
        say(plain(verdict, _COLOURS[verdict]), f": {counts}. {to / reports.PAGE}, {to / reports.DATA}")
    raise typer.Exit(VERDICTS.index(verdict))


def _add(name: str, command: Callable[..., Any]) -> None:
    app.command(name, cls=Verifying)(command)


for _name, _command in COMMANDS.items():
    _add(_name, _command)


def main() -> None:
    """Entry point; a first word that is no command is the name of an audit."""
    any_code_page()
    logging.disable(logging.WARNING)  # of libraries; what an audit found is in its result
    known = {one.name or getattr(one.callback, "__name__", "") for one in app.registered_commands}
    words = sys.argv[1:]
    if words and not words[0].startswith("-") and words[0] not in known:
        words = ["run", *words]
    app(words, prog_name="python -m audits")


if __name__ == "__main__":
    main()
