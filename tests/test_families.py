"""Every family of networks: cut, run, trained and judged by what it is made of, not by its name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CONVERSION, POLICY, make_origin, tells, with_values
from ruamel.yaml import YAML
from scipy.ndimage import gaussian_filter
from test_decide import NO_RACE, found_by_baseline
from test_extract import fill_store, rows_of, write_choice
from timm.models import create_model, register_model
from timm.models.swin_transformer import SwinTransformer
from tiny_finetune import SIDE, make_inputs, make_manifest

from tasks import decide, extract, similarity
from tasks.artifacts.arrays import read_array, read_tensors, read_tensors_note
from tasks.artifacts.records import (
    BackboneInfo,
    Decision,
    Marks,
    Similarity,
    read_record,
    write_record,
)
from tasks.artifacts.tables import Manifest, ShiftRow, read_rows, write_manifest
from tasks.backbones.cards import CardOrigin, SourceCard, write_card
from tasks.backbones.catalogue import load_backbone
from tasks.backbones.cuts import prefixes_at, split_at
from tasks.backbones.engine import make_engine
from tasks.backbones.groups import layer_groups
from tasks.backbones.normalization import LayerInputs, measure_inputs
from tasks.backbones.source_cards import LayerMoments
from tasks.heads.classifier import start_classifier
from tasks.judging.rule import ValSet, Verdict, judge_change
from tasks.params import Params
from tasks.runtime.device import normalize
from tasks.runtime.machine import Machine
from tasks.training import verdicts
from tasks.training.feed.parts import BackboneParts, CachePlan
from tasks.training.inputs import Examples
from tasks.training.loop import Trainer
from tasks.training.phases import next_phase, training_groups
from tasks.training.resume.checkpoints import TrainState, copy_tensors
from tasks.transferability.ruler import Ruler
from tasks.transferability.shift import moment_shift

MACHINE = Machine(device="cpu", threads=1)
MARKS = Marks(similar=0.03, far=0.1)

# name -> what its norm layers are
FAMILIES = {
    "resnet10t": "batch",
    "test_efficientnet": "batch",
    "mobilenetv3_small_050": "batch",
    "convnext_atto": "other",
    "test_vit": "other",
    "tiny_swin": "other",
    "test_efficientnet_ln": "other",
    "test_nfnet": "other",
}


@register_model
def tiny_swin(pretrained: bool = False, **options: object) -> SwinTransformer:
    """A shifted-window transformer for images of 32 pixels."""
    known = {key: options[key] for key in ("num_classes",) if key in options}
    model = SwinTransformer(
        img_size=SIDE, patch_size=2, window_size=4, embed_dim=16, depths=(1, 2, 1),
        num_heads=(1, 2, 2), **known,
    )  # fmt: skip
    model.pretrained_cfg = {"input_size": (3, SIDE, SIDE), "classifier": "head.fc"}
    return model


def draw(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", [*FAMILIES, "test_resnet", "test_convnext"])
def test_both_parts_of_a_network_equal_the_whole_at_every_group(name: str):
    model = load_backbone(name, "random", image_px=SIDE, seed=0).model
    images = torch.randn(4, 3, SIDE, SIDE, generator=torch.manual_seed(1))
    with torch.inference_mode():
        expected = model(images)
        for group in range(len(layer_groups(model)) + 1):
            prefix, suffix = split_at(model, group)
            assert torch.equal(suffix(prefix(images)), expected), group


@pytest.mark.parametrize("name", FAMILIES)
def test_frozen_parts_of_two_phases_run_in_onnxruntime_as_in_torch(name: str):
    backbone = load_backbone(name, "random", image_px=SIDE, seed=0)
    groups = len(layer_groups(backbone.model))
    prefix = prefixes_at(backbone.model, [groups - 1, groups // 2])
    pixels = draw(5)
    engine = make_engine(prefix, backbone.input, MACHINE, pixels[:3])
    assert engine.name == "onnxruntime"
    with torch.inference_mode():
        expected = prefix(normalize(torch.from_numpy(pixels), backbone.input))
    for found, wanted in zip(engine(pixels), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4 * float(wanted.abs().max()))


class Memory:
    """Checkpoints that nobody reads."""

    def save(self, state: TrainState) -> None:
        pass

    def latest(self) -> None:
        return None


@pytest.mark.parametrize("name", FAMILIES)
def test_a_phase_changes_exactly_the_groups_that_it_trains(
    name: str, tmp_path: Path, default_params: Params, monkeypatch: pytest.MonkeyPatch
):
    def keep(*args: Any, **named: Any) -> Verdict:
        return replace(judge_change(*args, **named), worse=False)

    monkeypatch.setattr(verdicts, "judge_change", keep)
    inputs = make_inputs(tmp_path, backbone=name, views=0)
    assert inputs.backbone.norm == FAMILIES[name]
    values = {"epochs": 1, "batch_size": 16, "head_lr": 0.01, "backbone_lr": 0.01}
    params = with_values(
        default_params, {f"finetune.{key}": value for key, value in values.items()}
    ).finetune
    classifier = start_classifier(
        inputs.backbone, inputs.baseline, inputs.head, arm="fine_tune", seed=17
    )
    groups = training_groups(classifier)
    plan = next_phase(inputs.transfer, groups, params, [])
    assert plan is not None
    parts = BackboneParts(
        classifier, groups, inputs.stores, inputs.backbone.input, MACHINE,
        CachePlan(tmp_path / "cache", 1.0, [plan.unfrozen_from, plan.unfrozen_from - 1]),
    )  # fmt: skip
    before = copy_tensors(classifier, list(classifier.state_dict()))
    val = ValSet(inputs.manifest.labels("val"), inputs.manifest.groups("val"))
    examples = Examples(inputs.manifest.labels("train"), ["an image"] * 30, val, 3)
    trainer = Trainer(classifier, groups, examples, params, seed=17)
    state = trainer.run_phase(plan, None, parts, Memory())
    after = classifier.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    trained = {key for group in groups[plan.unfrozen_from :] for key in group.tensors}
    parameters = {key for key, _ in classifier.named_parameters()} & trained
    assert np.isfinite(state.history[0].train_loss)
    assert changed <= trained
    assert len(changed) > 0.8 * len(parameters)  # a bias before a norm layer has no gradient
    assert changed <= parameters  # the statistics of norm layers stay


@pytest.mark.parametrize("card", ["card", "older card", None])
def test_a_network_without_running_statistics_is_judged_by_its_source_card(
    tmp_path: Path, tiny_params: Params, card: str | None
):
    params = with_values(tiny_params, {"backbone.name": "test_vit"})
    with (tmp_path / "params.yaml").open("w") as file:
        YAML(typ="safe").dump(params.model_dump(), file)
    rows = [*make_manifest().rows, *rows_of(5, "test")]
    write_manifest(tmp_path / "manifest.csv", Manifest(rows))
    for split, count in (("train", 30), ("val", 12), ("test", 5)):
        fill_store(tmp_path / "pixels" / split, count, 0, px=SIDE)
    write_choice(tmp_path / "choice.json", params.backbone)
    write_record(tmp_path / "baseline.json", found_by_baseline())
    write_record(tmp_path / "race.json", NO_RACE)
    extract.main(arguments(tmp_path, manifest="manifest.csv", train="pixels/train",
        val="pixels/val", test="pixels/test", train_features="train", val_features="val",
        test_features="test", probe="probe.safetensors", backbone="backbone.json",
        choice="choice.json"))  # fmt: skip
    info = read_record(tmp_path / "backbone.json", BackboneInfo)
    features = np.array(read_array(tmp_path / "train" / "features.npy"))[:, 0]
    (tmp_path / "cards").mkdir()
    if card:
        provenance = CardOrigin(
            name="shifted", source="", license=None, images=30, backbone="test_vit",
            weights_sha256=info.weights_sha256, weights_license=None, input=info.input,
            fit="crop", command="",
        )  # fmt: skip
        moments = read_moments(tmp_path / "probe.safetensors") if card == "card" else {}
        write_card(
            tmp_path / "cards" / "card.safetensors", SourceCard(features + 3, provenance, moments)
        )
        ruler = Ruler(backbone="test_vit", weights_sha256=info.weights_sha256, image_px=SIDE,
            source="shifted", provenance="", sets=[], marks=MARKS)  # fmt: skip
        write_record(tmp_path / "cards" / "ruler.json", ruler)
    write_record(tmp_path / "source.json", make_origin())
    write_record(tmp_path / "conversion.json", CONVERSION)
    write_record(tmp_path / "policy.json", POLICY)
    similarity.main(arguments(tmp_path, manifest="manifest.csv", origin="source.json",
        conversion="conversion.json", policy="policy.json",
        train="pixels/train", features="train", pictures="pictures",
        probe="probe.safetensors", backbone="backbone.json", cards="cards",
        similarity="similarity.json", profile="profile.csv",
        projection="projection.csv"))  # fmt: skip
    decide.main(arguments(tmp_path, manifest="manifest.csv", similarity="similarity.json",
        backbone="backbone.json", baseline="baseline.json", race="race.json",
        decision="decision.json", transfer="transfer.json", words="decision.md"))  # fmt: skip
    found = read_record(tmp_path / "similarity.json", Similarity)
    decision = read_record(tmp_path / "decision.json", Decision)
    assert (info.norm, found.shift, found.shift_groups) == ("other", None, [])
    profile = read_rows(tmp_path / "profile.csv", ShiftRow)
    page = (tmp_path / "decision.md").read_text()
    if card == "card":  # what the layers see in the source is what they see in the data
        assert found.moments is not None
        assert (found.moments.shift.value, found.moments.shift.low) == (0, 0)
        assert len(profile) == 2 * len(found.moments.groups) + 1 == 13  # two a block, one on top
        assert {row.shift for row in profile} == {0}
        assert "a moment shift of 0.000" in page
        assert "no vote" in page
    else:
        reason = "older version" if card else f"no source card near {SIDE} px"
        assert any(tells(note, "test_vit", "no batch-norm", reason) for note in found.notes)
        assert (found.moments, profile) == (None, [])
        assert "moment shift" not in page
    if card:
        assert found.mmd is not None
        assert found.mmd.matched.value > MARKS.far
        assert decision.domain == "far"
        assert "from the images of shifted" in found.summary
    else:
        assert found.mmd is None
        assert decision.domain == "unknown"
        assert "neither a source card nor a batch-norm layer" in found.summary


def read_moments(probe: Path) -> dict[str, LayerMoments]:
    """What the probe's layers see in all its images."""
    tensors, names = read_tensors(probe), json.loads(read_tensors_note(probe)["moments"])
    return {
        name: LayerMoments(*(tensors[f"moments.{number:03d}.{key}"] for key in ("mean", "var")))
        for number, (name, _) in enumerate(names)
    }


