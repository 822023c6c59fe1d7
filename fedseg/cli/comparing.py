"""`fedseg evaluate` and `fedseg compare`: how good a model is on labelled images, and what privacy costs."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fedseg.cli.ending import cell_of, show_figures
from fedseg.cli.terminal import DataFolder, StudyFile, app, command_line, reading
from fedseg.errors import ConfigError
from secagg.terminal import AsJson, errors, out, plain, say, say_json

if TYPE_CHECKING:
    from fedseg.compare.cells import Judged
    from fedseg.compare.cost import Prices
    from fedseg.compare.judging import Judgement
    from fedseg.compare.outcome import Comparison
    from fedseg.compare.rows import Cell, Cohort
    from fedseg.events import AnyEvent
    from fedseg.study import Study


@app.command()
def evaluate(
    source: Annotated[
        Path, typer.Argument(help="model.safetensors of a run; with --leave-out a study file.", show_default=False)
    ],
    data: DataFolder = None,
    study: Annotated[Path | None, typer.Option(help="Study, if the model file holds none.", show_default=False)] = None,
    only: Annotated[str, typer.Option("--site", help="This site only; --data is then its own folder.")] = "",
    everybody: Annotated[
        bool, typer.Option("--everybody", help="Judge on all patients, not only on those that the study holds out.")
    ] = False,
    without: Annotated[
        str, typer.Option("--leave-out", metavar="SITE", help="Train on all other sites, judge on this one's patients.")
    ] = "",
    runs: Annotated[Path, typer.Option("--out", help="Where the run of --leave-out goes.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Judge a model on labelled images.

    Dice, HD95, NSD and volume similarity on the files' own grids, per structure and per case, with intervals. The table
    names cases: it stays where the images are. With --leave-out a command that was interrupted goes on.
    """
    from fedseg.compare.judging import Judgement, cohort_of, left_out
    from fedseg.models import load_model, study_of
    from fedseg.study import load_study

    if without:
        loaded = load_study(source)
        cohort, model = left_out(
            loaded, without, data, runs, command_line(), partial(say, console=errors if as_json else out)
        )
    else:
        loaded = study_of(source, load_study(study) if study else None)
        model, cohort = source, cohort_of(loaded, data, only, everybody=everybody)
    judged = Judgement.of(load_model(model, loaded), cohort, loaded)
    if as_json:
        say_json({"model": str(model), "study": loaded.study.name, **judged.model_dump(mode="json")})
        return
    _show_judged(judged)


def _show_judged(judged: "Judgement") -> None:
    show_figures(judged.dice, judged.measures)
    table = Table(title="Case by case; it names patients' files", box=None, padding=(0, 2, 0, 0))
    for heading in ("site", "case", "structure", *judged.names):
        table.add_column(plain(heading))
    for case in judged.cases:
        for place, structure in enumerate(judged.structures):
            values = (case.values[name][place] for name in judged.names)
            shown = ["n/a" if value is None else f"{value:.2f}" for value in values]
            table.add_row(plain(case.site), plain(case.case), plain(structure), *shown)
    out.print(table)


