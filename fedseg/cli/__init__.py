"""The `fedseg` command. Every mistake of a person ends in one sentence and exit code 1, never in a traceback.

Heavy libraries are loaded by the commands that need them, so that `--help` answers at once, without them, too. How
things are said and shown is `secagg.terminal`, for both commands.
"""

import shlex
import sys
import tomllib
import warnings
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from fedseg.errors import ConfigError, FedSegError, RoundFailedError
from secagg.errors import ProtocolError, SecAggError
from secagg.terminal import App, AsJson, any_code_page, errors, out, plain, say, say_json, sentences, versioned

if TYPE_CHECKING:
    from fedseg.study import Study

app = App("Federated training of medical image segmentation, differentially private, through secure aggregation.")
versioned(app, "fedseg")
data_app = App("Look at a site's images before a study begins.")
ledger_app = App("What a site's patients have paid.")
app.add_typer(data_app, name="data")
app.add_typer(ledger_app, name="ledger")

StudyFile = Annotated[Path, typer.Argument(help="Study file (TOML).", show_default=False)]
DataFolder = Annotated[
    Path | None, typer.Option("--data", help="Folder of images: one subfolder per site.", show_default=False)
]
Runs = Annotated[Path, typer.Option("--out", help="Where the run folder goes.")]


class Transcripts(Enum):
    """What a coordinator keeps of each round for auditors."""

    WHOLE = "whole"
    HASHES = "hashes"
    NONE = "none"


def main() -> None:
    """Run the command and turn every error that is meant for a person into one sentence."""
    any_code_page()
    warnings.showwarning = _warn  # type: ignore[assignment]
    with sentences("fedseg", expected=(FedSegError, SecAggError), extra="fedseg"):
        app()


def _warn(message: Warning | str, category: type[Warning], *_: object) -> None:
    """Our own warnings are for people; those of libraries are not."""
    if category is UserWarning and str(message).startswith("["):
        say(plain("warning: ", "yellow", console=errors), str(message), console=errors)


@app.command()
def simulate(
    study: StudyFile,
    data: DataFolder = None,
    runs: Runs = Path("runs"),
    plainly: Annotated[bool, typer.Option("--plain", help="A plain sum in place of secure aggregation.")] = False,
    seed: Annotated[int | None, typer.Option(help="Reproducible run; no privacy claim.", show_default=False)] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="In place of the study's own.", show_default=False),
    ] = None,
    alone: Annotated[str, typer.Option(help="Train on this site's data only: what it gets without the others.")] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the last interrupted run of the study.")] = False,
) -> None:
    """Train a study with all its sites in this process, through the same protocol code as the executables."""
    from fedseg.data.loading import load_cohort
    from fedseg.privacy.budget import noise_multiplier
    from fedseg.runfolder import RunFolder
    from fedseg.screen import Screen
    from fedseg.simulate import Options
    from fedseg.simulate import simulate as train
    from fedseg.start import starting_model
    from fedseg.study import load_study

    seeded = [] if seed is None else [f"study.seed={seed}"]
    loaded = load_study(study).replace(**_changes([*(changes or []), *seeded]))
    if alone and alone not in loaded.site_ids:
        raise ConfigError(f"--alone {alone}: not a site of the study; use one of {', '.join(loaded.site_ids)}")
    noise_multiplier(loaded)  # a budget that cannot be met is refused before any image is read
    cohort = load_cohort(data, loaded)
    with Screen(out) as screen:
        if not resume:
            starting_model(loaded, screen.starting)  # from here on it is kept
        options = Options(plain=plainly, alone=alone, command=_command())
        again = RunFolder.reopen(_interrupted(runs, loaded), screen) if resume else None
        with again or RunFolder.create(runs, loaded, screen) as folder:
            try:
                run = train(folder, cohort, options)
            except KeyboardInterrupt:
                done = folder.tally.completed
                kept = f"{folder.path} keeps {done} whole rounds, go on with --resume" if done else "nothing was kept"
                raise ConfigError(f"interrupted; {kept}") from None
    _conclude(run)


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


def _command() -> str:
    return shlex.join(["fedseg", *sys.argv[1:]])


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


def _conclude(run: Path, credentials: Path | None = None) -> None:
    """Write the report and show the figures of a run, and how to replay its rounds.

    Raises:
        RoundFailedError: the study is not complete, which is no success of the command.
    """
    import json

    from fedseg.report import write_report

    report = write_report(run)
    metrics: dict[str, Any] = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    show_metrics(metrics)
    say(f"model {run / 'model.safetensors'}")
    say(f"report {report}")
    if credentials is not None and (run / "transcripts").is_dir():
        own = f"--roster {credentials / 'federation.toml'} --policy {run / 'policy.toml'}"
        command = f"secagg verify-transcript {run / 'transcripts'}/* {own}"
        say(f"replay every round without the coordinator: {command}")
    if metrics["unfinished"]:
        done, planned = metrics["protocol"]["rounds_completed"], metrics["rounds"]
        raise RoundFailedError(
            f"the study did not finish, {done} of {planned} rounds have a sum: {metrics['unfinished']}"
        )


