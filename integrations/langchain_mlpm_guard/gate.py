"""PromptGate: a step of a chain that lets prompts through unchanged, or raises. Holds no moderation logic; a guard decides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from langchain_core.callbacks import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.load.serializable import SerializedConstructor, SerializedNotImplemented
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable
from langchain_core.runnables.fallbacks import RunnableWithFallbacks
from langchain_core.runnables.utils import Input, Output
from pydantic import ConfigDict, Field, SkipValidation, model_validator

from langchain_mlpm_guard.configuration import checked
from langchain_mlpm_guard.errors import GuardBypassWarning, PromptBlockedError, ResponseBlockedError
from langchain_mlpm_guard.judging import Judge, OnReview, atell, is_guard, stops, tell
from langchain_mlpm_guard.messages import Turns, prompt_messages, prompt_turns
from langchain_mlpm_guard.retrying import BlocksOnce, GatedSequence, warn_of_fallbacks
from langchain_mlpm_guard.turnstile import turn
from mlpm_guard import guard as guards
from mlpm_guard.errors import BundleMismatchError, ConfigurationError, MlpmGuardError
from mlpm_guard.guard import Guard
from mlpm_guard.verdict import Mode, Verdict

__all__ = ["GuardBypassWarning", "PromptBlockedError", "PromptGate", "ResponseBlockedError"]

_Value = TypeVar("_Value")
_SHIPPED = Path(guards.__file__).parent / "bundles"


class PromptGate(BlocksOnce, RunnableSerializable[Any, Any]):
    """Passes its input on, the same object, or raises `PromptBlockedError`.

    `gate | prompt | model`: takes a string, a prompt value, a message, a list of messages, or a mapping. All new user messages
    and tool results are judged, in one call of the guard; a batch too is one call, and its blocked items reach no later step.
    Fails closed as its guard does.

    It raises, so what catches exceptions must stand behind it: `gate | model.with_fallbacks([other])`. In
    `(gate | model).with_fallbacks([other])` the other model answers what was blocked, unguarded, which a warning tells where
    the chain begins with the gate. `with_retry` of such a chain does not retry what was blocked; of a chain with a gate
    further in it asks the guard again, and no model behind it. `guard_chain` does not raise.

    Args:
        guard: a `Guard` with `target="prompt"`, or anything with its `check` or `acheck`.
        input_key: which entry of a mapping holds the prompt; not needed for a mapping with one entry.
        threshold: instead of the guard's own, from 0 to 1.
        mode: instead of the guard's own: "enforce", or "monitor", which judges and never blocks.
        on_review: what to do with an action of "review": "pass" or "block".
        bundle: a saved guard's name or folder, instead of `guard`; this is how a serialised gate finds its guard again.
        bundle_id: name and hash of the bundle that is expected there.
        on_error: of the guard that is loaded from `bundle`.
        timeout: of the guard that is loaded from `bundle`.
        max_chars: of the guard that is loaded from `bundle`.

    Raises:
        ConfigurationError: the guard judges answers, or an option has a bad value.
        BundleMismatchError: the bundle is not the one that `bundle_id` names.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    guard: SkipValidation[Any] = Field(default=None, exclude=True)
    input_key: str | None = None
    threshold: float | None = None
    mode: Mode | None = None
    on_review: OnReview = "pass"
    bundle: str | None = None
    bundle_id: str | None = None
    on_error: str | None = None
    timeout: float | None = None
    max_chars: int | None = None

    def __init__(self, guard: Any = None, **options: Any) -> None:
        with checked(self):
            super().__init__(guard=guard, **options)  # type: ignore[call-arg]

    @model_validator(mode="after")
    def _complete(self) -> PromptGate:
        if self.threshold is not None and not 0.0 <= self.threshold <= 1.0:
            raise ConfigurationError(f"threshold={self.threshold!r}: a probability from 0 to 1")
        if self.guard is None:
            if self.bundle is None:
                raise ConfigurationError("a gate needs a guard: pass guard=Guard.from_pretrained(), or bundle='default'")
            given = {"on_error": self.on_error, "timeout": self.timeout, "max_chars": self.max_chars}
            self.guard = Guard.from_pretrained(self.bundle, **{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]
            if self.bundle_id not in (None, self.guard.bundle_id):
                raise BundleMismatchError(
                    f"the gate was saved with the guard {self.bundle_id}; there is {self.guard.bundle_id}"
                )
        is_guard(self.guard, "prompt", "guard")
        return self

    # -- one prompt ---------------------------------------------------------------------------------------------------------

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002
        """The input itself.

        Raises:
            PromptBlockedError: it was blocked.
            InvalidConversationError: there is no prompt in it.
        """
        return self._call_with_config(self._invoke, input, config, **kwargs)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002
        """`invoke` without blocking the event loop; concurrent calls share the guard's forward passes."""
        await turn()
        return await self._acall_with_config(self._ainvoke, input, config, **kwargs)

    def _invoke(self, value: Any, run_manager: CallbackManagerForChainRun, config: RunnableConfig) -> Any:
        (verdict,) = self._judge().worst([self._turns(value)])
        tell(run_manager, config, verdict, "prompt", blocked=stops(verdict, self.on_review))
        return self._passed(value, verdict)

    async def _ainvoke(self, value: Any, run_manager: AsyncCallbackManagerForChainRun, config: RunnableConfig) -> Any:
        (verdict,) = await self._judge().aworst([self._turns(value)])
        await atell(run_manager, config, verdict, "prompt", blocked=stops(verdict, self.on_review))
        return self._passed(value, verdict)

    # -- many ---------------------------------------------------------------------------------------------------------------

    def batch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """The inputs themselves, judged in one call; with `return_exceptions` an error in the place of a blocked one."""
        return self._batch_with_config(self._batch, inputs, config, return_exceptions=return_exceptions, **kwargs)

    async def abatch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """`batch` without blocking the event loop."""
        return await self._abatch_with_config(self._abatch, inputs, config, return_exceptions=return_exceptions, **kwargs)

    def _batch(
        self, values: list[Any], run_manager: list[CallbackManagerForChainRun], config: list[RunnableConfig]
    ) -> list[Any]:
        groups = [self._turns_or_error(value) for value in values]
        verdicts = _with_errors(groups, self._judge().worst([each for each in groups if isinstance(each, list)]))
        for run, each, verdict in zip(run_manager, config, verdicts, strict=True):
            if not isinstance(verdict, MlpmGuardError):
                tell(run, each, verdict, "prompt", blocked=stops(verdict, self.on_review))
        return [self._passed_or_error(*each) for each in zip(values, verdicts, strict=True)]

    async def _abatch(
        self, values: list[Any], run_manager: list[AsyncCallbackManagerForChainRun], config: list[RunnableConfig]
    ) -> list[Any]:
        groups = [self._turns_or_error(value) for value in values]
        verdicts = _with_errors(groups, await self._judge().aworst([each for each in groups if isinstance(each, list)]))
        for run, each, verdict in zip(run_manager, config, verdicts, strict=True):
            if not isinstance(verdict, MlpmGuardError):
                await atell(run, each, verdict, "prompt", blocked=stops(verdict, self.on_review))
        return [self._passed_or_error(*each) for each in zip(values, verdicts, strict=True)]

    # -- what LangChain asks ------------------------------------------------------------------------------------------------

    @property
    def InputType(self) -> Any:  # noqa: N802
        """Text, messages, or a mapping."""
        return str | list[Any] | dict[str, Any]

    @property
    def OutputType(self) -> Any:  # noqa: N802
        """What came in."""
        return self.InputType

    def with_fallbacks(
        self, fallbacks: Sequence[Runnable[Input, Output]], **kwargs: Any
    ) -> RunnableWithFallbacks[Input, Output]:
        """As for any runnable; warns, because a fallback then takes what was blocked."""
        warn_of_fallbacks("gate | model.with_fallbacks([other])")
        return super().with_fallbacks(fallbacks, **kwargs)

    def __or__(self, other: Any) -> GatedSequence:
        return GatedSequence(self, other)

    def __ror__(self, other: Any) -> GatedSequence:
        return GatedSequence(other, self)

    def pipe(self, *others: Any, name: str | None = None) -> GatedSequence:
        """See `Runnable.pipe`."""
        return GatedSequence(self, *others, name=name)

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """A gate is, where its guard came from a bundle."""
        return True

    def to_json(self) -> SerializedConstructor | SerializedNotImplemented:
        """The gate as data that `langchain_core.load.load` reads, with its guard's bundle; otherwise why it is not."""
        bundle = getattr(self.guard, "_bundle", None)
        if bundle is None:
            refused = self.to_json_not_implemented()
            refused["repr"] = "PromptGate: its guard did not come from a bundle; save it with save_pretrained, and load it"
            return refused
        kept = {name: getattr(self.guard, name) for name in ("on_error", "timeout", "max_chars", "threshold", "mode")}
        own = {name: value for name, value in self if value is not None and name != "guard"}
        path = Path(bundle.path)
        kept["bundle"] = path.name if path.parent.resolve() == _SHIPPED.resolve() else str(path)
        kept["bundle_id"] = self.guard.bundle_id
        return {
            "lc": 1,
            "type": "constructor",
            "id": self.lc_id(),
            "kwargs": {name: value for name, value in {**kept, **own}.items() if value is not None},
        }

    # -- how ----------------------------------------------------------------------------------------------------------------

    def _judge(self) -> Judge:
        return Judge(self.guard, self.threshold, self.mode)

    def _turns(self, value: Any) -> list[Turns]:
        if isinstance(value, str) and self.input_key is None:
            return [[{"role": "user", "content": value}]]
        return prompt_turns(prompt_messages(value, self.input_key))

    def _turns_or_error(self, value: Any) -> list[Turns] | MlpmGuardError:
        try:
            return self._turns(value)
        except MlpmGuardError as error:
            return error

    def _passed(self, value: _Value, verdict: Verdict | None) -> _Value:
        if verdict is not None and stops(verdict, self.on_review):
            raise PromptBlockedError(verdict)
        return value

    def _passed_or_error(self, value: _Value, verdict: Verdict | MlpmGuardError | None) -> _Value | MlpmGuardError:
        if isinstance(verdict, MlpmGuardError):
            return verdict
        return PromptBlockedError(verdict) if verdict is not None and stops(verdict, self.on_review) else value


def _with_errors(groups: Sequence[object], verdicts: Sequence[Verdict | None]) -> list[Verdict | MlpmGuardError | None]:
    judged: Iterator[Verdict | None] = iter(verdicts)
    return [group if isinstance(group, MlpmGuardError) else next(judged) for group in groups]
