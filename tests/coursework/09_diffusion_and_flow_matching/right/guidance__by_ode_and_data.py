def guided_std(everything, label, scale):
    return math.exp((1 - scale) * math.log(everything) + scale * math.log(label))


def tilted_moments(everything, label, scale):
    edges = torch.linspace(-15, 15, 30_001, dtype=F64)
    log = scale * (label.log_prob(edges[:, None]) - everything.log_prob(edges[:, None])) + everything.log_prob(
        edges[:, None]
    )
    density = torch.exp(log - log.max())
    whole = torch.trapezoid(density, edges)
    first, second = (torch.trapezoid(density * edges**k, edges) / whole for k in (1, 2))
    return torch.stack([first, (second - first**2) ** 0.5])


class Guided(torch.nn.Module):
    def __init__(self, everything, label, scale):
        super().__init__()
        self.everything, self.label, self.scale = everything, label, scale

    def forward(self, x, t):
        low, high = self.everything.score(x, t), self.label.score(x, t)
        return low + self.scale * (high - low)


def guided_model(everything, label, scale):
    return DiffusionModel(Guided(everything, label, scale), label.process, predicts="score")


def guided_moments(everything, label, scale, num, generator):
    process = EDM(sigma_min=0.01)
    x = 80 * torch.randn(num, 1, dtype=F64, generator=generator)
    for t, s in pairwise(process.times(150)):
        score = (1 - scale) * everything.score(x, 1.0, t) + scale * label.score(x, 1.0, t)
        x = x - (s - t) * t * score
    return x.mean(), x.std()
