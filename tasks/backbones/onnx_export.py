"""Torch module -> ONNX bytes, in under a second for a small network, in a form that runs fast.

TensorFlow-like "same" convolutions compute their padding from the size of every input. For images
of one size it is a constant that an ONNX convolution can hold; no padding is left in the graph.
"""

import copy
import io
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import Conv2dSame
from timm.layers.padding import pad_same_arg
from torch import nn
from torch.nn import functional


def export_onnx(
    module: nn.Module, example: torch.Tensor, *, input_name: str, output_names: Sequence[str]
) -> bytes:
    """Export a module in eval mode with a free batch size; the module itself is left as it is.

    Args:
        module: Maps one tensor to one tensor or a tuple of tensors.
        example: Two or more inputs of the size that the exported graph will take, on the CPU.
        input_name: Name of the graph's input.
        output_names: Names of the graph's outputs.

    Raises:
        Exception: Whatever torch's exporter raises where a network cannot be exported.
    """
    fixed = _fix_padding(copy.deepcopy(module).eval().requires_grad_(False), example)
    names = [input_name, *output_names]
    blob = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        # The exporter warns that it is the older of two (the newer takes ten times as long), and of
        # branches on sizes: those are what the callers' parity checks are for.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            fixed,
            (example,),
            blob,  # type: ignore[arg-type]  # a file is allowed where dynamo is off
            dynamo=False,
            input_names=[input_name],
            output_names=list(output_names),
            dynamic_axes={name: {0: "batch"} for name in names},
        )
    return blob.getvalue()


def _fix_padding(module: nn.Module, example: torch.Tensor) -> nn.Module:
    """Replace "same" convolutions by ones with fixed padding, for the sizes that `example` has."""
    sizes: dict[str, tuple[int, int]] = {}
    hooks = [
        layer.register_forward_pre_hook(_size_recorder(sizes, name))
        for name, layer in module.named_modules()
        if isinstance(layer, Conv2dSame)
    ]
    if not hooks:
        return module
    with torch.no_grad():
        module(example)
    for hook in hooks:
        hook.remove()
    for name, size in sizes.items():
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, _PaddedConv(module.get_submodule(name), size))
    return module


def _size_recorder(sizes: dict[str, tuple[int, int]], name: str) -> Any:
    def record(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        height, width = inputs[0].shape[-2:]
        sizes[name] = (height, width)

    return record


class _PaddedConv(nn.Module):
    """A convolution with its own padding on each side, fixed for one size of input."""

    def __init__(self, conv: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        assert isinstance(conv, Conv2dSame)
        self.conv: nn.Conv2d = conv
        self.padding = pad_same_arg(size, conv.kernel_size, conv.stride, conv.dilation)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Pad and convolve."""
        conv = self.conv
        options = (self.padding, conv.stride, conv.dilation, conv.groups)
        result: torch.Tensor = _PadAndConvolve.apply(images, conv.weight, conv.bias, *options)
        return result


class _PadAndConvolve(torch.autograd.Function):
    """Becomes one ONNX Conv with a padding for each side, which torch's own convolution has not."""

    @staticmethod
    def forward(
        ctx: Any, images: torch.Tensor, weight: torch.Tensor, *options: Any
    ) -> torch.Tensor:
        """Compute the same in torch; options are bias, padding, stride, dilation and groups."""
        bias, padding, *rest = options
        return functional.conv2d(
            functional.pad(images, padding), weight, bias, rest[0], 0, *rest[1:]
        )

    @staticmethod
    def symbolic(g: Any, images: Any, weight: Any, *options: Any) -> Any:
        """Write the ONNX node."""
        bias, (left, right, top, bottom), stride, dilation, groups = options
        return g.op(
            "Conv",
            *([images, weight] if bias is None else [images, weight, bias]),
            pads_i=[top, left, bottom, right],
            strides_i=list(stride),
            dilations_i=list(dilation),
            group_i=groups,
        )
