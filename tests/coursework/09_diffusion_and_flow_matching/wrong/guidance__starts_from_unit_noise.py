# loses: 1
def guided_std(everything, label, scale):
    """Spread of guided samples for all data N(0, everything^2) and a class N(m, label^2); three numbers."""
    return everything ** (1 - scale) * label**scale


def tilted_moments(everything, label, scale):
    """Mean and standard deviation of the law proportional to everything^(1 - scale) label^scale."""
    x = torch.linspace(-12, 12, 24_001, dtype=F64).unsqueeze(1)
    share = ((1 - scale) * everything.log_prob(x) + scale * label.log_prob(x)).softmax(0)
    mean = (share * x[:, 0]).sum()
    return mean.item(), (share * (x[:, 0] - mean).square()).sum().sqrt().item()


def guided_model(everything, label, scale):
    """A DiffusionModel whose score is s_u + scale (s_c - s_u)."""

    def noise(x, t):
        return (1 - scale) * everything.noise(x, t) + scale * label.noise(x, t)

    return DiffusionModel(noise, everything.process, "noise")


def guided_moments(everything, label, scale, num, generator):
    """Mean and standard deviation of num guided samples, for two one-dimensional NormalMixtures."""
    process = EDM()
    model = guided_model(exact(everything, process), exact(label, process), scale)
    x = euler(model, torch.randn(num, 1, dtype=F64, generator=generator), process.times(200))
    return x.mean().item(), x.std().item()
