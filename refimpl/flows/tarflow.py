"""TarFlow: causal Transformers over the patches of an image make an autoregressive flow."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from refimpl._checks import check_positive, check_sizes
from refimpl.flows.bijection import Bijection, Chain, Pair, check_bijection, check_shape
from refimpl.flows.conditioners import check_context
from refimpl.flows.elementwise import AffineMap, ElementwiseMap, check_separate_map
from refimpl.flows.flow import Flow

__all__ = ["Patches", "TarBlock", "tarflow", "tweedie"]


class _Layer(nn.Module):
    """Pre-norm Transformer layer: causal attention, then a perceptron four times as wide."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, h: Tensor, cache: list[Tensor] | None = None) -> Tensor:
        """h: all tokens, (*batch, T, width); with a cache, the next one only, and what came before it in the cache."""
        q, k, v = self.qkv(self.norm(h)).unflatten(-1, (3, self.num_heads, -1)).transpose(-4, -2).unbind(-3)
        if cache is not None:
            cache[:] = k, v = [torch.cat(pair, -2) for pair in zip(cache, (k, v), strict=True)] if cache else [k, v]
        # The fast kernels know neither torch.func.vmap, with which Jacobians are made, nor second derivatives.
        plain = torch._C._are_functorch_transforms_active()
        with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=cache is None)
        h = h + self.out(attended.transpose(-3, -2).flatten(-2))
        return h + self.mlp(h)