def show_metrics(metrics: dict[str, Any]) -> None:
    """Dice per structure and site, epsilon with everything that belongs to it, bytes and seconds."""
    dice = metrics["dice"]
    columns = {"all sites": {"mean": dice["mean"], "structures": dice["overall"]}, **dice["sites"]}
    columns = {name: column for name, column in columns.items() if column["mean"] is not None}
    if len(columns) == 2:  # one site's own figures are all that there is
        del columns["all sites"]
    title = "Dice on held-out patients: mean, 95 % bootstrap interval, n patients"
    table = Table(title=title, box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    for name in columns:
        table.add_column(plain(name))
    for name in dice["overall"]:
        table.add_row(plain(name), *(_cell(column["structures"][name]) for column in columns.values()))
    table.add_row("mean", *(_cell(column["mean"]) for column in columns.values()), style="bold")
    if columns:
        out.print(table)
    for name, found in metrics["baselines"].items():
        say(f"{name}: mean Dice {_cell(found, ' ')}")
    say(privacy_sentence(metrics))
    protocol = metrics["protocol"]
    steps = ", ".join(f"{step} {seconds:.1f}" for step, seconds in protocol["seconds"].items())
    say(
        f"{protocol['rounds_completed']} rounds in {metrics['seconds']:.0f} s; protocol bytes: "
        f"{protocol['bytes_up'] / 1e6:.1f} MB up, {protocol['bytes_down'] / 1e6:.1f} MB down; "
        f"seconds by step: {steps or 'none'}"
    )


def privacy_sentence(metrics: dict[str, Any]) -> Text:
    """The claim with unit, delta and trust model; or that there is none."""
    privacy = metrics["privacy"]
    if privacy is None:
        return _stressed("no differential privacy", ": mechanism = 'none'")
    claim = (
        f"epsilon {privacy['epsilon']:.2f} per {privacy['unit']} at delta {privacy['delta']:g} "
        f"({privacy['neighbouring']}); {privacy['trust']}"
    )
    if metrics["seeded_no_privacy_claim"]:
        return _stressed("seeded: no privacy claim", f"; unseeded it would be {claim}")
    return _stressed(claim, f"; {privacy['sentence']}")


def _stressed(first: str, rest: str = "") -> Text:
    return Text.assemble(plain(first, "bold"), plain(rest))


def _cell(found: dict[str, Any] | None, separator: str = "\n") -> str:
    if found is None:
        return "n/a"
    return f"{found['mean']:.2f}{separator}{found['low']:.2f}-{found['high']:.2f}{separator}n={found['n']}"


@app.command()
def credentials(
    study: StudyFile,
    folder: Annotated[Path, typer.Argument(help="New folder for them.", show_default=False)],
    training_run: Annotated[str, typer.Option(help="Name of the run whose rounds are counted.")] = "trial",
) -> None:
    """For a trial: make every party's keys, certificates and federation.toml in one folder.

    Whoever runs this holds all keys. For patients' data each party makes its own: see docs/howto/run-a-federation.md.
    """
    from fedseg.credentials import make_credentials
    from fedseg.study import load_study

    if folder.exists():
        raise ConfigError(f"{folder}: is there already; name a new folder, so that no key is replaced")
    make_credentials(folder, load_study(study), training_run)
    say(f"credentials of all parties in {folder}; give each party its own files only")


@app.command()
def coordinator(
    study: StudyFile,
    credentials: Annotated[Path, typer.Option(help="Folder with federation.toml, keys and certificates.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 0,
    runs: Runs = Path("runs"),
    patience: Annotated[float, typer.Option(help="Seconds to wait for enough sites.")] = 60.0,
    rejoin_seconds: Annotated[float, typer.Option(help="Seconds that a round waits for a missing site.")] = 15.0,
    training_seconds: Annotated[float, typer.Option(help="Deadline of a round's training.")] = 3600.0,
    transcripts: Annotated[
        Transcripts, typer.Option(help="Keep every round's public transcript: with its vectors, their hashes, or not.")
    ] = Transcripts.WHOLE,
) -> None:
    """Run a study over the network: open rounds, relay the protocol, average; sites connect with `fedseg site`."""
    from fedseg.coordinator import Options, coordinate
    from fedseg.runfolder import RunFolder
    from fedseg.screen import Screen
    from fedseg.start import starting_model
    from fedseg.study import load_study

    loaded = load_study(study)
    options = Options(
        host,
        port,
        credentials,
        patience,
        rejoin_seconds,
        training_seconds=training_seconds,
        transcripts=transcripts.value,
        command=_command(),
    )
    with Screen(out) as screen, RunFolder.create(runs, loaded, screen) as folder:
        starting_model(loaded, screen.starting)
        try:
            run = coordinate(folder, options)
        except (RoundFailedError, ProtocolError):
            if not folder.finished:
                raise
            run = folder.path  # what came before is told, and the failure with it
    _conclude(run, credentials)


@app.command()
def site(
    study: StudyFile,
    name: Annotated[str, typer.Argument(metavar="SITE", help="This site's id in the study.", show_default=False)],
    address: Annotated[str, typer.Option("--coordinator", help="HOST:PORT of the coordinator.")],
    credentials: Annotated[Path, typer.Option(help="Folder with federation.toml, own keys and certificates.")],
    data: Annotated[Path | None, typer.Option(help="This site's images.", show_default=False)] = None,
    state: Annotated[
        Path | None, typer.Option(help="Durable marks and ledger; default runs/SITE-state.", show_default=False)
    ] = None,
    runs: Runs = Path("runs"),
    patience: Annotated[float, typer.Option(help="Seconds without an answer after which to give up.")] = 120.0,
    accept_exposure: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ROUND_ID",
            help="Without DP: accept once that this round cannot be replayed, and end; the running site goes on.",
            show_default=False,
        ),
    ] = None,
    replay: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="TRANSCRIPT",
            help="Without DP: replay a round's transcript from anybody, and end; the running site goes on.",
            show_default=False,
        ),
    ] = None,
    audit: Annotated[
        Path | None,
        typer.Option(help="Keep own quantised updates there, to audit sums.", show_default=False),
    ] = None,
) -> None:
    """Take part in a study from one hospital: images stay here, only noised and masked updates leave."""
    from fedseg.credentials import load_federation, signing_key, site_tls
    from fedseg.data.loading import load_site
    from fedseg.runfolder import RunFolder
    from fedseg.screen import Screen
    from fedseg.site import Options, take_part
    from fedseg.start import starting_model
    from fedseg.study import load_study

    loaded = load_study(study)
    if name not in loaded.site_ids:
        raise ConfigError(f"site '{name}' is not in the study; use one of {', '.join(loaded.site_ids)}")
    kept = state or runs / f"{name}-state"
    if accept_exposure or replay:
        _settle(loaded, name, credentials, kept, accept_exposure or [], replay or [])
        return
    federation = load_federation(credentials, loaded)  # what is wrong with them is told before images are read
    signing_key(credentials, name)
    site_tls(credentials, name, federation)
    found = load_site(data, name, loaded)
    options = Options(name, address, credentials, kept, patience, audit, _command())
    with Screen(out) as screen, RunFolder.create(runs, loaded, screen) as folder:
        starting_model(loaded, screen.starting)
        run = take_part(folder, found, options)
    _conclude(run, credentials)