@app.command()
def compare(
    study: StudyFile,
    data: DataFolder = None,
    folder: Annotated[Path, typer.Option("--out", help="Where trainings, tables and page go.")] = Path("comparison"),
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each row.")] = 3,
    epsilon: Annotated[str, typer.Option(help="Of each private row, with commas.")] = "2,8,32",
    rows: Annotated[
        str, typer.Option(metavar="ROW,ROW", help="These rows, with their twins and the start.", show_default="all")
    ] = "",
    own: Annotated[
        list[str] | None,
        typer.Option("--for", metavar="ROW=STUDY", help="A row's own study: other lr, rounds.", show_default=False),
    ] = None,
    cost: Annotated[bool, typer.Option("--cost", help="Tell what it would cost, and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a study in many ways and hold them against each other.

    Pooled, each site alone, federated without privacy, local, distributed and central at each epsilon with their
    noiseless twins, the start and fresh weights beside them. Tells its cost first; the same command goes on after an
    interruption. Nothing is charged for life: a simulation for whoever holds all images.
    """
    from fedseg.compare.cost import Prices
    from fedseg.compare.rows import cells, chosen, fitting, trainable
    from fedseg.data.loading import load_cohort
    from fedseg.study import load_study

    base = load_study(study)
    others = dict(_own(each) for each in own or [])
    wanted = chosen([name.strip() for name in rows.split(",") if name.strip()])
    studies = {row: fitting(row, load_study(path), base) for row, path in others.items()}
    chosen(list(studies))
    if not rows:
        wanted, left = trainable(wanted, base, studies)
        for sentence in left:
            say(plain("left out: ", "yellow", console=errors), sentence, console=errors)
    todo = list(cells(base, studies, wanted, _epsilons(epsilon), seeds))
    with reading(data):
        cohort = load_cohort(data, base)
    comparing = _Comparing(base, todo, cohort, folder, command_line(), errors if as_json else out)
    comparing.tell_cost(Prices(cohort, comparing.missing()))
    if not cost:
        comparing.train()
    found = comparing.outcome()
    if as_json:
        say_json(found.model_dump(mode="json"))
        return
    if not cost:
        _show(found)
        say(f"tables {folder / 'comparison.json'}")
        say(f"page {folder / 'comparison.html'}")


class _Comparing:
    """A comparison at work: what is missing, how far it is, what it came to."""

    def __init__(
        self, base: "Study", todo: "Sequence[Cell]", cohort: "Cohort", folder: Path, command: str, console: object
    ) -> None:
        from fedseg.compare.cells import folders_of

        self._base, self._cohort, self._folder, self._command, self._console = base, cohort, folder, command, console
        self._places: Mapping[Cell, Path] = folders_of(todo, cohort, folder)

    def missing(self) -> "list[Cell]":
        """What was not trained yet, or failed: a full disk, say, is mended and the same command given again."""
        from fedseg.compare.cells import judged

        found = {cell: judged(place) for cell, place in self._places.items()}
        return [cell for cell, one in found.items() if one is None or one.failed]

    def tell_cost(self, prices: "Prices") -> None:
        """Say how much there is to do, before it is done."""
        missing = self.missing()
        self._prices = {cell: prices.of(cell) for cell in missing}
        seconds = sum(self._prices.values())
        done = len(self._places) - len(missing)
        already = f", {done} of them are done" if done else ""
        say(
            f"{len(self._places)} trainings{already}: about {max(seconds / 60, 0.1):.1f} CPU minutes to go, estimated "
            "from one step of each mechanism and one judged patient",
            console=self._console,  # type: ignore[arg-type]
        )

    def train(self) -> None:
        """Train what is missing; what is interrupted leaves tables and page of what is there."""
        from fedseg.compare.cells import train
        from fedseg.events import Trained

        missing = self.missing()
        with ExitStack() as closing:
            progress = closing.enter_context(
                Progress(
                    TextColumn("{task.description}", markup=False),
                    BarColumn(),
                    MofNCompleteColumn(),
                    TimeElapsedColumn(),
                    console=self._console,  # type: ignore[arg-type]
                    transient=True,
                )
            )
            whole = progress.add_task("trainings", total=len(missing))
            for number, cell in enumerate(missing, 1):
                steps = cell.study.study.rounds * cell.study.study.local_steps
                sites = 1 if cell.options("").alone else len(self._base.site_ids)
                one = progress.add_task(f"{cell.title}, seed {cell.seed}", total=steps * sites)

                def heard(event: "AnyEvent", one: object = one) -> None:
                    """Move the bar of this training."""
                    if isinstance(event, Trained) and event.step:
                        progress.advance(one)  # type: ignore[arg-type]

                try:
                    found = train(cell, self._cohort, self._places[cell], self._command, heard)
                except KeyboardInterrupt:
                    self.outcome()
                    raise ConfigError(
                        f"interrupted; {self._folder} keeps what is done, and the same command goes on"
                    ) from None
                progress.remove_task(one)
                progress.advance(whole)
                said = f"failed: {found.failed}" if found.failed else f"{found.cpu_seconds:.0f} CPU s"
                say(
                    f"{number}/{len(missing)} {cell.title}, seed {cell.seed}: {said}",
                    console=self._console,  # type: ignore[arg-type]
                )

    def outcome(self) -> "Comparison":
        """Tables and page of what is there so far."""
        from fedseg.compare.cells import judged
        from fedseg.compare.outcome import Comparison
        from fedseg.compare.page import write_page
        from fedseg.evaluation import grid_of
        from fedseg.records import Dice
        from fedseg.report.claims import grid_sentence, without_paths
        from secagg.writing import PRIVATE_FOLDER, write_whole

        done: list[tuple[Cell, Judged | None]] = [(cell, judged(place)) for cell, place in self._places.items()]
        where = grid_of(self._cohort, self._base) if self._base.structures else None
        grid = grid_sentence(Dice(grid=where))
        found = Comparison.of(self._base, without_paths(self._command), grid, done)
        self._folder.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
        write_whole(self._folder / "comparison.json", json.dumps(found.model_dump(mode="json"), indent=1))
        write_page(found, self._folder)
        return found


def _show(found: "Comparison") -> None:
    """The table of a comparison; whatever ended below its start is said again, loudly."""
    table = Table(title=f"{found.measure}: mean over patients, 95 % interval", caption=found.grid or None, box=None)
    for heading in ("row", found.measure, "seeds", "less its twin", "less the start", "less federated"):
        table.add_column(plain(heading))
    for row in found.rows:
        seeds = f"{row.seeds}/{row.of_seeds}"
        if row.spread and row.seeds > 1:
            seeds += f" {row.spread[0]:.2f}-{row.spread[1]:.2f}"
        minus = [_difference(row.minus.get(name)) for name in ("twin", "zero-shot", "federated")]
        bad = row.below_start and row.epsilon is not None
        table.add_row(plain(row.title, "bold red" if bad else ""), cell_of(row.mean, " "), seeds, *minus)
    out.print(table)
    for row in found.rows:
        if row.failed:
            say(plain(f"{row.title}: ", "red"), row.failed)
    for claim in dict.fromkeys(row.claim for row in found.rows if row.claim):
        say(claim)
    say(found.seeded)
    for title in found.below:
        say(plain("BELOW ITS START: ", "bold red"), f"{title}: training made the model no better; do not use it")


def _difference(found: object) -> str:
    from fedseg.records import Interval

    return f"{found.mean:+.2f} {found.low:+.2f} to {found.high:+.2f}" if isinstance(found, Interval) else ""


def _own(text: str) -> tuple[str, Path]:
    row, equals, path = text.partition("=")
    if not equals:
        raise ConfigError(f"--for {text}: write ROW=STUDY, such as distributed=studies/lgg-distributed.toml")
    return row, Path(path)


def _epsilons(text: str) -> list[float]:
    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise ConfigError(f"--epsilon {text}: write numbers with commas, such as 2,8,32") from None
    if found[0] <= 0:
        raise ConfigError(f"--epsilon {text}: every epsilon is above 0")
    return found
