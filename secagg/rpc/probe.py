"""Asks a coordinator what time it is there, and whether it would take this site, without a word of a session.

Both are in the metadata of its health service, so that a site that runs meanwhile is not disturbed. Must never: greet,
for a greeting ends the site's process that is connected.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from secagg.rpc.proxy import Proxy
from secagg.rpc.tls import ClientTls

CLOCK_KEY, REFUSED_KEY, MODE_KEY = "secagg-time", "secagg-refused", "secagg-mode"
_SECONDS = 20.0
"""As long as a connection may take (row 11), and once more for the answer."""


class TellingHealth(health.aio.HealthServicer):  # type: ignore[misc, name-defined]
    """The health service, with the time, the mode, and why this caller would be refused, in each answer's metadata.

    Args:
        mode: "mtls" or "tls", see `secagg.rpc.proof`.
        refusal: says why, from a call's context; "" where it would not be.
    """

    clock = staticmethod(time.time)

    def __init__(self, mode: str, refusal: Callable[[Any], str]) -> None:
        super().__init__()
        self._mode, self._refusal = mode, refusal

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        """See `grpc.health.v1`."""
        why = self._refusal(context).encode("ascii", "backslashreplace").decode("ascii")
        told = (CLOCK_KEY, f"{self.clock():.3f}"), (REFUSED_KEY, why), (MODE_KEY, self._mode)
        await context.send_initial_metadata(told)
        return await super().Check(request, context)


@dataclass(frozen=True)
class Probed:
    """What a coordinator says of itself.

    Attributes:
        ahead: seconds by which its clock is ahead of this one; None where it does not answer or say.
        refused: why it would refuse a greeting of this site; "" where it would not, or does not answer.
        mode: "mtls" or "tls"; "" where it does not answer.
    """

    ahead: float | None = None
    refused: str = ""
    mode: str = ""


def probe(host: str, port: int, tls: ClientTls, proxy: Proxy | None = None) -> Probed:
    """Ask a coordinator; blocks for seconds.

    Args:
        host: of the coordinator.
        port: of the coordinator.
        tls: this site's credentials.
        proxy: through which it is reached.
    """
    credentials = grpc.ssl_channel_credentials(tls.authority, tls.key or None, tls.certificate or None)
    options: list[tuple[str, int | str]] = [("grpc.enable_http_proxy", int(proxy is not None))]
    if proxy is not None:
        options.append(("grpc.http_proxy", proxy.url))
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    with grpc.secure_channel(where, credentials, options) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        try:
            check(health_pb2.HealthCheckRequest(), timeout=_SECONDS)  # connecting takes its time: it is not measured
            asked = time.time()
            _, call = check.with_call(health_pb2.HealthCheckRequest(), timeout=_SECONDS)
            metadata = dict(call.initial_metadata())
            told = float(metadata[CLOCK_KEY])
        except (grpc.RpcError, KeyError, ValueError):
            return Probed()
        return Probed(
            told - (asked + time.time()) / 2, *(str(metadata.get(key, "")) for key in (REFUSED_KEY, MODE_KEY))
        )
