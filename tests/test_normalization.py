"""What batch-norm layers see: equal to a naive computation; untrained networks made usable."""

import numpy as np
import pytest
import timm
import torch

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


def test_networks_without_batch_norm_have_no_layers():
    model = build("test_vit", img_size=32)
    assert measure_inputs(model, [[images(2)]]) == []
    assert (norm_kind(model), norm_kind(build())) == ("other", "batch")
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
