"""guard_chain: input and output safety around any runnable. Guards decide."""

from __future__ import annotations

import copy
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.caches import BaseCache
from langchain_core.callbacks import AsyncCallbackManagerForChainRun, BaseCallbackHandler, CallbackManagerForChainRun
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.prompt_values import ChatPromptValue
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable
from langchain_core.runnables.config import patch_config
from langchain_core.runnables.fallbacks import RunnableWithFallbacks
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SkipValidation

from langchain_mlpm_guard.answers import AsyncReleased, Moderator, Released
from langchain_mlpm_guard.batches import Batch
from langchain_mlpm_guard.configuration import checked
from langchain_mlpm_guard.errors import GuardBypassWarning
from langchain_mlpm_guard.judging import Judge, OnReview, Stage, atell, is_guard, stops, tell
from langchain_mlpm_guard.messages import Turns, conversation, prompt_messages, prompt_turns
from langchain_mlpm_guard.outcomes import Failure, MessageRefusal, Telling, acaught, caught, models_in, readable, stand_in, told
from langchain_mlpm_guard.refusals import metadata, refusal_chunk, refusal_message, without_blocked
from langchain_mlpm_guard.retrying import warn_of_fallbacks
from langchain_mlpm_guard.silence import HeldCache, Silence
from langchain_mlpm_guard.stopping import Stopper, astoppable, stoppable
from mlpm_guard.errors import ConfigurationError, MlpmGuardError
from mlpm_guard.verdict import Verdict

_STREAM_OF_PARENT = "__pregel_stream"
_NO_REFUSAL = object()


def guard_chain(
    chain: Runnable[Any, Any],
    *,
    guard: Any = None,
    moderator: Any = None,
    refusal: Any = None,
    input_key: str | None = None,
    on_review: OnReview = "pass",
    trace_inner: bool = False,
    stream_options: Mapping[str, Any] | None = None,
) -> GuardedChain:
    """Put a gate before a runnable and moderation behind it.

    Nothing is raised on a block: the refusal comes in the chain's own output type, in invoke, batch, stream and their async
    twins. A batch is one call of the guard for its prompts and one for its answers. Verdicts are told to callbacks as the
    custom event "mlpm_guard", and in `response_metadata` of messages; neither holds text.

    Where a conversation is kept, prompts that were blocked in earlier turns are empty places in the messages that the chain is
    given; the refusals behind them tell so.

    The chain within runs out of sight by default: callbacks, tracers, `astream_events` and LangGraph's streams hear of this
    run alone, as what a model within says is not judged yet. An LLM cache keeps only what was let through. Handlers that were
    given to a model's own constructor are not cut off, which a warning tells, nor is `set_debug`.

    Args:
        chain: any runnable whose output is text, messages, or data made of mappings, sequences and models.
        guard: judges prompts: a `Guard` with `target="prompt"`; None lets all prompts pass.
        moderator: judges answers: a `Guard` with `target="response"`; None lets all answers pass.
        refusal: what comes instead of what was blocked: a text, which becomes a message where the chain gives messages; a value
            of the chain's output type; or a function from the verdict to one. Needed where the chain's output type is neither
            text, nor a message, nor a list.
        input_key: which entry of a mapping holds the prompt; not needed for a mapping with one entry.
        on_review: what to do with a prompt whose action is "review": "pass" or "block".
        trace_inner: let callbacks, tracers and event streams see the chain within: raw answers too, before they are judged.
        stream_options: of the `StreamModerator` that streams go through (`hold_back`, `every`, `context`, `unit`).

    Raises:
        ConfigurationError: neither guard nor moderator is given, one has the wrong target, or a refusal is needed.
    """
    return GuardedChain(
        chain=chain,
        guard=guard,
        moderator=moderator,
        refusal=refusal,
        input_key=input_key,
        on_review=on_review,
        trace_inner=trace_inner,
        stream_options=dict(stream_options or {}),
    )


