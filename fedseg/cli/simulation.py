"""`fedseg simulate`: a whole federation in this process."""

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedseg.cli.ending import conclude
from fedseg.cli.terminal import DataFolder, Runs, StudyFile, app, command_line, reading
from fedseg.cli.watching import boarded
from fedseg.errors import ConfigError
from secagg.terminal import out

if TYPE_CHECKING:
    from fedseg.events import Listener
    from fedseg.study import Study


_Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="In place of the study's own.", show_default=False),
]
_Transcripts = Annotated[
    bool, typer.Option("--transcripts", help="Keep every round's public transcript, for `fedseg verify-run`.")
]
_Charge = Annotated[
    bool, typer.Option("--charge", help="Charge rounds in the ledgers that these images have for life.")
]
_Cluster = Annotated[
    str,
    typer.Option("--ray", metavar="ADDRESS", help="Sites as actors of a Ray cluster: 'auto', 'local' or HOST:PORT."),
]


@app.command()
def simulate(
    study: StudyFile,
    data: DataFolder = None,
    runs: Runs = Path("runs"),
    plainly: Annotated[bool, typer.Option("--plain", help="A plain sum in place of secure aggregation.")] = False,
    seed: Annotated[int | None, typer.Option(help="Reproducible run; no privacy claim.", show_default=False)] = None,
    changes: _Changes = None,
    alone: Annotated[str, typer.Option(help="Train on this site's data only: what it gets without the others.")] = "",
    transcripts: _Transcripts = False,
    charge: _Charge = False,
    cluster: _Cluster = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the last interrupted run of the study.")] = False,
) -> None:
    """Train a study with all its sites in one place.

    That is this process, or a Ray cluster. Updates go through the same protocol code as over the network.
    """
    from fedseg.budget.plan import noise_multiplier
    from fedseg.data.loading import load_cohort
    from fedseg.device import device_of
    from fedseg.runfolder import RunFolder
    from fedseg.screen import Screen
    from fedseg.simulate import Options, chargeable, trainable_alone
    from fedseg.simulate import simulate as train
    from fedseg.start import starting_model
    from fedseg.study import load_study

    seeded = [] if seed is None else [f"study.seed={seed}"]
    loaded = load_study(study).replace(**_changes([*(changes or []), *seeded]))
    if alone and alone not in loaded.site_ids:
        raise ConfigError(f"--alone {alone}: not a site of the study; use one of {', '.join(loaded.site_ids)}")
    device_of(loaded)
    noise_multiplier(loaded)  # a budget that cannot be met is refused before any image is read
    if alone:
        trainable_alone(loaded)
    if charge:
        chargeable(loaded)
    with reading(data):
        cohort = load_cohort(data, loaded)
    with Screen(out) as screen, boarded() as board:
        listeners: list[Listener] = [screen, *([board] if board is not None else [])]
        if not resume:
            starting_model(loaded, screen.starting)  # from here on it is kept
        charged = data if charge else None
        options = Options(
            plain=plainly,
            alone=alone,
            transcripts=transcripts,
            charged=charged,
            ray=cluster,
            data=data,
            command=command_line(),
        )
        again = RunFolder.reopen(_interrupted(runs, loaded), *listeners) if resume else None
        with again or RunFolder.create(runs, loaded, *listeners) as folder:
            if board is not None:
                board.at(folder.path)
            try:
                run = train(folder, cohort, options)
            except KeyboardInterrupt:
                done = folder.tally.completed
                kept = f"{folder.path} keeps {done} whole rounds, go on with --resume" if done else "nothing was kept"
                raise ConfigError(f"interrupted; {kept}") from None
    conclude(run, run)


def _changes(given: list[str]) -> dict[str, dict[str, Any]]:
    """``SECTION.FIELD=VALUE`` as changes of a study; a value is TOML, or else a bare word."""
    changes: dict[str, dict[str, Any]] = {}
    for change in given:
        name, equals, value = change.partition("=")
        section, dot, field = name.partition(".")
        if not (equals and dot):
            raise ConfigError(f"--set {change}: write SECTION.FIELD=VALUE, for example --set privacy.mechanism=none")
        try:
            parsed = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            parsed = value
        changes.setdefault(section, {})[field] = parsed
    return changes


def _interrupted(runs: Path, study: "Study") -> Path:
    from fedseg.runfolder import PARTIAL, read_state
    from fedseg.study import load_study

    for path in sorted(runs.glob(f"{study.study.name}-*{PARTIAL}"), reverse=True):
        if (
            (path / "state.json").is_file()
            and read_state(path)
            and load_study(path / "study.toml").hash() == study.hash()
        ):
            return path
    raise ConfigError(f"{runs}: holds no interrupted run of this very study; run it without --resume")
