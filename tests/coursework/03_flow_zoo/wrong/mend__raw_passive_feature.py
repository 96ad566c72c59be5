# loses: 2
def log_prob(x, model):
    """The slope of the coupling is taken at x_1, as given."""
    y = (x - model["shift"]) * torch.exp(-model["log_scale"])
    kept = y[:, 0]
    out = y[:, 1] * torch.exp(model["s"](kept)) + model["t"](kept)
    log_det = model["s"](x[:, 0]) - model["log_scale"].sum()
    z = torch.sinh(kept)
    log_det = log_det + torch.cosh(kept).log()
    width = model["r"](kept)
    return log_normal(z) + log_normal((out - model["m"](kept)) * torch.exp(-width)) - width + log_det


def sample(noise, model):
    """Undoes the coupling before the second scale."""
    z, standardised = noise.unbind(1)
    kept = torch.asinh(z)
    out = model["m"](kept) + torch.exp(model["r"](kept)) * standardised
    y = torch.stack([kept, (out - model["t"](z)) * torch.exp(-model["s"](z))], 1)
    return y * torch.exp(model["log_scale"]) + model["shift"]
