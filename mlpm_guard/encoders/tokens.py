"""Conversations to token ids: chat templates, plain formats, and text that cannot forge a turn.

One function, `PromptTokenizer.token_ids`, decides the probe position for fitting and for scoring alike. Needs a Hugging Face
tokenizer; imports no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlpm_guard.conversation import Conversation, Message
from mlpm_guard.encoders.tool_template import ToolTemplate
from mlpm_guard.errors import EncoderError, EncoderLoadError, InvalidConversationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN_CHAT = "plain-chat-v1"
"""Format of a causal model without a chat template: a line `User: ...` or `Assistant: ...` a turn, then `Assistant:`."""
PLAIN_TEXT = "plain-text-v1"
"""Format of an encoder: the texts of all turns, system messages left out, joined by line breaks; no role names."""

_PLAIN_ROLE = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant"}
_PROBES = (
    "Hello, world!",
    "  two  spaces\nand\ta tab",
    "Ünïcødé 你好 мир 🙂",
    "def f(x):\n    return x**2",
    "HTTP 404: it's 3.14€",
)
_SHAPES = (("user", "assistant", "user"), ("system", "user", "assistant", "user"), ("user", "assistant", "tool", "user"))
_LINE_ENDS = "\n\r\v\f\x85\u2028\u2029"
_MARKER = re.compile(r"[<\[]{1,2}[^\s<>\[\]]{1,40}[>\]]{1,2}")
_TOOL_MARKER = re.compile(r"[<\[]{1,2}[/|@]?[A-Za-z_]")
_LABEL = re.compile(r"^[#\s]*([A-Za-z]{2,20}):", re.MULTILINE)


class PromptTokenizer:
    """Wraps a tokenizer for one model family.

    Args:
        tokenizer: any fast Hugging Face tokenizer. It is copied: padding and truncation that other threads set on the original
            have no effect here.
        causal: format with roles and a generation prompt (causal models), or as bare text (encoders).

    Raises:
        EncoderLoadError: the tokenizer has no fast backend.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, causal: bool) -> None:
        from tokenizers import Tokenizer

        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise EncoderLoadError(
                f"{type(tokenizer).__name__} has no fast (tokenizers) backend; load it with AutoTokenizer and use_fast=True"
            )
        self._tokenizer = tokenizer
        self._backend = Tokenizer.from_str(backend.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        self.causal = causal
        template: Any = getattr(tokenizer, "chat_template", None) if causal else None
        with_tools = template
        if isinstance(template, dict):
            template, with_tools = template.get("default"), template.get("tool_use") or template.get("default")
        self._template: str | None = template or None
        self._template_with_tools: str | None = with_tools or None
        self._control = self._control_ids()
        self._framing = len(self._backend.encode("", add_special_tokens=True).ids)
        self._eos: int | None = tokenizer.eos_token_id
        self._markers: frozenset[str] = frozenset()
        self._marker, self._label = self._template_markers() if causal else (None, None)

    @property
    def pad_id(self) -> int:
        """Id to fill padding with; masked out, so any will do where the tokenizer has none."""
        pad = self._tokenizer.pad_token_id
        return int(pad) if pad is not None else 0

    @property
    def reads_roles(self) -> bool:
        """Whether roles are part of the text that the model sees."""
        return self.causal

    def template_hash(self) -> str:
        """SHA-256 of the chat template, or the name of the plain format."""
        if not self.causal:
            return PLAIN_TEXT
        return PLAIN_CHAT if self._template is None else hashlib.sha256(self._template.encode()).hexdigest()

    def vocabulary_hash(self) -> str:
        """SHA-256 over vocabulary, control tokens and the tokens of fixed probe sentences: behaviour, not file layout."""
        digest = hashlib.sha256()
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        digest.update(json.dumps(sorted(vocabulary.items()), ensure_ascii=True).encode())
        digest.update(json.dumps(sorted(self._control)).encode())
        for probe in _PROBES:
            digest.update(json.dumps(self._backend.encode(probe).ids).encode())
        return digest.hexdigest()

    def spans(self, texts: Sequence[str]) -> list[npt.NDArray[np.int64]]:
        """Character spans of the tokens of every text, arrays of shape (tokens, 2)."""
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2) for encoding in encodings]

    def token_ids(self, conversations: Sequence[Conversation]) -> list[list[int]]:
        """Token ids of every conversation, exactly as the model is to read them, without padding or truncation.

        A conversation that ends with the assistant is left open after its last word, so that the probe position is the last
        token of the answer; any other ends with the generation prompt.

        Raises:
            InvalidConversationError: the chat template refuses the roles.
        """
        if not all(conversation.messages for conversation in conversations):
            raise InvalidConversationError("a conversation needs at least one message")
        if not self.causal:
            return self._plain_text_ids(conversations)
        texts = [self.render(conversation) for conversation in conversations]
        templated = self._template is not None
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=not templated)
        ids = [encoding.ids for encoding in encodings]
        if not templated:
            # Some tokenizers append an end token; the probe position is the last token before the answer.
            ids = [row[:-1] if len(row) > 1 and row[-1] == self._eos else row for row in ids]
        return ids

    def _plain_text_ids(self, conversations: Sequence[Conversation]) -> list[list[int]]:
        texts = [
            [message.content for message in conversation.without_instructions().messages if message.content]
            for conversation in conversations
        ]
        joined = ["\n".join(each) for each in texts]
        ids = [encoding.ids for encoding in self._backend.encode_batch_fast(joined, add_special_tokens=True)]
        for row, tokens in enumerate(ids):
            # Only a text that holds a control token has more of them than an empty one; most are read once.
            if sum(token in self._control for token in tokens) > self._framing:
                broken = "\n".join(map(self.neutralise, texts[row]))
                ids[row] = self._backend.encode(broken, add_special_tokens=True).ids
        return ids

    def render(self, conversation: Conversation) -> str:
        """The conversation as one string: chat template with generation prompt, or the plain format."""
        if conversation.tool_use is not None:
            return self._tools.render(conversation, lambda text: self.neutralise(text, self._marker_with_tools))
        messages = [{"role": message.role, "content": self.neutralise(message.content)} for message in conversation.messages]
        if self._template is None:
            return _plain(messages)
        try:
            return self._apply(messages)
        except InvalidConversationError:
            # Many templates take only user and assistant in strict alternation. What they refuse is folded into that shape.
            return self._apply(_alternating(messages))

    @property
    def takes_tools(self) -> bool:
        """Whether the chat template shows tools to the model."""
        return self._template_with_tools is not None and self._tools.takes_tools

    def call_starts(self, conversation: Conversation) -> list[list[int]] | None:
        """Token ids of how the answer to a conversation begins a call of each tool that must be called.

        None where the template does not tell.
        """
        assert conversation.tool_use is not None
        starts = [self._tools.call_start(name) for name in conversation.tool_use.must_call]
        prompt = self.render(conversation)
        read = self._backend.encode(prompt, add_special_tokens=False).ids
        found: list[list[int]] = []
        for start in starts:
            if start is None:
                return None
            both = self._backend.encode(prompt + start, add_special_tokens=False).ids
            # Read behind the prompt, as some tokenizers put a space in front of a text that stands alone.
            alone = both[: len(read)] != read
            found.append(self._backend.encode(start, add_special_tokens=False).ids if alone else both[len(read) :])
        return found

    def can_begin_calls(self) -> bool:
        """Whether the template tells how a call begins."""
        return self.takes_tools and self._tools.call_start("name") is not None

    @cached_property
    def _tools(self) -> ToolTemplate:
        return ToolTemplate(lambda messages, tools: self._apply(messages, tools=tools, template=self._template_with_tools))

    @cached_property
    def _marker_with_tools(self) -> re.Pattern[str] | None:
        """Pattern for what the template writes around contents, tools and calls."""
        found = {marker for literal in self._tools.literals for marker in _MARKER.findall(literal)}
        return _either(self._markers | {marker for marker in found if _TOOL_MARKER.match(marker)})

    def _apply(
        self, messages: list[dict[str, Any]], *, tools: Sequence[Mapping[str, Any]] = (), template: str | None = None
    ) -> str:
        open_answer = messages[-1]["role"] == "assistant"
        try:
            rendered = self._tokenizer.apply_chat_template(
                messages,
                tools=[dict(tool) for tool in tools] or None,
                chat_template=template or self._template,
                tokenize=False,
                add_generation_prompt=not open_answer,
                continue_final_message=open_answer,
            )
        except Exception as error:  # noqa: BLE001  (a template runs arbitrary code)
            refusal = type(error).__name__
        else:
            return str(rendered)
        # Raised outside of the handler: the template's own error may quote the message, and would stay on as the context.
        raise InvalidConversationError(
            f"the model's chat template refuses this conversation ({refusal}); "
            f"roles: {', '.join(message['role'] for message in messages[:20])}"
        )

    def neutralise(self, text: str, marker: re.Pattern[str] | None = None) -> str:
        """Break every control token and turn marker inside a text, so that nobody can forge a turn.

        A space is put behind the first character of each: `<|im_end|>` becomes `< |im_end|>`. The pattern of markers may be
        given; otherwise it is that of a template without tools.
        """
        marker = marker or self._marker
        for attempt in range(8):
            # Again at every attempt: taking a control token out may bring the halves of a marker together.
            if marker is not None:
                text = marker.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)
            if self._label is not None:
                text = self._label.sub(lambda found: f"{found[1]} :", text)
            encoding = self._backend.encode(text, add_special_tokens=False)
            hits = [i for i, token in enumerate(encoding.ids) if token in self._control]
            if not hits:
                return text
            pieces: list[str] = []
            end = 0
            for hit in hits:
                first, last = encoding.offsets[hit]
                broken = f"{text[first]} {text[first + 1 : last]}" if attempt < 4 and last - first > 1 else ""
                pieces += [text[end:first], broken]
                end = max(end, last)
            text = "".join([*pieces, text[end:]])
        raise EncoderError("the text produces control tokens however it is broken up; it cannot be read safely")

    def _control_ids(self) -> frozenset[int]:
        unknown = self._tokenizer.unk_token_id
        ids = {int(i) for i in self._tokenizer.all_special_ids}
        for token_id, token in self._tokenizer.added_tokens_decoder.items():
            content = str(token)
            if token.special or re.fullmatch(r"[<\[].*[>\]]", content):
                ids.add(int(token_id))
        # The token of unreadable characters is no control token, unless it ends texts as well (GPT-2's <|endoftext|>).
        if unknown not in {self._tokenizer.bos_token_id, self._tokenizer.eos_token_id}:
            ids.discard(unknown)
        return frozenset(ids)

    def _template_markers(self) -> tuple[re.Pattern[str] | None, re.Pattern[str] | None]:
        """Patterns for what the template writes around contents and the tokenizer reads as ordinary text."""
        sentinel = "\ue000\ue001"
        literals: list[str] = []
        for roles in _SHAPES:
            messages = [{"role": role, "content": sentinel} for role in roles]
            # What a template refuses, it writes no markers for.
            with contextlib.suppress(InvalidConversationError):
                rendered = _plain(messages) if self._template is None else self._apply(messages)
                literals += rendered.split(sentinel)
        self._markers = frozenset(marker for literal in literals for marker in _MARKER.findall(literal))
        labels = {label for literal in literals for label in _LABEL.findall(literal)}
        label = "|".join(re.escape(each) for each in sorted(labels, key=len, reverse=True))
        return (
            _either(self._markers),
            re.compile(rf"(?:(?<=^)|(?<=[{_LINE_ENDS}]))([#\s]*(?:{label})):", re.IGNORECASE) if label else None,
        )


