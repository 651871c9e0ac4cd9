"""Heads map raw features to logits and survive their file."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from tasks.artifacts.arrays import write_tensors
from tasks.artifacts.records import Baseline, Estimate, HeadKind
from tasks.errors import ArtifactError
from tasks.heads.registry import apply_head, find_head, load_head, soften_head, write_head


def baseline(kind: HeadKind) -> Baseline:
    return Baseline(
        head=kind,
        hidden=5 if kind == "mlp" else 0,
        dropout=0.3 if kind == "mlp" else 0.0,
        feature_dim=7,
        classes=["a", "b", "c"],
        candidates=[],
        val_accuracy=Estimate(value=1.0, low=None, high=None, n=1),
        val_loss=0.0,
        majority_accuracy=0.5,
        l2_strength=0.1,
        notes=[],
    )


def head_of(kind: HeadKind) -> nn.Module:
    torch.manual_seed(3)
    head = find_head(kind).build(7, 3, hidden=5, dropout=0.3)
    for tensor in head.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    return head


def rows(count: int = 11) -> np.ndarray:
    return np.random.default_rng(1).normal(2, 3, (count, 7)).astype(np.float32)


def test_linear_head_is_weights_times_features_plus_bias():
    head = head_of("linear")
    weight, bias = (tensor.numpy() for tensor in head.state_dict().values())
    np.testing.assert_allclose(apply_head(head, rows()), rows() @ weight.T + bias, rtol=1e-5)


def test_mlp_head_standardizes_with_its_stored_statistics():
    head = head_of("mlp")
    state = {name: tensor.numpy() for name, tensor in head.state_dict().items()}
    standard = (rows() - state["norm.running_mean"]) / np.sqrt(state["norm.running_var"] + 1e-5)
    hidden = standard * state["norm.weight"] + state["norm.bias"]
    hidden = np.maximum(hidden @ state["hidden.weight"].T + state["hidden.bias"], 0)
    expected = hidden @ state["out.weight"].T + state["out.bias"]
    np.testing.assert_allclose(apply_head(head, rows()), expected, rtol=1e-4)


@pytest.mark.parametrize("kind", get_args(HeadKind))
def test_head_read_from_its_file_gives_the_same_logits(kind: HeadKind, tmp_path: Path):
    head = head_of(kind)
    write_head(tmp_path / "head.safetensors", head)
    again = load_head(tmp_path / "head.safetensors", baseline(kind))
    assert not again.training
    np.testing.assert_array_equal(apply_head(head, rows()), apply_head(again, rows()))


def test_every_kind_has_a_module_that_builds_and_trains():
    for kind in get_args(HeadKind):
        module = find_head(kind)
        assert {"build", "train"} <= vars(module).keys()
        assert apply_head(head_of(kind), rows()).shape == (11, 3)


def test_a_row_gets_the_same_logits_alone_and_among_others():
    head = head_of("mlp").train()
    together = apply_head(head, rows(9000))
    np.testing.assert_allclose(apply_head(head, rows(9000)[8999:]), together[8999:], rtol=1e-5)


def test_no_rows_give_no_logits():
    assert apply_head(head_of("linear"), rows()[:0]).shape == (0, 3)


def test_a_head_of_another_kind_is_refused(tmp_path: Path):
    write_head(tmp_path / "head.safetensors", head_of("linear"))
    with pytest.raises(ArtifactError, match=r"tensor (bias|weight) does not belong"):
        load_head(tmp_path / "head.safetensors", baseline("mlp"))


def test_a_head_of_another_width_is_refused(tmp_path: Path):
    path = tmp_path / "head.safetensors"
    write_tensors(path, {"weight": np.zeros((3, 6), "f4"), "bias": np.zeros(3, "f4")})
    with pytest.raises(ArtifactError, match=r"weight has shape \(3, 6\), expected \(3, 7\)"):
        load_head(path, baseline("linear"))


def test_a_head_with_a_tensor_too_many_is_refused(tmp_path: Path):
    path = tmp_path / "head.safetensors"
    arrays = {"weight": np.zeros((3, 7), "f4"), "bias": np.zeros(3, "f4")}
    write_tensors(path, arrays | {"extra": np.zeros(1, "f4")})
    with pytest.raises(ArtifactError, match="extra does not belong"):
        load_head(path, baseline("linear"))


def test_a_missing_head_file_says_which_stage_to_run(tmp_path: Path):
    with pytest.raises(ArtifactError, match="run the stage that writes it"):
        load_head(tmp_path / "head.safetensors", baseline("linear"))


@pytest.mark.parametrize("kind", get_args(HeadKind))
@pytest.mark.parametrize(("temperature", "divisor"), [(4.0, 4.0), (0.5, 1.0)])
def test_a_softened_head_gives_the_same_answers_less_surely(
    kind: HeadKind, temperature: float, divisor: float
) -> None:
    head = head_of(kind)
    before = apply_head(head, rows())
    soften_head(head, temperature)
    np.testing.assert_allclose(apply_head(head, rows()), before / divisor, rtol=1e-5)
