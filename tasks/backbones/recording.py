"""Recording a backbone's forward pass by torch.fx, down to modules that lie in one layer group."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from timm.layers import get_notrace_functions, get_notrace_modules
from torch import fx, nn

from tasks.backbones.features import PooledFeatures, untyped
from tasks.backbones.groups import classifier_names, group_numbers
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
