"""What a federation's processes raise beside the errors of the protocol."""

from secagg.errors import SecAggError


class DialogueError(SecAggError):
    """The other side said something around the protocol that cannot be read or is not true; it was ignored."""


class RunFailedError(SecAggError):
    """The run ended before it was complete; says why, and what to do."""


class StoppedError(SecAggError):
    """The operator ended this process, not the run: the same command goes on with it."""
