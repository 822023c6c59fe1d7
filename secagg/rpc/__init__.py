"""Transport and durable storage around the sans-I/O core: gRPC mailbox, TLS files, SQLite marks."""

import os

# Before grpc is loaded, which otherwise writes every failed connection attempt to stderr; we say it in one sentence.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
