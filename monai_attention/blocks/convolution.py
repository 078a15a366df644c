"""Convolutions in the memory layout of tokens, channels last, which the CPU's kernels take without copies.

Convolutions keep the layout they are given, but torch's instance normalisation does not, and so costs a copy before and
after, and its gradients are wrong when they arrive in that layout (2.13). The one here keeps it.

Where an image is thinner than a convolution's kernel, the gradient that torch's CPU kernels give the weights in
bfloat16 holds whatever lay in memory before (2.13): there, convolutions are done in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def channels_last(module: nn.Module) -> None:
    """Lay the weights of all convolutions out with channels last, and let instance normalisation keep that layout.

    Convolutions of one voxel become products of matrices, and the others are as `thin_in_float32` makes them. Numbers,
    but for rounding, and names of parameters stay as they are.
    """
    for child in module.modules():
        for name, layer in list(child.named_children()):
            if isinstance(layer, (nn.InstanceNorm2d, nn.InstanceNorm3d)) and not layer.track_running_stats:
                setattr(child, name, InstanceNorm(layer).train(layer.training))
            elif type(layer) in _POINTWISE and _is_pointwise(layer):  # type: ignore[arg-type]
                setattr(child, name, _pointwise(layer))  # type: ignore[arg-type]
    thin_in_float32(module)
    for parameter in module.parameters():
        if layout := _LAYOUTS.get(parameter.ndim):
            parameter.data = parameter.data.contiguous(memory_format=layout)


_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
_CHUNK_NUMBERS = {"cpu": 1 << 19}
_DEFAULT_CHUNK_NUMBERS = 1 << 27
"""Numbers that are summed at a time: on the CPU what fits the cache, and few enough for float32."""


class _Pointwise:
    """Convolution of one voxel: with channels last a product of matrices, of which torch's CPU kernels make copies."""

    weight: Tensor
    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, *S) -> (B, C_out, *S), each voxel by itself."""
        return F.linear(x.movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)


class Pointwise2d(_Pointwise, nn.Conv2d):
    """See `_Pointwise`."""


class Pointwise3d(_Pointwise, nn.Conv3d):
    """See `_Pointwise`."""


_POINTWISE = {nn.Conv2d: Pointwise2d, nn.Conv3d: Pointwise3d}


def thin_in_float32(module: nn.Module) -> nn.Module:
    """Let a module's `nn.Conv2d` and `nn.Conv3d` have right gradients in bfloat16 on the CPU, see above.

    Returns:
        The module itself. Layers of classes derived from these are left as they are.
    """
    for layer in module.modules():
        if type(layer) in _GUARDED:
            layer.__class__ = _GUARDED[type(layer)]  # parameters, hooks and all stay where they are
    return module


class _Guarded:
    """A convolution in float32 where the gradient of its weights in bfloat16 would be wrong, see above."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        convolve: Callable[..., Tensor] = super()._conv_forward  # type: ignore[misc]
        if x.device.type != "cpu" or not _thin(x, weight) or _autocast_dtype(x) != torch.bfloat16:
            return convolve(x, weight, bias)
        with torch.autocast("cpu", enabled=False):
            return convolve(x.float(), weight.float(), None if bias is None else bias.float()).bfloat16()


class Convolution2d(_Guarded, nn.Conv2d):
    """See `_Guarded`."""


class Convolution3d(_Guarded, nn.Conv3d):
    """See `_Guarded`."""


def _thin(x: Tensor, weight: Tensor) -> bool:
    """Whether an image (B, C, *S) or (C, *S) has an axis shorter than the kernel's."""
    kernel = weight.shape[2:]
    return any(n < k for n, k in zip(x.shape[-len(kernel) :], kernel, strict=True))


def _autocast_dtype(x: Tensor) -> torch.dtype:
    """In which the CPU convolves; autocast leaves float64 alone."""
    active = torch.is_autocast_enabled("cpu") and x.dtype != torch.float64
    return torch.get_autocast_dtype("cpu") if active else x.dtype


_GUARDED: dict[type, type] = {nn.Conv2d: Convolution2d, nn.Conv3d: Convolution3d}


def _is_pointwise(layer: nn.Conv2d | nn.Conv3d) -> bool:
    alone = {*layer.kernel_size, *layer.stride, layer.groups} == {1}
    return alone and layer.padding not in ("same", "valid") and not any(layer.padding)


def _pointwise(layer: nn.Conv2d | nn.Conv3d) -> nn.Module:
    """The same layer with its own parameters."""
    new = _POINTWISE[type(layer)](layer.in_channels, layer.out_channels, 1, bias=layer.bias is not None, device="meta")
    new.weight, new.bias = layer.weight, layer.bias
    return new.train(layer.training)


