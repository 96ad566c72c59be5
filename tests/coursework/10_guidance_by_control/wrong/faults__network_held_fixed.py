# loses: 1
def residual_gradient(model, measurement, x, t):
    x = x.detach().requires_grad_()
    (a, b), noise = model.process.coefficients(t), model.noise(x, t).detach()
    distance = measurement.residual((x - b * noise) / a).norm(dim=-1)
    return torch.autograd.grad(distance.sum(), x)[0]


def dps_step(model, measurement, x, t, s, z, scale, eta):
    (a_s, _), (*_, c1, c2) = model.process.coefficients(s), kernel_numbers(model.process, t, s, eta)
    with torch.no_grad():
        estimate, noise = model.data_and_noise(x, t)
    return a_s * estimate + c2 * noise + c1 * z - scale * residual_gradient(model, measurement, x, t)
