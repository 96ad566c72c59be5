def log_posterior(pi, y, means):
    kernels = torch.exp(-0.5 * (y[:, None] - means) ** 2)
    return (kernels @ pi.T).log().sum(0)
