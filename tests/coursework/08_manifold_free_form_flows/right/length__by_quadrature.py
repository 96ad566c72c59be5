def vmf_height(kappa):
    h = torch.linspace(-1, 1, 200_001, dtype=F64)
    log_p = kappa * h
    return h, log_p - torch.trapezoid(log_p.exp(), h).log()


def final_kl(kappa, ratio):
    h, log_p = vmf_height(kappa / ratio)
    return torch.trapezoid(log_p.exp() * (log_p - vmf_height(kappa)[1]), h)


def mean_height(kappa, ratio):
    h, log_p = vmf_height(kappa / ratio)
    return torch.trapezoid(log_p.exp() * h, h)


def measured_kl(kappa, ratio, points, generator):
    def probes(z):
        noise = torch.randn(z.shape, generator=generator)
        u = noise - (noise * z).sum(-1, keepdim=True) * z
        return ((2 * ratio) ** 0.5 * normalize(u, dim=-1)).unsqueeze(0)

    flow = train_flow(kappa, probes)
    return float((pole(kappa).log_prob(points) - flow.log_prob(points).detach()).mean())
