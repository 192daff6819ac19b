"""Text to tokens, where the text is hostile: no prompt can become a control token.

A tokenizer finds special tokens by their spelling, so a prompt that contains `<|im_end|>` would
close its own turn. Where a content spells a special token, the chat template is rendered around
placeholders and the contents are encoded on their own with special tokens off; every other prompt
is encoded in one piece, exactly as any other tool does it.
"""

import copy
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from negtemp_data.errors import ModelError, PromptError, quote
from negtemp_data.prompts import Prompt

Chat = Sequence[Mapping[str, str]]
"""Messages with `role` and `content`."""


def load_tokenizer(path: str, engine_arguments: Mapping[str, Any]) -> Any:
    """The Hugging Face tokenizer in a model's folder, as an engine with these arguments loads it.

    Raises:
        ModelError: There is none that can be loaded.
    """
    from transformers import AutoTokenizer  # noqa: PLC0415

    is_trusted = bool(engine_arguments.get("trust_remote_code", False))
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=is_trusted)
    except Exception as error:  # transformers raises whatever its many readers raise
        reason = quote(" ".join(str(error).split()))
        raise ModelError(f"the tokenizer in {path} can't be loaded: {reason}.") from error


class PromptEncoder:
    """Encodes prompts for one model, and refuses those that it can't take."""

    def __init__(
        self,
        tokenizer: Any,
        max_prompt_tokens: int,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Looks at the tokenizer's vocabulary once.

        Args:
            tokenizer: A Hugging Face tokenizer.
            max_prompt_tokens: Longest prompt that leaves room for one token.
            chat_template_kwargs: Passed to the chat template.
        """
        # Encoding with special tokens off flips a switch inside the tokenizer, which other threads
        # would see: so there is a copy for each position of the switch.
        self._tokenizer = copy.deepcopy(tokenizer)
        self._plain_tokenizer = copy.deepcopy(tokenizer)
        self._max_prompt_tokens = max_prompt_tokens
        self._template_kwargs = dict(chat_template_kwargs or {})
        self._specials = tuple(tokenizer.get_added_vocab())
        # No text can have fewer tokens than its length over the longest token's.
        self._longest_token = max(map(len, tokenizer.get_vocab()), default=1)

    def encode(self, prompt: Prompt, system: str | None) -> list[int]:
        """Token ids of a prompt, up to where the model's answer begins.

        A text goes through the chat template as a user's message; a model without a template gets
        the bare text.

        Raises:
            PromptError: The prompt is unusable, or too long.
        """
        if prompt.error is not None:
            raise PromptError(prompt.error)
        if prompt.messages is not None:
            chat = [{"role": m.role, "content": m.content} for m in prompt.messages]
        else:
            chat = [{"role": "user", "content": prompt.text or ""}]
        if system is not None:
            chat.insert(0, {"role": "system", "content": system})
        n_chars = sum(len(message["content"]) for message in chat)
        if n_chars > self._max_prompt_tokens * self._longest_token:
            raise self._too_long(f"at least {n_chars // self._longest_token}")
        ids = self.encode_chat(chat)
        if len(ids) > self._max_prompt_tokens:
            raise self._too_long(str(len(ids)))
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Token ids as text, control tokens included."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def encode_chat(self, chat: Chat) -> list[int]:
        """Token ids of a chat and the header of the assistant's answer.

        Raises:
            PromptError: The model has no chat template and the chat is more than one text, or the
                template refuses the chat.
        """
        contents = [message["content"] for message in chat]
        if self._tokenizer.chat_template is None:
            if len(chat) > 1:
                raise PromptError(
                    "the model has no chat template, so it takes a single text: no messages, no "
                    "system message"
                )
            return self._encode_plain(contents[0], add_special_tokens=True)
        if not self._spells_special(contents):
            return self._encode_markup(self._render(chat))
        marks = [secrets.token_hex(16) for _ in chat]
        marked = [{**m, "content": mark} for m, mark in zip(chat, marks, strict=True)]
        rest, ids = self._render(marked), []
        for mark, content in zip(marks, contents, strict=True):
            before, found, rest = rest.partition(mark)
            if not found:
                raise PromptError("the chat template drops or repeats a message of this chat")
            ids += self._encode_markup(before) + self._encode_plain(content)
        return ids + self._encode_markup(rest)

    def encode_with_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a text without any control token, and the characters of each."""
        encoded = self._plain_tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
        )
        return list(encoded["input_ids"]), [tuple(span) for span in encoded["offset_mapping"]]

    def encode_answered(self, chat: Chat, answer: str) -> list[int]:
        """Token ids of a chat, the assistant's answer, and the end of its turn.

        Raises:
            PromptError: See `encode_chat`.
        """
        ids = self.encode_chat(chat) + self._encode_plain(answer)
        end = self._tokenizer.eos_token_id
        return ids if end is None else [*ids, end]

    def _render(self, chat: Chat) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(chat), tokenize=False, add_generation_prompt=True, **self._template_kwargs
                )
            )
        except Exception as error:  # a template raises whatever its author chose
            raise PromptError(f"the model's chat template refuses the prompt: {error}") from error

    def _spells_special(self, contents: Iterable[str]) -> bool:
        return any(special in content for content in contents for special in self._specials)

    def _encode_markup(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _encode_plain(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return list(
            self._plain_tokenizer.encode(
                text, add_special_tokens=add_special_tokens, split_special_tokens=True
            )
        )

    def _too_long(self, n_tokens: str) -> PromptError:
        return PromptError(
            f"the prompt has {n_tokens} tokens; the model's context leaves room for "
            f"{self._max_prompt_tokens} (generate.engine.max_model_len)"
        )
