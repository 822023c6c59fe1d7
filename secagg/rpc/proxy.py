"""The HTTP proxy on the way out, if there is one: which, by option or environment, and what it says.

gRPC makes the tunnel (HTTP CONNECT); here the proxy is chosen, and named where it is to blame. Must never show the
password of a proxy.
"""

import base64
import socket
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from secagg.errors import ConfigError

NO_PROXY = "none"
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy: where it is, who named it, and how gRPC is told of it."""

    host: str
    port: int
    named_by: str
    url: str = field(repr=False)
    authorization: str = field(repr=False)

    def __str__(self) -> str:
        return f"proxy {self.host}:{self.port} (from {self.named_by})"


class ProxyError(OSError):
    """The proxy does not answer, or refuses; says so."""


def proxy_for(host: str, option: str | None) -> Proxy | None:
    """The proxy through which a host is reached.

    Args:
        host: of the coordinator.
        option: ``http://[USER:PASSWORD@]HOST:PORT``; "none" or "" for none; None for what the environment says
            (``https_proxy``, ``no_proxy``), which never holds for this computer itself.

    Raises:
        ConfigError: the proxy's address is malformed, or of another kind.
    """
    if option is None:
        url, named_by = getproxies_environment().get("https", ""), "https_proxy"
        if host in LOCAL_HOSTS or proxy_bypass(host):
            return None
    else:
        url, named_by = "" if option == NO_PROXY else option, "--proxy"
    if not url:
        return None
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port or 80
    except ValueError:
        port = 0
    if parts.scheme != "http" or not parts.hostname or not port:
        raise ConfigError(f"{named_by} names no HTTP proxy; write http://HOST:PORT, or none")
    user = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else ""
    authorization = f"Basic {base64.b64encode(user.encode()).decode()}" if user else ""
    return Proxy(parts.hostname, port, named_by, parts.geturl(), authorization)


def dial(host: str, port: int, proxy: Proxy | None, seconds: float) -> socket.socket:
    """A connection to a host, through the proxy where there is one.

    Raises:
        ProxyError: the proxy is to blame; names it.
        OSError: the host is.
    """
    if proxy is None:
        return socket.create_connection((host, port), timeout=seconds)
    connection = HTTPConnection(proxy.host, proxy.port, timeout=seconds)
    connection.set_tunnel(host, port, {"Proxy-Authorization": proxy.authorization} if proxy.authorization else {})
    try:
        connection.connect()
    except (OSError, HTTPException) as error:
        connection.close()
        why = str(getattr(error, "strerror", None) or error) or type(error).__name__
        raise ProxyError(f"the {proxy} does not let this site out ({why})") from None
    return connection.sock
