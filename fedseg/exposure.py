"""What clears a round that keeps a site out of the next ones: its transcript, replayed, or an operator's acceptance.

Without differential privacy a site that sent unmasking shares does not go on before it knows what became of them
(C-05), nor beside another that does not know (C-26): otherwise the same updates could be summed again without one site,
and subtracted. Must never: take a policy or a roster from a transcript or from whoever sent it.
"""

from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from fedseg.errors import ConfigError
from fedseg.ledger import FILE, Ledger, Line, read
from fedseg.ledger.chain import verified
from fedseg.ledger.home import Home, RecordWitness
from fedseg.ledger.payers import Payers
from fedseg.ledger.witness import MarksWitness, hold
from secagg.encoding import HASH_BYTES
from secagg.keys import SigningKey
from secagg.sqlite import SqliteStore

if TYPE_CHECKING:  # whoever reads a ledger waits for no study, and so for no torch
    from fedseg.data.cases import SiteData
    from fedseg.study import Study

MARKS = "marks.sqlite"
"""In a site's state folder: what its data set must not forget (`secagg.store`)."""


def marks_of(state: Path, site: str) -> SqliteStore:
    """The marks of a site that took part before.

    Raises:
        ConfigError: there are none.
    """
    if not (state / MARKS).is_file():
        raise ConfigError(f"{state}: holds no marks of {site}; give --state as when the site took part")
    return SqliteStore(state / MARKS, site)


def data_set_ledger(
    state: Path, store: SqliteStore, key: SigningKey | None, data: "SiteData", apart: Collection[Path] = ()
) -> Ledger:
    """The ledger of a data set, with all that lies beside it and knows how far it has come.

    Args:
        state: the data set's state folder.
        store: its marks.
        key: the site's, which signs what is charged; None in a simulation.
        data: the patients of this run.
        apart: state folders of other sites in a simulation, whose patients are others whatever they are called.

    Raises:
        LedgerError: it does not verify, its end is missing, it is a copy, or it is of an earlier version.
        ConfigError: the site's home cannot be used.
    """
    home = Home()
    payers = Payers(
        home, state, data.patients, sorted({case.patient for case in data.test}), unsaid=data.unsaid, apart=apart
    )
    witnesses = MarksWitness(store, [state / FILE, state / MARKS]), RecordWitness(home, state)
    return Ledger.of_site(state, key, witnesses=witnesses, payers=payers)


def held(path: Path) -> tuple[Line, ...]:
    """The lines of a ledger, every signature verified, held against what lies beside it, if anything does.

    Args:
        path: of the ledger.

    Raises:
        LedgerError: it does not verify, its end is missing, or it is a copy.
    """
    lines = verified(path)  # once: what is held against the marks is what was verified
    beside = path.with_name(MARKS)
    if path.name != FILE or not beside.is_file():
        return tuple(lines)
    with SqliteStore.existing(beside) as store:
        hold(path, lines, (MarksWitness(store, [path, beside]), RecordWitness(Home(), path.parent)))
        return tuple(lines)


def moved(state: Path) -> None:
    """An operator's word that a state folder is the one that trained last, at a new place; it stays on record there.

    Raises:
        ConfigError: there are no marks in it.
        LedgerError: its ledger does not verify, or its end is missing: then it is not the one that trained last.
    """
    beside, path = state / MARKS, state / FILE
    with SqliteStore.existing(beside) as store:
        marks = MarksWitness(store, [path, beside])
        marks.moved(datetime.now(UTC).isoformat(timespec="seconds"))
        hold(path, read(path), (marks, RecordWitness(Home(), state)))


def accept_round(study: "Study", credentials: Path, state: Path, site: str, round_id: str) -> str:
    """An operator's decision to go on after one round, named by its identifier; it counts for one contribution.

    A site that runs on this state folder sees it and goes on by itself.

    Args:
        study: any study of the federation that the site takes part in.
        credentials: with the site's signing key, which signs the decision.
        state: the site's state folder.
        site: its id.
        round_id: 64 hexadecimal digits, as the refusal names them.

    Returns:
        A sentence on what was accepted.

    Raises:
        ConfigError: no such identifier, key or folder; nothing was accepted.
    """
    from fedseg.credentials import load_federation, signing_key
    from secagg import accept_exposure

    load_federation(credentials, study)
    key = signing_key(credentials, site)
    try:
        name = bytes.fromhex(round_id)
    except ValueError:
        name = b""
    if len(name) != HASH_BYTES:
        raise ConfigError(f"round {round_id!r}: give the 64 hexadecimal digits that the refusal names")
    with marks_of(state, site) as store:
        accept_exposure(store, key, site, name)
        with store.transaction() as marks:
            release = marks.open_release
    own = release is not None and release.round_id == name
    whose = f"{site} itself sent shares for it" if own else f"{site} has no open release of its own in it"
    return f"accepted for one contribution: round {round_id}; {whose}"
