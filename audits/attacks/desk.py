"""A real site of fedseg, with keys, marks and ledger on disk, whose coordinator is whoever asks here.

Only the line between the two is left out: what the coordinator would send goes into the very method that takes it from
the line, `secagg.service.member.Member`, and what the site would answer is what that puts on its way.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedseg.credentials import load_federation, make_credentials, signing_key
from fedseg.data.loading import load_site
from fedseg.dialogue import content_of
from fedseg.runfolder import RunFolder
from fedseg.site import Options, Site
from fedseg.study import Study
from fedseg.update import model_hash
from secagg import SigningKey
from secagg.messages import Receipt, RoundStart
from secagg.service.dialogue import Opened

RUN = "attacked"


class Desk:
    """All parties of a study as they are enrolled, and one site that takes part.

    Args:
        study: of the run.
        folder: of credentials, runs and state folders.
        state: the state folder of the one site that takes part; None for one a site in `folder`.
    """

    def __init__(self, study: Study, folder: Path, state: Path | None = None) -> None:
        self.study, self.folder, self._state = study, folder, state
        self.credentials = folder / "credentials"
        make_credentials(self.credentials, study, RUN)
        self.server: SigningKey = signing_key(self.credentials, "coordinator")
        self.keys = {site: signing_key(self.credentials, site) for site in study.site_ids}
        self.pinned = load_federation(self.credentials, study).pinned

    def state(self, name: str) -> Path:
        """A site's state folder."""
        return self._state or self.folder / f"{name}-state"

    def site(self, name: str) -> Site:
        """A site's process as it starts: with its state folder of before, if there was one."""
        options = Options(site=name, address="127.0.0.1:1", credentials=self.credentials, state=self.state(name))
        run = RunFolder.create(self.folder / "runs", self.study)
        return Site(run, load_site(None, name, self.study), options)

    def start(
        self,
        state: NDArray[np.float32],
        *,
        number: int = 1,
        attempt: int = 0,
        head: bytes = bytes(32),
        missed: Sequence[Receipt] = (),
    ) -> RoundStart:
        """A round on this state, signed by the coordinator."""
        place = (RUN, number, attempt, model_hash(state), self.study.hash(), head, tuple(missed))
        return RoundStart(*place).sign(self.server)


def tell(site: Site, start: RoundStart, state: NDArray[np.float32]) -> str:
    """What a site says to a coordinator that opens a round on this state: its refusal, or "joined"."""
    try:
        site.member._open(Opened(start, content_of(state)))  # where the line ends
    except Exception as error:  # whatever it refuses with
        return f"{type(error).__name__}: {error}"
    return "joined" if site.member._inside() is not None else "did not join"
