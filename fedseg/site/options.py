"""How a site is run."""

from dataclasses import dataclass
from pathlib import Path

from secagg.rpc.proof import MTLS


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a site runs; none of it changes what the study means.

    Attributes:
        site: own id.
        address: host:port of the coordinator.
        credentials: folder of `fedseg.credentials`.
        state: the data set's own folder, for good, whatever the study: durable marks and the ledger. Never delete it or
            restore an old copy.
        patience: seconds without an answer after which the coordinator is given up; None for never.
        proxy: an HTTP proxy, "none", or None for what the environment says; see `secagg.rpc.proxy.proxy_for`.
        tls: "mtls" or "tls", as the coordinator has it.
        audit: folder for the site's own quantised updates and the totals that it was sent; None for none.
        command: how it was started, for the record and for sentences that say what to run.
    """

    site: str
    address: str
    credentials: Path
    state: Path
    patience: float | None = None
    proxy: str | None = None
    tls: str = MTLS
    audit: Path | None = None
    command: str = ""
