"""Every exception of the library. Imports nothing of it, so that every other module may.

An error says what was wrong and what to do. It carries objects (a verdict, a path, indices), never the text that was judged.

    MlpmGuardError
    ├── ConfigurationError            an option has a bad value                          (ValueError)
    ├── InputError                    a conversation cannot be judged                    (ValueError)
    │   ├── InvalidConversationError  not a string or a list of role/content messages
    │   ├── EmptyInputError           holds no text to judge
    │   └── InputTooLongError         longer than the documented limit
    ├── DataError                     training or evaluation data cannot be used         (ValueError)
    │   ├── ContradictoryLabelsError  the same prompt with both labels
    │   └── UnknownPromptError        asked to forget a prompt that was never learned
    ├── CategoryError                 a category's name, examples or settings are wrong  (ValueError)
    ├── NotFittedError                a guard was asked before it was fitted             (ValueError, AttributeError)
    ├── EncoderError                  an encoder failed                                  (RuntimeError)
    │   ├── UnsupportedArchitectureError
    │   ├── EncoderLoadError          weights or tokenizer could not be loaded           (OSError)
    │   ├── WeightsMismatchError      a weight file is not the one that was pinned
    │   ├── AdapterError              an adapter cannot be merged into the model         (ValueError)
    │   └── NonFiniteError            a state or score is NaN or infinite
    ├── GuardTimeoutError             no verdict within the time-out                     (TimeoutError)
    ├── BundleError                   a saved guard                                      (ValueError)
    │   ├── BundleNotFoundError                                                          (FileNotFoundError)
    │   ├── BundleCorruptError        missing, truncated or altered files
    │   ├── BundleSchemaError         written in a format this version does not read
    │   ├── BundleMismatchError       fitted for another encoder
    │   └── BundleSaveError           could not be written; what was there is untouched  (OSError)
    ├── ReportSaveError               an evaluation report could not be written          (OSError)
    └── Blocked                       raised by `enforce` and by gates; carries the verdict
        ├── PromptBlocked
        └── ResponseBlocked
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlpm_guard.verdict import Verdict


class MlpmGuardError(Exception):
    """Base of every error that this library raises on purpose."""


class ConfigurationError(MlpmGuardError, ValueError):
    """An option has a value that makes no sense; the message names the option and its choices."""


class InputError(MlpmGuardError, ValueError):
    """A conversation cannot be judged. `kind` is what `Verdict.error` holds when no exception is raised."""

    kind = "invalid_input"


class InvalidConversationError(InputError):
    """Not a string, nor a list of messages with a known role and text content."""


class EmptyInputError(InputError):
    """The conversation holds no text to judge (empty, blank, or made of parts that are not text)."""

    kind = "empty_input"


class InputTooLongError(InputError):
    """The text is longer than the guard's documented limit, or than an encoder can read at once."""

    kind = "too_long"


class DataError(MlpmGuardError, ValueError):
    """Training or evaluation data cannot be used; the message says which row and why."""


class ContradictoryLabelsError(DataError):
    """The same prompt was given with both labels, or in two categories.

    Attributes:
        rows: the positions of the two, from 0, the earlier one first.
    """

    def __init__(self, message: str, rows: tuple[int, int]) -> None:
        super().__init__(message)
        self.rows = rows

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.rows)


class UnknownPromptError(DataError):
    """Asked to forget prompts that were never learned under that label.

    Attributes:
        indices: positions of those prompts in the call.
    """

    def __init__(self, message: str, indices: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.indices = tuple(indices)


class CategoryError(MlpmGuardError, ValueError):
    """A category cannot be learned, added, removed or set; the message says which and why."""


class NotFittedError(MlpmGuardError, ValueError, AttributeError):
    """Scores were asked of a guard or classifier that has not been fitted (enough) yet."""


class EncoderError(MlpmGuardError, RuntimeError):
    """An encoder failed to turn a conversation into layer states."""

    kind = "encoder_error"


class UnsupportedArchitectureError(EncoderError):
    """The blocks of this model cannot be found or hooked; the message says what to pass instead."""


class EncoderLoadError(EncoderError, OSError):
    """Weights or tokenizer could not be loaded; the message says how to get them."""


class WeightsMismatchError(EncoderError):
    """A weight file's SHA-256 is not the pinned one. The file is not used."""


class AdapterError(EncoderError, ValueError):
    """A low-rank adapter is damaged, or belongs to another model. The encoder is not used without it."""


class NonFiniteError(EncoderError):
    """A layer state or a score is NaN or infinite."""

    kind = "non_finite"


class GuardTimeoutError(MlpmGuardError, TimeoutError):
    """No verdict within the guard's time-out."""

    kind = "timeout"


class BundleError(MlpmGuardError, ValueError):
    """Base of everything that can be wrong with a saved guard."""

    def __init__(self, message: str, path: str | Path | None = None) -> None:
        super().__init__(message)
        self.path = None if path is None else Path(path)


class BundleNotFoundError(BundleError, FileNotFoundError):
    """There is no bundle at that path, or of that name."""


class BundleCorruptError(BundleError):
    """A file of the bundle is missing, truncated, altered, or holds values that cannot be."""


class BundleSchemaError(BundleError):
    """The bundle's schema version is one that this version of the library does not read."""


class BundleMismatchError(BundleError):
    """The bundle was fitted for another encoder; the message names what differs."""


class BundleSaveError(BundleError, OSError):
    """The bundle could not be written. Whatever stood at the path before is still there, whole."""


class ReportSaveError(MlpmGuardError, OSError):
    """An evaluation report could not be written. Whatever stood at the path before is still there, whole."""


class Blocked(MlpmGuardError):
    """A gate refused. Carries the verdict and never the text.

    Attributes:
        verdict: the `Verdict` that the gate acted on.
    """

    _what = "content"

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict)
        self.verdict = verdict

    def __str__(self) -> str:
        verdict = self.verdict
        if verdict.error is not None:
            return f"{self._what} blocked: it could not be judged ({verdict.error})"
        score = "unknown" if verdict.score is None else f"{verdict.score:.3f}"
        category = f", category {verdict.category}" if verdict.category else ""
        by = f", flagged by {', '.join(verdict.flagged_by)}" if verdict.flagged_by else ""
        return f"{self._what} blocked: score {score}, threshold {verdict.threshold:.3f}{category}{by}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.verdict,)


class PromptBlocked(Blocked):
    """A prompt was blocked before it reached the model."""

    _what = "prompt"


class ResponseBlocked(Blocked):
    """A model's answer was blocked before it reached the user."""

    _what = "response"
