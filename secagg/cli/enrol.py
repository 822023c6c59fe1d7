"""`secagg enrol`, and `fedseg enrol`: how sites and a coordinator come to each other's keys, by files and a telephone.

Must never: take a token from the command line, where every user of the machine can read it, or print one but the new
one of an invitation.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from secagg.errors import ConfigError
from secagg.terminal import App, AsJson, out, plain, say, say_json

if TYPE_CHECKING:
    from secagg.enrolment.office import Office

TOKEN = "SECAGG_TOKEN"  # noqa: S105 - the name of a variable

enrol_app = App("Enrol sites: keys are made where they are used.")

Folder = Annotated[Path, typer.Argument(help="Folder of credentials: the coordinator's.", show_default=False)]
Own = Annotated[Path, typer.Argument(help="Folder of credentials: this site's.", show_default=False)]
Here = Annotated[Path, typer.Option("--out", help="Folder where the file to be carried goes.")]
Days = Annotated[float, typer.Option(min=0.01, help="Days for which the certificate is valid.")]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        help=f"File with the token, '-' for standard input; else {TOKEN}, or you are asked.", show_default=False
    ),
]


@enrol_app.command()
def init(
    folder: Folder,
    host: Annotated[
        list[str], typer.Option(help="Name or address under which sites reach the coordinator; give all of them.")
    ],
    port: Annotated[int, typer.Option(help="Port on which it listens.")] = 50051,
    days: Days = 365.0,
) -> None:
    """At the coordinator, once: make its keys and a register of sites."""
    from secagg.enrolment.office import OFFICE, Office

    office = Office.init(folder, host, port, days=days)
    say(f"{folder}: the coordinator's credentials; {folder / OFFICE} holds the authority's key: keep it to yourself")
    say(f"sites will dial {office.register.address}")
    say(f"fingerprint to read aloud to every site: {office.fingerprint}")


@enrol_app.command()
def invite(
    folder: Folder,
    site: Annotated[str, typer.Argument(help="Id of the site, as it will stand in study and roster.")],
    into: Here = Path(),
    days: Annotated[float, typer.Option(min=0.01, help="Days after which the token is worth nothing.")] = 14.0,
) -> None:
    """At the coordinator: invite a site.

    It gets a file, and its operator gets a token by telephone.
    """
    office = _office(folder)
    path, token = office.invite(site, into, days=days)
    say(f"{path}: send this file to {site}, in any way")
    say(f"token, to be told by telephone and in no other way, good once and for {days:g} days: {token}")
    say(f"fingerprint of the coordinator, to be compared in the same call: {office.fingerprint}")


@enrol_app.command()
def request(
    invitation: Annotated[Path, typer.Argument(help="SITE.invitation, as it came.", show_default=False)],
    folder: Own,
    state: Annotated[
        Path | None,
        typer.Option(help="Where this site's marks and ledger are to lie, for good; a local disk.", show_default=False),
    ] = None,
    token_file: TokenFile = None,
    into: Here = Path(),
) -> None:
    """At a site: make its keys, and ask for a certificate.

    Private keys stay in the folder. Run again, it makes the same request for the same keys.
    """
    from secagg.enrolment import site

    made, path = site.request(invitation, folder, _token(token_file), into, state)
    say(f"{path}: send this file to the coordinator, in any way; private keys stay in {folder}")
    say(f"fingerprint of {made.site}, to read aloud: {made.fingerprint}")
    say(f"fingerprint of the coordinator, to be compared: {site.fingerprint(folder, made.site)}")


@enrol_app.command()
def approve(
    folder: Folder,
    asked: Annotated[Path, typer.Argument(help="SITE.request, or a plain certificate request.", show_default=False)],
    fingerprint: Annotated[
        str, typer.Option(help="What the site's operator read aloud; compared.", show_default=False)
    ] = "",
    public: Annotated[
        Path | None,
        typer.Option(help="With a request that openssl made: the site's .pub file of keygen.", show_default=False),
    ] = None,
    token_file: TokenFile = None,
    into: Here = Path(),
    days: Days = 365.0,
) -> None:
    """At the coordinator: approve what a site asked for.

    Its token speaks for it, or at a renewal the key that is pinned.
    """
    office = _office(folder)
    token = _token(token_file) if public is not None else ""
    made, files = office.approve(asked, into, public=public, token=token, heard=fingerprint, days=days)
    say(f"{made.site} is approved; send back {' and '.join(map(str, files))}")
    if not fingerprint:
        say(f"fingerprint of {made.site}, to be compared by telephone: {made.fingerprint}")


@enrol_app.command()
def publish(
    folder: Folder,
    run: Annotated[str, typer.Option(help="Name of the next training run; never one that was used before.")],
    site: Annotated[
        list[str] | None, typer.Option(help="Who takes part; without it everybody who is approved.")
    ] = None,
    without: Annotated[list[str] | None, typer.Option(help="Who is left out.", show_default=False)] = None,
) -> None:
    """At the coordinator: sign the roster of the next run.

    It is federation.toml, which every site accepts.
    """
    from secagg.enrolment.office import FEDERATION

    federation = _office(folder).publish(run, site or [], without or [])
    say(f"{folder / FEDERATION}: roster {federation.number} of run {run}: {', '.join(federation.pinned)}")
    say("send it to every site, which takes it with enrol accept")


@enrol_app.command()
def accept(
    folder: Own,
    papers: Annotated[list[Path], typer.Argument(help="SITE.approval, federation.toml.", show_default=False)],
    site: Annotated[str, typer.Option(help="This site's id, where the folder has several.", show_default=False)] = "",
) -> None:
    """At a site: take what the coordinator sent back.

    The coordinator that was pinned must have signed it.
    """
    from secagg.enrolment.site import accept as take

    name = _site(folder, site)
    for path in papers:
        say(take(path, folder, name))


@enrol_app.command()
def revoke(
    folder: Folder,
    sites: Annotated[list[str], typer.Argument(help="Ids of the sites.", show_default=False)],
) -> None:
    """At the coordinator: take back a site's certificates.

    It is left out of every roster from now on.
    """
    path = _office(folder).revoke(*sites)
    say(f"{', '.join(sites)} revoked: {path} refuses their certificates at the coordinator's door")
    say("publish the next roster, and send it to the other sites")


@enrol_app.command()
def renew(
    folder: Annotated[Path, typer.Argument(help="Folder of credentials: this party's.", show_default=False)],
    site: Annotated[str, typer.Option(help="This site's id, where the folder has several.", show_default=False)] = "",
    host: Annotated[
        list[str] | None, typer.Option(help="At the coordinator: one more name or address.", show_default=False)
    ] = None,
    signing: Annotated[
        bool, typer.Option("--signing", help="At a site: a new signing key too, from the next roster on.")
    ] = False,
    into: Here = Path(),
    days: Days = 365.0,
) -> None:
    """Renew a certificate, on a new key.

    The coordinator's is made at once. A site gets a file to send: its pinned key speaks for it, and no token is needed.
    """
    from secagg.enrolment.office import OFFICE
    from secagg.enrolment.site import renew as ask

    if (folder / OFFICE).is_dir() and not site:
        path = _office(folder).renew(host or [], days=days)
        say(f"{path}: the coordinator's new certificate; a coordinator that runs takes it up by itself")
        return
    made, path = ask(folder, _site(folder, site), into, signing=signing)
    say(f"{path}: send this file to the coordinator, and accept the approval that comes back")
    say(f"fingerprint of {made.site}, to read aloud: {made.fingerprint}")


@enrol_app.command()
def show(folder: Folder, as_json: AsJson = False) -> None:
    """At the coordinator: who is in, and until when."""
    office = _office(folder)
    register = office.register
    rows = [(one.site, "invited", one.expires, "") for one in register.invited.values()]
    for member in register.members.values():
        state = f"revoked {member.revoked}" if member.revoked else "approved"
        rows.append((member.site, state, member.expires, member.fingerprint))
    if as_json:
        names = ("site", "state", "until", "fingerprint")
        sites = [dict(zip(names, row, strict=True)) for row in sorted(rows)]
        say_json(
            {"address": register.address, "roster": register.number, "fingerprint": office.fingerprint}
            | {"sites": sites}
        )
        return
    table = Table(title=f"roster {register.number}; sites dial {plain(register.address)}")
    for heading in ("site", "state", "until", "fingerprint"):
        table.add_column(heading, overflow="fold")
    for row in sorted(rows):
        table.add_row(*map(plain, row))
    out.print(table)
    say(f"fingerprint of the coordinator: {office.fingerprint}")


def _office(folder: Path) -> "Office":
    from secagg.enrolment.office import Office

    return Office(folder)


def _site(folder: Path, given: str) -> str:
    """The site whose folder this is."""
    found = sorted(path.name.removesuffix(".enrolment.toml") for path in folder.glob("*.enrolment.toml"))
    if given or len(found) == 1:
        return given or found[0]
    said = (
        f"holds {len(found)} sites; say which with --site" if found else "holds no enrolment; begin with enrol request"
    )
    raise ConfigError(f"{folder}: {said}")


def _token(path: Path | None) -> str:
    """The token: from a file, standard input, the environment, or asked for without an echo."""
    if path is not None and str(path) != "-":
        return path.read_text(encoding="utf-8-sig").strip()
    if path is None and os.environ.get(TOKEN):
        return os.environ[TOKEN]
    if path is None and sys.stdin.isatty():
        return str(typer.prompt("token", hide_input=True, err=True))
    return sys.stdin.readline().strip()
