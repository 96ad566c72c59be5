def log_prob(x, model):
    """As two conditional densities: of x_1, and of x_2 given x_1."""
    (shift_1, shift_2), (scale_1, scale_2) = model["shift"], model["log_scale"].exp()
    h = (x[:, 0] - shift_1) / scale_1
    standard = torch.distributions.Normal(0.0, 1.0)
    first = standard.log_prob(torch.sinh(h)) + torch.log(torch.cosh(h)) - torch.log(scale_1)
    stretch = scale_2 * torch.exp(-model["s"](h))
    mean = (model["m"](h) - model["t"](h)) * stretch + shift_2
    return first + torch.distributions.Normal(mean, torch.exp(model["r"](h)) * stretch).log_prob(x[:, 1])


def sample(noise, model):
    h = torch.log(noise[:, 0] + torch.sqrt(noise[:, 0] ** 2 + 1))
    factored_out = torch.exp(model["r"](h)) * noise[:, 1] + model["m"](h)
    y = (factored_out - model["t"](h)) / torch.exp(model["s"](h))
    columns = [a * scale.exp() + b for a, scale, b in zip((h, y), model["log_scale"], model["shift"])]
    return torch.stack(columns, dim=1)
