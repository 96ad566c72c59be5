# loses: 1
def heun(model, x, times):
    """States at the last of the times, from states x of shape (batch, dim) at the first."""
    for t, s in pairwise(times):
        (a, b), (a_s, b_s) = model.process.coefficients(t), model.process.coefficients(s)
        start, step = x / a, b_s / a_s - b / a
        slope = model.noise(x, t)
        x = a_s * (start + step * slope)
        if b_s > 0:
            x = a_s * (start + step * (slope + model.noise(x, s)) / 2)
    return x


def fitted_order(steps, errors):
    """k of error = C / steps^k; two lists or tensors of numbers of the same length."""
    x, y = torch.as_tensor(steps, dtype=F64), torch.as_tensor(errors, dtype=F64).log()
    return -(((x - x.mean()) * y).sum() / (x - x.mean()).square().sum()).item()
