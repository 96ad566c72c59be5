# loses: 2
def ndtm_step(
    model,
    measurement,
    x,
    t,
    s,
    z,
    *,
    inner_steps=4,
    lr=0.2,
    gamma=1.0,
    terminal_weight=5.0,
    control_weight=0.0,
    score_weight=0.0,
    eta=0.2,
    optimiser="adam",
):
    """x_s for states x of shape (*batch, dim)."""
    x = x.detach()
    u = torch.zeros_like(x, requires_grad=True)
    solver = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[optimiser]([u], lr=lr)
    with torch.no_grad():
        unguided = model.noise(x, t)
    for _ in range(inner_steps):
        estimate, noise = model.data_and_noise(x + gamma * u, t)
        cost = terminal_weight * measurement.energy(estimate) + control_weight * u.square().sum(-1)
        cost = cost + score_weight * (noise - unguided).square().sum(-1)
        u.grad = torch.autograd.grad(cost.sum(), u)[0]
        solver.step()
    with torch.no_grad():
        estimate, noise = model.data_and_noise(x + gamma * u, t)
    (a_s, _), (*_, c1, c2) = model.process.coefficients(s), kernel_numbers(model.process, t, s, eta)
    return a_s * estimate + c2 * noise + c1 * z
