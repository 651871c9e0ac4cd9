"""Reads params.yaml; a mistake in it is told with file, line, key path and what is allowed."""

import difflib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node
from ruamel.yaml.tokens import (
    AliasToken,
    BlockEndToken,
    BlockMappingStartToken,
    BlockSequenceStartToken,
    FlowMappingEndToken,
    FlowMappingStartToken,
    FlowSequenceEndToken,
    FlowSequenceStartToken,
)

from tasks.artifacts.words import first_lines
from tasks.errors import ParamsError
from tasks.params import Params

LARGEST_FILE_BYTES = 200_000
DEEPEST_NESTING = 20
LONGEST_SHOWN, SHOWN_PROBLEMS = 100, 20
KINDS = {"array": "list", "boolean": "true or false", "object": "block of keys"}
OPENING = (
    BlockMappingStartToken,
    BlockSequenceStartToken,
    FlowMappingStartToken,
    FlowSequenceStartToken,
)
CLOSING = (BlockEndToken, FlowMappingEndToken, FlowSequenceEndToken)


def load_params(path: Path) -> Params:
    """Read and check params.yaml as DVC reads it (YAML 1.2).

    Raises:
        ParamsError: The file is missing or no YAML mapping, or values are wrong. The message has
            one line for every problem: file, line, key path, what was found, what is allowed.
    """
    text = _read_text(path)
    try:
        _check_structure(path, text)
        root = YAML(typ="rt").compose(text)
        values = YAML(typ="safe").load(text)
    except MarkedYAMLError as err:
        line = err.problem_mark.line + 1 if err.problem_mark else 1
        raise ParamsError(
            f"{path}:{line}: not readable as YAML: {err.problem}; text with a colon, a # or other "
            "signs of YAML needs quotes"
        ) from err
    except YAMLError as err:  # such as a control character
        raise ParamsError(f"{path}: not readable as YAML: {str(err).splitlines()[0]}") from err
    if not isinstance(values, dict):
        raise ParamsError(
            f"{path}:1: expected blocks of `key: value`, found "
            f"{'nothing' if values is None else type(values).__name__}"
        )
    try:
        return Params.model_validate(values)
    except ValidationError as err:
        lines = dict(_lines_of(root))
        problems = [_describe(path, detail, lines) for detail in err.errors()]
        raise ParamsError("\n".join(first_lines(dict.fromkeys(problems), SHOWN_PROBLEMS))) from err


def place_of_key(path: Path, key: str) -> str:
    """Give `params.yaml:12: block.key`, the way every message about a value begins.

    Args:
        path: A file that `load_params` reads.
        key: Key path of a value in it.
    """
    lines = dict(_lines_of(YAML(typ="rt").compose(path.read_text(encoding="utf-8"))))
    return f"{path}:{lines[tuple(key.split('.'))]}: {key}"


def _read_text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as err:
        raise ParamsError(
            f"{path}: cannot be read ({err.strerror}); run from the project's root or name it with "
            "--params"
        ) from err
    if len(raw) > LARGEST_FILE_BYTES:
        raise ParamsError(f"{path}: {len(raw)} bytes; allowed: at most {LARGEST_FILE_BYTES}")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as err:
        raise ParamsError(f"{path}: byte {err.start} is not UTF-8") from err


def _check_structure(path: Path, text: str) -> None:
    """Refuse what parameters never need and readers choke on: aliases and deep nesting."""
    depth = 0
    for token in YAML(typ="safe", pure=True).scan(text):
        depth += isinstance(token, OPENING) - isinstance(token, CLOSING)
        place = f"{path}:{token.start_mark.line + 1}"
        if isinstance(token, AliasToken):
            raise ParamsError(f"{place}: alias *{token.value}; write the value out")
        if depth > DEEPEST_NESTING:
            raise ParamsError(f"{place}: nested more than {DEEPEST_NESTING} levels deep")