class TarBlock(Bijection):
    """x_i = tau(z_i; h_i(x_before i)) over tokens x_1 ... x_T of `dim` numbers, the h_i from one causal Transformer, h_1 = 0.

    With an `AffineMap` this is z_i = (x_i - mu_i) exp(-alpha_i), alpha held inside its bound; with an `AdditiveMap` the
    block keeps volumes. The output projection starts at zero, so that the block is the identity at first.

    Args:
        num_tokens: T.
        dim: numbers a token.
        tau: elementwise map.
        flip: whether the order is from last to first.
        width: features inside the Transformer.
        num_layers: its layers.
        num_heads: heads of its attention, a divisor of `width`.
        dim_context: features of the context, which is added to every token after a linear map; 0 for none.

    Source: Zhai et al. 2024 (arXiv 2412.06329).
    """

    event_ndim = 2

    def __init__(
        self,
        num_tokens: int,
        dim: int,
        tau: ElementwiseMap,
        *,
        flip: bool = False,
        width: int = 64,
        num_layers: int = 2,
        num_heads: int = 4,
        dim_context: int = 0,
    ):
        super().__init__()
        check_sizes(num_tokens=num_tokens, dim=dim, width=width, num_layers=num_layers, num_heads=num_heads)
        if width % num_heads:
            raise ValueError(f"num_heads: got {num_heads}, expected a divisor of width={width}")
        check_separate_map(tau)
        self.tau, self.flip = tau, flip
        self.embed = nn.Linear(dim, width)
        self.position = nn.Parameter(0.01 * torch.randn(num_tokens, width))
        self.embed_context = nn.Linear(dim_context, width) if dim_context else None
        self.layers = nn.ModuleList(_Layer(width, num_heads) for _ in range(num_layers))
        self.project = nn.Linear(width, dim * tau.num_params)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def _context(self, x: Tensor, context: Tensor | None) -> Tensor | int:
        if self.embed_context is None:
            return 0
        check_context(context, x.shape[:-2], self.embed_context.in_features)
        return self.embed_context(context).unsqueeze(-2)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        x = x.flip(-2) if self.flip else x
        h = self.embed(x) + self.position + self._context(x, context)
        for layer in self.layers:
            h = layer(h)
        # Token i needs what the Transformer says after token i - 1, and the first has zeros.
        params = F.pad(self.project(h)[..., :-1, :], (0, 0, 1, 0))
        z, log_slopes = self.tau.inverse(x, params)
        return z.flip(-2) if self.flip else z, log_slopes.flatten(-2).sum(-1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Pair:
        z = z.flip(-2) if self.flip else z
        added = self._context(z, context)
        params = z.new_zeros(*z.shape[:-2], 1, self.project.out_features)
        log_det, tokens = self.zeros(z), []
        caches: list[list[Tensor]] = [[] for _ in self.layers]
        for token, position in zip(z.split(1, -2), self.position, strict=True):
            x, log_slopes = self.tau.forward(token, params)
            log_det = log_det + log_slopes.flatten(-2).sum(-1)
            tokens.append(x)
            h = self.embed(x) + position + added
            for layer, cache in zip(self.layers, caches, strict=True):
                h = layer(h, cache)
            params = self.project(h)
        x = torch.cat(tokens, -2)
        return x.flip(-2) if self.flip else x, log_det


def _image_shape(event_shape: Sequence[int]) -> tuple[int, ...]:
    check_shape("event_shape", event_shape, low=1)
    if len(event_shape) != 3:
        raise ValueError(f"event_shape: got {tuple(event_shape)}, expected (channels, rows, columns)")
    return tuple(event_shape)


class Patches(Bijection):
    """Lets a bijection of (tokens, features) act on images: square patches become tokens, in reading order.

    Args:
        bijection: of events of shape (rows * columns / size^2, channels * size^2).
        event_shape: (channels, rows, columns) of an image.
        size: side of a patch, a divisor of rows and columns.

    Raises:
        ValueError: if the patches do not fill the image.
    """

    event_ndim = 3

    def __init__(self, bijection: Bijection, event_shape: Sequence[int], size: int):
        super().__init__()
        check_bijection("bijection", bijection)
        check_sizes(size=size)
        _, rows, columns = _image_shape(event_shape)
        if rows % size or columns % size:
            raise ValueError(f"size: got {size}, expected a divisor of rows and columns, {rows} and {columns}")
        self.bijection, self.event_shape, self.size = bijection, tuple(event_shape), size

    def split(self, x: Tensor) -> Tensor:
        """(*batch, channels, rows, columns) to (*batch, tokens, channels * size^2)."""
        _, rows, columns = self.event_shape
        if x.shape[-3:] != self.event_shape:
            raise ValueError(
                f"x: got shape {tuple(x.shape)}, expected (*batch, {', '.join(map(str, self.event_shape))})"
            )
        x = x.unflatten(-1, (columns // self.size, self.size)).unflatten(-3, (rows // self.size, self.size))
        return x.movedim((-4, -2), (-5, -4)).flatten(-3).flatten(-3, -2)

    def join(self, tokens: Tensor) -> Tensor:
        """The way back."""
        channels, rows, columns = self.event_shape
        x = tokens.unflatten(-1, (channels, self.size, self.size))
        x = x.unflatten(-4, (rows // self.size, columns // self.size))
        return x.movedim((-5, -4), (-4, -2)).flatten(-2).flatten(-3, -2)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        z, log_det = self.bijection(self.split(x), context)
        return self.join(z), log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Pair:
        x, log_det = self.bijection.inverse(self.split(z), context)
        return self.join(x), log_det


def tarflow(
    event_shape: Sequence[int],
    patch: int = 2,
    num_blocks: int = 4,
    *,
    tau: ElementwiseMap | None = None,
    **settings,
) -> Patches:
    """TarFlow of images: blocks whose order of patches alternates. Fast density, sampling in one step a patch and block.

    Args:
        event_shape: (channels, rows, columns).
        patch: side of a patch.
        num_blocks: autoregressive blocks.
        tau: elementwise map, `AffineMap()` if None.
        **settings: of `TarBlock`: width, num_layers, num_heads, dim_context.

    Source: Zhai et al. 2024 (arXiv 2412.06329); there the log-determinant is a mean over numbers, here it is their sum.
    """
    check_sizes(patch=patch, num_blocks=num_blocks)
    channels, rows, columns = _image_shape(event_shape)
    if rows % patch or columns % patch:
        raise ValueError(f"patch: got {patch}, expected a divisor of rows and columns, {rows} and {columns}")
    tokens = (rows // patch) * (columns // patch)
    blocks = [
        TarBlock(tokens, channels * patch**2, tau or AffineMap(), flip=i % 2 == 1, **settings)
        for i in range(num_blocks)
    ]
    return Patches(Chain(*blocks), event_shape, patch)


def tweedie(flow: Flow, x: Tensor, sigma: float | int, context: Tensor | None = None) -> Tensor:
    """x + sigma^2 grad log p(x): the expected clean image, if p is the density of images with N(0, sigma^2) noise.

    Args:
        flow: p.
        x: noisy data, shape (*batch, *event).
        sigma: standard deviation of the noise.
        context: of the flow.

    Source: Robbins 1956 and Miyasawa 1961 (Tweedie's formula); Zhai et al. 2024 (arXiv 2412.06329) for the use.
    """
    check_positive("sigma", sigma)
    return x + sigma**2 * torch.func.grad(lambda x: flow.log_prob(x, context).sum())(x)
