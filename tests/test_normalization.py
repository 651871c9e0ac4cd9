"""What normalization layers see: as computed naively; untrained networks made usable."""

import numpy as np
import pytest
import timm
import torch
from timm.layers import GroupNorm1, LayerNorm, LayerNorm2d, RmsNorm, RmsNorm2d

from tasks.backbones.groups import group_numbers
from tasks.backbones.normalization import fit_running_statistics, measure_inputs, norm_kind


def build(name: str = "test_efficientnet", **options) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **options).eval()


def images(count: int, offset: float = 0.0) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.manual_seed(1)) + offset


def captured_inputs(model: torch.nn.Module, batches: list) -> dict[str, torch.Tensor]:
    """All inputs of every batch-norm layer, in forward order."""
    seen: dict[str, list[torch.Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_pre_hook(
                lambda _, inputs, name=name: seen.setdefault(name, []).append(inputs[0].double())
            )
    with torch.inference_mode():
        for batch in batches:
            model(batch)
    return {name: torch.cat(parts) for name, parts in seen.items()}


@pytest.mark.parametrize("sizes", [[24], [7, 7, 10], [1] * 24], ids=["whole", "uneven", "single"])
def test_statistics_equal_those_of_all_inputs_at_once(sizes):
    batches = images(24, offset=100.0).split(sizes)  # far from zero, where naive sums lose digits
    found = measure_inputs(build(), [batches])
    expected = captured_inputs(build(), batches)
    assert [layer.name for layer in found] == list(expected)
    for layer in found:
        var, mean = torch.var_mean(expected[layer.name], (0, 2, 3), correction=0)
        np.testing.assert_allclose(layer.mean, mean, rtol=1e-4, atol=1e-4 * var.max().sqrt())
        np.testing.assert_allclose(layer.var, var, rtol=1e-4, atol=1e-12 * mean.square().max())


def test_statistics_do_not_depend_on_workers_or_threads():
    batches = images(24).split(5)
    first = measure_inputs(build(), [batches])
    torch.set_num_threads(3)
    second = measure_inputs(build(), [batches], workers=3)
    torch.set_num_threads(1)
    assert len(first) > 1
    for one, two in zip(first, second, strict=True):
        assert one.name == two.name
        np.testing.assert_array_equal(one.mean, two.mean)
        np.testing.assert_array_equal(one.var, two.var)


def test_parts_have_statistics_of_their_own_and_together_are_the_whole():
    parts = [images(12)[:7].split(4), images(12)[7:].split(4)]
    found = measure_inputs(build(), parts, workers=2)
    whole = measure_inputs(build(), [images(12).split(4)])
    for number, batches in enumerate(parts):
        alone = measure_inputs(build(), [batches])
        for layer, expected in zip(found, alone, strict=True):
            np.testing.assert_array_equal(layer.part_means[number], expected.mean)
            np.testing.assert_array_equal(layer.part_vars[number], expected.var)
    for layer, expected in zip(found, whole, strict=True):
        np.testing.assert_allclose(layer.mean, expected.mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(layer.var, expected.var, rtol=1e-5)


def test_layers_carry_their_group_and_what_pretraining_left():
    model = build()
    model.blocks[1][0].bn1.running_mean.fill_(0.25)
    found = {layer.name: layer for layer in measure_inputs(model, [[images(2)]])}
    numbers = group_numbers(model)
    for name, layer in found.items():
        assert layer.group == numbers[f"{name}.running_mean"]
    np.testing.assert_array_equal(found["blocks.1.0.bn1"].running_mean, 0.25)
    np.testing.assert_array_equal(found["blocks.1.0.bn1"].running_var, 1.0)


def test_measuring_changes_nothing_and_leaves_no_hooks():
    model = build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measure_inputs(model, [[images(4)]])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_hooks_go_even_if_a_batch_fails():
    model = build()
    with pytest.raises(RuntimeError, match="channels"):
        measure_inputs(model, [[torch.zeros(1, 5, 32, 32)]])
    assert not any(module._forward_pre_hooks for module in model.modules())


# Networks without running statistics: tokens, NHWC, NCHW and both; layer, group and RMS norm.
OTHERS = {
    "tokens": ("vit_tiny_patch16_224", {"img_size": 32}),
    "NHWC and NCHW": ("convnext_atto", {}),
    "NCHW alone": ("convnext_atto", {"conv_mlp": True}),
    "windows": ("swin_tiny_patch4_window7_224", {"img_size": 56}),
    "with activation": ("test_efficientnet_ln", {}),
    "groups": ("resnet18", {"norm_layer": "groupnorm"}),
    "RMS of tokens": ("test_vit", {"img_size": 32, "norm_layer": RmsNorm}),
    "RMS of maps": ("convnext_atto", {"norm_layer": "rmsnorm2d", "conv_mlp": True}),
}


def axis_that_weights_scale(layer: torch.nn.Module, inputs: torch.Tensor) -> int:
    """Channel axis of a layer's input: that along which its first weight changes the output."""
    before = layer(inputs)
    with torch.no_grad():
        layer.weight[0] += 1
        changed = layer(inputs) != before
        layer.weight[0] -= 1
    for axis in range(1, inputs.ndim):
        first, *others = changed.movedim(axis, 0)
        if first.any() and not any(other.any() for other in others):
            return axis
    raise AssertionError("no axis")


@pytest.mark.parametrize("family", OTHERS)
def test_layers_without_statistics_are_measured_along_the_axis_of_their_weights(family):
    name, options = OTHERS[family]
    model = build(name, **options)
    side = options.get("img_size", 32)
    batch = torch.randn(5, 3, side, side, generator=torch.manual_seed(1)) + 3
    found = measure_inputs(model, [[batch[:2]], [batch[2:]]])
    seen = {}
    kinds = (torch.nn.LayerNorm, torch.nn.GroupNorm, RmsNorm, RmsNorm2d)
    for key, module in model.named_modules():
        if isinstance(module, kinds):
            module.register_forward_pre_hook(
                lambda layer, inputs, key=key: seen.update({key: (layer, inputs[0])})
            )
    with torch.inference_mode():
        model(batch)
        assert [layer.name for layer in found] == list(seen)
        assert len(found) > 4
        for one in found:
            layer, inputs = seen[one.name]
            rows = inputs.double().movedim(axis_that_weights_scale(layer, inputs), 0).flatten(1)
            var, mean = torch.var_mean(rows, 1, correction=0)
            scale = float(rows.abs().max())
            np.testing.assert_allclose(one.mean, mean, rtol=1e-4, atol=1e-5 * scale)
            np.testing.assert_allclose(one.var, var, rtol=1e-4, atol=1e-9 * scale**2)
            assert (one.running_mean, one.running_var) == (None, None)
            assert one.group == group_numbers(model)[f"{one.name}.weight"]


@pytest.mark.parametrize("kind", [LayerNorm, LayerNorm2d, GroupNorm1, torch.nn.LayerNorm])
def test_as_many_channels_as_positions_do_not_confuse_the_axis(kind):
    model = torch.nn.Sequential(kind(4))
    model.get_classifier = torch.nn.Identity
    batch = torch.randn(3, 4, 4, 4) * torch.arange(1, 5)  # the last axis scales
    (found,) = measure_inputs(model, [[batch]])
    last = kind in (LayerNorm, torch.nn.LayerNorm)
    expected = batch.var((0, 1, 2) if last else (0, 2, 3), correction=0)
    np.testing.assert_allclose(found.var, expected, rtol=1e-5)


def test_class_and_register_tokens_count_as_positions():
    model = build("test_vit", img_size=32)
    plain = measure_inputs(model, [[images(2)]])[0]
    tokens = model.patch_embed.num_patches + model.num_prefix_tokens
    with torch.no_grad():
        model.cls_token[..., 3] += 7
    moved = measure_inputs(model, [[images(2)]])[0].mean - plain.mean
    np.testing.assert_allclose(moved, 7 / tokens * (np.arange(len(moved)) == 3), atol=1e-6)


def test_other_layers_beside_batch_norm_are_left_out():
    model = build()
    names = [layer.name for layer in measure_inputs(model, [[images(2)]])]
    model.conv_head = torch.nn.Sequential(LayerNorm2d(model.conv_head.in_channels), model.conv_head)
    assert [layer.name for layer in measure_inputs(model, [[images(2)]])] == names


def test_networks_without_batch_norm_have_nothing_to_fit():
    model = build("test_vit", img_size=32)
    assert (norm_kind(model), norm_kind(build())) == ("other", "batch")
    assert measure_inputs(build("test_nfnet"), [[images(2)]]) == []
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fit_running_statistics(model, [images(2)])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_fitted_statistics_are_those_of_the_images():
    def errors(model: torch.nn.Module) -> list[float]:
        layers = measure_inputs(model, [[images(32)]])
        return [
            (np.abs(one.mean - one.running_mean) / np.sqrt(one.var)).max().item() for one in layers
        ]

    model = build()
    assert max(errors(model)) > 0.5
    fit_running_statistics(model, [images(32)])
    # Not 0: running variances are divided by n - 1, and n is 32 in the last layers.
    assert max(errors(model)) < 0.1
    for layer in measure_inputs(model, [[images(32)]]):
        np.testing.assert_allclose(layer.var, layer.running_var, rtol=0.2)


def test_fitting_averages_over_batches_and_forgets_what_was_before():
    model, first, second = build(), images(8), images(8, offset=3.0)
    model.bn1.running_mean.fill_(1e6)
    fit_running_statistics(model, [first, second])
    with torch.inference_mode():
        stem = model.conv_stem(torch.cat([first, second]))
    torch.testing.assert_close(model.bn1.running_mean, stem.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_fitted_statistics_are_those_of_a_training_pass_whatever_the_workers():
    batches = images(24).split(8)
    fitted, expected = build(), build()
    fit_running_statistics(fitted, batches, workers=3)
    for module in expected.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train().reset_running_stats()
            module.momentum = None  # the plain average over the batches
    with torch.no_grad():
        for batch in batches:
            expected(batch)
    for (name, one), other in zip(fitted.named_buffers(), expected.buffers(), strict=True):
        if "num_batches" not in name:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    alone = build()
    fit_running_statistics(alone, batches)
    assert all(
        torch.equal(one, other)
        for one, other in zip(fitted.buffers(), alone.buffers(), strict=True)
    )


def test_fitting_leaves_momentum_and_eval_mode():
    model = build()
    fit_running_statistics(model, [images(4)])
    assert model.bn1.momentum == pytest.approx(0.1)
    assert not any(module.training for module in model.modules())


def test_fitting_makes_features_of_an_untrained_network_tell_images_apart():
    plain, fitted = build("test_resnet"), build("test_resnet")
    fit_running_statistics(fitted, [images(32)])
    with torch.inference_mode():
        spread = [
            (features.std(0).mean() / features.abs().mean()).item()
            for features in (plain(images(32)), fitted(images(32)))
        ]
    assert spread[1] > 2 * spread[0]
