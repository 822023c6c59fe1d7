"""A run that this site saw to its end: the same command says so again, and needs no coordinator for it."""

from pathlib import Path

from fedseg.credentials import load_federation
from fedseg.data.cases import SiteData
from fedseg.runfolder import PARTIAL, RunFolder
from fedseg.site.options import Options
from fedseg.site.party import Party
from fedseg.study import Study
from secagg.files import Federation
from secagg.service.ended import Ended


def name_of(study: Study, federation: Federation) -> str:
    """What identifies a run among all that a data set took part in."""
    parties = f"{federation.server_key.hex()}/{federation.pinned.hash().hex()}"
    return f"{study.hash().hex()}/{parties}/{federation.training_run}"


def ended_before(study: Study, credentials: Path, state: Path) -> Ended | None:
    """How this run ended, where this site saw that; None where it did not.

    Raises:
        ConfigError: credentials are wrong, or the site's record cannot be read.
    """
    return Ended.of(state, name_of(study, load_federation(credentials, study)))


def unfinished(over: Ended) -> Path | None:
    """The run folder that the process which saw the end did not come to finish; None where there is none."""
    left = Path(f"{over.folder}{PARTIAL}")
    return left if (left / "state.json").is_file() else None


def finish(folder: RunFolder, data: SiteData, options: Options, over: Ended) -> Path:
    """Judge the last model and finish the folder that is left, in place of the process that saw the end.

    Args:
        folder: `unfinished`, reopened.
        data: the site's images.
        options: how the site runs.
        over: how the run ended.
    """
    party = Party(folder, data, options)
    return party.figures.finish(folder.model(), party.parameters, options.command, over.reason)
