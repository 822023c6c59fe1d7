"""`fedseg coordinator` and `fedseg site`: a study over the network, one process a party."""

import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedseg.cli.checking import Check, CheckJson, tell, told_of_expiry
from fedseg.cli.configured import Configured
from fedseg.cli.ending import conclude
from fedseg.cli.terminal import Runs, StudyOrConfiguration, app, command_line, reading
from fedseg.cli.watching import File, Format, LogFormat, Where, seen
from fedseg.errors import ConfigError, RoundFailedError, UnfinishedError
from secagg.audit import AUDIT
from secagg.errors import ProtocolError
from secagg.service.stopping import saying_so
from secagg.terminal import Farewell, Host, Proxy, Tls, TlsMode, say

if TYPE_CHECKING:
    from fedseg.coordinator import Options
    from fedseg.data.cases import SiteData
    from fedseg.runfolder import RunFolder
    from fedseg.study import Study
    from secagg.service.ended import Ended


class Transcripts(Enum):
    """What a coordinator keeps of each round for auditors."""

    WHOLE = "whole"
    HASHES = "hashes"
    NONE = "none"


_Kept = Annotated[
    Transcripts, typer.Option(help="Keep every round's public transcript: with its vectors, their hashes, or not.")
]
_SiteId = Annotated[str, typer.Argument(metavar="SITE", help="This site's id in the study.", show_default=False)]
_Images = Annotated[Path | None, typer.Option(help="This site's images.", show_default=False)]
_State = Annotated[
    Path | None,
    typer.Option(help="First use only: where this data set's marks and ledger lie, for good.", show_default=False),
]
_Patience = Annotated[
    float | None,
    typer.Option(help="Seconds without an answer after which to give up; else never.", show_default=False),
]
_Accepted = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ROUND_ID",
        help="Without DP: accept once that this round cannot be replayed, and end; the running site goes on.",
        show_default=False,
    ),
]
_Replayed = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="TRANSCRIPT",
        help="Without DP: replay a round's transcript from anybody, and end; the running site goes on.",
        show_default=False,
    ),
]
_Audit = Annotated[
    Path | None, typer.Option(help="Keep own quantised updates there, to audit sums.", show_default=False)
]
_Approve = Annotated[
    str, typer.Option(metavar="HASH", help="Approve the study with this hash, once; else it is asked.", show_default="")
]
_Pause = Annotated[
    bool, typer.Option("--pause", help="The site that runs joins no more rounds until --go-on; and end.")
]
_GoOn = Annotated[bool, typer.Option("--go-on", help="After --pause or --leave: take part again; and end.")]
_Leave = Annotated[bool, typer.Option("--leave", help="The site that runs leaves this run after its round; and end.")]


@app.command(cls=Configured)
@saying_so("the same command goes on with this run")
def coordinator(
    study: StudyOrConfiguration,
    credentials: Annotated[Path, typer.Option(help="Folder with federation.toml, keys and certificates.")],
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 0,
    tls: TlsMode = Tls.MTLS,
    runs: Runs = Path("runs"),
    patience: Annotated[float, typer.Option(help="Seconds to wait for enough sites.")] = 60.0,
    rejoin_seconds: Annotated[float, typer.Option(help="Seconds that a round waits for a missing site.")] = 15.0,
    training_seconds: Annotated[float, typer.Option(help="Deadline of a round's training.")] = 3600.0,
    grace: Annotated[float, typer.Option(help="Seconds until a step closes without a site that is cut off.")] = 3.0,
    farewell_seconds: Farewell = None,
    quota: Annotated[float, typer.Option(help="Gigabytes of all transcripts; the oldest go first.")] = 20.0,
    transcripts: _Kept = Transcripts.WHOLE,
    log_format: Format = LogFormat.TEXT,
    log_file: File = None,
    watch: Where = "",
    check: Check = False,
    as_json: CheckJson = False,
) -> None:
    """Run a study over the network.

    Opens rounds, relays the protocol and averages; sites connect with `fedseg site`.
    """
    from fedseg.coordinator import Options, folder_of_run
    from fedseg.credentials import load_federation
    from fedseg.start import starting_model
    from fedseg.study import load_study

    loaded = load_study(study)
    if check:
        from fedseg.preflight import check_coordinator

        tell(check_coordinator(loaded, host, port, credentials, runs, tls.value), as_json)
        return
    options = Options(
        host=host,
        port=port,
        tls=tls.value,
        credentials=credentials,
        patience=patience,
        rejoin_seconds=rejoin_seconds,
        training_seconds=training_seconds,
        grace=grace,
        farewell_seconds=farewell_seconds,
        quota=int(quota * 1e9),
        transcripts=transcripts.value,
        command=command_line(),
    )
    federation = load_federation(credentials, loaded)
    with (
        seen(log_format, log_file, watch, credentials / AUDIT) as view,
        folder_of_run(runs, loaded, federation, *view.listeners) as folder,
        told_of_expiry(lambda event: None if folder.finished else folder.emit(event), credentials, "coordinator"),
    ):
        view.show(folder)
        if folder.finished:
            say(f"this run is finished, and its folder is {folder.path}")
        else:
            starting_model(loaded, view.screen.starting)
        run = _coordinated(folder, options)
    conclude(run, credentials)


