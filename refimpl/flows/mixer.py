"""MixerFlow: flows that mix the features of a patch, shared by all patches, and the patches, shared by all features."""

from torch import Tensor

from refimpl._checks import check_sizes
from refimpl.flows.bijection import Bijection, Chain, Pair, check_bijection
from refimpl.flows.coupling import coupling_flow
from refimpl.flows.elementwise import AffineMap, ElementwiseMap
from refimpl.flows.image import depth_to_space, space_to_depth
from refimpl.flows.linear import ActNorm

__all__ = ["Mixing", "mixer_flow"]


class Mixing(Bijection):
    """A bijection of vectors at work on images cut into patches; the log-determinants of its many uses add up.

    Across "features" it mixes the channels * patch^2 numbers of a patch, the same way in every patch. Across "patches"
    it mixes the numbers that all patches have in one place, the same way for every place.

    Args:
        bijection: of vectors, of as many features as a patch has numbers, or the image patches.
        patch: side of a patch, in pixels.
        across: "features" or "patches".
        shift: by how many pixels the patches' borders are moved, to the right and down, cyclically.

    Raises:
        ValueError: if `across` is neither.

    Source: English, Kirchler, Lippert 2023 (MixerFlow), from its front matter; that the shift is cyclic is our reading.
    """

    event_ndim = 3

    def __init__(self, bijection: Bijection, patch: int, across: str = "features", *, shift: int = 0):
        super().__init__()
        check_bijection("bijection", bijection)
        check_sizes(patch=patch)
        if across not in ("features", "patches"):
            raise ValueError(f"across: got {across!r}, expected 'features' or 'patches'")
        self.bijection, self.patch, self.across, self.shift = bijection, patch, across, shift

    def _run(self, x: Tensor, context: Tensor | None, backwards: bool) -> Pair:
        cut = space_to_depth(x.roll((-self.shift, -self.shift), (-2, -1)), self.patch)
        table = cut.flatten(-2)  # (*batch, features, patches)
        turn = (-1, -2) if self.across == "features" else (-1, -1)
        move = self.bijection.inverse if backwards else self.bijection
        rows, log_dets = move(table.transpose(*turn), None if context is None else context[..., None, :])
        image = depth_to_space(rows.transpose(*turn).reshape(cut.shape), self.patch)
        return image.roll((self.shift, self.shift), (-2, -1)), log_dets.sum(-1)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        return self._run(x, context, backwards=False)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Pair:
        return self._run(z, context, backwards=True)


def mixer_flow(
    channels: int,
    size: int,
    patch: int,
    num_layers: int,
    *,
    tau: ElementwiseMap | None = None,
    **settings,
) -> Chain:
    """MixerFlow for images of shape (channels, size, size): ActNorm, channel mixing, patch mixing, over and over.

    Both mixings are two couplings; every second layer's patches are shifted by half a patch, so that numbers near a
    border meet their neighbours. Only the ingredients are the paper's; this arrangement is our reading of it.

    Args:
        channels: of the image.
        size: rows, and columns; a multiple of `patch`, and larger.
        patch: side of a patch, in pixels.
        num_layers: how often.
        tau: elementwise map, `AffineMap()` if None.
        **settings: of `coupling_flow`: width, depth, mix, dim_context.

    Raises:
        ValueError: if `size` does not allow two patches or more.

    Source: English, Kirchler, Lippert 2023 (MixerFlow), from its front matter.
    """
    check_sizes(channels=channels, size=size, patch=patch, num_layers=num_layers)
    if size % patch or size == patch:
        raise ValueError(f"size: got {size}, expected a multiple of patch = {patch}, larger than it")
    features, patches, tau = channels * patch**2, (size // patch) ** 2, tau or AffineMap()
    layers: list[Bijection] = []
    for i in range(num_layers):
        shift = patch // 2 if i % 2 else 0
        within = Chain(ActNorm(features), coupling_flow(features, tau, 2, **settings))
        layers.append(Mixing(within, patch, "features", shift=shift))
        layers.append(Mixing(coupling_flow(patches, tau, 2, **settings), patch, "patches", shift=shift))
    return Chain(*layers)
