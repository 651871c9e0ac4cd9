"""Batch norm over the batch of all processes: their number does not change what is learned.

torch's SyncBatchNorm does the same, but on GPUs only, and by replacing layers, which are shared
with the classifier here. Instead the one function that every batch norm calls is caught.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from tasks.runtime.processes import Processes


class SharedBatchNorm(TorchFunctionMode):
    """While it is entered, batch norms that normalize by the batch do so by that of all processes.

    Args:
        processes: Each runs the same layers on its part of the batch.
        weight: Of each image of this process: 1, or 0 for one that only stands in.

    Source: Ioffe and Szegedy 2015, 1502.03167, algorithm 1, over the global batch.
    """

    def __init__(self, processes: Processes, weight: float) -> None:
        super().__init__()
        self._processes, self._weight = processes, weight

    def __torch_function__(
        self,
        function: Any,
        kinds: Iterable[type],
        arguments: tuple[Any, ...] = (),
        named: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a function of torch, or `_normalize` in place of a batch norm."""
        if function is functional.batch_norm:
            return self._normalize(*arguments, **(named or {}))
        return function(*arguments, **(named or {}))

    def _normalize(  # noqa: PLR0913, PLR0917 - the arguments of functional.batch_norm
        self,
        inputs: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """Do what functional.batch_norm does; inputs (n, C, ...)."""
        if not training:
            return functional.batch_norm(
                inputs, running_mean, running_var, weight, bias, training, momentum, eps
            )
        values = inputs.float()
        mean, var, count = self._measure(values)
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean, momentum)
                running_var.lerp_(var * count / (count - 1), momentum)
        normalized = (values - _per_channel(mean, values)) * _per_channel(
            torch.rsqrt(var + eps), values
        )
        if weight is not None:
            normalized = normalized * _per_channel(weight, values)
        if bias is not None:
            normalized = normalized + _per_channel(bias, values)
        return normalized.to(inputs.dtype)

    def _measure(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give mean and variance (C,) of the channels over all processes, and how many values.

        In two passes: the square of the mean would cancel the variance of channels far from 0.
        """
        others = [axis for axis in range(values.ndim) if axis != 1]
        own = values.new_tensor([self._weight * values[:, 0].numel()])
        sums = self._add(torch.cat([self._weight * values.sum(others), own]))
        mean, count = sums[:-1] / sums[-1], sums[-1].detach()
        squares = (values - _per_channel(mean, values)).square().sum(others)
        return mean, self._add(self._weight * squares) / count, count

    def _add(self, tensor: Tensor) -> Tensor:
        added: Tensor = _Sum.apply(tensor, self._processes)
        return added


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs, each having used the sum."""

    @staticmethod
    def forward(context: Any, tensor: Tensor, processes: Processes) -> Tensor:
        context.processes = processes
        return processes.add(tensor.clone())

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return context.processes.add(gradients[0].clone()), None


def _per_channel(numbers: Tensor, values: Tensor) -> Tensor:
    """Shape (C,) so that it is broadcast over values (n, C, ...)."""
    return numbers.view(-1, *[1] * (values.ndim - 2))
