"""The form's twin of params.yaml: same names, types and bounds, nothing set by default."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from dvc.utils.hydra import apply_overrides
from pydantic import ValidationError
from ruamel.yaml import YAML

from flows.overrides import ParamsOverrides, apply_changes, changes
from tasks.errors import ParamsError
from tasks.params import Params
from tasks.params_file import leaf_paths, load_params

TEXT = (ROOT / "params.yaml").read_text()
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minItems", "enum", "type")
BOUNDS += ("anyOf", "items", "pattern", "minLength", "maxLength")


def leaves(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Key path and schema of every leaf of a model's schema."""

    def walk(node: dict[str, Any], at: str) -> Iterator[tuple[str, dict[str, Any]]]:
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
        if "properties" not in node:
            yield at, node
        for name, child in node.get("properties", {}).items():
            yield from walk(child, f"{at}.{name}".lstrip("."))

    return walk(schema, "")


def nested(path: str, value: Any) -> dict[str, Any]:
    for part in reversed(path.split(".")):
        value = {part: value}
    return dict(value)


def test_the_form_has_every_leaf_of_params_with_the_same_bounds() -> None:
    ours = dict(leaves(ParamsOverrides.model_json_schema()))
    theirs = dict(leaves(Params.model_json_schema()))
    assert list(ours) == list(theirs) == leaf_paths()
    for path, schema in theirs.items():
        expected = {key: schema[key] for key in BOUNDS if key in schema}
        if schema.get("type") == "boolean":
            expected = {"enum": [True, False]}
        (bounds,) = ours[path].get("allOf", [{}])
        found = {**{key: ours[path][key] for key in BOUNDS if key in ours[path]}, **bounds}
        assert found == expected, path
        assert ours[path]["description"].startswith(schema["description"]), path
        assert ours[path]["title"] == path.rsplit(".", 1)[-1]


def test_bounds_are_said_in_the_description() -> None:
    schema = dict(leaves(ParamsOverrides.model_json_schema()))
    assert schema["finetune.scratch_lr"]["description"].endswith("Allowed: above 0, at most 1.")
    assert schema["baseline.mlp_hidden"]["description"].endswith("8192, or auto.")
    assert schema["ingest.val_fraction"]["description"].endswith("Allowed: above 0, below 0.5.")


def test_nothing_is_required_and_nothing_has_a_default() -> None:
    whole = json.dumps(ParamsOverrides.model_json_schema())
    assert '"default"' not in whole
    assert '"required"' not in whole
    assert "null" not in whole


def test_an_empty_form_changes_nothing() -> None:
    assert changes(ParamsOverrides()) == {}
    assert ParamsOverrides().model_dump(mode="json") == {}
    assert changes(ParamsOverrides.model_validate({"finetune": {}, "seed": None})) == {}


def test_what_is_set_comes_by_its_key_path() -> None:
    form = {"finetune": {"head_lr": 1e-4, "interpolation": [0.5]}, "seed": 0}
    form["augment"] = {"custom": {"hue": 0.1}}
    assert changes(ParamsOverrides.model_validate(form)) == {
        "seed": 0,
        "augment.custom.hue": 0.1,
        "finetune.head_lr": 1e-4,
        "finetune.interpolation": [0.5],
    }


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("finetune.head_lr", 2.0),
        ("finetune.head_lr", "0.1"),
        ("finetune.heed_lr", 0.1),
        ("decide.arm", "magic"),
        ("class_balanced", 1),
        ("baseline.heads", ["linear", "svm"]),
        ("baseline.mlp_hidden", "wide"),
        ("seed", -1),
        ("finetune.interpolation", []),
    ],
)
def test_the_form_refuses_what_params_refuses(path: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=path.rsplit(".", maxsplit=1)[-1]):
        ParamsOverrides.model_validate(nested(path, value))


def test_values_of_params_yaml_are_all_accepted_and_change_nothing() -> None:
    tree = YAML(typ="safe").load(TEXT)
    values = changes(ParamsOverrides.model_validate(tree))
    assert list(values) == leaf_paths()
    assert YAML(typ="safe").load(apply_changes(TEXT, values)) == tree


def test_a_change_leaves_every_other_line_alone() -> None:
    for path in ("seed", "finetune.head_lr", "backbone.name", "augment.custom.hue"):
        values = changes(ParamsOverrides.model_validate(nested(path, OTHER[path])))
        new = apply_changes(TEXT, values)
        differing = [
            (a, b) for a, b in zip(TEXT.splitlines(), new.splitlines(), strict=True) if a != b
        ]
        assert len(differing) == 1, path
        before, after = differing[0]
        assert after.split("#")[1:] == before.split("#")[1:]
        node = YAML(typ="safe").load(new)
        for part in path.split("."):
            node = node[part]
        assert node == OTHER[path]


OTHER: dict[str, Any] = {
    "seed": 3,
    "finetune.head_lr": 0.00001,
    "backbone.name": "resnet50.a1_in1k",
    "augment.custom.hue": 0.25,
}


def test_a_list_is_changed_in_its_place() -> None:
    new = apply_changes(TEXT, {"finetune.interpolation": [0.1, 0.9]})
    assert YAML(typ="safe").load(new)["finetune"]["interpolation"] == [0.1, 0.9]
    items = ("  - 0.25", "  - 0.5", "  - 0.75", "  - 1.0", "  - 0.1", "  - 0.9")
    rest = [[line for line in text.splitlines() if line not in items] for text in (TEXT, new)]
    assert rest[0] == rest[1]
    brackets = "baseline:\n  heads: [linear, mlp]\n"
    changed = apply_changes(brackets, {"baseline.heads": ["mlp"]})
    assert changed == brackets.replace("linear, mlp", "mlp")


def test_rules_between_fields_hold_for_the_merged_values(tmp_path: Path) -> None:
    values = changes(ParamsOverrides.model_validate({"finetune": {"backbone_lr": 0.01}}))
    (tmp_path / "params.yaml").write_text(apply_changes(TEXT, values))
    with pytest.raises(ParamsError, match=r"backbone_lr is 0\.01; allowed: at most head_lr"):
        load_params(tmp_path / "params.yaml")


def test_dvc_and_the_form_leave_the_layout_of_params_yaml_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(TEXT)
    apply_overrides(str(path), ["seed=18"])  # what `dvc exp run -S` does
    changed = TEXT.replace("seed: 17", "seed: 18")
    assert path.read_text() == apply_changes(TEXT, {"seed": 18}) == changed
