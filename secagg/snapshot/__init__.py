"""Sessions that outlive their process: what a party holds between two steps, sealed under its own key.

For systems that run one process a message. A client's snapshot is used once, on the store that it was made with, so
that no message is answered twice; a server's is a copy that it goes on from after a crash. Nothing here touches a file,
and nothing is pickled: the encoding is the canonical one of this package, with a version. Must never: write down an
update that is not masked. Specification: docs/spec.md, section "Sessions on a disk".
"""

from secagg.snapshot.client import resume, suspend
from secagg.snapshot.server import resume_server, snapshot_server

__all__ = ["resume", "resume_server", "snapshot_server", "suspend"]
