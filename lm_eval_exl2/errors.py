"""The errors a user can meet, each also a standard class that callers already catch.

Every text says what was found, what was expected and what to do. Errors carry one plain string,
so they survive pickling between processes. This module imports nothing.
"""


class Exl2EvalError(Exception):
    """Base of all errors this package raises on purpose."""


class OptionError(Exl2EvalError, ValueError):
    """A model argument or command line option is unknown, malformed or contradicts another."""


class MissingDependencyError(Exl2EvalError, ImportError):
    """An optional package is needed and not installed."""


class ModelFormatError(Exl2EvalError, ValueError):
    """A checkpoint is damaged, incomplete or of a kind that cannot be evaluated exactly."""


class RequestError(Exl2EvalError, ValueError):
    """A request of the harness cannot be answered as it stands (too long, not supported)."""


class CacheMismatchError(Exl2EvalError, ValueError):
    """A response cache holds answers of another checkpoint, tokenizer or set of options."""


class CacheWriteError(Exl2EvalError, OSError):
    """A response cache cannot be read or written: no room, no permission, no such folder."""


class ResultsError(Exl2EvalError, RuntimeError):
    """A run is over and its results or samples are not on disk as they should be."""


class EngineMemoryError(Exl2EvalError, RuntimeError):
    """A step did not fit into memory, even as small as it can be made."""


class ReplicaError(Exl2EvalError, RuntimeError):
    """Replicas cannot be started, do not hold the same model, or keep failing."""


class ScoreError(Exl2EvalError, RuntimeError):
    """The model produced something that must not become a score (NaN, infinity)."""


class SandboxError(Exl2EvalError, RuntimeError):
    """Model-written programs cannot be run here in a sandbox that holds what it must."""


class ComparisonError(Exl2EvalError, ValueError):
    """Two runs cannot be compared: nothing in common, contradictory or damaged result files."""


class TaskLeftOutError(ComparisonError):
    """One task cannot be compared; the others can."""


class UnknownRuleError(TaskLeftOutError):
    """No rule known here gives a task's score from its samples, so nothing can be paired."""
