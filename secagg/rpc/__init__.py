"""Transport around the sans-I/O core: a gRPC mailbox over mutual TLS, and its certificates."""

import os

# Before grpc is loaded, which otherwise writes every failed connection attempt to stderr; we say it in one sentence.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

try:
    import grpc  # noqa: F401
    import grpc_health  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"secagg.rpc needs {error.name}, which is not installed; run: pip install 'secagg[rpc]'", name=error.name
    ) from None
