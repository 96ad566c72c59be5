# loses: 1
def input_shift(model, x, delta, t, s, eta):
    """Move of the mean, shape (*batch, dim), KL divergence and its bound, both of shape (*batch,)."""
    k, c_delta, c1, _ = kernel_numbers(model.process, t, s, eta)
    change = model.noise(x + delta, t) - model.noise(x, t)
    move = k * delta + c_delta * change
    parts = (k * delta).square().sum(-1) + (c_delta * change).square().sum(-1)
    return move, move.square().sum(-1) / (2 * c1**2), parts / (2 * c1**2)


def weight_ratio(process, t, s, gamma):
    """The published weight of |u|^2 over that which the bound gives."""
    k = kernel_numbers(process, t, s, 1.0)[0]
    return gamma**2 / k**4
