"""Prompt safety that reads a language model's own hidden states.

The one public namespace. Every name is loaded at its first use, so that `import mlpm_guard` costs milliseconds and does not
import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mlpm_guard.answers import Generation
    from mlpm_guard.category_policy import CategoryPolicy
    from mlpm_guard.comparing import Diff, Flip
    from mlpm_guard.conversation import Conversation, Message
    from mlpm_guard.drift import Drift, DriftMonitor
    from mlpm_guard.encoders.base import Encoder, EncoderIdentity
    from mlpm_guard.encoders.transformer import TransformerEncoder
    from mlpm_guard.errors import (
        AdapterError,
        Blocked,
        BundleCorruptError,
        BundleError,
        BundleMismatchError,
        BundleNotFoundError,
        BundleSaveError,
        BundleSchemaError,
        CategoryError,
        ConfigurationError,
        ContradictoryLabelsError,
        DataError,
        EmptyInputError,
        EncoderError,
        EncoderLoadError,
        GuardTimeoutError,
        InputError,
        InputTooLongError,
        InvalidConversationError,
        MlpmGuardError,
        NonFiniteError,
        NotFittedError,
        PromptBlocked,
        ReportSaveError,
        ResponseBlocked,
        UnknownPromptError,
        UnsupportedArchitectureError,
        WeightsMismatchError,
    )
    from mlpm_guard.explanation import (
        CategoryContribution,
        CategoryEvidence,
        Explanation,
        LayerDistance,
        PrototypeDistance,
        WindowExplanation,
    )
    from mlpm_guard.generation import GuardedGenerator
    from mlpm_guard.guard import Guard
    from mlpm_guard.prototypes.classifier import PrototypeClassifier
    from mlpm_guard.review import Review
    from mlpm_guard.rules import Rules
    from mlpm_guard.streaming import AsyncModeratedStream, ModeratedStream, StreamModerator
    from mlpm_guard.verdict import Action, LayerEvidence, RuleMatch, Verdict, WindowEvidence

_HOME = {
    "Action": "verdict",
    "AdapterError": "errors",
    "AsyncModeratedStream": "streaming",
    "Blocked": "errors",
    "BundleCorruptError": "errors",
    "BundleError": "errors",
    "BundleMismatchError": "errors",
    "BundleNotFoundError": "errors",
    "BundleSaveError": "errors",
    "BundleSchemaError": "errors",
    "CategoryContribution": "explanation",
    "CategoryError": "errors",
    "CategoryEvidence": "explanation",
    "CategoryPolicy": "category_policy",
    "ConfigurationError": "errors",
    "ContradictoryLabelsError": "errors",
    "Conversation": "conversation",
    "DataError": "errors",
    "Diff": "comparing",
    "Drift": "drift",
    "DriftMonitor": "drift",
    "EmptyInputError": "errors",
    "Encoder": "encoders.base",
    "EncoderError": "errors",
    "EncoderIdentity": "encoders.base",
    "EncoderLoadError": "errors",
    "Explanation": "explanation",
    "Flip": "comparing",
    "Generation": "answers",
    "Guard": "guard",
    "GuardTimeoutError": "errors",
    "GuardedGenerator": "generation",
    "InputError": "errors",
    "InputTooLongError": "errors",
    "InvalidConversationError": "errors",
    "LayerDistance": "explanation",
    "LayerEvidence": "verdict",
    "Message": "conversation",
    "MlpmGuardError": "errors",
    "ModeratedStream": "streaming",
    "NonFiniteError": "errors",
    "NotFittedError": "errors",
    "PromptBlocked": "errors",
    "PrototypeClassifier": "prototypes.classifier",
    "PrototypeDistance": "explanation",
    "ReportSaveError": "errors",
    "ResponseBlocked": "errors",
    "Review": "review",
    "RuleMatch": "verdict",
    "Rules": "rules",
    "StreamModerator": "streaming",
    "TransformerEncoder": "encoders.transformer",
    "UnknownPromptError": "errors",
    "UnsupportedArchitectureError": "errors",
    "Verdict": "verdict",
    "WeightsMismatchError": "errors",
    "WindowEvidence": "verdict",
    "WindowExplanation": "explanation",
}

__all__ = [
    "Action",
    "AdapterError",
    "AsyncModeratedStream",
    "Blocked",
    "BundleCorruptError",
    "BundleError",
    "BundleMismatchError",
    "BundleNotFoundError",
    "BundleSaveError",
    "BundleSchemaError",
    "CategoryContribution",
    "CategoryError",
    "CategoryEvidence",
    "CategoryPolicy",
    "ConfigurationError",
    "ContradictoryLabelsError",
    "Conversation",
    "DataError",
    "Diff",
    "Drift",
    "DriftMonitor",
    "EmptyInputError",
    "Encoder",
    "EncoderError",
    "EncoderIdentity",
    "EncoderLoadError",
    "Explanation",
    "Flip",
    "Generation",
    "Guard",
    "GuardTimeoutError",
    "GuardedGenerator",
    "InputError",
    "InputTooLongError",
    "InvalidConversationError",
    "LayerDistance",
    "LayerEvidence",
    "Message",
    "MlpmGuardError",
    "ModeratedStream",
    "NonFiniteError",
    "NotFittedError",
    "PromptBlocked",
    "PrototypeClassifier",
    "PrototypeDistance",
    "ReportSaveError",
    "ResponseBlocked",
    "Review",
    "RuleMatch",
    "Rules",
    "StreamModerator",
    "TransformerEncoder",
    "UnknownPromptError",
    "UnsupportedArchitectureError",
    "Verdict",
    "WeightsMismatchError",
    "WindowEvidence",
    "WindowExplanation",
    "__version__",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