class GuardedChain(RunnableSerializable[Any, Any]):
    """What `guard_chain` returns; see there."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    chain: SkipValidation[Any] = Field(exclude=True, repr=False)
    guard: SkipValidation[Any] = Field(default=None, exclude=True)
    moderator: SkipValidation[Any] = Field(default=None, exclude=True)
    refusal: SkipValidation[Any] = Field(default=None, exclude=True)
    input_key: str | None = None
    on_review: OnReview = "pass"
    trace_inner: bool = False
    stream_options: Mapping[str, Any] = Field(default_factory=dict)

    guards_answers: bool = Field(default=True, init=False, exclude=True)

    _judge: Judge | None = PrivateAttr(default=None)
    _moderator: Moderator | None = PrivateAttr(default=None)
    _stand_in: Any = PrivateAttr(default=_NO_REFUSAL)

    def __init__(self, **options: Any) -> None:
        with checked(self):
            super().__init__(**options)

    def model_post_init(self, context: Any, /) -> None:
        """Check the options."""
        super().model_post_init(context)
        if self.guard is None and self.moderator is None:
            raise ConfigurationError("pass guard=, which judges prompts, or moderator=, which judges answers, or both")
        if self.guard is not None:
            is_guard(self.guard, "prompt", "guard")
            self._judge = Judge(self.guard)
        if self.moderator is not None:
            is_guard(self.moderator, "response", "moderator")
            self._moderator = Moderator(self.moderator, self.stream_options)
        self._stand_in = stand_in(self.chain, self.refusal)
        for model in models_in(self.chain):
            if model.callbacks and self.moderator is not None and not self.trace_inner:
                warnings.warn(
                    "a model in the chain has callbacks of its own, which hear its answers before they are judged: pass "
                    "callbacks in the config of a call instead",
                    GuardBypassWarning,
                    stacklevel=4,
                )
            if isinstance(model.cache, BaseCache) and not isinstance(model.cache, HeldCache):
                model.cache = HeldCache(model.cache)

    # -- one input ----------------------------------------------------------------------------------------------------------

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002
        """The chain's output, or the refusal.

        Raises:
            InvalidConversationError: there is no prompt in the input, or something in the output cannot be read.
        """

        def work(value: Any, run_manager: CallbackManagerForChainRun, config: RunnableConfig) -> Any:
            value = self._shown(value)
            prompt, asked = self._read(value)
            verdict = self._judge.worst([prompt])[0] if self._judge else None
            tell(run_manager, config, verdict, "prompt", blocked=stops(verdict, self.on_review))
            if verdict is not None and stops(verdict, self.on_review):
                return self._refused(verdict, "prompt")
            silence = self._silence()
            inner = self._inner(config, run_manager.get_child())
            output = caught(lambda: silence.run(lambda: self.chain.invoke(value, inner, **kwargs)))
            judged = self._moderator.check([asked], [readable(output)])[0] if self._moderator else None
            tell(run_manager, config, judged, "response", blocked=stops(judged))
            if judged is not None and stops(judged):
                return self._refused(judged, "response", output)
            if isinstance(output, Failure):
                raise output.error
            silence.release()
            return told(output, verdict, judged)

        return self._call_with_config(work, input, config)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002
        """`invoke` without blocking the event loop."""

        async def work(value: Any, run_manager: AsyncCallbackManagerForChainRun, config: RunnableConfig) -> Any:
            value = self._shown(value)
            prompt, asked = self._read(value)
            verdict = (await self._judge.aworst([prompt]))[0] if self._judge else None
            await atell(run_manager, config, verdict, "prompt", blocked=stops(verdict, self.on_review))
            if verdict is not None and stops(verdict, self.on_review):
                return self._refused(verdict, "prompt")
            silence = self._silence()
            inner = self._inner(config, run_manager.get_child())
            output = await acaught(silence.arun(lambda: self.chain.ainvoke(value, inner, **kwargs)))
            judged = (await self._moderator.acheck([asked], [readable(output)]))[0] if self._moderator else None
            await atell(run_manager, config, judged, "response", blocked=stops(judged))
            if judged is not None and stops(judged):
                return self._refused(judged, "response", output)
            if isinstance(output, Failure):
                raise output.error
            await silence.arelease()
            return told(output, verdict, judged)

        return await self._acall_with_config(work, input, config)

    # -- many ---------------------------------------------------------------------------------------------------------------

    def batch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any | None,
    ) -> list[Any]:
        """Outputs or refusals, in order; prompts are judged in one call, and answers in one."""

        def work(values: list[Any], run_manager: list[CallbackManagerForChainRun], config: list[RunnableConfig]) -> list[Any]:
            values = [self._shown(value) for value in values]
            batch = Batch(self, values)
            batch.gated(self._judge.worst(batch.prompts) if self._judge else [None] * len(batch.prompts))
            for index, verdict in batch.verdicts.items():
                tell(run_manager[index], config[index], verdict, "prompt", blocked=stops(verdict, self.on_review))
            silence = self._silence()
            configs = [self._inner(config[index], run_manager[index].get_child()) for index in batch.open]
            asked = [values[index] for index in batch.open]
            outputs = silence.run(lambda: self.chain.batch(asked, configs, return_exceptions=True, **kwargs)) if asked else []
            batch.answered(outputs)
            judged = self._moderator.check(*batch.to_judge) if self._moderator else [None] * len(batch.open)
            for index, verdict in batch.moderated(judged).items():
                tell(run_manager[index], config[index], verdict, "response", blocked=stops(verdict))
            if not batch.blocked:
                silence.release()
            return batch.results

        return self._batch_with_config(work, inputs, config, return_exceptions=return_exceptions)

    async def abatch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any | None,
    ) -> list[Any]:
        """`batch` without blocking the event loop."""

        async def work(
            values: list[Any], run_manager: list[AsyncCallbackManagerForChainRun], config: list[RunnableConfig]
        ) -> list[Any]:
            values = [self._shown(value) for value in values]
            batch = Batch(self, values)
            batch.gated(await self._judge.aworst(batch.prompts) if self._judge else [None] * len(batch.prompts))
            for index, verdict in batch.verdicts.items():
                await atell(run_manager[index], config[index], verdict, "prompt", blocked=stops(verdict, self.on_review))
            silence = self._silence()
            configs = [self._inner(config[index], run_manager[index].get_child()) for index in batch.open]
            asked = [values[index] for index in batch.open]
            outputs = (
                await silence.arun(lambda: self.chain.abatch(asked, configs, return_exceptions=True, **kwargs)) if asked else []
            )
            batch.answered(outputs)
            judged = await self._moderator.acheck(*batch.to_judge) if self._moderator else [None] * len(batch.open)
            for index, verdict in batch.moderated(judged).items():
                await atell(run_manager[index], config[index], verdict, "response", blocked=stops(verdict))
            if not batch.blocked:
                await silence.arelease()
            return batch.results

        return await self._abatch_with_config(work, inputs, config, return_exceptions=return_exceptions)

    # -- streams ------------------------------------------------------------------------------------------------------------

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any | None) -> Iterator[Any]:  # noqa: A002
        """The chain's chunks as they are released. What is neither text nor a message waits for the end."""

        def work(_: Iterator[Any], run_manager: CallbackManagerForChainRun, config: RunnableConfig) -> Iterator[Any]:
            value = self._shown(input)
            prompt, asked = self._read(value)
            verdict = self._judge.worst([prompt])[0] if self._judge else None
            tell(run_manager, config, verdict, "prompt", blocked=stops(verdict, self.on_review))
            if verdict is not None and stops(verdict, self.on_review):
                yield self._refused(verdict, "prompt", chunk=True)
                return
            silence, stopper = self._silence(), Stopper()
            inner = self._inner(config, run_manager.get_child(), stopper)
            source = stoppable(silence.iterate(lambda: self.chain.stream(value, inner, **kwargs)), stopper)
            if self._moderator is None:
                telling = Telling(verdict)
                for chunk in source:
                    yield telling.passed(chunk)
                silence.release()
                yield from telling.ending()
                return
            released = self._moderator.stream(asked, source)
            try:
                yield from released
            except MlpmGuardError:
                raise
            except Exception as error:
                released.failed(self._moderator.check([asked], [readable(Failure(error))])[0])
                if not released.blocked:
                    raise
            tell(run_manager, config, released.verdict, "response", blocked=released.blocked)
            if not released.blocked:
                silence.release()
            yield from self._ending(released, verdict)

        yield from self._transform_stream_with_config(iter([input]), work, config)

    async def astream(
        self,
        input: Any,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any | None,
    ) -> AsyncIterator[Any]:
        """`stream` for event loops."""

        async def work(
            _: AsyncIterator[Any], run_manager: AsyncCallbackManagerForChainRun, config: RunnableConfig
        ) -> AsyncIterator[Any]:
            value = self._shown(input)
            prompt, asked = self._read(value)
            verdict = (await self._judge.aworst([prompt]))[0] if self._judge else None
            await atell(run_manager, config, verdict, "prompt", blocked=stops(verdict, self.on_review))
            if verdict is not None and stops(verdict, self.on_review):
                yield self._refused(verdict, "prompt", chunk=True)
                return
            silence, stopper = self._silence(), Stopper()
            inner = self._inner(config, run_manager.get_child(), stopper)
            source = astoppable(silence.aiterate(lambda: self.chain.astream(value, inner, **kwargs)), stopper)
            if self._moderator is None:
                telling = Telling(verdict)
                async for chunk in source:
                    yield telling.passed(chunk)
                await silence.arelease()
                for chunk in telling.ending():
                    yield chunk
                return
            released = self._moderator.astream(asked, source)
            try:
                async for chunk in released:
                    yield chunk
            except MlpmGuardError:
                raise
            except Exception as error:
                released.failed((await self._moderator.acheck([asked], [readable(Failure(error))]))[0])
                if not released.blocked:
                    raise
            await atell(run_manager, config, released.verdict, "response", blocked=released.blocked)
            if not released.blocked:
                await silence.arelease()
            for chunk in self._ending(released, verdict):
                yield chunk

        async def one() -> AsyncIterator[Any]:
            yield input

        async for chunk in self._atransform_stream_with_config(one(), work, config):
            yield chunk

    # -- what LangChain asks ------------------------------------------------------------------------------------------------

    @property
    def InputType(self) -> Any:  # noqa: N802
        """That of the chain."""
        return self.chain.InputType

    @property
    def OutputType(self) -> Any:  # noqa: N802
        """That of the chain."""
        return self.chain.OutputType

    def get_input_schema(self, config: RunnableConfig | None = None) -> type[BaseModel]:
        """That of the chain."""
        return self.chain.get_input_schema(config)  # type: ignore[no-any-return]

    def get_output_schema(self, config: RunnableConfig | None = None) -> type[BaseModel]:
        """That of the chain."""
        return self.chain.get_output_schema(config)  # type: ignore[no-any-return]

    def with_fallbacks(self, fallbacks: Sequence[Runnable[Any, Any]], **kwargs: Any) -> RunnableWithFallbacks[Any, Any]:
        """As for any runnable; warns of fallbacks that no guard stands in front of."""
        if not all(getattr(each, "guards_answers", False) for each in fallbacks):
            warn_of_fallbacks("guard_chain(chain.with_fallbacks([other]), ...)")
        return super().with_fallbacks(fallbacks, **kwargs)

    # -- how ----------------------------------------------------------------------------------------------------------------

    def _read(self, value: Any) -> tuple[list[Turns], Turns]:
        """What is judged of an input, and what an answer to it is judged with."""
        try:
            messages = prompt_messages(value, self.input_key)
        except MlpmGuardError:
            if self.guard is not None:
                raise
            return [], []
        return prompt_turns(messages), conversation(messages)

    def _shown(self, value: Any) -> Any:
        """The input without prompts that were blocked in earlier turns; the same object where there are none."""
        if isinstance(value, Mapping) and not isinstance(value, BaseMessage):
            found = {key: self._shown(each) for key, each in value.items() if isinstance(each, (list, tuple))}
            changed = {key: each for key, each in found.items() if each is not value[key]}
            return {**value, **changed} if changed else value
        messages = value.messages if isinstance(value, ChatPromptValue) else value
        if not isinstance(messages, (list, tuple)) or not any(isinstance(each, AIMessage) for each in messages):
            return value
        if not all(isinstance(each, BaseMessage) for each in messages):
            return value
        kept = without_blocked(messages)
        if all(each is message for each, message in zip(kept, messages, strict=True)):
            return value
        return ChatPromptValue(messages=kept) if isinstance(value, ChatPromptValue) else kept

    def _silence(self) -> Silence:
        return Silence(mute=not self.trace_inner)

    def _inner(self, config: RunnableConfig, child: Any, stopper: BaseCallbackHandler | None = None) -> RunnableConfig:
        """The configuration for the chain within: everything but who listens."""
        if self.trace_inner:
            callbacks: Any = child
            if stopper is not None:
                callbacks.add_handler(stopper)
        else:
            callbacks = [] if stopper is None else [stopper]
        inner = patch_config(config, callbacks=callbacks)
        inner.pop("run_name", None)
        inner.pop("run_id", None)
        known = inner.get("configurable") or {}
        if not self.trace_inner and _STREAM_OF_PARENT in known:
            # By it a graph within would put its raw state into the stream of the graph around.
            inner["configurable"] = {name: value for name, value in known.items() if name != _STREAM_OF_PARENT}
        return inner

    def _refused(self, verdict: Verdict, stage: Stage, output: Any = None, *, chunk: bool = False) -> Any:
        if isinstance(self._stand_in, MessageRefusal):
            usage = output.usage_metadata if isinstance(output, AIMessage) else None
            name = output.id if isinstance(output, AIMessage) else None
            make: Callable[..., Any] = refusal_chunk if chunk else refusal_message
            return make(self._stand_in.text, verdict, stage, usage=usage, id=name)
        # A copy: whoever gets it may change it, as graphs do with a message's id.
        return self._stand_in(verdict) if callable(self._stand_in) else copy.deepcopy(self._stand_in)

    def _ending(self, released: Released | AsyncReleased, prompt: Verdict | None) -> Iterator[Any]:
        verdict = released.verdict
        if released.blocked and verdict is not None:
            if released.as_message and isinstance(self._stand_in, MessageRefusal):
                yield refusal_chunk(self._stand_in.text, verdict, "response", usage=released.usage, id=released.id)
            else:
                yield self._refused(verdict, "response", chunk=True)
        elif released.as_message:
            found = metadata(prompt, verdict, released.within)
            yield AIMessageChunk(content="", id=released.id, response_metadata=found, chunk_position="last")
