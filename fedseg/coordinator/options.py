"""How a coordinator is run."""

from dataclasses import dataclass
from pathlib import Path

from secagg.rpc.proof import MTLS
from secagg.service.transcripts import QUOTA


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a coordinator runs; none of it changes what the study means.

    Attributes:
        host, port: where to listen; port 0 takes a free one.
        tls: sites show a certificate ("mtls"), or a load balancer ends TLS and they prove themselves ("tls").
        credentials: folder of `fedseg.credentials`.
        patience: seconds to wait for sites at the start, and later where too few are there for a sum.
        rejoin_seconds: seconds that a later round waits for a site that is missing.
        step_seconds: deadline of a protocol step, training excepted.
        training_seconds: deadline of the step that waits for training.
        grace: seconds after a site's connection broke until a step closes without it.
        farewell_seconds: how long the end of the run is offered to sites that do not fetch it.
        quota: bytes of all transcripts, at most; the oldest go first.
        transcripts: keep each round's public transcript with the masked inputs "whole", as "hashes", or not ("none").
        command: how it was started, for the record.
    """

    credentials: Path
    host: str = "127.0.0.1"
    port: int = 0
    tls: str = MTLS
    patience: float = 60.0
    rejoin_seconds: float = 15.0
    step_seconds: float = 60.0
    training_seconds: float = 3600.0
    grace: float = 3.0
    farewell_seconds: float = 5.0
    quota: int = QUOTA
    transcripts: str = "whole"
    command: str = ""
