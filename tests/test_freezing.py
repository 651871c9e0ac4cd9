"""Frozen layers stay as they are to the last bit; free ones learn; no parameter is lost."""

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.optim import param_groups_weight_decay
from torch import nn

from tasks.backbones.catalogue import create_architecture
from tasks.backbones.cuts import split_at
from tasks.heads.classifier import Classifier
from tasks.heads.registry import find_head
from tasks.training.phases import (
    TrainingGroup,
    build_optimizer,
    set_training_mode,
    tensors_from,
    training_groups,
    unfreeze_from,
)
from tasks.training.resume.checkpoints import copy_tensors
from tasks.training.step import set_rates

PX = 32


def make_classifier(name: str = "test_efficientnet", head: str = "linear") -> Classifier:
    torch.manual_seed(0)
    backbone = create_architecture(name, image_px=PX if "vit" not in name else None)
    dim = backbone.num_features
    kind = "mlp" if head == "mlp" else "linear"
    return Classifier(backbone, find_head(kind).build(dim, 3, hidden=8, dropout=0.5))


def images(count: int = 6, seed: int = 1) -> torch.Tensor:
    return torch.randn((count, 3, PX, PX), generator=torch.Generator().manual_seed(seed))


def train_one_step(classifier: Classifier, cut: int, *, adapt_norm: bool, count: int = 6) -> None:
    groups = training_groups(classifier)
    optimizer = build_optimizer(classifier, groups, weight_decay=0.1)
    set_rates(optimizer, {group.name: 0.1 for group in groups}, 1.0)
    unfreeze_from(classifier, groups, cut)
    prefix, suffix = split_at(classifier.backbone, cut)
    part = nn.Sequential(suffix, classifier.head)
    set_training_mode(classifier, part, tensors_from(groups, cut), adapt_norm=adapt_norm)
    logits = part(prefix(images(count)))
    labels = torch.arange(count) % 3
    torch.autograd.backward(nn.functional.cross_entropy(logits, labels))
    optimizer.step()


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_vit"])
def test_groups_hold_every_tensor_once_and_the_head_last(name: str):
    classifier = make_classifier(name)
    groups = training_groups(classifier)
    listed = [tensor for group in groups for tensor in group.tensors]
    assert sorted(listed) == sorted(classifier.state_dict())
    assert groups[-1].name == "head"
    assert set(groups[-1].tensors) == {"head.weight", "head.bias"}


@pytest.mark.parametrize("adapt_norm", [False, True])
@pytest.mark.parametrize("above", [0, 1, 3])
def test_frozen_layers_keep_weights_and_statistics_while_free_ones_learn(
    above: int, adapt_norm: bool
):
    classifier = make_classifier()
    groups = training_groups(classifier)
    cut = len(groups) - 1 - above
    before = copy_tensors(classifier, list(classifier.state_dict()))
    train_one_step(classifier, cut, adapt_norm=adapt_norm)
    after = classifier.state_dict()
    for group in groups[:cut]:
        assert all(torch.equal(before[name], after[name]) for name in group.tensors), group.name
    learned = {name for name, _ in classifier.named_parameters()}
    for group in groups[cut:]:
        trained = [name for name in group.tensors if name in learned]
        assert not any(torch.equal(before[name], after[name]) for name in trained), group.name


@pytest.mark.parametrize("adapt_norm", [False, True])
def test_statistics_of_trained_norm_layers_move_only_when_they_may_adapt(adapt_norm: bool):
    classifier = make_classifier()
    top = training_groups(classifier)[-2]
    names = [name for name in top.tensors if name.endswith("running_mean")]
    before = copy_tensors(classifier, names)
    train_one_step(classifier, len(training_groups(classifier)) - 2, adapt_norm=adapt_norm)
    moved = [not torch.equal(before[name], classifier.state_dict()[name]) for name in names]
    assert names
    assert all(moved) if adapt_norm else not any(moved)


def test_a_still_norm_layer_judges_an_image_alone_as_among_others():
    classifier = make_classifier()
    groups = training_groups(classifier)
    names = tensors_from(groups, 0)
    set_training_mode(classifier, classifier, names, adapt_norm=False)
    with torch.no_grad():
        together, alone = classifier(images()), classifier(images()[:1])
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5)


