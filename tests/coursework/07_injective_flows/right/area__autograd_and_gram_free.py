def ellipsoid_radius(u, A):
    return 1 / torch.einsum("...i,ij,...j->...", u, A, u).sqrt()


def log_area(radius, theta):
    theta = theta.detach().requires_grad_()
    r = radius(to_unit(theta))
    (slope,) = torch.autograd.grad(r.sum(), theta)
    with torch.no_grad():
        ones = torch.ones_like(theta[:, :1])
        h = r[:, None] * torch.cat([ones, theta[:, :-1].sin().cumprod(1)], 1)
        ratio = (slope / h).square().sum(1)
        n = theta.shape[1] + 1
        return (n - 1) * r.log() + log_sphere_volume(theta) + 0.5 * torch.log1p(ratio)


def uniform_simplex_log_prob(theta):
    n = theta.shape[-1] + 1
    area = math.sqrt(n) / math.factorial(n - 1)
    return log_area(lambda u: 1 / u.sum(-1), theta) - math.log(area)
