def residual_gradient(model, measurement, x, t):
    def distance(state):
        return torch.sqrt(measurement.energy(model.data(state, t))).sum()

    with torch.enable_grad():
        leaf = x.clone().detach().requires_grad_(True)
        distance(leaf).backward()
    return leaf.grad


def dps_step(model, measurement, x, t, s, z, scale, eta):
    noise = model.noise(x, t).detach()
    k, c_delta, c1, _ = kernel_numbers(model.process, t, s, eta)
    guided = -scale * residual_gradient(model, measurement, x, t)
    return k * x.detach() + c_delta * noise + c1 * z + guided
