import subprocess
import sys

import pytest
from conftest import ROOT, tells
from test_doubts import measured

from tasks.artifacts.records import (
    BackboneInfo,
    Decision,
    InputSpec,
    LayerGroup,
    Marks,
    read_record,
    write_record,
)
from tasks.artifacts.tables import Manifest, ManifestRow, write_manifest
from tasks.decide import decide, main
from tasks.params_file import load_params
from tasks.transferability.decision_words import write_page

PARAMS = load_params(ROOT / "params.yaml").decide
MARKS = Marks(similar=0.04, far=0.1)

SIZES = {
    "stem": 1_000, "blocks.0": 1_000, "blocks.1": 17_000, "blocks.2": 46_000,
    "blocks.3": 235_000, "blocks.4": 500_000, "blocks.5": 1_200_000, "blocks.6": 2_000_000,
}  # fmt: skip

INFO = BackboneInfo(
    name="small",
    weights="random",
    weights_sha256="0" * 64,
    weights_license=None,
    weights_source=None,
    input=InputSpec(image_px=32, mean=(0, 0, 0), std=(1, 1, 1)),
    groups=[LayerGroup(name=name, parameters=size) for name, size in SIZES.items()],
    feature_dim=8,
    norm="batch",
    engine="torch",
    parity=None,
)


def decided(arm="auto", images=1557, classes=2, marks=MARKS, **what):
    params = PARAMS.model_copy(update={"arm": arm})
    similarity = measured(**what)[1].model_copy(update={"marks": marks})
    return decide(similarity, INFO, images=images, classes=classes, params=params)


def test_the_ruler_sets_the_marks_that_the_parameters_leave_to_it():
    assert decided(marks=Marks(similar=0.2, far=0.3)).domain == "similar"
    assert decided(marks=Marks(similar=0.1, far=0.3)).domain == "intermediate"
    own = PARAMS.model_copy(update={"similar_mmd": 0.2, "far_mmd": 0.3})
    similarity = measured()[1].model_copy(update={"marks": MARKS})
    assert decide(similarity, INFO, images=99, classes=2, params=own).domain == "similar"


def test_without_a_ruler_the_shift_says_the_domain():
    decision = decided(marks=None, shift=(0.1, 0.11, 0.12))
    assert decision.domain == "similar"
    assert any("no source card or ruler fits" in reason for reason in decision.reasons)
    rules = {rule.name: rule.fired for rule in decision.rules}
    assert (rules["domain by MMD"], rules["domain by batch-norm shift"]) == (False, True)


def test_solar_cells_are_fine_tuned_from_the_upper_half():
    decision = decided()
    assert (decision.arm, decision.domain, decision.phases) == ("fine_tune", "far", [6, 4])
    assert (decision.forced, decision.recommended) == (False, "fine_tune")
    assert decision.confidence == "high"


def test_reasons_name_the_numbers():
    reasons = decided().reasons
    for facts in (
        ("far", "MMD^2", "card", "0.180", "0.170 to 0.190"),
        ("1,557 training images", "2 classes", "778 a class"),
        ("30.0 points", "20.0 to 40.0"),
    ):
        assert any(tells(reason, *facts) for reason in reasons)


def test_reasons_include_the_doubts():
    decision = decided(gain=(-0.03, -0.01, 0.01))
    assert decision.confidence == "low"
    assert any("lose 1.0 points" in reason for reason in decision.reasons)
    assert any("transfer itself is in doubt" in reason for reason in decision.reasons)
    assert "try the others with decide.arm" in decision.reasons[-1]
    assert "try the others" not in decided().reasons[-1]


@pytest.mark.parametrize(
    ("what", "facts"),
    [
        ({"mmd": None}, ("domain", "far", "batch-norm shift", "0.45")),
        ({"mmd": None, "shift": None}, ("domain", "Nothing tells", "counts as intermediate")),
    ],
)
def test_reasons_without_a_card(what, facts):
    assert any(tells(reason, *facts) for reason in decided(**what).reasons)


FORCED = {"scratch": [0], "feature_extraction": [], "fine_tune": [6, 4]}


@pytest.mark.parametrize(("arm", "phases"), FORCED.items())
def test_a_forced_arm_is_recorded_beside_what_the_rules_say(arm, phases):
    decision = decided(arm)
    assert (decision.arm, decision.forced, decision.phases) == (arm, True, phases)
    assert decision.recommended == "fine_tune"
    assert tells(decision.reasons[0], "user asked", "decide.arm")


def test_forced_fine_tuning_unfreezes_a_group_where_the_rules_would_none():
    similar = {"images": 30, "mmd": (0.0, 0.01, 0.02), "shift": None}
    assert decided(**similar).arm == "feature_extraction"
    decision = decided("fine_tune", **similar)
    assert decision.phases == [7]
    assert decision.recommended == "feature_extraction"


def test_what_would_change_the_answer_is_said_in_words():
    facts = (
        ("4,001 training images or more", "top 6 of 8"),
        ("40 training images or fewer", "top 2 of 8"),
        ("MMD^2", "below 0.04", "top 2 of 8"),
    )
    for sentence, told in zip(decided().would_change, facts, strict=True):
        assert tells(sentence, "fine-tune", *told)


def test_main_writes_decision_and_words(tmp_path):
    rows = [
        ManifestRow(f"{i}.png", "ab"[i % 2], "train" if i < 200 else "test", f"{i}", "", 8, 8, "L")
        for i in range(240)
    ]
    write_manifest(tmp_path / "manifest.csv", Manifest(rows))
    similarity = measured()[1].model_copy(update={"marks": MARKS})
    write_record(tmp_path / "similarity.json", similarity)
    write_record(tmp_path / "backbone.json", INFO)
    names = {
        "manifest": "manifest.csv", "similarity": "similarity.json", "backbone": "backbone.json",
        "decision": "out/decision.json", "words": "out/decision.md",
    }  # fmt: skip
    arguments = [f"--{name}={tmp_path / file}" for name, file in names.items()]
    main([f"--params={ROOT / 'params.yaml'}", *arguments])
    decision = read_record(tmp_path / "out/decision.json", Decision)
    assert decision == decided(images=200)
    page = (tmp_path / "out/decision.md").read_text()
    title, _, answer, *_ = page.splitlines()
    assert title.startswith("# ")
    assert tells(answer, "Fine-tune", "top 4 of 8", "from blocks.3")
    assert "| 1 | blocks.5 to blocks.6, head |" in page
    assert "| 2 | blocks.3 to blocks.6, head |" in page
    assert all(f"| {rule.name} |" in page for rule in decision.rules)
    assert all(sentence in page for sentence in [*decision.reasons, *decision.would_change])


def test_deciding_loads_no_torch():
    code = "import sys, tasks.decide; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_page_of_a_frozen_backbone_has_no_phases():
    page = write_page(decided("feature_extraction"), INFO.groups)
    assert "frozen" in page.splitlines()[2]
    assert "| phase |" not in page
