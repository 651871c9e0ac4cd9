"""Cutting a backbone: the parts equal the whole and share its modules."""

import copy

import pytest
import timm
import torch
from torch import nn

from tasks.backbones.catalogue import create_architecture
from tasks.backbones.cuts import example_images, prefixes_at, split_at
from tasks.backbones.groups import PooledFeatures, group_numbers, layer_groups
from tasks.errors import EngineError

# name -> side of the images; vision transformers are built for it
SIZES = {
    "test_efficientnet": 32,
    "test_resnet": 32,
    "test_vit": 32,
    "test_convnext": 32,
    "mobilenetv3_small_050": 32,
}


def build(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    return create_architecture(name, image_px=SIZES[name], **options)


@pytest.mark.parametrize("name", SIZES)
def test_one_pass_gives_the_activations_at_every_cut(name):
    model = build(name)
    images = torch.randn(3, 3, SIZES[name], SIZES[name], generator=torch.manual_seed(1))
    cuts = list(range(len(layer_groups(model)), 0, -1))
    with torch.inference_mode():
        together = prefixes_at(model, cuts)(images)
        for cut, found in zip(cuts, together, strict=True):
            assert torch.equal(found, split_at(model, cut)[0](images)), cut


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "tf_efficientnet_lite0"])
def test_larger_networks_can_be_cut_too(name):
    model = timm.create_model(name).eval()
    images = example_images(model, 3)
    with torch.inference_mode():
        expected = PooledFeatures(model)(images)
        for group in range(len(layer_groups(model)) + 1):
            prefix, suffix = split_at(model, group)
            torch.testing.assert_close(suffix(prefix(images)), expected)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit", "test_convnext"])
def test_parts_hold_the_parameters_of_their_groups_as_the_same_objects(name):
    model = build(name)
    numbers = group_numbers(model)
    prefix, suffix = split_at(model, 2)
    below = {id(p) for key, p in model.named_parameters() if numbers[key] < 2}
    above = {id(p) for key, p in model.named_parameters() if numbers[key] >= 2}
    assert {id(parameter) for parameter in prefix.parameters()} == below
    assert {id(parameter) for parameter in suffix.parameters()} == above


def test_the_ends_are_the_identity():
    model = build("test_resnet")
    first, whole = split_at(model, 0)
    features, last = split_at(model, len(layer_groups(model)))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(first(images), images)
    assert torch.equal(last(images), images)
    assert torch.equal(whole(images), features(images))


def test_the_pretrained_classifier_is_in_neither_part():
    model = timm.create_model("test_convnext").eval()
    classifier = {id(parameter) for parameter in model.get_classifier().parameters()}
    prefix, suffix = split_at(model, 3)
    assert not classifier & {id(p) for part in (prefix, suffix) for p in part.parameters()}


def test_activation_and_pooling_below_the_cut_go_with_the_prefix():
    prefix, _ = split_at(build("test_resnet"), 1)
    activation = prefix(torch.randn(2, 3, 32, 32))
    assert activation.shape[-2:] == (8, 8)  # behind the stem's max pooling
    assert activation.min() >= 0


def test_training_the_suffix_trains_the_model_and_nothing_below():
    model = build("test_efficientnet")
    before = copy.deepcopy(model.state_dict())
    numbers = group_numbers(model)
    prefix, suffix = split_at(model, 3)
    with torch.no_grad():
        activation = prefix(torch.randn(4, 3, 32, 32))
    suffix.train()
    optimizer = torch.optim.SGD(suffix.parameters(), lr=0.1)
    (suffix(activation) - 1).square().mean().backward()
    optimizer.step()
    changed = {
        key for key, value in model.state_dict().items() if not torch.equal(value, before[key])
    }
    assert changed
    assert {numbers[key] for key in changed} == {3, 4, 5}
    assert any(key.endswith("running_mean") for key in changed)


def test_modes_of_the_suffix_are_modes_of_the_model():
    model = build("test_efficientnet")
    _, suffix = split_at(model, 3)
    suffix.train()
    assert model.blocks[3].training
    assert not model.blocks[0].training
    suffix.eval()
    assert not any(module.training for module in model.blocks.modules())


def test_cutting_leaves_the_modes_of_the_model_alone():
    model = build("test_efficientnet").train()
    model.blocks[1].eval()
    before = {name: module.training for name, module in model.named_modules()}
    split_at(model, 2)
    assert {name: module.training for name, module in model.named_modules()} == before


def test_stochastic_depth_in_a_block_still_follows_the_mode():
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=0, drop_path_rate=0.9, img_size=32).eval()
    model.pretrained_cfg["input_size"] = (3, 32, 32)
    prefix, suffix = split_at(model, 2)
    activation = prefix(torch.randn(8, 3, 32, 32))
    assert torch.equal(suffix(activation), suffix(activation))
    suffix.train()
    assert not torch.equal(suffix(activation), suffix(activation))


def test_a_group_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="group is 9; allowed: from 0 to 5"):
        split_at(build("test_resnet"), 9)


class Toy(nn.Module):
    """Two groups; `forward_features` is what each test makes of it."""

    def __init__(self, forward_features):
        super().__init__()
        self.stem, self.top = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.shared = nn.Parameter(torch.ones(1))
        self.pretrained_cfg = {"input_size": (3, 8, 8)}
        self._forward_features = forward_features

    def group_matcher(self, coarse):
        return {"stem": "^stem|shared", "top": "^top"}

    def get_classifier(self):
        return nn.Identity()

    def forward_features(self, x):
        return self._forward_features(self, x)

    def forward_head(self, x, pre_logits):
        return x.mean((2, 3))


def test_several_tensors_that_cross_the_cut_are_named():
    def branched(self, x):
        left, right = self.stem(x), self.stem(x + 1)
        return self.top(left) + right

    with pytest.raises(EngineError, match="Toy cannot be cut before layer group 1: 2 tensors"):
        split_at(Toy(branched), 1)


def test_a_parameter_used_on_both_sides_is_named():
    model = Toy(lambda self, x: self.top(self.stem(x) * self.shared) * self.shared)
    with pytest.raises(EngineError, match="parameters of group 0 are used on both sides"):
        split_at(model, 1)


def test_a_forward_pass_that_cannot_be_recorded_is_named():
    model = Toy(lambda self, x: self.top(self.stem(x) * float(x.mean())))
    with pytest.raises(EngineError, match=r"Toy cannot be cut .* cannot be recorded"):
        split_at(model, 1)


def test_parts_that_differ_from_the_whole_are_refused():
    calls = []

    def drifting(self, x):
        calls.append(1)
        return self.top(self.stem(x)) * float(len(calls))

    with pytest.raises(EngineError, match="its parts differ"):
        split_at(Toy(drifting), 1)


def test_a_branch_on_the_image_size_is_taken_as_for_the_models_own_size():
    def sized(self, x):
        x = self.top(self.stem(x))
        return x * 2 if x.shape[-1] == 8 else x * 3

    model = Toy(sized)
    images = torch.randn(4, 3, 8, 8)
    prefix, suffix = split_at(model, 1)
    assert torch.equal(suffix(prefix(images)), PooledFeatures(model)(images))