def _either(markers: frozenset[str]) -> re.Pattern[str] | None:
    pattern = "|".join(re.escape(each) for each in sorted(markers, key=len, reverse=True))
    return re.compile(pattern, re.IGNORECASE) if pattern else None


def _plain(messages: Sequence[dict[str, str]]) -> str:
    lines = [f"{_PLAIN_ROLE.get(message['role'], 'User')}: {message['content']}" for message in messages]
    if messages[-1]["role"] != "assistant":
        lines.append("Assistant:")
    return "\n".join(lines)


def _alternating(messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The same texts as strictly alternating user and assistant turns, starting with the user."""
    turns: list[Message] = []
    for message in messages:
        role = "assistant" if message["role"] == "assistant" else "user"
        if turns and turns[-1].role == role:
            turns[-1] = Message(role, f"{turns[-1].content}\n\n{message['content']}")
        else:
            turns.append(Message(role, message["content"]))
    if turns[0].role == "assistant" and len(turns) > 1:
        first, second = turns[0], turns[1]
        turns[:2] = [Message("user", f"{first.content}\n\n{second.content}")]
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def context_length(config: Any, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Tokens that a model can read at once, or None where its positions are unlimited."""
    positions = getattr(config, "max_position_embeddings", None)
    limit = int(positions) if positions else None
    # RoBERTa counts positions from its padding index on.
    if limit is not None and config.model_type in {
        "roberta",
        "xlm-roberta",
        "camembert",
        "mpnet",
        "xlm-roberta-xl",
        "roberta-prelayernorm",
        "xmod",
        "data2vec-text",
        "ibert",
        "longformer",
    }:
        limit -= (config.pad_token_id or 0) + 1
    declared = tokenizer.model_max_length
    if declared is not None and 0 < declared < 10**9:
        limit = int(declared) if limit is None else min(limit, int(declared))
    return limit
