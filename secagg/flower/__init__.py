"""secagg inside Flower: one line at the clients, one at the server, and the strategies stay as they are.

A client's line is ``ClientApp(mods=[secagg_mod()])``, the server's ``SecAggGrid(grid, context, "server")``.
Each node's keys, roster, policy and marks come from its own folder (`secagg.home`), never from the app that the server
ships. docs/howto/flower.md says what that stops, and what a server that ships code can still do.
"""

try:
    import flwr  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"secagg.flower needs {error.name}, which is not installed; run: pip install 'secagg[flower]'", name=error.name
    ) from None

from secagg.flower.grid import SecAggGrid
from secagg.flower.mod import secagg_mod
from secagg.flower.records import arrays_in

__all__ = ["SecAggGrid", "arrays_in", "secagg_mod"]