def test_training_mode_set_again_undoes_a_call_of_train():
    classifier = make_classifier(head="mlp")
    groups = training_groups(classifier)
    cut = len(groups) - 2
    _, suffix = split_at(classifier.backbone, cut)
    part = nn.Sequential(suffix, classifier.head)
    names = tensors_from(groups, cut)
    set_training_mode(classifier, part, names, adapt_norm=False)
    classifier.train()
    set_training_mode(classifier, part, names, adapt_norm=False)
    norms = [m for m in classifier.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert classifier.head.get_submodule("dropout").training


def test_only_trained_layers_are_in_training_mode():
    classifier = make_classifier()
    groups = training_groups(classifier)
    cut = len(groups) - 2
    _, suffix = split_at(classifier.backbone, cut)
    names = tensors_from(groups, cut)
    set_training_mode(classifier, nn.Sequential(suffix, classifier.head), names, adapt_norm=True)
    frozen = {name.rpartition(".")[0] for group in groups[:cut] for name in group.tensors}
    free = {name.rpartition(".")[0] for name in names}
    modules = dict(classifier.named_modules())
    assert not any(modules[name].training for name in frozen)
    assert all(modules[name].training for name in free)


def test_a_batch_of_one_image_can_be_trained_on():
    classifier = make_classifier(head="mlp")
    groups = training_groups(classifier)
    train_one_step(classifier, len(groups) - 2, adapt_norm=False, count=1)
    assert all(bool(torch.isfinite(p).all()) for p in classifier.parameters())


def test_optimizer_holds_layers_of_equal_values_as_layers_of_their_own():
    model = nn.ModuleDict({name: nn.BatchNorm2d(4) for name in ("first", "second")})
    groups = [
        TrainingGroup(name, tuple(f"{name}.{key}" for key in model[name].state_dict()))
        for name in model
    ]
    optimizer = build_optimizer(model, groups, weight_decay=0.1)
    held = [id(item) for options in optimizer.param_groups for item in options["params"]]
    assert sorted(held) == sorted(id(item) for item in model.parameters())


def test_optimizer_holds_a_tied_parameter_once():
    model = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False)})
    model["b"].weight = model["a"].weight
    groups = [TrainingGroup("a", ("a.weight",)), TrainingGroup("b", ("b.weight",))]
    optimizer = build_optimizer(model, groups, weight_decay=0.1)
    assert [len(options["params"]) for options in optimizer.param_groups] == [1]


def make_swin() -> Classifier:
    backbone = SwinTransformer(
        img_size=PX, patch_size=2, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4,
        num_classes=0,
    )  # fmt: skip
    return Classifier(backbone, find_head("linear").build(16, 3, hidden=8, dropout=0.5))


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_vit", "swin"])
def test_optimizer_decays_what_timms_own_groups_decay(name: str):
    classifier = make_swin() if name == "swin" else make_classifier(name)
    optimizer = build_optimizer(classifier, training_groups(classifier), weight_decay=0.1)
    decay = {
        id(item): options["weight_decay"]
        for options in optimizer.param_groups
        for item in options["params"]
    }
    assert set(decay) == {id(item) for item in classifier.parameters()}
    backbone = classifier.backbone
    exempt = backbone.no_weight_decay() if hasattr(backbone, "no_weight_decay") else ()
    assert bool(exempt) == (name in {"test_vit", "swin"})
    for options in param_groups_weight_decay(backbone, 0.1, no_weight_decay_list=exempt):
        for parameter in options["params"]:
            assert decay[id(parameter)] == options["weight_decay"]
    assert (decay[id(classifier.head.weight)], decay[id(classifier.head.bias)]) == (0.1, 0.0)


def test_rates_are_peak_rates_times_the_share_and_zero_for_frozen_groups():
    classifier = make_classifier()
    groups = training_groups(classifier)
    optimizer = build_optimizer(classifier, groups, weight_decay=0.0)
    set_rates(optimizer, {"head": 0.5, groups[-2].name: 0.25}, 0.1)
    rates = {options["group"]: options["lr"] for options in optimizer.param_groups}
    assert rates["head"] == pytest.approx(0.05)
    assert rates[groups[-2].name] == pytest.approx(0.025)
    assert all(rates[group.name] == 0 for group in groups[:-2])


def test_only_unfrozen_parameters_want_a_gradient_whatever_was_before():
    classifier = make_classifier()
    groups = training_groups(classifier)
    for cut in (1, len(groups) - 1):
        unfreeze_from(classifier, groups, cut)
        wanted = {name for name, item in classifier.named_parameters() if item.requires_grad}
        free = set(tensors_from(groups, cut))
        assert wanted == {name for name, _ in classifier.named_parameters() if name in free}
