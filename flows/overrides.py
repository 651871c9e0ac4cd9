"""The all-optional twin of Params: what the form of a run offers and what is changed for one run.

Built from the schema of params.yaml, so that names, types, bounds and descriptions cannot differ.
It has no default values: what is left out keeps the value of params.yaml when the run starts.
"""

import io
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    create_model,
    model_serializer,
)
from pydantic.fields import FieldInfo
from pydantic.json_schema import SkipJsonSchema
from ruamel.yaml import YAML

from tasks.errors import ParamsError
from tasks.params import Block, Params

BOUNDS = {
    "gt": "above {}",
    "ge": "at least {}",
    "lt": "below {}",
    "le": "at most {}",
}

LOST = (
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "pattern",
    "minLength",
    "maxLength",
)

Unset = SkipJsonSchema[None]  # null is allowed, but the schema does not say so


class OptionalBlock(BaseModel):
    """Base of every block of the twin: strict types, no unknown keys, as in params.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_serializer(mode="wrap")
    def leave_out_unset(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write only what is set, so that neither form nor run shows a long list of nulls."""
        return {name: value for name, value in serialize(self).items() if value is not None}


def _twin(block: type[BaseModel]) -> type[OptionalBlock]:
    """Make a model with the fields of a block, all of them optional."""
    fields = {name: _optional(name, field) for name, field in block.model_fields.items()}
    twin: type[OptionalBlock] = create_model(
        f"{block.__name__}Overrides",
        __base__=OptionalBlock,
        __module__=__name__,
        __doc__=block.__doc__,
        **fields,  # type: ignore[call-overload]
    )
    return twin


def _optional(name: str, field: FieldInfo) -> tuple[Any, Any]:
    """Give type and default of the optional twin of a field.

    The schema says neither null nor default: the form then shows one plain, empty input. A truth
    value is a choice of two there, because a form's switch has no position for "not set".
    """
    kind: Any = field.annotation
    if isinstance(kind, type) and issubclass(kind, Block):
        kind = _twin(kind)
    for bound in field.metadata:
        kind = Annotated[kind, bound]
    described = Field(
        default=None,
        title=name,
        description=_describe(field),
        json_schema_extra=_for_the_form,
    )
    return (kind | Unset, described)


def _for_the_form(schema: dict[str, Any]) -> None:
    """Shape the schema of a field so that the form tells a wrong value at the field.

    What the form sends to be checked lacks every bound, but a list such as allOf goes whole.
    """
    schema.pop("default")
    bounds = {name: schema.pop(name) for name in LOST if name in schema}
    if bounds:
        schema["allOf"] = [bounds]
    if schema.get("type") == "boolean":
        del schema["type"]
        schema["enum"] = [True, False]


def _describe(field: FieldInfo) -> str | None:
    """Add the bounds to a description: the form shows descriptions, bounds only after a mistake."""
    options = get_args(field.annotation)  # of a value that may have several types
    inside = [info for option in options for info in getattr(option, "__metadata__", ())]
    bounds = [
        words.format(getattr(bound, name))
        for bound in [*field.metadata, *(bound for info in inside for bound in info.metadata)]
        for name, words in BOUNDS.items()
        if getattr(bound, name, None) is not None
    ]
    words = [
        word for option in options if get_origin(option) is Literal for word in get_args(option)
    ]
    allowed = [", ".join(bounds), *words] if bounds else []
    return f"{field.description} Allowed: {', or '.join(allowed)}." if bounds else field.description


def overrides_of(*blocks: str) -> type[OptionalBlock]:
    """Make a twin of some blocks of params.yaml alone, for a run that reads no other."""
    fields = {name: _optional(name, Params.model_fields[name]) for name in blocks}
    twin: type[OptionalBlock] = create_model(
        f"{blocks[0].title()}Overrides",
        __base__=OptionalBlock,
        __module__=__name__,
        **fields,  # type: ignore[call-overload]
    )
    return twin


if TYPE_CHECKING:

    class ParamsOverrides(OptionalBlock):
        """The twin of Params; made below because its fields come from there."""

else:
    ParamsOverrides = _twin(Params)


def changes(overrides: OptionalBlock) -> dict[str, Any]:
    """Key path -> value of everything that is set, in the order of params.yaml."""

    def walk(tree: dict[str, Any], at: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        for name, value in tree.items():
            if isinstance(value, dict):
                yield from walk(value, (*at, name))
            else:
                yield ".".join((*at, name)), value

    return dict(walk(overrides.model_dump(), ()))


def apply_changes(text: str, values: Mapping[str, Any]) -> str:
    """Set values in the text of a params.yaml; comments, order and every other value stay.

    Names that params.yaml lacks are added, for `load_params` to complain of. The layout stays too:
    params.yaml is written as DVC's own dumper leaves it after `dvc exp run -S`.
    """
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 10_000
    tree = yaml.load(text)
    for path, value in values.items():
        *blocks, leaf = path.split(".")
        node = tree
        for block in blocks:
            node = node.setdefault(block, {})
            if not isinstance(node, dict):
                raise ParamsError(f"{path} is not a parameter: {block} is a value, not a block")
        if isinstance(value, list) and isinstance(node.get(leaf), list):
            node[leaf][:] = value  # keeps the comments
        else:
            node[leaf] = value
    written = io.StringIO()
    yaml.dump(tree, written)
    return written.getvalue()
