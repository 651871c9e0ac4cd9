"""Assets: what a stage made, as an event with hashes, sizes and a headline number."""

from pathlib import Path
from typing import Any

import pytest
from toy import ToyProject

from flows import assets
from flows.assets import MATERIALIZED, REFERENCED, asset_key, emit_asset, headline_metric

pytest_plugins = ["toy_fixtures"]


@pytest.fixture
def emitted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(assets, "emit_event", lambda **event: sent.append(event))
    return sent


def test_a_key_names_project_stage_and_experiment() -> None:
    root = Path("/home/me/my project")
    assert asset_key(root, "report") == "dvc://my%20project/data/report"
    assert asset_key(root, "report", "quick-fox") == (
        "dvc://my%20project/experiments/quick-fox/data/report"
    )


def test_what_ran_is_materialized_with_its_outs_and_what_is_cached_is_referenced(
    toy: ToyProject, emitted: list[dict[str, Any]]
) -> None:
    emit_asset(toy.root, "left", "dvc://toy/data/left", ["dvc://toy/data/fetch"], ran=True)
    emit_asset(toy.root, "right", "dvc://toy/data/right", [], ran=False)
    ran, cached = emitted
    assert (ran["event"], cached["event"]) == (MATERIALIZED, REFERENCED)
    assert ran["resource"]["prefect.resource.id"] == "dvc://toy/data/left"
    assert [one["prefect.resource.id"] for one in ran["related"]] == ["dvc://toy/data/fetch"]
    (out,) = ran["payload"]["outs"]
    assert out["path"] == "out/left.txt"
    assert len(out["md5"]) == 32
    assert ran["payload"]["bytes"] == out["bytes"] == (toy.root / "out/left.txt").stat().st_size
    assert "metric" not in ran["payload"]


def test_a_graph_of_the_users_own_has_no_headline(tmp_path: Path) -> None:
    stages = ("left", "ingest", "decide", "baseline", "finetune", "evaluate")
    assert [headline_metric(tmp_path, stage) for stage in stages] == [None] * 6