def _lines_of(node: Node | None, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yield (key path, line from 1) of every key below a mapping."""
    if not isinstance(node, MappingNode):
        return
    for key, value in node.value:
        here = (*at, str(key.value))
        yield here, key.start_mark.line + 1
        yield from _lines_of(value, here)


def _describe(path: Path, detail: ErrorDetails, lines: dict[tuple[str, ...], int]) -> str:
    """Turn one pydantic error into file:line: key path, what was found, what is allowed."""
    where = _key_path(detail)
    known = where
    while known and known not in lines:
        known = known[:-1]
    place = f"{path}:{lines.get(known, 1)}: {'.'.join(where) or 'the file'}"
    if detail["type"] in ("extra_forbidden", "invalid_key"):
        return f"{place} is not a parameter.{_nearest(where)}"
    if detail["type"] == "missing":
        return f"{place} is missing; every value stands in params.yaml: {_allowed(where)}"
    if detail["type"] == "value_error":
        return f"{place}: {detail['msg'].removeprefix('Value error, ')}"
    return f"{place} is {_shown(detail['input'])}; allowed: {_allowed(where)}"


def _key_path(detail: ErrorDetails) -> tuple[str, ...]:
    """Key path of a mistake; where several types are allowed, pydantic names each behind it."""
    where = tuple(str(part) for part in detail["loc"])
    leaves = (where[:end] for end in range(1, len(where) + 1))
    leaf = next((path for path in leaves if ".".join(path) in leaf_paths()), where)
    return leaf + tuple(part for part in where[len(leaf) :] if part.isdigit())


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _nearest(where: tuple[str, ...]) -> str:
    """Name the parameter that was meant: a neighbor of similar name, or one of another block."""
    siblings = list(_schema_of(where[:-1]).get("properties", {}))
    by_name = {leaf.rsplit(".", 1)[-1]: leaf for leaf in reversed(leaf_paths())}
    for name in difflib.get_close_matches(where[-1], siblings, n=1, cutoff=0.75):
        return f" Did you mean {'.'.join((*where[:-1], name))}?"
    for name in difflib.get_close_matches(where[-1], by_name, n=1, cutoff=0.75):
        return f" Did you mean {by_name[name]}?"
    return f" Allowed here: {', '.join(siblings)}." if siblings else ""


def leaf_paths() -> list[str]:
    """Key paths of every single value of params.yaml, such as `finetune.head_lr`, in file order."""

    def walk(schema: dict[str, Any], at: tuple[str, ...]) -> Iterator[str]:
        properties = schema.get("properties")
        if properties is None:
            yield ".".join(at)
            return
        for name in properties:
            yield from walk(_schema_of((*at, name)), (*at, name))

    return list(walk(_schema_of(()), ()))


@cache
def _whole_schema() -> dict[str, Any]:
    return Params.model_json_schema()


def _schema_of(where: tuple[str, ...]) -> dict[str, Any]:
    """JSON schema at a key path; empty where there is none."""
    whole = _whole_schema()
    schema = whole
    for part in where:
        if part.isdigit():
            schema = schema.get("items", {})
        else:
            schema = schema.get("properties", {}).get(part, {})
        described = schema.get("description")
        if "$ref" in schema:
            schema = whole["$defs"][schema["$ref"].rsplit("/", 1)[-1]]
        if described:
            schema = {**schema, "description": described}
    return schema


def _allowed(where: tuple[str, ...]) -> str:
    """Say in words what a key path allows: type, bounds, choices, and its description."""
    schema = _schema_of(where)
    kinds = " | ".join(_kind(option) for option in schema.get("anyOf", [schema]))
    description = schema.get("description", "")
    return kinds + (f" ({description})" if description else "")


def _kind(schema: dict[str, Any]) -> str:
    bounds = [
        f"{word} {schema[key]}"
        for key, word in (
            ("exclusiveMinimum", "greater than"),
            ("minimum", "at least"),
            ("exclusiveMaximum", "less than"),
            ("maximum", "at most"),
            ("minLength", "length at least"),
            ("maxLength", "length at most"),
            ("minItems", "items at least"),
        )
        if key in schema
    ]
    choices = [schema["const"]] if "const" in schema else schema.get("enum")
    kind = " | ".join(choices) if choices else KINDS.get(schema["type"], schema["type"])
    return ", ".join([kind, *bounds])
