# loses: 1
def heun(model, x, times):
    """States at the last of the times, from states x of shape (batch, dim) at the first."""
    for t, s in pairwise(times):
        b, b_s = model.process.coefficients(t)[1], model.process.coefficients(s)[1]
        start, step = x, b_s - b
        slope = model.noise(x, t)
        x = start + step * slope
        if b_s > 0:
            x = start + step * (slope + model.noise(x, s)) / 2
    return x


def fitted_order(steps, errors):
    """k of error = C / steps^k; two lists or tensors of numbers of the same length."""
    x, y = (torch.as_tensor(v, dtype=F64).log() for v in (steps, errors))
    return -(((x - x.mean()) * y).sum() / (x - x.mean()).square().sum()).item()
