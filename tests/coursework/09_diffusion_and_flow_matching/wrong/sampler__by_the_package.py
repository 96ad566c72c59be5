# loses: 3
from refimpl.diffusion.samplers import heun as ready


def heun(model, x, times):
    """States at the last of the times, from states x of shape (batch, dim) at the first."""
    return ready(model, x, times)


def fitted_order(steps, errors):
    """k of error = C / steps^k; two lists or tensors of numbers of the same length."""
    x, y = (torch.as_tensor(v, dtype=F64).log() for v in (steps, errors))
    return -(((x - x.mean()) * y).sum() / (x - x.mean()).square().sum()).item()