class InstanceNorm(nn.Module):
    """Instance normalisation (Ulyanov et al. 2016, arXiv:1607.08022) that keeps the layout of its input.

    Args:
        original: whose parameters it takes over.

    Shape: (B, C, *S) -> (B, C, *S).
    """

    def __init__(self, original: nn.InstanceNorm2d | nn.InstanceNorm3d) -> None:
        super().__init__()
        self.eps = original.eps
        self.weight = original.weight
        self.bias = original.bias

    def forward(self, x: Tensor) -> Tensor:
        """Mean 0 and variance 1 in each sample and channel, then scaled and shifted if there are parameters."""
        if self.training and x[0, 0].numel() == 1:
            raise ValueError(f"expected more than one voxel a channel in training, got shape {tuple(x.shape)}")
        y = _standardise(x.contiguous(memory_format=_LAYOUTS[x.ndim]), self.eps)[0]
        if self.weight is None:
            return y
        shape = (1, -1, *[1] * (x.ndim - 2))
        return torch.addcmul(self.bias.view(shape).to(y.dtype), y, self.weight.view(shape).to(y.dtype))


def _chunks(*tensors: Tensor) -> Iterator[list[Tensor]]:
    """Samples (C, *S), channels last, as pieces of their rows (voxels, C)."""
    rows = [x.movedim(0, -1).flatten(0, -2) for x in tensors]
    step = max(1, _CHUNK_NUMBERS.get(rows[0].device.type, _DEFAULT_CHUNK_NUMBERS) // rows[0].shape[1])
    for first in range(0, len(rows[0]), step):
        yield [x[first : first + step] for x in rows]


def _exact(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


@torch.library.custom_op("monai_attention::standardise", mutates_args=())
def _standardise(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(x - mean) x scale for each sample and channel; the means, and the scales, (B, C).

    Torch's batch normalisation keeps this layout too, but sums a whole channel in one float32, and is wrong in the
    third digit for large images.
    """
    y = torch.empty_like(x)
    means, scales = [], []
    for sample, result in zip(x, y, strict=True):
        n = sample[0].numel()
        rough = _exact(sample.flatten(1)[:, :: max(1, n // 1024)]).mean(1)  # near enough for one pass to be exact
        off = torch.zeros_like(rough, dtype=torch.float64)
        squares = torch.zeros_like(off)
        for (rows,) in _chunks(sample):
            centred = _exact(rows) - rough
            off += centred.sum(0) / n
            squares += centred.square_().sum(0) / n
        mean = (rough + off).to(rough.dtype)
        scale = torch.rsqrt(squares - off.square() + eps).to(rough.dtype)
        for rows, out in _chunks(sample, result):
            if out.dtype == mean.dtype:
                torch.sub(rows, mean, out=out).mul_(scale)
            else:
                out.copy_((_exact(rows) - mean).mul_(scale))
        means.append(mean)
        scales.append(scale)
    return y, torch.stack(means), torch.stack(scales)


@_standardise.register_fake
def _(x, eps):  # type: ignore[no-untyped-def]
    statistics = x.new_empty(x.shape[:2], dtype=torch.promote_types(x.dtype, torch.float32))
    return torch.empty_like(x), statistics, torch.empty_like(statistics)


@torch.library.custom_op("monai_attention::standardise_backward", mutates_args=())
def _backward(gradient: Tensor, x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Of the sum of `gradient` times what `_standardise` made of x."""
    gradient = gradient.contiguous(memory_format=_LAYOUTS[x.ndim])
    result = torch.empty_like(x)
    for g, sample, m, s, out in zip(gradient, x, mean, scale, result, strict=True):
        n = sample[0].numel()
        common, along = torch.zeros_like(m, dtype=torch.float64), torch.zeros_like(m, dtype=torch.float64)
        for g_rows, rows in _chunks(g, sample):
            common += _exact(g_rows).sum(0)
            along += ((_exact(rows) - m).mul_(s)).mul_(_exact(g_rows)).sum(0)
        common, along = (common / n).to(m.dtype), (along / n).to(m.dtype)
        for g_rows, rows, out_rows in _chunks(g, sample, out):
            normal = (_exact(rows) - m).mul_(s)
            out_rows.copy_(normal.mul_(-along).add_(_exact(g_rows)).sub_(common).mul_(s))
    return result


@_backward.register_fake
def _(gradient, x, mean, scale):  # type: ignore[no-untyped-def]
    return torch.empty_like(x)


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(inputs[0], output[1], output[2])
    ctx.mark_non_differentiable(output[1], output[2])


def _differentiate(ctx, gradient, *_):  # type: ignore[no-untyped-def]
    x, mean, scale = ctx.saved_tensors
    return _backward(gradient, x, mean, scale), None


_standardise.register_autograd(_differentiate, setup_context=_setup_context)
