def ddim_sample(model, x, times, eta=0.0, generator=None):
    for i in range(len(times) - 1):
        a, b = model.process.coefficients(times[i])
        a_s, b_s = model.process.coefficients(times[i + 1])
        ratio = (b_s / a_s) / (b / a)
        share = eta**2 * (1 - ratio**2)
        data, noise = model.data(x, times[i]), model.noise(x, times[i])
        n = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x = a_s * data + b_s * ((1 - share) ** 0.5 * noise + share**0.5 * n)
    return x


def consistency_loss(network, x, low, high, generator=None):
    noisy = add_noise(x, high, generator)
    target = consistency(network, x + low / high * (noisy - x), low).detach()
    difference = target - consistency(network, noisy, high)
    huber = torch.sqrt((difference**2).sum(-1, keepdim=True) + 0.0009) - 0.03
    return torch.mean(huber / (high - low))
