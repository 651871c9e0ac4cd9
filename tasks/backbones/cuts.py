"""Cutting a backbone at a layer group: a frozen prefix and a trained suffix share its modules.

The forward pass is recorded by torch.fx down to modules whose parameters all lie in one group.
Those stay whole, so that residual connections, dropout and padding inside them are the model's own
code.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from timm.layers import get_notrace_functions, get_notrace_modules
from torch import fx, nn

from tasks.backbones.groups import (
    PooledFeatures,
    classifier_names,
    group_numbers,
    parameter_names,
    untyped,
)
from tasks.errors import EngineError

_HEAD = -2  # stands for the pretrained classifier where group numbers are compared


def record_features(model: nn.Module) -> fx.Graph:
    """Record how the pooled features come about; targets are named as in `model`."""
    numbers = {**group_numbers(model), **dict.fromkeys(classifier_names(model), _HEAD)}
    whole = set()
    for name, module in model.named_modules():
        inside = {numbers[f"{name}.{key}"] for key in module.state_dict()} if name else {0, 1}
        if len(inside) <= 1 and _HEAD not in inside:
            whole.add(f"model.{name}")
    try:
        with in_eval_mode(
            model
        ):  # flags of the model's own forward pass are recorded as they are now
            graph = _trace(PooledFeatures(model), whole)
    except Exception as err:
        raise EngineError(
            f"{type(model).__name__} cannot be cut at a layer group: its forward pass cannot be "
            f"recorded ({type(err).__name__}: {str(err).partition(chr(10))[0]})"
        ) from err
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            node.target = str(node.target).removeprefix("model.")
    return graph


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode and every module back into its own afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def example_images(model: nn.Module, count: int) -> torch.Tensor:
    """Give noise of the size that a timm model takes: float32 (count, 3, R, R) on its device."""
    size = tuple(untyped(model).pretrained_cfg["input_size"])
    noise = torch.randn(count, *size, generator=torch.Generator().manual_seed(0))
    return noise.to(next(model.parameters()).device)


class _QuestionError(Exception):
    """The forward pass branches on a recorded value."""

    def __init__(self, node: fx.Node) -> None:
        super().__init__()
        self.node = node


class _Recorder(fx.Tracer):
    """Records a forward pass; modules that lie in one layer group are recorded as one call."""

    def __init__(self, whole: set[str], answers: list[bool]) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self._whole = whole
        self._answers = list(answers)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Answer an `if` on a recorded value, or ask for its answer."""
        if not self._answers:
            raise _QuestionError(obj.node)
        return self._answers.pop(0)

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return (
            qualified_name in self._whole
            or isinstance(module, tuple(get_notrace_modules()))
            or super().is_leaf_module(module, qualified_name)
        )


def _trace(root: PooledFeatures, whole: set[str]) -> fx.Graph:
    """Record a forward pass. Branches on a size are taken as for images of the model's own size."""
    answers: list[bool] = []
    while True:
        try:
            return _Recorder(whole, answers).trace(root)
        except _QuestionError as question:
            answers.append(_answer(root, question.node))


def _answer(root: PooledFeatures, asked: fx.Node) -> bool:
    """Compute what was recorded until a question, on example images."""
    runner = fx.Interpreter(root, graph=asked.graph)
    runner.args_iter = iter([example_images(root.model, count=2)])
    with torch.no_grad():
        for node in asked.graph.nodes:
            runner.env[node] = runner.run_node(node)
    return bool(runner.env[asked])


_NO_GROUP = -1  # of operations without parameters
_ADVICE = "unfreeze other layers (decide.depth) or choose another backbone.name"


def split_at(model: nn.Module, group: int) -> tuple[nn.Module, nn.Module]:
    """Cut a timm model before a layer group.

    Operations without parameters (activation, pooling) that follow the groups below go with the
    prefix. Both parts hold the very modules of `model`: training the suffix trains the model, and
    train() or eval() on a part acts on the model's modules.

    Args:
        model: A timm model; its classifier is left out.
        group: First layer group of the suffix, from 0 to the number of groups.

    Returns:
        prefix: normalized images (N, 3, R, R) -> activation; the identity if `group` is 0.
        suffix: activation -> pooled features (N, D); the identity if `group` is the number of
            groups.

    Raises:
        EngineError: The forward pass cannot be recorded, or more than one tensor crosses the cut.
        ValueError: There is no such group.
    """
    groups = len(parameter_names(model))
    if not 0 <= group <= groups:
        raise ValueError(f"group is {group}; allowed: from 0 to {groups}")
    if group == 0:
        return nn.Identity(), PooledFeatures(model)
    if group == groups:
        return PooledFeatures(model), nn.Identity()
    graph = record_features(model)
    crossing = _find_crossing(model, group, graph)
    source = next(node for node in graph.nodes if node.op == "placeholder")
    prefix = _build(model, source, [crossing])
    suffix = _build(model, crossing, [_result(graph)])
    _check(model, group, prefix, suffix)
    return prefix, suffix


