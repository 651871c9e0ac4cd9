"""Mixed batches: pixels and labels are mixed by the same shares, and only where asked for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import with_values
from timm.data import mixup as timm_mixup
from torch import nn
from torch.nn import functional

from tasks.backbones.catalogue import create_architecture
from tasks.errors import TrainingError
from tasks.params import FinetuneParams, Params
from tasks.training.classifier import Classifier
from tasks.training.mixing import (
    Blend,
    Mix,
    TrainBatch,
    blended_cross_entropy,
    check_mixing,
    draw_mix,
    find_box,
)
from tasks.training.parts import BackboneParts, CachePlan
from tasks.training.sampling import Indices

IMAGES = torch.randn((5, 3, 9, 9), generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2, 1, 0])
LOGITS = torch.randn((5, 3), generator=torch.Generator().manual_seed(2))
PLACE = {"seed": 1, "phase": 1, "epoch": 1, "step": 1}

Setting = Callable[[float, float], FinetuneParams]


class Source:
    """Gives rows of a tensor and remembers which were read."""

    views = 0

    def __init__(self, values: torch.Tensor) -> None:
        self.values, self.read_rows = values, np.array([])

    def read(self, rows: Indices) -> torch.Tensor:
        self.read_rows = rows
        return self.values[torch.from_numpy(rows)]

    def remove(self) -> None: ...


def shown(mix: Mix | None, inputs: torch.Tensor = IMAGES) -> Blend:
    """Mix all images with one another."""
    batch = TrainBatch.of(np.arange(5), LABELS.numpy(), mix)
    return batch.read(Source(inputs), torch.device("cpu"))


@pytest.fixture
def setting(default_params: Params) -> Setting:
    """Make a `finetune` block with the two options."""

    def make(mixup: float, cutmix: float) -> FinetuneParams:
        values = {"finetune.mixup_alpha": mixup, "finetune.cutmix_alpha": cutmix}
        return with_values(default_params, values).finetune

    return make


# what is drawn -----------------------------------------------------------------------------------


def test_nothing_is_mixed_by_default(default_params: Params):
    assert draw_mix(default_params.finetune, **PLACE) is None
    blend = shown(None)
    assert torch.equal(blend.inputs, IMAGES)
    assert (blend.share, blend.labels is blend.partners) == (1.0, True)


@pytest.mark.parametrize("changed", list(PLACE))
def test_a_draw_depends_on_seed_phase_epoch_and_step_and_on_nothing_else(
    setting: Setting, changed: str
):
    params = setting(0.4, 1.0)
    one = draw_mix(params, **PLACE)
    np.random.seed(5)
    torch.manual_seed(5)
    assert draw_mix(params, **PLACE) == one
    assert draw_mix(params, **{**PLACE, changed: 2}) != one


@pytest.mark.parametrize(
    ("mixup", "cutmix", "kinds"),
    [(0.2, 0.0, {"mixup"}), (0.0, 1.0, {"cutmix"}), (0.2, 1.0, {"mixup", "cutmix"})],
)
def test_both_options_take_turns(setting: Setting, mixup: float, cutmix: float, kinds: set[str]):
    draws = [draw_mix(setting(mixup, cutmix), **{**PLACE, "step": step}) for step in range(400)]
    found = [draw.kind for draw in draws if draw]
    assert set(found) == kinds
    allowed = {1: (0, 400), 2: range(150, 250)}[len(kinds)]
    assert found.count("cutmix") in allowed


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_have_the_moments_of_the_beta_distribution(setting: Setting, alpha: float):
    draws = [draw_mix(setting(alpha, 0.0), **{**PLACE, "step": step}) for step in range(4000)]
    shares = np.array([draw.share for draw in draws if draw])
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)


# pixels and labels -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_the_whole_share_is_no_mixing(kind: Any):
    blend = shown(Mix(kind, 1.0, (0.5, 0.5)))
    assert torch.equal(blend.inputs, IMAGES)
    assert blend.share == 1
    options = {"smoothing": 0.1, "weights": torch.tensor([1.0, 2.0, 0.5])}
    plain = blended_cross_entropy(LOGITS, shown(None), **options)
    assert torch.equal(blended_cross_entropy(LOGITS, blend, **options), plain)


@pytest.mark.parametrize("shape", [(5, 3, 9, 9), (5, 7, 4), (5, 6)], ids=["map", "tokens", "flat"])
def test_mixup_blends_every_image_with_the_one_before_it(shape: tuple[int, ...]):
    inputs = torch.randn(shape)
    blend = shown(Mix("mixup", 0.3, (0.0, 0.0)), inputs)
    for place in range(5):
        expected = 0.3 * inputs[place] + 0.7 * inputs[place - 1]
        torch.testing.assert_close(blend.inputs[place], expected)
        assert blend.partners[place] == LABELS[place - 1]


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("center", [(0.0, 0.0), (0.5, 0.5), (0.99, 0.3)])
def test_cutmix_mixes_labels_exactly_as_the_pixels(share: float, center: tuple[float, float]):
    blend = shown(Mix("cutmix", share, center))
    own = (blend.inputs == IMAGES).all(dim=1)
    other = (blend.inputs == IMAGES.roll(1, 0)).all(dim=1)
    assert torch.equal(own, ~other)
    assert own.float().mean(dim=(1, 2)).tolist() == pytest.approx([blend.share] * 5)


def test_a_box_at_a_border_is_clipped():
    assert find_box(10, 10, 0.75, (0.5, 0.5)) == (3, 8, 3, 8)
    assert find_box(10, 10, 0.75, (0.0, 0.99)) == (0, 3, 7, 10)
    assert find_box(10, 20, 0.0, (0.5, 0.5)) == (0, 10, 0, 20)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_boxes_are_those_of_timm(share: float, monkeypatch: pytest.MonkeyPatch):
    for row, column in [(0, 0), (3, 8), (13, 6)]:
        centers = iter([row, column])
        monkeypatch.setattr(np.random, "randint", lambda *a, left=centers, **k: next(left))
        box, lam = timm_mixup.cutmix_bbox_and_lam((5, 3, 14, 9), share)
        found = find_box(14, 9, share, ((row + 0.5) / 14, (column + 0.5) / 9))
        assert found == tuple(int(side) for side in box)
        assert 1 - (found[1] - found[0]) * (found[3] - found[2]) / 126 == pytest.approx(lam)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_parts_of_a_batch_are_mixed_as_the_whole_is(kind: Any):
    mix = Mix(kind, 0.3, (0.5, 0.5))
    batch = TrainBatch.of(np.arange(5), LABELS.numpy(), mix)
    whole, source = shown(mix), Source(IMAGES)
    parts = []
    for chosen in (slice(0, 2), slice(2, 5)):
        parts.append(batch.at(chosen).read(source, torch.device("cpu")))
        assert len(source.read_rows) == chosen.stop - chosen.start + 1
    assert torch.equal(torch.cat([part.inputs for part in parts]), whole.inputs)
    assert torch.equal(torch.cat([part.partners for part in parts]), whole.partners)
    assert {part.share for part in parts} == {whole.share}


def test_the_inputs_are_left_alone():
    before = IMAGES.clone()
    shown(Mix("cutmix", 0.2, (0.5, 0.5)))
    shown(Mix("mixup", 0.2, (0.5, 0.5)))
    assert torch.equal(IMAGES, before)


# loss and accuracy -------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_both_labels_by_their_shares(smoothing: float):
    blend = shown(Mix("mixup", 0.3, (0.0, 0.0)))
    soft = timm_mixup.mixup_target(LABELS, 3, 1.0, smoothing)
    soft = 0.3 * soft + 0.7 * soft.roll(1, 0)
    expected = -(soft * functional.log_softmax(LOGITS, dim=1)).sum(dim=1).mean()
    loss = blended_cross_entropy(LOGITS, blend, smoothing=smoothing, weights=None)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)


def test_each_label_counts_by_the_weight_of_its_class():
    weights = torch.tensor([1.0, 3.0, 0.5])
    blend = shown(Mix("mixup", 0.3, (0.0, 0.0)))
    partners = LABELS.roll(1)
    own = functional.cross_entropy(LOGITS, LABELS, reduction="none") * weights[LABELS]
    other = functional.cross_entropy(LOGITS, partners, reduction="none") * weights[partners]
    loss = blended_cross_entropy(LOGITS, blend, smoothing=0.0, weights=weights)
    assert float(loss) == pytest.approx(float((0.3 * own + 0.7 * other).mean()), rel=1e-6)


@pytest.mark.parametrize(("share", "own"), [(0.7, True), (0.5, True), (0.3, False)])
def test_an_image_is_of_the_class_of_which_it_shows_more(share: float, own: bool):
    blend = shown(Mix("mixup", share, (0.0, 0.0)))
    assert torch.equal(blend.dominant, LABELS if own else LABELS.roll(1))


# what cannot be cut ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [(49, 64), (1280,), (7, 7, 96), (96, 3, 3)],
    ids=["tokens", "features", "channels last", "too small"],
)
def test_cutmix_is_refused_where_there_are_no_maps(setting: Setting, shape: tuple[int, ...]):
    check_mixing(shape, setting(0.2, 0.0))
    with pytest.raises(TrainingError, match=r"cutmix needs maps .* Set finetune\.cutmix_alpha to"):
        check_mixing(shape, setting(0.2, 1.0))


@pytest.mark.parametrize(
    ("name", "cut", "maps"),
    [
        ("test_efficientnet", 4, True),
        ("test_vit", 2, False),
        ("test_vit", 0, True),
        ("test_byobnet", 2, True),
    ],
)
def test_networks_are_cut_into_maps_or_tokens(
    setting: Setting, tmp_path: Path, name: str, cut: int, maps: bool
):
    classifier = Classifier(create_architecture(name), nn.Identity())
    cache = CachePlan(tmp_path, 0, [])
    parts = BackboneParts(classifier, [], None, None, None, cache)  # type: ignore[arg-type]
    shape = parts.input_shape(cut)
    assert (len(shape) == 3) == maps
    if maps:
        check_mixing(shape, setting(0.0, 1.0))
    else:
        with pytest.raises(TrainingError, match="cutmix needs maps"):
            check_mixing(shape, setting(0.0, 1.0))


@pytest.mark.parametrize("shape", [(3, 32, 32), (96, 7, 7), (96, 4, 4)])
def test_cutmix_takes_images_and_maps(setting: Setting, shape: tuple[int, ...]):
    check_mixing(shape, setting(0.0, 1.0))
