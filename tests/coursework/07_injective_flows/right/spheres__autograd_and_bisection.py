def sphere_losses(R, rho, beta, dim):
    area = torch.tensor(2 * math.pi ** (dim / 2) / math.gamma(dim / 2), dtype=torch.float64)
    squared = rho.var(correction=0) + (rho.mean() - R) ** 2
    return torch.log(area * R ** (dim - 1)) + beta * squared, area.log() + (dim - 1) * rho.log().mean() + beta * squared


def stationary_radius(beta, mean_radius, dim):
    if beta < 2 * (dim - 1) / mean_radius**2:
        return 0.0
    low, high = mean_radius / 2, mean_radius
    for _ in range(80):
        middle = (low + high) / 2
        slope = (dim - 1) / middle - 2 * beta * (mean_radius - middle)
        low, high = (low, middle) if slope > 0 else (middle, high)
    return high


def descend(rho, beta, dim, on):
    s = rho.mean().log().requires_grad_()
    optimiser = torch.optim.SGD([s], lr=0.5 / (dim + 2 * beta))
    for _ in range(700):
        optimiser.zero_grad()
        R = s.exp()
        ((dim - 1) * s * on + beta * (rho - R).square().mean()).backward()
        optimiser.step()
    return s.exp().item()
