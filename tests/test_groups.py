"""Layer groups: complete, in forward order, the same with and without a classifier."""

import pytest
import timm
import torch
from torch import nn

from tasks.backbones.groups import classifier_names, group_numbers, layer_groups, parameter_names

NAMES = ["test_efficientnet", "test_resnet", "test_vit", "test_convnext", "mobilenetv3_small_050"]


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_is_in_one_group_or_in_the_classifier(name):
    model = timm.create_model(name)
    listed = [entry for names in parameter_names(model) for entry in names]
    assert len(listed) == len(set(listed))
    assert set(listed) | classifier_names(model) == set(model.state_dict())
    assert not set(listed) & classifier_names(model)


@pytest.mark.parametrize("name", NAMES)
def test_groups_are_the_same_without_the_classifier(name):
    whole, headless = timm.create_model(name), timm.create_model(name, num_classes=0)
    assert classifier_names(headless) == set()
    assert parameter_names(whole) == parameter_names(headless)
    assert layer_groups(whole) == layer_groups(headless)


@pytest.mark.parametrize("name", NAMES)
def test_parameter_counts_add_up_to_the_backbone(name):
    model = timm.create_model(name, num_classes=0)
    counted = sum(group.parameters for group in layer_groups(model))
    assert counted == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_groups_are_in_forward_order(name):
    model = timm.create_model(name, num_classes=0).eval()
    numbers, seen = group_numbers(model), []
    for path, module in model.named_modules():
        own = [key for key, _ in module.named_parameters(recurse=False)] if path else []
        if own:
            group = numbers[f"{path}.{own[0]}"]
            module.register_forward_hook(lambda *_, group=group: seen.append(group))
    side = model.pretrained_cfg["input_size"][-1]
    with torch.inference_mode():
        model(torch.zeros(1, 3, side, side))
    assert seen == sorted(seen)
    assert set(seen) == set(range(len(layer_groups(model))))


def test_groups_of_the_default_backbone_are_named_by_its_blocks():
    model = timm.create_model("tf_efficientnet_lite0")
    assert [group.name for group in layer_groups(model)] == [
        "stem",
        *(f"blocks.{number}" for number in range(7)),
    ]
    assert [group.blocks for group in layer_groups(model)] == [1, 1, 2, 2, 3, 3, 4, 1]
    assert group_numbers(model)["conv_head.weight"] == 7
    assert group_numbers(model)["bn2.running_mean"] == 7


def test_what_no_pattern_knows_belongs_to_the_top_group():
    numbers = group_numbers(timm.create_model("test_convnext"))
    assert (
        numbers["head.norm.weight"] == max(numbers.values()) == numbers["stages.3.blocks.0.gamma"]
    )


def test_two_classifiers_are_both_left_out():
    model = timm.create_model("deit_tiny_distilled_patch16_224")
    assert classifier_names(model) == {
        f"{head}.{key}" for head in ("head", "head_dist") for key in ("weight", "bias")
    }


def test_a_model_without_a_matcher_is_one_group():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

        def get_classifier(self):
            return self.fc

    assert parameter_names(Plain()) == [["conv.weight", "conv.bias"]]
    assert [(group.name, group.parameters) for group in layer_groups(Plain())] == [("all", 16)]


def test_a_matcher_that_is_a_function_names_groups_by_their_first_layer():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
            self.norm = nn.BatchNorm2d(4)

        def get_classifier(self):
            return nn.Identity()

        def group_matcher(self, coarse):
            known = {"first": 0, "second": 1}
            return lambda name: known.get(name.partition(".")[0], float("inf"))

    assert [group.name for group in layer_groups(Plain())] == ["first", "second"]
    assert group_numbers(Plain())["norm.weight"] == 1
