"""What every run ends with: its report, its figures on the screen, and a status that is 0 for a complete study only."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from fedseg.cli.terminal import stressed
from fedseg.errors import UnfinishedError
from secagg.terminal import out, plain, say

if TYPE_CHECKING:
    from fedseg.records import Dice, Interval, Measured, Metrics


def conclude(run: Path, credentials: Path | None = None) -> None:
    """Write the report and show the figures of a run, and how to replay its rounds.

    Raises:
        UnfinishedError: the study is not complete, which is no success of the command.
    """
    from fedseg.records import Metrics
    from fedseg.report import write_report
    from fedseg.runfolder import TENSORBOARD
    from fedseg.watching.board import costing_nothing, write_pictures

    report = write_report(run)
    if (run / TENSORBOARD).is_dir():
        with costing_nothing():
            write_pictures(run)
    metrics = Metrics.model_validate_json((run / "metrics.json").read_text(encoding="utf-8"))
    show_metrics(metrics)
    say(f"model {run / 'model.safetensors'}")
    say_report(report)
    if (run / TENSORBOARD).is_dir():
        say(f"curves: tensorboard --logdir {run / TENSORBOARD}")
    if credentials is not None and (run / "transcripts").is_dir():
        own = f"--roster {credentials / 'federation.toml'} --policy {run / 'policy.toml'}"
        command = f"secagg verify-transcript {run / 'transcripts'}/* {own}"
        say(f"replay every round without the coordinator: {command}")
    if metrics.unfinished:
        done = f"{metrics.protocol.rounds_completed} of {metrics.rounds} rounds have a sum"
        raise UnfinishedError(f"the study did not finish, {done}: {metrics.unfinished}")


def say_report(report: Path) -> None:
    """Name a report, and the private one beside it where there is one."""
    from fedseg.report import PRIVATE

    say(f"report {report}")
    if (private := report.with_name(PRIVATE)).is_file():
        say(f"private report, with images of patients: {private}")


def show_metrics(metrics: "Metrics") -> None:
    """Dice per structure and site, epsilon with everything that belongs to it, bytes and seconds."""
    from fedseg.report.claims import below_start, life_sentence, privacy_sentence, which_model

    show_figures(metrics.dice, metrics.measures)
    for name, figure in (metrics.classes.measures if metrics.classes else {}).items():
        say(f"{name}: {cell_of(figure, ' ')}")
    for name, found in metrics.baselines.items():
        say(f"{name}: mean {metrics.dice.measure} {cell_of(found, ' ')}")
    if told := which_model(metrics):
        say(told)
    if told := below_start(metrics):
        say(plain("warning: ", "bold red"), told)
    say(stressed(*privacy_sentence(metrics)))
    if told := life_sentence(metrics):
        say(told)
    protocol = metrics.protocol
    steps = ", ".join(f"{step} {seconds:.1f}" for step, seconds in protocol.seconds.items())
    say(
        f"{protocol.rounds_completed} rounds in {metrics.seconds:.0f} s; protocol bytes: "
        f"{protocol.bytes_up / 1e6:.1f} MB up, {protocol.bytes_down / 1e6:.1f} MB down; "
        f"seconds by step: {steps or 'none'}"
    )


def show_figures(dice: "Dice", measures: "Mapping[str, Measured]") -> None:
    """Dice per structure and site, and the other measures per structure."""
    _show_dice(dice)
    for name, of in measures.items():
        _show_measure(name, of)


def _show_dice(dice: "Dice") -> None:
    from fedseg.report.claims import grid_sentence

    columns = {"all sites": (dice.mean, dice.overall)}
    columns |= {name: (site.mean, site.structures) for name, site in dice.sites.items()}
    columns = {name: column for name, column in columns.items() if column[0] is not None}
    if len(columns) == 2:  # one site's own figures are all that there is
        del columns["all sites"]
    title = f"{dice.measure} on held-out patients: mean, 95 % bootstrap interval, n patients"
    table = Table("", title=title, caption=grid_sentence(dice) or None, box=None, padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(plain(name))
    for name in dice.overall:
        table.add_row(plain(name), *(cell_of(structures.get(name)) for _, structures in columns.values()))
    table.add_row("mean", *(cell_of(mean) for mean, _ in columns.values()), style="bold")
    if columns:
        out.print(table)


def _show_measure(name: str, of: "Measured") -> None:
    """One line: the mean over all structures, then each of them."""
    unit = f" {of.unit}" if of.unit else ""
    what = f"{name} at {of.tolerance:g} mm" if of.tolerance is not None else f"{name}{unit}"
    parts = [
        f"{structure} {found.mean:.2f}" if found else f"{structure} n/a" for structure, found in of.overall.items()
    ]
    missing = sum(of.undefined.values())
    lacking = f"; {missing} undefined, where truth or prediction lacks the structure" if missing else ""
    each = f": {', '.join(parts)}" if len(parts) > 1 else ""
    say(f"{what}: mean {cell_of(of.mean, ' ')}{each}{lacking}")


def cell_of(found: "Interval | None", separator: str = "\n") -> str:
    """Mean, interval and n."""
    return f"{found.mean:.2f}{separator}{found.low:.2f}-{found.high:.2f}{separator}n={found.n}" if found else "n/a"
