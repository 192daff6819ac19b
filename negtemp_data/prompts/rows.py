"""Turns a raw row into a `Prompt`, by the columns or the template that the job names.

Nothing that a row holds raises here: what is wrong with it becomes the prompt's error. Knows
nothing of files but the name that stands in for a missing id.
"""

import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from negtemp_data.errors import JobError, PromptError, quote
from negtemp_data.jobspec import PromptsConfig
from negtemp_data.prompts.ids import IdSet, content_id, parse_id
from negtemp_data.prompts.records import Message, Prompt, RawRow

MAX_PROMPT_BYTES = 4 * 2**20
"""Longest prompt, in bytes of UTF-8 (of a chat: all its contents together)."""

ROLES = ("system", "user", "assistant", "tool")
"""Roles that a message may have."""


class _Content(NamedTuple):
    text: str | None = None
    messages: tuple[Message, ...] | None = None

    def make_id(self) -> str:
        if self.messages is None:
            return content_id(self.text or "")
        return content_id([message._asdict() for message in self.messages])


class RowParser:
    """Makes prompts of rows and keeps their ids unique, over all files of a source."""

    def __init__(self, config: PromptsConfig) -> None:
        """Compiles the template, if the job has one.

        Raises:
            JobError: The template is not valid jinja.
        """
        self._ids = IdSet()
        self._id_column = config.id
        used = {config.id}
        if config.template is not None:
            self._read_content = _template_reader(config.template)
        elif config.messages is not None:
            self._read_content = _messages_reader(config.messages)
            used.add(config.messages)
        else:
            self._read_content = _text_reader(config.text_column)
            used.add(config.text_column)
        self._used_columns = used

    def parse(self, row: RawRow, file_name: str) -> Prompt:
        """The prompt in a row of the file `file_name`, or the reason why there is none.

        A row without an id of its own that can be used is called `<file name>:<row number>`.
        """
        prompt_id, content, source, error = None, _Content(), None, row.error
        if row.columns is not None:
            try:
                source = self._to_source(row.columns)
                if self._id_column is not None:
                    prompt_id = parse_id(_column(row.columns, self._id_column))
                content = self._read_content(row.columns)
                prompt_id = prompt_id or content.make_id()
            except PromptError as reason:
                error = str(reason)
            except RecursionError:
                error = "the row's columns are nested too deeply"
        if prompt_id is not None and not self._ids.add(prompt_id):
            error = f"duplicate id {prompt_id!r}, first used earlier"
            prompt_id = None
        if prompt_id is None:
            prompt_id = self._name_by_place(file_name, row.number)
        if error is not None:
            content = _Content()
        return Prompt(prompt_id, content.text, content.messages, source, error)

    def _name_by_place(self, file_name: str, number: int) -> str:
        place = f"{file_name}:{number}"
        # Another row may have just this id.
        while not self._ids.add(place):
            place += "+"
        return place

    def _to_source(self, columns: dict[str, Any]) -> str | None:
        others = {name: value for name, value in columns.items() if name not in self._used_columns}
        return _to_json(others) if others else None


def _column(columns: dict[str, Any], name: str) -> Any:
    try:
        return columns[name]
    except KeyError:
        raise PromptError(f"no column {name!r}; the row has {quote(list(columns))}") from None


def _text_reader(column: str) -> Callable[[dict[str, Any]], _Content]:
    def read(columns: dict[str, Any]) -> _Content:
        text = _column(columns, column)
        if not isinstance(text, str):
            raise PromptError(f"column {column!r} must be text, found {quote(text)}")
        _check_texts([text])
        return _Content(text=text)

    return read


def _template_reader(template: str) -> Callable[[dict[str, Any]], _Content]:
    from jinja2 import StrictUndefined, TemplateSyntaxError  # noqa: PLC0415
    from jinja2.sandbox import SandboxedEnvironment  # noqa: PLC0415

    environment = SandboxedEnvironment(undefined=StrictUndefined)
    try:
        compiled = environment.from_string(template)
    except TemplateSyntaxError as error:
        raise JobError(
            f"prompts.template: not valid jinja, line {error.lineno}: {error.message}."
        ) from error

    def read(columns: dict[str, Any]) -> _Content:
        try:
            text = compiled.render(columns)
        except Exception as error:  # A template runs arbitrary expressions over the row.
            raise PromptError(
                f"the template failed with {type(error).__name__} {quote(str(error))}; "
                f"the row has {quote(list(columns))}"
            ) from error
        _check_texts([text])
        return _Content(text=text)

    return read


def _messages_reader(column: str) -> Callable[[dict[str, Any]], _Content]:
    def read(columns: dict[str, Any]) -> _Content:
        items = _column(columns, column)
        if not isinstance(items, list) or not items:
            raise PromptError(
                f"column {column!r} must be a non-empty list of {{role, content}}, "
                f"found {quote(items)}"
            )
        messages = tuple(
            _parse_message(item, f"{column}[{index}]") for index, item in enumerate(items)
        )
        _check_texts([message.content for message in messages])
        return _Content(messages=messages)

    return read


def _parse_message(item: Any, where: str) -> Message:
    """A message of a chat; keys other than role and content have no part in a prompt."""
    if not isinstance(item, dict) or not {"role", "content"} <= item.keys():
        raise PromptError(f"{where} must be an object with role and content, found {quote(item)}")
    role, content = item["role"], item["content"]
    if role not in ROLES:
        raise PromptError(f"{where}.role must be one of {', '.join(ROLES)}, found {quote(role)}")
    if not isinstance(content, str):
        raise PromptError(f"{where}.content must be text, found {quote(content)}")
    return Message(role, content)


def _check_texts(texts: list[str]) -> None:
    if not any(text.strip() for text in texts):
        raise PromptError("the prompt is empty")
    try:
        size_bytes = sum(len(text.encode()) for text in texts)
    except UnicodeEncodeError as error:
        raise PromptError(
            f"the prompt is not valid Unicode: a lone surrogate at character {error.start + 1}"
        ) from error
    if size_bytes > MAX_PROMPT_BYTES:
        raise PromptError(
            f"the prompt has {size_bytes} bytes, at most {MAX_PROMPT_BYTES} are allowed"
        )


def _to_json(columns: dict[str, Any]) -> str:
    """Valid JSON and valid UTF-8 for whatever a row holds; what JSON lacks becomes a string."""
    try:
        text = json.dumps(columns, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError:
        text = json.dumps(_spell_out(columns), ensure_ascii=False, default=str)
    # Writes a lone surrogate as \udXXX, which is its JSON escape.
    return text.encode(errors="backslashreplace").decode()


def _spell_out(value: Any) -> Any:
    """`value` with nan and infinities as strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _spell_out(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_spell_out(item) for item in value]
    return value