def _coordinated(folder: "RunFolder", options: "Options") -> Path:
    """The run folder, also of a run that failed after it was finished: what came before is told, and the failure."""
    from fedseg.coordinator import coordinate

    try:
        return coordinate(folder, options)
    except (RoundFailedError, ProtocolError):
        if not folder.finished:
            raise
        return folder.path


@app.command(cls=Configured)
@saying_so("the same command takes part again")
def site(
    study: StudyOrConfiguration,
    name: _SiteId,
    address: Annotated[str, typer.Option("--coordinator", help="HOST:PORT of the coordinator.")],
    credentials: Annotated[Path, typer.Option(help="Folder with federation.toml, own keys and certificates.")],
    data: _Images = None,
    state: _State = None,
    runs: Runs = Path("runs"),
    patience: _Patience = None,
    proxy: Proxy = None,
    tls: TlsMode = Tls.MTLS,
    accept_exposure: _Accepted = None,
    replay: _Replayed = None,
    audit: _Audit = None,
    approve: _Approve = "",
    pause: _Pause = False,
    go_on: _GoOn = False,
    leave: _Leave = False,
    log_format: Format = LogFormat.TEXT,
    log_file: File = None,
    watch: Where = "",
    check: Check = False,
    as_json: CheckJson = False,
) -> None:
    """Take part in a study, from one hospital.

    Images stay here. Only masked updates leave, noised first where the study promises privacy.
    """
    from fedseg.runfolder import RunFolder
    from fedseg.site import Options, take_part
    from fedseg.site.ending import ended_before, finish
    from fedseg.start import same_everywhere, starting_model
    from fedseg.study import load_study
    from secagg.service.room import outlasting

    loaded = load_study(study)
    if name not in loaded.site_ids:
        raise ConfigError(f"site '{name}' is not in the study; use one of {', '.join(loaded.site_ids)}")
    kept = _state_folder(loaded, name, data, state, runs, credentials)
    if pause or go_on or leave:
        _want(loaded, credentials, kept, pause, leave)
        return
    if check:
        from fedseg.preflight import check_site

        tell(check_site(loaded, name, address, credentials, data, kept, runs, proxy, tls.value), as_json)
        return
    if accept_exposure or replay:
        _settle(loaded, name, credentials, kept, accept_exposure or [], replay or [])
        return
    over = ended_before(loaded, credentials, kept)
    left = _left_of(over, credentials)
    if over is not None and left is None:
        return
    found = _asked(loaded, name, credentials, data, kept, tls, approve)
    options = Options(
        site=name,
        address=address,
        credentials=credentials,
        state=kept,
        patience=patience,
        proxy=proxy,
        tls=tls.value,
        audit=audit,
        command=command_line(),
    )

    def live() -> Path:
        """One life of the site; a full disk may end it."""
        heard = view.listeners
        with (
            RunFolder.reopen(left, *heard) if left else RunFolder.create(runs, loaded, *heard) as folder,
            told_of_expiry(folder.emit, credentials, name),
        ):
            view.show(folder)
            if over is not None:
                return finish(folder, found, options, over)
            if loaded.model.start == "phantom" or same_everywhere(loaded):  # a file may be the coordinator's alone
                starting_model(loaded, view.screen.starting)
            return take_part(folder, found, options)

    with seen(log_format, log_file, watch) as view:
        run = outlasting(live, kept, say, "the same command takes part again")
    conclude(run, credentials)


def _left_of(over: "Ended | None", credentials: Path) -> Path | None:
    """Of a run that this site saw to its end: say so, and show its figures, unless its folder has to be finished first.

    Returns:
        The folder that has to be finished; None where there is none.

    Raises:
        UnfinishedError: the study did not finish, which is no success of the command.
    """
    from fedseg.site.ending import unfinished

    if over is None:
        return None
    say(f"this run is finished: {over.reason}")
    run = Path(over.folder)
    if left := unfinished(over):
        return left
    if run.is_dir():
        conclude(run, credentials)
    elif not over.complete:
        raise UnfinishedError(f"the study did not finish: {over.reason}")
    else:
        say(f"its folder {run} is not there any more")
    return None


