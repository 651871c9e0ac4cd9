"""The form of a run: beside every field stands the value that params.yaml holds now."""

import json
from typing import Any

import pytest
from prefect import Flow
from test_overrides import leaves

from flows import stage as stage_module
from flows.pipeline import pipeline
from flows.serving.form import with_values
from flows.stage import STAGES
from tasks.params import Params
from tasks.params_file import leaf_paths


def fields_of(flow: Flow[..., Any], values: dict[str, Any]) -> dict[str, str]:
    """Key path -> description of every override that a flow's form offers."""
    schema = with_values(flow.parameters.model_dump(), values)
    overrides = {
        "$defs": schema["definitions"],
        "$ref": schema["properties"]["overrides"]["$ref"],
    }
    return {path: node["description"] for path, node in leaves(overrides)}


def value_at(values: dict[str, Any], path: str) -> Any:
    for part in path.split("."):
        values = values[part]
    return values


@pytest.mark.parametrize("name", ["pipeline", *STAGES])
def test_every_field_shows_the_value_of_params_yaml(default_params: Params, name: str) -> None:
    flow = pipeline if name == "pipeline" else getattr(stage_module, name)
    values = default_params.model_dump(mode="json")
    found = fields_of(flow, values)
    own = [path for path in leaf_paths() if path.split(".")[0] == name]
    assert set(own) <= set(found)
    for path, described in found.items():
        assert described.endswith(f" In params.yaml now: {json.dumps(value_at(values, path))}.")
    if name == "pipeline":
        assert list(found) == leaf_paths()


def test_the_values_follow_the_file(default_params: Params) -> None:
    values = default_params.model_dump(mode="json")
    first = with_values(pipeline.parameters.model_dump(), values)
    values["finetune"]["head_lr"] = 0.5
    again = with_values(first, values)
    described = again["definitions"]["FinetuneParamsOverrides"]["properties"]["head_lr"]
    assert described["description"].endswith(" In params.yaml now: 0.5.")
    assert described["description"].count("In params.yaml now") == 1


def test_stages_are_a_choice_of_names() -> None:
    stages = pipeline.parameters.properties["stages"]
    assert stages["items"]["enum"] == ["check", *STAGES, "audit"]
