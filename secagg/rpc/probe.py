"""Asks a coordinator what time it is there, without a word of a session: a site that runs meanwhile is not disturbed.

The coordinator's clock is in the metadata of its health service. Must never: greet, for a greeting ends the site's
process that is connected.
"""

import time
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from secagg.rpc.proxy import Proxy
from secagg.rpc.tls import ClientTls

CLOCK_KEY = "secagg-time"
_SECONDS = 20.0
"""As long as a connection may take (row 11), and once more for the answer."""


class TellingHealth(health.aio.HealthServicer):  # type: ignore[misc, name-defined]
    """The health service, with the time in the metadata of each answer."""

    clock = staticmethod(time.time)

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        """See `grpc.health.v1`."""
        await context.send_initial_metadata(((CLOCK_KEY, f"{self.clock():.3f}"),))
        return await super().Check(request, context)


def clock_ahead(host: str, port: int, tls: ClientTls, proxy: Proxy | None = None) -> float | None:
    """By how many seconds the coordinator's clock is ahead of this one; None where it does not answer or say.

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
        try:
            grpc.channel_ready_future(channel).result(_SECONDS)
            asked = time.time()
            check = health_pb2_grpc.HealthStub(channel).Check
            _, call = check.with_call(health_pb2.HealthCheckRequest(), timeout=_SECONDS)
            told = float(dict(call.initial_metadata())[CLOCK_KEY])
        except (grpc.RpcError, grpc.FutureTimeoutError, KeyError, ValueError):
            return None
        return told - (asked + time.time()) / 2
