"""Certificates for demonstrations and tests: an authority whose key is thrown away as soon as it has issued them.

Where hospitals take part each makes its own key: see `secagg.enrolment`. Must never: write the authority's key.
"""

from collections.abc import Iterable
from pathlib import Path

from secagg.errors import ConfigError
from secagg.rpc.authority import Authority
from secagg.rpc.proxy import LOCAL_HOSTS
from secagg.rpc.tls import AUTHORITY, COORDINATOR
from secagg.writing import PRIVATE_FOLDER


def make_certificates(folder: Path, sites: Iterable[str], hosts: Iterable[str] = ()) -> None:
    """Write `authority.pem`, `coordinator.pem/.key` and `SITE.pem/.key` for a demonstration, valid for 30 days.

    Args:
        folder: is made where it is missing; existing files are replaced.
        sites: their ids.
        hosts: where the coordinator is reached, besides localhost, 127.0.0.1 and ::1.

    Raises:
        ConfigError: a site is called authority or coordinator, or the folder cannot be written.
    """
    sites = sorted(sites)
    for name in {AUTHORITY, COORDINATOR} & set(sites):
        raise ConfigError(f"site id {name!r} is the name of a file that the coordinator needs; choose another id")
    authority = Authority()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=PRIVATE_FOLDER)
        authority.write(folder)
        authority.issue(folder, COORDINATOR, [*LOCAL_HOSTS, *hosts])
        for site in sites:
            authority.issue(folder, site)
    except OSError as error:
        raise ConfigError(f"folder {folder}: cannot write certificates ({error.strerror}); choose another") from None
