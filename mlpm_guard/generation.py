"""GuardedGenerator: a causal language model that judges what it is asked in the same forward pass that answers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList

from mlpm_guard.answers import AsyncGuardedStream, Generation, GuardedStream, Item
from mlpm_guard.background import Produce
from mlpm_guard.cancelling import Cancellation
from mlpm_guard.conversation import Conversation, ConversationLike, Message
from mlpm_guard.decoding import DecodeMonitor
from mlpm_guard.encoders.blocks import GenerationCapture, last_index
from mlpm_guard.encoders.transformer import TransformerEncoder
from mlpm_guard.errors import (
    BundleMismatchError,
    ConfigurationError,
    InputError,
    InputTooLongError,
    InvalidConversationError,
    MlpmGuardError,
)
from mlpm_guard.guard import Guard
from mlpm_guard.policy import DEFAULT_REFUSAL, Policy, worse
from mlpm_guard.prefill import BeginCall, NothingToAnswerError, PrefillGate, RetireRows, StopRows
from mlpm_guard.streaming import StreamModerator
from mlpm_guard.tokenstream import TokenStream
from mlpm_guard.tools import ToolUse, checked
from mlpm_guard.verdict import OnReview, Verdict

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_OURS = {
    "inputs": "the conversation is the first argument",
    "input_ids": "the conversation is the first argument",
    "inputs_embeds": "the conversation is the first argument",
    "attention_mask": "it follows from the conversation",
    "position_ids": "they follow from the conversation",
    "streamer": "use stream() or astream(), which release nothing before it was judged",
    "return_dict_in_generate": "the result is a Generation, and does not carry tensors of what was blocked",
    "custom_generate": "it need not choose tokens from logits, which is where the gate stands",
    "token_healing": "it changes the prompt after it was judged",
}


class Moderator(Protocol):
    """Judges conversations that end with the assistant: a guard with `target="response"`, or anything with its `check`."""

    def check(self, conversation: Any, /) -> Verdict:
        """Judge one conversation."""


@dataclass(frozen=True)
class _Call:
    """One call: its arguments, its tools, and who waits for it."""

    arguments: Mapping[str, Any]
    cancelled: threading.Event
    stream: TokenStream | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    must_call: tuple[str, ...] = ()


class GuardedGenerator:
    """Wraps a causal language model and a guard that was fitted on it.

    The prompt is judged by the states of `generate`'s own prefill, before the first token is chosen: no second model, no
    second forward pass. It is judged in one view, exactly as the model reads it. Answers to prompts that pass are those of
    plain `generate`, token by token. Holds configuration and weights only; safe to share between threads and tasks.

    Args:
        model: a loaded Hugging Face causal language model.
        tokenizer: its tokenizer.
        guard: a guard with `target="prompt"`, fitted on this model: `Guard(TransformerEncoder(model, tokenizer)).fit(...)`, or
            such a guard saved and loaded again.
        moderator: judges answers: a guard with `target="response"` on any encoder, or anything with the same `check`.
        refusal: what is said instead of a blocked answer.
        on_block: "replace" gives the refusal, "raise" raises `PromptBlocked` or `ResponseBlocked` (in a batch, for its first
            blocked row, and the other answers are lost).
        on_review: what an action of "review" does, on a prompt or on an answer: "pass", or "block".
        all_views: also judge the prompt as `Guard.check` does (last turn alone, normalised, in windows), which costs forward
            passes of its own; the worst view decides.
        moderation: where a moderator looks: "text" (the answer's text), "decode" (the states with which this model wrote it;
            the moderator must be fitted on this model), or "auto", which is "decode" where that is possible.
        decode_every: tokens between two judgements by decode states.
        decode_span: tokens whose mean log-odds are judged by decode states.
        stream_options: of the `StreamModerator` that a stream by text goes through (`every`, `hold_back`, ...); a stream by
            decode states has no use for them.

    Raises:
        ConfigurationError: an option has a bad value, the guard's target is not "prompt" or the moderator's not "response".
        NotFittedError: the guard was not fitted.
        BundleMismatchError: the guard was fitted on another model, tokenizer, chat template or dtype.
        UnsupportedArchitectureError: the model's blocks cannot be hooked.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        guard: Guard,
        *,
        moderator: Moderator | None = None,
        refusal: str = DEFAULT_REFUSAL,
        on_block: Literal["replace", "raise"] = "replace",
        on_review: OnReview = "pass",
        all_views: bool = False,
        moderation: Literal["auto", "text", "decode"] = "auto",
        decode_every: int = 16,
        decode_span: int = 32,
        stream_options: Mapping[str, Any] | None = None,
    ) -> None:
        for name, value, choices in (
            ("on_block", on_block, ("replace", "raise")),
            ("on_review", on_review, ("pass", "block")),
            ("moderation", moderation, ("auto", "text", "decode")),
        ):
            if value not in choices:
                raise ConfigurationError(f"{name}={value!r}: choose one of {', '.join(choices)}")
        for name, number in (("decode_every", decode_every), ("decode_span", decode_span)):
            if not isinstance(number, int) or number < 1:
                raise ConfigurationError(f"{name}={number!r}: a whole number of tokens, at least 1")
        if not isinstance(refusal, str):
            raise ConfigurationError(f"refusal is {type(refusal).__name__}; give a text")
        if not callable(getattr(model, "generate", None)):
            raise ConfigurationError(f"{type(model).__name__} has no generate: load it with AutoModelForCausalLM")
        if not isinstance(guard, Guard):
            raise ConfigurationError(f"guard is {type(guard).__name__}; the prefill is read for a mlpm_guard.Guard")
        if guard.target != "prompt":
            raise ConfigurationError(f'the guard has target="{guard.target}"; a gate for prompts needs target="prompt"')
        if moderator is not None and not callable(getattr(moderator, "check", None)):
            raise ConfigurationError(f"the moderator ({type(moderator).__name__}) has no check; give it one beside acheck")
        if moderator is None and stream_options:
            raise ConfigurationError("stream_options: there is no moderator whose stream they could shape")
        if ours := {"prompt", "on_block", "on_review", "refusal"} & set(stream_options or {}):
            raise ConfigurationError(f"stream_options: {', '.join(sorted(ours))} follow from the generator's own arguments")
        if getattr(moderator, "target", "response") != "response":
            raise ConfigurationError('the moderator judges prompts; fit one with target="response"')
        self._encoder = TransformerEncoder(model, tokenizer, pooling="last").load()
        guard.bound_to(self._encoder)
        self._model = model
        self._tokenizer = tokenizer
        self.guard = guard
        self.moderator = moderator
        self.refusal = refusal
        self.raises = on_block == "raise"
        self._on_review: OnReview = on_review
        self._all_views = bool(all_views)
        self._reads_decode = moderation != "text" and self._can_read_decode(required=moderation == "decode")
        self._every, self._span = decode_every, decode_span
        self._stream_options = dict(stream_options or {})
        if moderator is not None:
            self.stream_moderator(None)  # a bad option shows here, not in the middle of an answer

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self._model).__name__}, guard={self.guard!r}, moderator={self.moderator!r})"

    # -- public -------------------------------------------------------------------------------------------------------------

    @property
    def takes_tools(self) -> bool:
        """Whether the model's chat template shows tools."""
        return self._encoder.takes_tools

    @property
    def can_begin_calls(self) -> bool:
        """Whether `must_call` can be kept: the chat template shows how a call of a tool begins."""
        return self._encoder.can_begin_calls

    def inputs(
        self,
        conversations: ConversationLike | Iterable[ConversationLike],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> dict[str, Tensor]:
        """What the model reads: `input_ids` and `attention_mask` of shape (n, tokens), left-padded, on the model's device.

        Control tokens inside texts are neutralised. `model.generate(**generator.inputs(x), ...)` is the plain call that
        `generate(x, ...)` equals.

        Raises:
            InputError: a conversation has a bad shape, or is longer than the model can read.
            ConfigurationError: the tools cannot be shown; see `generate`.
        """
        rows, _ = _batch(conversations)
        known = self._shown(tools, ())
        return self._padded([self._tokens(self._read(row, known)) for row in rows])

    def generate(
        self,
        conversations: ConversationLike | Iterable[ConversationLike],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        must_call: Sequence[str] = (),
        **generation_kwargs: Any,
    ) -> Generation | list[Generation]:
        """Judge and answer.

        Args:
            conversations: a string or a list of role/content messages is one conversation; a list of strings, or of such lists,
                is a batch. Calls of tools in the history, and the results' names, are shown where the chat template takes
                tools.
            tools: schemas in OpenAI's shape, `{"type": "function", "function": {...}}`, which the chat template shows the
                model. They are part of what is judged. The text of an answer then keeps the control tokens that mark calls.
            must_call: names of tools; the answer has to begin with a call of one of them. Its arguments are up to the model.
            **generation_kwargs: passed to the model's `generate`.

        Returns:
            One `Generation`, or a list of them for a batch or with `num_return_sequences` (in Hugging Face's order).

        Raises:
            ConfigurationError: an argument that belongs to the gate was given, or the chat template shows no tools.
            PromptBlocked: with `on_block="raise"`, a prompt was blocked.
            ResponseBlocked: with `on_block="raise"`, an answer was blocked.
            MlpmGuardError: a prompt could not be judged, with the guard's `on_error="raise"`; or it cannot be read at all, and
                the guard's `on_error` does not block.
        """
        call = _Call(generation_kwargs, Cancellation(), None, self._shown(tools, must_call), tuple(must_call))
        return self._generate(conversations, call)

    async def agenerate(
        self,
        conversations: ConversationLike | Iterable[ConversationLike],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        must_call: Sequence[str] = (),
        **generation_kwargs: Any,
    ) -> Generation | list[Generation]:
        """`generate` without blocking the event loop. Cancelling it stops the model within a token."""
        cancelled = Cancellation()
        call = _Call(generation_kwargs, cancelled, None, self._shown(tools, must_call), tuple(must_call))
        try:
            return await asyncio.to_thread(self._generate, conversations, call)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    def stream(
        self,
        conversation: ConversationLike,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        must_call: Sequence[str] = (),
        **generation_kwargs: Any,
    ) -> GuardedStream:
        """Judge, and answer piece by piece. Nothing of the answer is released before the moderator judged it.

        Args:
            conversation: one conversation.
            tools: as in `generate`.
            must_call: as in `generate`.
            **generation_kwargs: passed to the model's `generate`; no beams and no `num_return_sequences`.

        Returns:
            An iterator of text. Closing it, or letting go of it, stops the model within a token.

        Raises:
            ConfigurationError: an argument that belongs to the gate was given, or one that does not stream.
            InvalidConversationError: the conversation has a bad shape.
        """
        shown = self._streamable(conversation, generation_kwargs, self._shown(tools, must_call), tuple(must_call))
        return GuardedStream(self, shown, generation_kwargs)

    def astream(
        self,
        conversation: ConversationLike,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        must_call: Sequence[str] = (),
        **generation_kwargs: Any,
    ) -> AsyncGuardedStream:
        """`stream` for event loops: an async iterator of text."""
        shown = self._streamable(conversation, generation_kwargs, self._shown(tools, must_call), tuple(must_call))
        return AsyncGuardedStream(self, shown, generation_kwargs)

    def moderate(self, conversation: ConversationLike, text: str) -> Verdict | None:
        """The moderator's verdict on one more text of an answer, such as the arguments of a call once they are decoded.

        None without a moderator, and where there is no text.

        Raises:
            InputError: the conversation has a bad shape.
        """
        if self.moderator is None or not text.strip():
            return None
        (verdict,) = self._check([_answered(Conversation.parse(conversation), text)])
        return verdict

    # -- one call -----------------------------------------------------------------------------------------------------------

    def _generate(
        self,
        conversations: ConversationLike | Iterable[ConversationLike],
        call: _Call,
    ) -> Generation | list[Generation]:
        rows, single = _batch(conversations)
        _refuse_ours(call.arguments)
        results = self._answer(rows, call) if rows else []
        if self.raises:
            for result in results:
                result.enforce()
        return results[0] if single and len(results) == 1 else results

    def _answer(self, rows: Sequence[ConversationLike], call: _Call) -> list[Generation]:
        """Generations of all rows, in Hugging Face's order."""
        policy = self._prompt_policy()
        readable: list[tuple[Conversation, list[int]]] = []
        refused: list[Verdict | None] = []
        for row in rows:
            try:
                conversation = self._read(row, call.tools, call.must_call)
                if conversation.characters > self.guard.max_chars:
                    raise InputTooLongError(f"{conversation.characters} characters; the guard judges {self.guard.max_chars}")
                readable.append((conversation, self._tokens(conversation)))
            except InputError as error:
                failed = policy.failed(error)
                # What cannot be read cannot be answered either, whatever `on_error` would allow.
                if isinstance(failed, MlpmGuardError) or not failed.blocked:
                    raise
                refused.append(failed)
            else:
                refused.append(None)
        answers, factor = self._run(readable, call) if readable else ([], self._returned(call.arguments))
        found = iter(answers)
        results: list[Generation] = []
        for verdict in refused:
            results += [next(found) if verdict is None else self._refusal(verdict) for _ in range(factor)]
        return results

    def _run(self, rows: Sequence[tuple[Conversation, list[int]]], call: _Call) -> tuple[list[Generation], int]:
        """Generations of rows that the model can read, and how many there are of each."""
        conversations = [conversation for conversation, _ in rows]
        policy, moderation = self._prompt_policy(), self._decode_policy(call.arguments)
        known = self._known(policy, conversations)
        if all(verdict is not None and verdict.blocked for verdict in known):
            factor = self._returned(call.arguments)
            return [self._refusal(v) for v in known if v is not None for _ in range(factor)], factor
        inputs = self._padded([ids for _, ids in rows])
        length = inputs["input_ids"].shape[1]
        ends = self._end_tokens(call.arguments)
        capture = GenerationCapture(
            position=int(last_index(inputs["attention_mask"])[0]),
            wanted=frozenset(policy.layers),
            decoded=frozenset(moderation.layers if moderation is not None else ()),
        )
        monitor = None
        if moderation is not None:
            released = None if call.stream is None else call.stream.release
            monitor = DecodeMonitor(
                capture,
                moderation,
                conversations,
                every=self._every,
                span=self._span,
                ends=frozenset({*ends, self._encoder.pad_id}),
                answered=self._decoded,
                released=released,
            )
        gate = PrefillGate(
            capture,
            policy,
            conversations,
            known,
            monitor,
            looks_ahead=self._looks_up(call.arguments),
            decided=None if call.stream is None else call.stream.judged,
        )
        arguments = dict(call.arguments)
        if arguments.get("stop_strings") is not None:
            arguments.setdefault("tokenizer", self._tokenizer)
        processors = [gate, *(arguments.get("logits_processor") or ())]
        if any(conversation.tool_use is not None and conversation.tool_use.must_call for conversation in conversations):
            processors.append(BeginCall([self._beginnings(conversation) for conversation in conversations], length))
        arguments["logits_processor"] = LogitsProcessorList(
            [*processors, RetireRows(gate, ends[0] if ends else self._encoder.pad_id)]
        )
        arguments["stopping_criteria"] = StoppingCriteriaList(
            [*(arguments.get("stopping_criteria") or ()), StopRows(gate, call.cancelled)]
        )
        try:
            with self._encoder.reading(capture):
                sequences = self._model.generate(**inputs, streamer=call.stream, **arguments)  # type: ignore[operator]
        except NothingToAnswerError:
            factor = self._returned(call.arguments)
            return [self._refusal(verdict) for verdict in gate.decided_verdicts() for _ in range(factor)], factor
        judged = gate.decided_verdicts()
        if monitor is not None:
            monitor.close()
        tokens = [_trimmed(row, ends, self._encoder.pad_id) for row in sequences[:, length:].tolist()]
        factor = len(tokens) // len(rows)
        verdicts = [verdict for verdict in judged for _ in range(factor)]
        prompts = [conversation for conversation in conversations for _ in range(factor)]
        answers = [
            Generation(
                text=self._text(ids, ends, conversation),
                verdict=verdict,
                token_ids=tuple(ids),
                finish_reason="stop" if ids and ids[-1] in ends else "length",
            )
            if not verdict.blocked
            else self._refusal(verdict)
            for ids, verdict, conversation in zip(tokens, verdicts, prompts, strict=True)
        ]
        return self._moderated(prompts, answers, monitor, ends, call), factor

    # -- answers ------------------------------------------------------------------------------------------------------------

    def _moderated(
        self,
        prompts: Sequence[Conversation],
        answers: list[Generation],
        monitor: DecodeMonitor | None,
        ends: Sequence[int],
        call: _Call,
    ) -> list[Generation]:
        """Answers as the moderator lets them out. A stream by text is moderated by its reader."""
        if self.moderator is None or (call.stream is not None and monitor is None):
            return answers
        results = list(answers)
        unread: list[int] = []
        for index, answer in enumerate(answers):
            if answer.blocked:
                continue
            complete = False
            if monitor is not None:
                content = sum(token not in ends for token in answer.token_ids)
                # The last token of an answer that was cut off is never read back by the model.
                complete = monitor.stopped[index] or monitor.judged(index) >= content
                scored = replace(answer, token_scores=monitor.token_scores(index))
                results[index] = self._released(scored, monitor.verdicts[index])
            if not complete and answer.text.strip():
                unread.append(index)
        if unread:
            found = self._check([_answered(prompts[index], answers[index].text) for index in unread])
            for index, verdict in zip(unread, found, strict=True):
                before = results[index].response_verdict
                results[index] = self._released(results[index], verdict if before is None else worse(before, verdict))
        if call.stream is not None and not results[0].blocked:
            call.stream.finish()
        return results

    def _check(self, conversations: list[Conversation]) -> list[Verdict]:
        assert self.moderator is not None
        moderator: Any = self.moderator
        if self._reads_decode:
            assert isinstance(self.moderator, Guard)
            moderator = self.moderator.bound_to(self._encoder)
        shown = [_messages(conversation) for conversation in conversations]
        together = getattr(moderator, "check_batch", None)
        found = together(shown) if callable(together) else [moderator.check(each) for each in shown]
        if not isinstance(found, Sequence) or len(found) != len(shown) or not all(isinstance(v, Verdict) for v in found):
            raise ConfigurationError(
                f"the moderator ({type(moderator).__name__}) did not return one Verdict for each answer; nothing was released"
            )
        return [verdict.resolved(self._on_review) for verdict in found]

    def _released(self, answer: Generation, verdict: Verdict | None) -> Generation:
        if verdict is not None and verdict.blocked:
            return self._refusal(answer.verdict, verdict)
        return replace(answer, response_verdict=verdict)

    def _refusal(self, verdict: Verdict, response_verdict: Verdict | None = None) -> Generation:
        return Generation(self.refusal, verdict, response_verdict, finish_reason="content_filter")

    # -- what a call is made of ---------------------------------------------------------------------------------------------

    def _shown(self, tools: Sequence[Mapping[str, Any]] | None, must_call: Sequence[str]) -> tuple[Mapping[str, Any], ...]:
        """The tools of a call, checked."""
        found = checked(tools, must_call)
        if found and not self.takes_tools:
            raise ConfigurationError(
                "the model's chat template shows no tools: it renders the same with and without them. Use a model whose "
                "template takes tools, or set tokenizer.chat_template to one that does"
            )
        if must_call and not self.can_begin_calls:
            raise ConfigurationError("must_call: the model's chat template does not tell how a call begins")
        return found

    def _read(
        self, row: ConversationLike, tools: tuple[Mapping[str, Any], ...], must_call: tuple[str, ...] = ()
    ) -> Conversation:
        """A conversation, with its tools where there are any and the model is shown them."""
        conversation = Conversation.parse(row)
        if not self.takes_tools or conversation.tool_use is not None:
            return conversation
        use = ToolUse.read(row.messages if isinstance(row, Conversation) else row, tools, must_call)
        if use is None:
            return conversation
        messages = tuple(
            replace(message, not_judged=tuple(kind for kind in message.not_judged if kind != "tool_calls"))
            for message in conversation.messages
        )
        return Conversation(messages, use)

    def _beginnings(self, conversation: Conversation) -> list[list[int]]:
        use = conversation.tool_use
        return [] if use is None or not use.must_call else self._encoder.call_starts(conversation) or []

    def _text(self, ids: list[int], ends: Sequence[int], conversation: Conversation) -> str:
        """An answer's tokens as text; behind tools with the control tokens that do not just end or pad it."""
        if (framing := self._framing(ends, conversation)) is None:
            return str(self._tokenizer.decode(ids, skip_special_tokens=True))
        return str(self._tokenizer.decode([each for each in ids if each not in framing], skip_special_tokens=False))

    def _framing(self, ends: Sequence[int], conversation: Conversation) -> frozenset[int] | None:
        """Tokens around an answer, where other control tokens are part of its text."""
        if conversation.tool_use is None or not conversation.tool_use.tools:
            return None
        known = (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id, self._tokenizer.pad_token_id)
        return frozenset({*ends, *(each for each in known if each is not None)})

    def _tokens(self, conversation: Conversation) -> list[int]:
        conversation.turn_index("prompt")
        ids = self._encoder.prompt_ids([conversation])[0]
        limit = self._encoder.context
        if limit is not None and len(ids) > limit:
            raise InputTooLongError(f"the prompt has {len(ids)} tokens; the model reads {limit} at once")
        return ids

    def _padded(self, rows: Sequence[list[int]]) -> dict[str, Tensor]:
        if not rows:
            raise ConfigurationError("there are no conversations")
        length = max(map(len, rows))
        ids = torch.tensor([[self._encoder.pad_id] * (length - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
        device = self._model.device
        return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}

    def _prompt_policy(self) -> Policy:
        return replace(self.guard.policy(), on_review=self._on_review)

    def _known(self, policy: Policy, conversations: Sequence[Conversation]) -> list[Verdict | None]:
        """What is known before the forward pass: verdicts by rules, or those of other views; None where there is none."""
        if self._all_views:
            found = self.guard.bound_to(self._encoder).check_batch(conversations)
            return [verdict.resolved(self._on_review) for verdict in found]
        known: list[Verdict | None] = []
        for conversation in conversations:
            ruled = policy.ruled(conversation)
            if isinstance(ruled, MlpmGuardError):
                raise ruled
            known.append(ruled)
        return known

    def _decoded(self, conversation: Conversation, ids: Sequence[int]) -> Conversation:
        return _answered(conversation, str(self._tokenizer.decode(list(ids), skip_special_tokens=True)))

    def _can_read_decode(self, *, required: bool) -> bool:
        if not isinstance(self.moderator, Guard) or not self.moderator.reads_states:
            if required:
                raise ConfigurationError('moderation="decode" needs a mlpm_guard.Guard as moderator, fitted on this model')
            return False
        try:
            self.moderator.bound_to(self._encoder)
        except BundleMismatchError:
            if required:
                raise
            return False
        return True

    def _decode_policy(self, arguments: Mapping[str, Any]) -> Any:
        """The response guard's policy, where the model's own states can be read for it."""
        if not self._reads_decode:
            return None
        # Beams swap rows, and candidates that are looked up come several at a time and may be thrown away.
        if (self._setting("num_beams", arguments) or 1) > 1 or self._looks_up(arguments):
            return None
        assert isinstance(self.moderator, Guard)
        return replace(self.moderator.policy(), on_review=self._on_review)

    def _setting(self, name: str, arguments: Mapping[str, Any]) -> Any:
        config = arguments.get("generation_config")
        for value in (arguments.get(name), getattr(config, name, None), getattr(self._model.generation_config, name, None)):
            if value is not None:
                return value
        return None

    def _looks_up(self, arguments: Mapping[str, Any]) -> bool:
        return bool(self._setting("prompt_lookup_num_tokens", arguments) or arguments.get("assistant_model"))

    def _returned(self, arguments: Mapping[str, Any]) -> int:
        return int(self._setting("num_return_sequences", arguments) or 1)

    def _end_tokens(self, arguments: Mapping[str, Any]) -> list[int]:
        ends = self._setting("eos_token_id", arguments)
        if ends is None:
            return []
        return [
            int(end) for end in (ends.reshape(-1) if isinstance(ends, Tensor) else [ends] if isinstance(ends, int) else ends)
        ]

    # -- streams ------------------------------------------------------------------------------------------------------------

    def _streamable(
        self,
        conversation: ConversationLike,
        arguments: Mapping[str, Any],
        tools: tuple[Mapping[str, Any], ...],
        must_call: tuple[str, ...],
    ) -> Conversation:
        _refuse_ours(arguments)
        for name in ("num_beams", "num_return_sequences"):
            if (self._setting(name, arguments) or 1) > 1:
                raise ConfigurationError(f"{name}: a stream is one answer that only grows; use generate()")
        rows, single = _batch(conversation)
        if not single:
            raise ConfigurationError("a stream answers one conversation; use generate() for a batch")
        return self._read(rows[0], tools, must_call)

    def produce(self, conversation: Conversation, arguments: Mapping[str, Any]) -> Produce[Item]:
        """What a stream runs on a thread: gives the verdict on the prompt, text as it may leave, and last the `Generation`."""

        def work(put: Callable[[Item], None], cancelled: threading.Event) -> None:
            framing = self._framing(self._end_tokens(arguments), conversation)
            held = self._decode_policy(arguments) is not None
            stream = TokenStream(self._tokenizer, put, held=held, framing=framing)
            put(self._answer([conversation], _Call(arguments, cancelled, stream))[0])

        return work

    def moderates_text(self, arguments: Mapping[str, Any]) -> bool:
        """Whether streams with these arguments are moderated by their text."""
        return self.moderator is not None and self._decode_policy(arguments) is None

    def stream_moderator(self, prompt: Conversation | None) -> StreamModerator:
        """What a stream of answers to this prompt goes through."""
        assert self.moderator is not None
        options: dict[str, Any] = {"on_block": "raise" if self.raises else "replace", "refusal": self.refusal}
        options["on_review"] = self._on_review
        try:
            return StreamModerator(
                self.moderator, prompt=None if prompt is None else _messages(prompt), **{**self._stream_options, **options}
            )
        except TypeError as error:
            raise ConfigurationError(f"stream_options: {', '.join(self._stream_options)} (see StreamModerator)") from error


def _batch(conversations: object) -> tuple[list[Any], bool]:
    """The conversations, and whether there was only one, not in a list."""
    if isinstance(conversations, (str, Conversation)):
        return [conversations], True
    if isinstance(conversations, (bytes, Mapping)) or not isinstance(conversations, Iterable):
        kind = type(conversations).__name__
        raise InvalidConversationError(f"a conversation is a string or a list of messages, a batch a list of those, not {kind}")
    rows = list(conversations)
    if rows and all(isinstance(row, (Mapping, Message)) for row in rows):
        return [rows], True
    return rows, False


def _refuse_ours(arguments: Mapping[str, Any]) -> None:
    for name, reason in _OURS.items():
        if arguments.get(name) is not None:
            raise ConfigurationError(f"{name} cannot be passed to a guarded generate: {reason}")
    cache = arguments.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise ConfigurationError("past_key_values holds tokens that were not judged; pass an empty cache, or none")
    if arguments.get("cache_implementation") == "paged":
        raise ConfigurationError('cache_implementation="paged" generates on another thread, where the gate cannot stand')


def _trimmed(ids: list[int], ends: Sequence[int], pad: int) -> list[int]:
    """Generated tokens up to and including the first end token, without padding behind them."""
    for index, token in enumerate(ids):
        if token in ends:
            return ids[: index + 1]
    while ids and ids[-1] == pad:
        ids = ids[:-1]
    return ids


def _messages(conversation: Conversation) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in conversation.messages]


def _answered(conversation: Conversation, text: str) -> Conversation:
    """The conversation with its answer; an answer that was begun is continued."""
    *before, last = conversation.messages
    if last.role == "assistant":
        return Conversation((*before, Message("assistant", last.content + text)))
    return Conversation((*before, last, Message("assistant", text)))
