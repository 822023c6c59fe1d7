"""Masks expanded on a Ray cluster: `ServerSession(..., executor=RayExecutor())`, the same bytes from more machines.

The vector is cut into ranges (`secagg.prg.apply_masks`); each range is a task, and the seeds lie in Ray's object store
once for all of them. So whoever can read that object store, or runs a task on the cluster, sees the seeds and the sum:
it is the server. What the server knows is the sum and the released secrets of one round, and no input.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

try:
    import ray
except ImportError:
    raise ImportError("secagg.ray needs Ray: pip install 'secagg[ray]'") from None


class RayExecutor:
    """An executor for either session (`secagg.prg.Executor`). Joins the cluster of this process, or starts a local one.

    Args:
        address: of a running cluster, as `ray.init` takes it; a local one where not given.
        options: of each task, as `ray.remote` takes them, such as ``num_cpus``.

    A cluster that loses a worker runs its task again: tasks have no effect but their result.
    """

    def __init__(self, address: str | None = None, **options: Any) -> None:
        if not ray.is_initialized():
            ray.init(address=address, include_dashboard=None if address else False, log_to_driver=False)
        self._task = ray.remote(**{"num_cpus": 1, "max_retries": 3, **options})(_call)

    def __repr__(self) -> str:
        return "<RayExecutor>"

    def map(self, function: Callable[..., Any], /, *iterables: Iterable[Any]) -> Iterator[Any]:
        """The function's results over the zipped iterables, in their order; every task is submitted at once.

        Raises:
            Exception: what a task raised, when its result is taken.
        """
        kept: dict[int, tuple[Any, Any]] = {}  # the object itself too, so that no other one can get its id meanwhile

        def put(argument: Any) -> Any:
            """A reference to what many calls share, sent once; anything else as it is."""
            if not isinstance(argument, tuple):
                return argument
            if id(argument) not in kept:
                kept[id(argument)] = (argument, ray.put(argument))
            return kept[id(argument)][1]

        results = [self._task.remote(function, *map(put, arguments)) for arguments in zip(*iterables, strict=False)]
        return map(ray.get, results)


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)
