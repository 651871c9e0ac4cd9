"""Heatmaps of answers: Grad-CAM as published, for every family, without a trace in the model."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import test_families  # noqa: F401 - registers tiny_swin
import torch
from torch import nn

from tasks.artifacts.records import InputSpec
from tasks.backbones.catalogue import create_architecture
from tasks.delivery.explanations import GradCam, enlarge, lay_over, name_picture
from tasks.errors import EngineError
from tasks.heads.registry import find_head
from tasks.runtime.device import normalize

CPU = torch.device("cpu")
# Each at a size that gives its map, of so many places a side, room for corners.
FAMILIES = {
    "test_efficientnet": (128, 8),
    "test_resnet": (128, 4),
    "convnext_atto": (128, 4),
    "test_vit2": (128, 8),
    "tiny_swin": (32, 4),
}


def spec_of(px: int) -> InputSpec:
    return InputSpec(image_px=px, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def make_backbone(name: str, px: int) -> Any:
    torch.manual_seed(0)
    return create_architecture(name, image_px=px)


def noise(count: int, px: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (count, px, px, 3), dtype=np.uint8)


def draw_square(corner: int | None, number: int, px: int) -> np.ndarray:
    """Gray noise, with a red square in one corner (in reading order) or in none."""
    pixels = np.random.default_rng(number).integers(90, 166, (px, px, 3)).astype(np.uint8)
    if corner is not None:
        top, left = ((half * px // 2 + px // 8) for half in divmod(corner, 2))
        pixels[top : top + px // 4, left : left + px // 4] = (255, 0, 0)
    return pixels


def features_of(backbone: Any, pixels: np.ndarray, px: int) -> torch.Tensor:
    with torch.no_grad():
        features: torch.Tensor = backbone(normalize(torch.tensor(pixels), spec_of(px)))
    return features


def fit_head(backbone: Any, px: int) -> nn.Linear:
    """Tell images with a square from those without by the difference of their mean features."""
    corners: Sequence[int | None] = [*([0, 1, 2, 3] * 5), *([None] * 20)]
    drawn = np.stack([draw_square(corner, n, px) for n, corner in enumerate(corners)])
    features = features_of(backbone, drawn, px)
    apart = features[:20].mean(dim=0) - features[20:].mean(dim=0)
    head = nn.Linear(len(apart), 2)
    head.load_state_dict({"weight": torch.stack([-apart, apart]), "bias": torch.zeros(2)})
    return head


def make_cam(name: str, kind: Any = "linear") -> tuple[GradCam, int]:
    px, _ = FAMILIES[name]
    backbone = make_backbone(name, px)
    dim = features_of(backbone, noise(1, px), px).shape[1]
    head = find_head(kind).build(dim, 3, hidden=8, dropout=0.3)
    return GradCam(backbone, head, spec_of(px), CPU), px


def test_before_the_relu_it_is_the_map_of_a_linear_head_on_pooled_features() -> None:
    """CAM: the features of a place times the weights of the class (Zhou et al. 2016)."""
    backbone, pixels = make_backbone("test_resnet", 128), noise(3, 128)
    head = nn.Linear(backbone.num_features, 4)
    with torch.no_grad():
        places = backbone.forward_features(normalize(torch.tensor(pixels), spec_of(128)))
        cam = torch.einsum("nkhw,nk->nhw", places, head.weight[[2, 0, 3]]).numpy()
    found = GradCam(backbone, head, spec_of(128), CPU).evidence(pixels, np.array([2, 0, 3]))
    assert np.abs(cam).max() > 0
    np.testing.assert_allclose(found * 4 * 4, cam, rtol=1e-4, atol=1e-5 * np.abs(cam).max())


def test_in_tokens_it_is_what_autograd_says_of_the_input_of_the_last_block() -> None:
    backbone, pixels = make_backbone("test_vit2", 128), noise(2, 128)
    head, kept = nn.Linear(backbone.num_features, 2), []
    handle = backbone.blocks[-2].register_forward_hook(lambda *call: kept.append(call[2]))
    logits = head(backbone(normalize(torch.tensor(pixels), spec_of(128))))
    handle.remove()
    (slopes,) = torch.autograd.grad(logits[:, 1].sum(), kept[0])
    prefix = backbone.num_prefix_tokens
    weights = slopes[:, prefix:].mean(dim=1, keepdim=True)
    expected = (kept[0][:, prefix:] * weights).sum(dim=2).reshape(2, 8, 8).detach().numpy()
    found = GradCam(backbone, head, spec_of(128), CPU).evidence(pixels, np.array([1, 1]))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_a_map_from_0_to_1_and_the_same_bytes_again(
    name: str, kind: str
) -> None:
    cam, px = make_cam(name, kind)
    pixels, asked = noise(2, px), np.array([0, 2])
    maps = cam.heatmaps(pixels, asked)
    side = FAMILIES[name][1]
    assert maps.shape == (2, side, side)
    assert maps.dtype == np.float32
    for one in maps:
        assert one.min() >= 0
        assert one.max() in {0, 1}
    assert cam.heatmaps(pixels, asked).tobytes() == maps.tobytes()
    alone = cam.heatmaps(pixels[1:], asked[1:])
    np.testing.assert_allclose(alone[0], maps[1], atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_square_in_a_corner_lights_that_corner(name: str) -> None:
    px, side = FAMILIES[name]
    backbone = make_backbone(name, px)
    cam = GradCam(backbone, fit_head(backbone, px), spec_of(px), CPU)
    drawn = np.stack([draw_square(corner, 50 + corner, px) for corner in range(4)])
    maps = cam.heatmaps(drawn, np.ones(4, np.int64))
    rows, columns = np.divmod(maps.reshape(4, -1).argmax(axis=1), side)
    assert (2 * (2 * rows // side) + 2 * columns // side).tolist() == [0, 1, 2, 3]


def test_the_model_is_left_as_it_was() -> None:
    backbone, head = make_backbone("test_efficientnet", 128), nn.Linear(256, 2)
    backbone.train()
    parameters = [*backbone.parameters(), *head.parameters()]
    parameters[0].requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    GradCam(backbone, head, spec_of(128), CPU).heatmaps(noise(2, 128), np.array([0, 1]))
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(module.training for module in backbone.modules())
    assert [one.requires_grad for one in parameters] == [False] + [True] * (len(parameters) - 1)
    assert all(one.grad is None for one in parameters)
    assert not any(module._forward_pre_hooks for module in backbone.modules())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_where_nothing_speaks_for_a_class_the_map_is_empty() -> None:
    backbone = make_backbone("test_efficientnet", 128)
    head = nn.Linear(256, 2)
    nn.init.zeros_(head.weight)
    maps = GradCam(backbone, head, spec_of(128), CPU).heatmaps(noise(1, 128), np.array([0]))
    assert not maps.any()


class Odd(nn.Module):
    """A network whose last features are no map."""

    def forward_features(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [images]


class Pooled(Odd):
    """A network without blocks that reads one token alone: no slope would reach the others."""

    def forward_features(self, images: torch.Tensor) -> Any:
        return images.flatten(2).transpose(1, 2)

    def forward_head(self, tokens: torch.Tensor, *, pre_logits: bool) -> torch.Tensor:
        return tokens[:, 0]


def test_networks_without_a_map_of_places_are_refused_in_one_sentence() -> None:
    with pytest.raises(EngineError, match=r"^Odd has no map of places: "):
        GradCam(Odd(), nn.Linear(3, 2), spec_of(32), CPU)
    with pytest.raises(EngineError, match=r"^Pooled has no map of places: .*blocks"):
        GradCam(Pooled(), nn.Linear(3, 2), spec_of(32), CPU)
    resnet = make_backbone("test_resnet", 32)
    with pytest.raises(EngineError, match=r"single place at 32 px; larger images"):
        GradCam(resnet, nn.Linear(resnet.num_features, 2), spec_of(32), CPU)


# pictures ----------------------------------------------------------------------------------------


def test_an_image_without_heat_is_shown_in_gray_and_heat_colors_its_place() -> None:
    pixels = noise(1, 64)[0]
    plain = lay_over(pixels, np.zeros((4, 4), np.float32))
    assert (plain == plain[..., :1]).all()
    heat = np.zeros((4, 4), np.float32)
    heat[0, 3] = 1
    colored = lay_over(pixels, heat)
    assert colored.dtype == np.uint8
    changed = (colored != plain).any(axis=2)
    assert changed[:16, 48:].all()
    assert not changed[40:].any()
    assert not changed[:, :24].any()


def test_a_place_is_enlarged_around_its_middle() -> None:
    heat = np.zeros((4, 4), np.float32)
    heat[1, 2] = 1
    large = enlarge(heat, 64)
    rows, columns = np.nonzero(large > 0.5)
    assert (rows.mean(), columns.mean()) == (23.5, 39.5)


def test_pictures_are_named_by_their_path_and_never_meet() -> None:
    odd = b"caf\xe9/\n..".decode("utf-8", "surrogateescape")
    paths = ["a/b.png", "a_b.png", "/a/b.png", "../a/b.png", "-x.png", odd, "", "日本", "x" * 5000]
    paths += ["a/B.png", "a/b.png\r"]
    names = [name_picture(path) for path in paths]
    assert len({name.lower() for name in names}) == len(paths)
    for name in names:
        assert name.isascii()
        assert not set(name) & set("/\\\n\r")
        assert not name.startswith(("-", "."))
        assert len(os.fsencode(name)) < 128
    assert names[0].startswith("a_b.png.")
    assert names[0] == name_picture("a/b.png")