def _settle(
    study: "Study", site: str, credentials: Path, state: Path, accepted: list[str], transcripts: list[Path]
) -> None:
    """What an operator does about rounds that keep the site out."""
    from fedseg.credentials import load_federation
    from fedseg.exposure import accept_round, marks_of, replay
    from fedseg.models import build_model
    from fedseg.update import flatten

    for round_id in accepted:
        say(accept_round(study, credentials, state, site, round_id))
    federation = load_federation(credentials, study)
    for path in transcripts:
        policy = study.policy(len(flatten(build_model(study))), federation.server_key)
        with marks_of(state, site) as store:
            receipt = replay(store, policy, federation.pinned, path)
        say(f"replayed, and it holds: round {receipt.round_id.hex()}")


@app.command()
def demo(
    runs: Annotated[Path, typer.Option("--out", help="Where the demo's folders go.")] = Path(".demo"),
    study: Annotated[Path | None, typer.Option(help="Another phantom study.", show_default=False)] = None,
) -> None:
    """One coordinator and five sites as real processes on this machine; one site is killed in the middle of a round."""
    from fedseg.demo import Demo
    from fedseg.screen import Screen
    from fedseg.start import starting_model
    from fedseg.study import load_study

    loaded = load_study(study or Path(__file__).parents[1] / "demo.toml")
    with Screen(out) as screen:
        starting_model(loaded, screen.starting)  # once, for all six processes
        demonstration = Demo(runs, loaded, screen)
        run = demonstration.run()
    _conclude(run, demonstration.folder / "credentials")


