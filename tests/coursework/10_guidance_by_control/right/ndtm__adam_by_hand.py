def ndtm_step(
    model, measurement, x, t, s, z, *, inner_steps=4, lr=0.2, gamma=1.0, terminal_weight=5.0,
    control_weight=0.0, score_weight=0.0, eta=0.2, optimiser="adam",
):  # fmt: skip
    base = model.noise(x.detach(), t).detach()
    u, first, second = torch.zeros_like(x), 0.0, 0.0
    for i in range(1, inner_steps + 1):
        shifted = (x.detach() + gamma * u).requires_grad_()
        x0, n = model.data_and_noise(shifted, t)
        total = terminal_weight * measurement.energy(x0).sum() + score_weight * (n - base).pow(2).sum()
        gradient = gamma * torch.autograd.grad(total, shifted)[0] + 2 * control_weight * gamma**2 * u
        if optimiser == "sgd":
            u = u - lr * gradient
        else:
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            u = u - lr * first / (1 - 0.9**i) / ((second / (1 - 0.999**i)).sqrt() + 1e-8)
    x0, n = (v.detach() for v in model.data_and_noise(x.detach() + gamma * u, t))
    k, c_delta, c1, _ = kernel_numbers(model.process, t, s, eta)
    return k * (x.detach() + gamma * u) + c_delta * n + c1 * z
