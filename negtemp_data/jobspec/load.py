"""From a job file and `--set` overrides to a `Job`, with errors that say where and what to do.

The file is YAML 1.2 (so `1e-3` is a number and `no` a string); JSON is YAML.
"""

import copy
import io
import json
import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from negtemp_data.errors import QUOTE_CHARS, JobError, quote
from negtemp_data.jobspec.job import Job

_KEY = re.compile(r"[^.\[\]]+")

_ALTERNATIVE = re.compile(r"<(\w+)>|literal\[.*\]|constrained-\w+")
"""Parts of pydantic's paths that name an alternative of a union: ours, which hold the name of a
model, and its own."""


def read_yaml(text: str, where: str) -> Any:
    """Parses one YAML 1.2 document; `where` names it in errors.

    Raises:
        JobError: The text is not YAML, or has a key twice.
    """
    try:
        return YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
        raise JobError(f"{place}: not valid YAML: {error.problem or error.context}.") from error
    except (YAMLError, ValueError) as error:  # ValueError: a date in month 13, `!!int x`
        reason = " ".join(str(error).split())
        raise JobError(f"{where}: not valid YAML: {reason}.") from error
    except RecursionError as error:
        raise JobError(f"{where}: is nested too deeply.") from error


def apply_overrides(data: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Applies `a.b.0.c=value` settings (the value is YAML) to a job's data, in place.

    Missing mappings on the way are made; list items must exist, or be the next one.

    Raises:
        JobError: An override has no `=`, or leads through something that is no container.
    """
    for override in overrides:
        path, separator, value = override.partition("=")
        keys = _KEY.findall(path)
        if not separator or not keys:
            raise JobError(
                f"--set {quote(override)}: write it as path=value, for example "
                "--set schedules.negative.inject.0.temperature=-2."
            )
        _set(data, keys, read_yaml(value, f"--set {path}"), override)
    return data


def _set(data: Any, keys: list[str], value: Any, override: str) -> None:
    node, depth = data, 0
    while depth < len(keys):
        key = keys[depth]
        if isinstance(node, dict):
            # A name may have dots itself.
            ends = range(len(keys), depth, -1)
            names = (".".join(keys[depth:end]) for end in ends)
            key = next((name for name in names if name in node), key)
        reached, depth = depth, depth + key.count(".") + 1
        last = depth >= len(keys)
        if isinstance(node, dict):
            if last:
                node[key] = value
            else:
                # A copy, since what an anchor names stands in other places too.
                node[key] = {} if node.get(key) is None else copy.copy(node[key])
                node = node[key]
        elif isinstance(node, list) and key.isdecimal() and int(key) <= len(node):
            index = int(key)
            if index == len(node):
                node.append(value if last else {})
            else:
                node[index] = value if last else copy.copy(node[index])
            node = node[index]
        else:
            where = ".".join(keys[:reached]) or "the job"
            kind = f"a list of {len(node)}" if isinstance(node, list) else type(node).__name__
            raise JobError(
                f"--set {quote(override)}: {where} is {kind}, so it has no item {key!r}."
            )


def load_job(path: str | Path, overrides: Iterable[str] = ()) -> Job:
    """Reads, overrides and validates a job file.

    Raises:
        JobError: The file can't be read or does not describe a job; the message names each
            offending path, what was found there and what is accepted.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise JobError(
            f"{path}: no such job file; `negtemp init` writes one to start from."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"{path}: can't be read: {error}.") from error
    data = read_yaml(text, str(path))
    if not isinstance(data, dict):
        found = "is empty" if data is None else f"holds a {type(data).__name__}"
        raise JobError(f"{path}: {found}; a job file is a mapping that starts with `version: 1`.")
    return build_job(apply_overrides(data, overrides), str(path))


def build_job(data: dict[str, Any], where: str) -> Job:
    """Validates a job's data; `where` names it in errors.

    Raises:
        JobError: See `load_job`.
    """
    # JSON mode is what makes strict types fit YAML: an int is a number, a list is a list.
    try:
        text = json.dumps(_infinity_as_text(data), default=str)
    except RecursionError as error:
        raise JobError(f"{where}: is nested too deeply, or an anchor holds itself.") from error
    try:
        return Job.model_validate_json(text)
    except ValidationError as error:
        raise JobError(f"{where}: " + "\n  ".join(explain_errors(error, Job, "job"))) from error


def _infinity_as_text(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _infinity_as_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_infinity_as_text(item) for item in value]
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return "inf" if value > 0 else "-inf"
    return value


def explain_errors(error: ValidationError, model: type[BaseModel], root: str) -> list[str]:
    """One line for each thing that is wrong: path, what it is, what was found, the nearest key.

    Args:
        error: What pydantic says.
        model: The model that it was to be.
        root: Name of the whole, where the path would be empty.
    """
    return [_explain(details, model, root) for details in error.errors(include_url=False)]


def _explain(details: ErrorDetails, model: type[BaseModel], root: str) -> str:
    location = details["loc"]
    path = _path_text(part for part in location if not _ALTERNATIVE.fullmatch(str(part))) or root
    match details["type"]:
        case "extra_forbidden":
            known = sorted(_keys_at(model, location[:-1]))
            near = get_close_matches(str(location[-1]), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}."
            return f"{path}: unknown key; {hint}"
        case "missing":
            return f"{path}: missing; it has to be given."
        case "value_error":
            # Our own validators quote what they found.
            message = str(details["ctx"]["error"])
            return f"{path}: {message}" + ("" if message.endswith("?") else ".")
        case _:
            message = details["msg"][0].lower() + details["msg"][1:]
            return f"{path}: {message}; found {quote(details['input'])}."


def _path_text(location: Iterable[int | str]) -> str:
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            is_plain = part.isprintable() and len(part) <= QUOTE_CHARS
            text += ("." if text else "") + (part if is_plain else quote(part))
    return text


def _keys_at(model: type[BaseModel], location: Iterable[int | str]) -> set[str]:
    """Valid keys of the mapping at `location`, which names the alternatives on the way."""
    schema = TypeAdapter(model).json_schema()
    nodes = list(_alternatives(schema, schema))
    for part in location:
        if alternative := _ALTERNATIVE.fullmatch(str(part)):
            chosen = schema.get("$defs", {}).get(alternative[1])
            nodes = [node for node in nodes if node is chosen]
            continue
        children: list[Any] = []
        for node in nodes:
            # Keys with a pattern of their own (the arms' names) stand under patternProperties.
            options = [
                node.get("items") if isinstance(part, int) else None,
                node.get("properties", {}).get(part),
                node.get("additionalProperties"),
                *node.get("patternProperties", {}).values(),
            ]
            for child in options:
                if isinstance(child, dict):
                    children.extend(_alternatives(child, schema))
        nodes = children
    return {key for node in nodes for key in node.get("properties", {})}


def _alternatives(node: dict[str, Any], root: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "$ref" in node:
        name = str(node["$ref"]).rsplit("/", 1)[-1]
        yield from _alternatives(root["$defs"][name], root)
        return
    yield node
    for keyword in ("anyOf", "oneOf", "allOf"):
        for option in node.get(keyword, []):
            yield from _alternatives(option, root)


def write_job(job: Job) -> str:
    """The resolved job as YAML, every default spelled out; `load_job` reads it back unchanged."""
    stream = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(job.model_dump(mode="json"), stream)
    return stream.getvalue()