@app.command()
def epsilon(
    study: StudyFile,
    data: DataFolder = None,
    as_json: AsJson = False,
) -> None:
    """Explain what a study promises to each patient, before any training."""
    from fedseg.data.loading import load_cohort
    from fedseg.privacy.budget import explain
    from fedseg.study import load_study

    loaded = load_study(study)
    cohort = {site: len(found.patients) for site, found in load_cohort(data, loaded).items()} if data else None
    plan = explain(loaded, cohort)
    if as_json:
        claim = asdict(plan) if loaded.private else {"epsilon": None, "sentence": plan.sentence}
        say_json(claim)
        return
    if not loaded.private:
        say(_stressed(plan.sentence))
        return
    say(
        _stressed(f"epsilon {plan.epsilon:.3f}"),
        f" of {plan.budget:g} per {plan.unit} at delta {plan.delta:g} after "
        f"{plan.rounds} rounds of {plan.local_steps} steps ({plan.neighbouring})",
    )
    say(f"who is trusted: {plan.trust}")
    say(
        f"noise multiplier {plan.noise_multiplier:.4g}, clip norm {plan.clip_norm:g}, "
        f"sample rate {plan.sample_rate:g}, public denominator {plan.denominator}; "
        f"second accountant (PRV): {plan.epsilon_prv:.3f}",
    )
    say(f"mu-GDP {plan.mu:.3f}: {plan.sentence}")
    table = Table(title="epsilon after each round")
    shown = sorted({max(1, round(plan.rounds * part / 5)) for part in range(6)})
    for number in shown:
        table.add_column(str(number))
    table.add_row(*(f"{plan.curve[number - 1]:.2f}" for number in shown))
    out.print(table)
    if cohort:
        for site in plan.sites:
            say(f"{site.site}: {site.patients} patients in training, {site.expected_draw:.1f} drawn per step")
    for note in plan.notes:
        say(f"note: {note}")


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="model.safetensors of a run.", show_default=False)],
    image: Annotated[Path, typer.Argument(help="NIfTI image.", show_default=False)],
    output: Annotated[Path, typer.Argument(help="Label map to write (.nii.gz).", show_default=False)],
    study: Annotated[Path | None, typer.Option(help="Study, if the model file holds none.", show_default=False)] = None,
) -> None:
    """Segment one NIfTI image: a label map on the image's own grid, and an overlay PNG beside it."""
    from fedseg.models import load_model, study_of
    from fedseg.predict import predict_file
    from fedseg.study import load_study

    loaded = load_study(study) if study else study_of(model)
    overlay = predict_file(load_model(model, loaded), image, output, loaded)
    say(f"labels {output}")
    say(f"overlay {overlay}")


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A complete run folder.", show_default=False)]) -> None:
    """Write a run's report again: one HTML file that works offline."""
    from fedseg.report import write_report

    say(f"report {write_report(run)}")


@data_app.command("check")
def data_check(
    study: StudyFile,
    data: DataFolder = None,
    only: Annotated[str, typer.Option("--site", help="Check this site only; --data is then its own folder.")] = "",
    as_json: AsJson = False,
) -> None:
    """Check every image and label map that a study would train on; exit code 1 where something is wrong."""
    from fedseg.data.findings import check_site
    from fedseg.study import load_study

    loaded = load_study(study)
    if only and only not in loaded.site_ids:
        raise ConfigError(f"--site {only}: not a site of the study; use one of {', '.join(loaded.site_ids)}")
    folders = {only: data} if only else {site: data / site if data else None for site in loaded.site_ids}
    found = []
    for site, folder in folders.items():
        for finding in check_site(folder, site, loaded):
            found.append(finding)
            if not as_json:
                colour = {"error": "red", "warning": "yellow"}.get(finding.severity, "green")
                say(plain(finding.severity, colour), f" {finding.where}: {finding.message}")
    if as_json:
        say_json({"findings": [asdict(finding) for finding in found]})
    if any(finding.severity == "error" for finding in found):
        raise typer.Exit(1)


@ledger_app.command("verify")
def ledger_verify(
    ledger: Annotated[Path, typer.Argument(help="A site's ledger (.jsonl).", show_default=False)],
    delta: Annotated[float, typer.Option(help="Delta at which epsilon is recomputed.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Verify a ledger's chain and recompute epsilon from its events with two accountants."""
    from fedseg.ledger import verify
    from fedseg.privacy.accounting import cross_check

    if not ledger.is_file():
        raise ConfigError(f"{ledger}: no such ledger")
    events = list(verify(ledger).values())
    pld, prv = cross_check(events, delta)
    if as_json:
        say_json({"events": len(events), "epsilon_pld": pld, "epsilon_prv": prv, "delta": delta})
        return
    say(f"{len(events)} events, chain intact; epsilon {pld:.3f} (PLD), {prv:.3f} (PRV) at delta {delta:g}")
