# loses: 1
def ddim_sample(model, x, times, eta=0.0, generator=None):
    for t, s in pairwise(times):
        a, b = model.process.coefficients(t)
        a_s, b_s = model.process.coefficients(s)
        data, noise = model.data_and_noise(x, t)
        std = eta * b_s * (1 - (b_s * a / (a_s * b)) ** 2).clamp_min(0).sqrt()
        fresh = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        x = a_s * data + b_s * noise + std * fresh
    return x


def consistency_loss(network, x, low, high, generator=None):
    noise = add_noise(torch.zeros_like(x), 1.0, generator)
    with torch.no_grad():
        near = consistency(network, x + low * noise, low)
    far = consistency(network, x + high * noise, high)
    distance = ((far - near).square().sum(1, keepdim=True) + 0.03**2).sqrt() - 0.03
    return (distance / (high - low)).mean()