def prefixes_at(model: nn.Module, groups: Sequence[int]) -> nn.Module:
    """Give what `split_at` gives as prefix for several layer groups, in one pass over the images.

    Args:
        model: A timm model; the module shares its layers.
        groups: Each from 1 to the number of groups.

    Returns:
        Normalized images (N, 3, R, R) -> a tuple of activations, in the order of `groups`.

    Raises:
        EngineError: The model cannot be cut at one of them.
    """
    graph = record_features(model)
    source = next(node for node in graph.nodes if node.op == "placeholder")
    return _build(model, source, [_find_crossing(model, group, graph) for group in groups])


def _levels(graph: fx.Graph, model: nn.Module) -> dict[fx.Node, int]:
    """Highest layer group that each recorded operation depends on."""
    numbers = group_numbers(model)
    modules = dict(model.named_modules())
    levels: dict[fx.Node, int] = {}
    for node in graph.nodes:
        own = _NO_GROUP
        if node.op == "get_attr":
            own = numbers.get(str(node.target), _NO_GROUP)
        elif node.op == "call_module":
            target = str(node.target)
            own = max(
                (numbers[f"{target}.{key}"] for key in modules[target].state_dict()), default=own
            )
        levels[node] = max([own, *(levels[given] for given in node.all_input_nodes)])
    return levels


def _find_crossing(model: nn.Module, group: int, graph: fx.Graph) -> fx.Node:
    """Find the one result of the groups below that the groups above, or the caller, need."""
    if group == len(parameter_names(model)):
        return _result(graph)
    levels = _levels(graph, model)
    from_images = _from_images(graph)
    crossing = [
        node
        for node in graph.nodes
        if from_images[node]
        and levels[node] < group <= max((levels[user] for user in node.users), default=-1)
    ]
    if len(crossing) != 1:
        raise EngineError(
            f"{type(model).__name__} cannot be cut before layer group {group}: {len(crossing)} "
            f"tensors cross the cut ({', '.join(node.name for node in crossing[:5])}), expected "
            f"one; {_ADVICE}"
        )
    found: fx.Node = crossing[0]
    return found


def _from_images(graph: fx.Graph) -> dict[fx.Node, bool]:
    """Whether each recorded operation depends on the images; position tables, say, do not."""
    depends: dict[fx.Node, bool] = {}
    for node in graph.nodes:
        depends[node] = node.op == "placeholder" or any(
            depends[given] for given in node.all_input_nodes
        )
    return depends


def _result(graph: fx.Graph) -> fx.Node:
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    result = output.args[0]
    assert isinstance(result, fx.Node)
    return result


def _build(model: nn.Module, source: fx.Node, results: Sequence[fx.Node]) -> fx.GraphModule:
    """Make a module of the operations that lead from one recorded value to one or several others.

    It refers to the modules and parameters of `model`.
    """
    graph = fx.Graph()
    made = {source: graph.placeholder("activation")}
    for node in _between(source, results):
        made[node] = graph.node_copy(node, lambda given: made[given])
    found = tuple(made[result] for result in results)
    graph.output(found if len(found) > 1 else found[0])
    graph.lint()
    return fx.GraphModule(model, graph)


def _between(source: fx.Node, results: Sequence[fx.Node]) -> list[fx.Node]:
    """Operations that the results need once `source` is given, in forward order."""
    needed: set[fx.Node] = set()
    open_ends = list(results)
    while open_ends:
        node = open_ends.pop()
        if node is not source and node not in needed:
            needed.add(node)
            open_ends.extend(node.all_input_nodes)
    return [node for node in source.graph.nodes if node in needed]


def _check(model: nn.Module, group: int, prefix: nn.Module, suffix: nn.Module) -> None:
    """Make sure that the parts use only their own groups and together give the model's features."""
    by_name = dict(model.named_parameters())
    numbers = group_numbers(model)
    owner = {id(by_name[name]): number for name, number in numbers.items() if name in by_name}
    wrong = [owner[id(one)] for one in prefix.parameters() if owner[id(one)] >= group]
    wrong += [owner[id(one)] for one in suffix.parameters() if owner[id(one)] < group]
    with torch.no_grad(), in_eval_mode(model):
        images = example_images(model, count=3)
        expected, found = PooledFeatures(model)(images), suffix(prefix(images))
    same = expected.shape == found.shape and torch.allclose(found, expected, rtol=1e-3, atol=1e-4)
    if wrong or not same:
        problem = (
            f"parameters of group {wrong[0]} are used on both sides"
            if wrong
            else "its parts differ"
        )
        raise EngineError(
            f"{type(model).__name__} cannot be cut before layer group {group}: {problem}; {_ADVICE}"
        )
