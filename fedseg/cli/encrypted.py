"""`fedseg encrypted`: an answer on pictures that nobody else sees, by a model that nobody else has."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedseg.cli.prediction import write_answers_of
from fedseg.cli.terminal import app
from fedseg.errors import ConfigError
from secagg.terminal import App, errors, plain, say

if TYPE_CHECKING:
    from fedseg.encrypted.parties import Parties
    from fedseg.encrypted.session import Session

encrypted_app = App("Inference on encrypted images, by three parties.")
app.add_typer(encrypted_app, name="encrypted")

Config = Annotated[Path, typer.Option(help="The three parties; the same file at each.")]
Key = Annotated[
    Path | None, typer.Option(help="Own private key. [default: beside --config, as ROLE.key]", show_default=False)
]
Listen = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Listen here, and not at one's address in --config.", show_default=False),
]
PARTIES = Path("parties.toml")


class Role(Enum):
    """Which of the three parties."""

    DATA = "data"
    MODEL = "model"
    THIRD = "third"


@encrypted_app.command()
def keygen(
    role: Annotated[Role, typer.Argument(help="Which party this is.", show_default=False)],
    folder: Annotated[Path, typer.Argument(help="Where key and certificate go.")] = Path(),
    days: Annotated[float, typer.Option(min=0.01, help="Days for which the certificate is valid.")] = 365.0,
) -> None:
    """Once at each party: make its key, and its certificate."""
    from fedseg.encrypted.parties import make_key

    certificate, fingerprint = make_key(role.value, folder, days)
    say(f"{certificate} for the other two; {certificate.with_suffix('.key')} is yours alone")
    say(f"fingerprint to read aloud to them: {fingerprint}")


@encrypted_app.command()
def serve(
    model: Annotated[
        Path | None, typer.Option(help="As the model's owner: model.safetensors of a run.", show_default=False)
    ] = None,
    third: Annotated[bool, typer.Option("--third", help="As the third party, who has neither.")] = False,
    config: Config = PARTIES,
    key: Key = None,
    listen: Listen = None,
    once: Annotated[bool, typer.Option("--once", help="End after one session.")] = False,
) -> None:
    """As the model's owner or the third party: wait for questions.

    It goes on until it is interrupted.
    """
    if (model is None) != third:
        raise ConfigError("say --model FILE as the model's owner, or --third as the third party")
    from fedseg.encrypted.parties import PartyError, read_parties
    from fedseg.encrypted.session import Session, needs_engine

    needs_engine()
    parties, role = read_parties(config), "third" if third else "model"
    path = parties.key(role, key)
    offer = {} if model is None else _offer(model, parties)
    _introduce(parties, role)
    while True:
        try:
            with Session(parties, role, path, listen=listen, **offer) as session:  # type: ignore[arg-type]
                _follow(session)
        except PartyError as error:
            if once:
                raise
            say(plain("error ", "red", console=errors), str(error), console=errors)
        if once:
            return


@encrypted_app.command()
def ask(
    image: Annotated[Path, typer.Argument(help="What `fedseg predict` takes.", show_default=False)],
    output: Annotated[Path, typer.Argument(help="What `fedseg predict` writes.", show_default=False)],
    config: Config = PARTIES,
    key: Key = None,
    listen: Listen = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the other two.")] = 60.0,
) -> None:
    """As the images' owner: have them segmented or classified.

    Takes and writes what `fedseg predict` does.
    """
    from fedseg.encrypted.parties import read_parties
    from fedseg.encrypted.session import needs_engine

    needs_engine()
    parties = read_parties(config)
    if not image.exists():
        raise ConfigError(f"{image}: is missing; give an image, or a folder of them")
    if not output.parent.is_dir():
        raise ConfigError(f"{output.parent}: there is no such folder; make it or write elsewhere")
    path = parties.key("data", key)
    _introduce(parties, "data")
    from fedseg.encrypted.asking import EncryptedNetwork, agreed_study
    from fedseg.encrypted.session import Session

    with Session(parties, "data", path, listen=listen, wait=wait) as session:
        with _waiting("waiting for the other two"):
            study = agreed_study(session.hear("program")[0])
        with _waiting("taking shares of the model"):
            session.hear("ready")
        failed = write_answers_of(lambda: EncryptedNetwork(session, study), image, output, study)
        session.end()
    if failed:
        raise typer.Exit(1)


@encrypted_app.command()
def check(
    model: Annotated[Path, typer.Argument(help="model.safetensors of a run.", show_default=False)],
    questions: Annotated[int, typer.Option(min=1, help="How many made pictures are asked.")] = 2,
) -> None:
    """At the model's owner: are encrypted answers the plain ones?

    All three parties run on this computer, and pictures are made. The exit status is 1 where an output differs by more
    than 0.001.
    """
    from fedseg.encrypted.session import needs_engine

    needs_engine()
    from fedseg.encrypted.checking import ALLOWED, agreement
    from fedseg.models import load_model, study_of

    study = study_of(model)
    with _waiting("asking all three parties on this computer"):
        found = agreement(load_model(model, study), study, questions)
    say(
        f"outputs differ by {found.apart:.1e} at most, where the largest is {found.largest:.3g}; allowed is {ALLOWED:g}"
    )
    say(f"the likeliest class is the same in {found.alike} of {found.places} places")
    say(f"seconds for each picture, the first time with preparation: {' '.join(f'{s:.1f}' for s in found.seconds)}")
    if not found.holds:
        raise typer.Exit(1)


@contextmanager
def _waiting(what: str) -> Iterator[None]:
    with errors.status(plain(what, console=errors)):
        yield


def _offer(model: Path, parties: "Parties") -> dict[str, object]:
    """What the model's owner serves, if it is the model that was agreed on."""
    from fedseg.encrypted.parties import hash_of
    from fedseg.encrypted.tracing import program_of
    from fedseg.models import load_model, study_of

    study = study_of(model)
    program, weights = program_of(load_model(model, study), study)
    if (found := hash_of(model)) != parties.model:
        raise ConfigError(
            f"{model}: has SHA-256 {found}, and {parties.path} names {parties.model}; serve that model, or have all "
            "three change the file"
        )
    return {"program": program, "weights": weights, "study": study.toml()}


def _introduce(parties: "Parties", role: str) -> None:
    from fedseg.encrypted.parties import WHO

    for name, party in parties.each.items():
        say(f"{'you, ' if name == role else ''}{WHO[name]}: {party.address}, certificate {party.fingerprint}")


def _follow(session: "Session") -> None:
    session.hear("ready")
    say("a session began: the model is shared among the three")
    while "end" not in (said := session.hear("pictures", "end")[0]):
        say(f"computed on {said['pictures']} encrypted pictures")
    say("the session ended")