def _asked(
    study: "Study", site: str, credentials: Path, data: Path | None, state: Path, tls: Tls, typed: str
) -> "SiteData":
    """The site's data, once its operator has approved the study; what is wrong with credentials is told before."""
    from fedseg.credentials import load_federation, signing_key, site_tls
    from fedseg.data.loading import load_site
    from fedseg.device import device_of

    federation = load_federation(credentials, study)
    signing_key(credentials, site)
    site_tls(credentials, site, federation, tls.value)
    device_of(study)
    with reading(data):
        found = load_site(data, site, study)
    _approved(study, site, found, state, federation.training_run, typed)
    return found


def _state_folder(
    study: "Study", name: str, data: Path | None, given: Path | None, runs: Path, credentials: Path
) -> Path:
    """Where the marks and the ledger of a data set lie: where they were at its first use, whatever the run is called.

    That is where enrolment fixed it, for the site's first data set. Made patients are nobody, and theirs go with the
    runs.
    """
    from fedseg.credentials import fixed_state
    from fedseg.data.layouts.table import layout_of
    from fedseg.ledger.home import Home

    home, fixed = Home(), fixed_state(credentials, name)
    own = None if data is None else str(data.resolve())
    if any(found.state == str(fixed) and found.data != own for found in home.data_sets()):
        fixed = None  # of another data set: each has its own
    earlier = fixed or runs / f"{name}-state"
    for folder in (given, earlier):
        if folder is not None and folder.exists() and not folder.is_dir():
            raise ConfigError(f"{folder}: is a file; give --state a folder, where this site's marks and ledger lie")
    if not layout_of(study).needs_folder:
        return (given or earlier).absolute()
    if data is not None and data.is_dir():
        return home.state_of(name, data, given, earlier)
    if data is not None:
        return given or earlier  # there are no images: loading says so
    known = sorted({found.state for found in home.data_sets() if found.site == name})
    if given is None and len(known) != 1:
        of = f"{name} has {len(known)} data sets here" if known else f"nothing is known of {name} here"
        raise ConfigError(f"{of}; say which with --data, or its folder with --state")
    return given or Path(known[0])


def _settle(
    study: "Study", site: str, credentials: Path, state: Path, accepted: list[str], transcripts: list[Path]
) -> None:
    """What an operator does about rounds that keep the site out."""
    from fedseg.course import Course
    from fedseg.credentials import load_federation
    from fedseg.exposure import accept_round, marks_of
    from fedseg.models import build_model
    from fedseg.site.following import Following
    from secagg.roster import session_id
    from secagg.service.exposed import replay

    for round_id in accepted:
        say(accept_round(study, credentials, state, site, round_id))
    federation = load_federation(credentials, study)
    course = Course(study, build_model(study))
    policy = course.policy(federation.server_key)
    following = Following(state, f"{session_id(policy, federation.pinned).hex()}/{federation.training_run}")
    for path in transcripts:

        def follow(_: object, path: Path = path) -> None:
            """The model that follows from a transcript, as it is replayed."""
            following.replayed(path, course, policy)

        with marks_of(state, site) as store:
            receipt = replay(store, policy, federation.pinned, path, follow)
        say(f"replayed, and it holds: round {receipt.round_id.hex()}")


def _want(study: "Study", credentials: Path, state: Path, pause: bool, leave: bool) -> None:
    """What an operator wants of the site that runs, or that will run."""
    from fedseg.credentials import load_federation
    from fedseg.site.control import Control
    from secagg.service.application import Wish

    run = load_federation(credentials, study).training_run
    wish = Wish.LEAVE if leave else Wish.PAUSE if pause else Wish.GO_ON
    Control(state).want(wish, run)
    say(
        {
            Wish.PAUSE: "paused: this data set joins no round before --go-on; one that runs now is finished",
            Wish.GO_ON: "this data set takes part again",
            Wish.LEAVE: f"this data set leaves run {run} after its round; the coordinator is told",
        }[wish]
    )


def _approved(study: "Study", site: str, data: "SiteData", state: Path, run: str, typed: str) -> None:
    """Show what is asked, and go on only with a study that this site's operator approved once.

    Made patients are nobody: nobody is asked about them.

    Raises:
        ConfigError: it was not approved.
    """
    from fedseg.data.layouts.table import layout_of
    from fedseg.site.asking import sentences
    from fedseg.site.control import LEAST_DIGITS, Control

    control, own = Control(state), study.hash().hex()
    if not typed and (control.approved(own) or not layout_of(study).needs_folder):
        return
    for sentence in sentences(study, site, data, state, run):
        say(sentence)
    if not typed and sys.stdin.isatty():
        typed = typer.prompt(f"To approve this study, type the first {LEAST_DIGITS} digits of its hash")
    if not typed:
        raise ConfigError(
            f"study '{study.study.name}' was not approved at this site; read what is said above, compare the hash with "
            f"the other parties', then add: --approve {own[:LEAST_DIGITS]}..."
        )
    control.approve(own, study.study.name, typed)
    say(f"approved at this site, once and for all its runs: study {own[:LEAST_DIGITS]}")