# What is not to be had here are trained weights of such networks: the layers are random ones.
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {"img_size": 64}),
        ("convnext_atto", {}),
        ("swin_tiny_patch4_window7_224", {"img_size": 56}),
    ],
)
def test_pictures_are_the_farther_the_more_is_spoiled(name: str, options: dict[str, int]):
    torch.manual_seed(0)
    model = create_model(name, **options).eval()
    pictures = paint(12, options.get("img_size", 64))
    noise = np.random.default_rng(3).normal(size=pictures.shape)
    spoiled = {
        "noise": [np.clip(pictures + sd * noise, 0, 1) for sd in (0.05, 0.15, 0.4)],
        "blur": [gaussian_filter(pictures, (0, 0, px, px)) for px in (1, 2, 4)],
    }
    source = measure_inputs(model, see(pictures))
    assert profile_of(source, measure_inputs(model, see(pictures))) == 0
    other = profile_of(source, measure_inputs(model, see(paint(12, pictures.shape[-1], seed=2))))
    for kind, stronger in spoiled.items():
        found = [profile_of(source, measure_inputs(model, see(images))) for images in stronger]
        assert 0 < found[0] < found[1] < found[2], kind
        assert other < found[2], kind


def paint(count: int, px: int, seed: int = 1) -> np.ndarray:
    """Draw pictures with large and small shapes in color: (n, 3, px, px), in [0, 1]."""
    noise = np.random.default_rng(seed).normal(size=(3, count, 3, px, px))
    layers = (
        gaussian_filter(one, (0, 0, sd, sd)) for one, sd in zip(noise, (0.7, 3, 9), strict=True)
    )
    return np.clip(0.5 + 0.15 * sum(layer / layer.std() for layer in layers), 0, 1)


def see(pictures: np.ndarray) -> list[list[torch.Tensor]]:
    """One part of all pictures, normalized."""
    return [[torch.from_numpy((pictures - 0.45) / 0.23).float()]]


def profile_of(source: list[LayerInputs], target: list[LayerInputs]) -> float:
    return float(
        np.mean(
            [
                moment_shift(there.mean, there.var, here.mean, here.var)
                for here, there in zip(source, target, strict=True)
            ]
        )
    )


def arguments(folder: Path, **paths: str) -> list[str]:
    """A stage's arguments; paths are relative to the folder."""
    named = [f"--{name.replace('_', '-')}={folder / path}" for name, path in paths.items()]
    return [f"--params={folder / 'params.yaml'}", *named]
