# loses: 1
def ellipsoid_radius(u, A):
    return ((u @ A) * u).sum(-1) ** -0.5


def log_area(radius, theta):
    G = jacobian(lambda t: radius(to_unit(t))[..., None] * to_unit(t), theta)
    return 0.5 * torch.logdet(G.mT @ G)


def uniform_simplex_log_prob(theta):
    n = theta.shape[-1] + 1
    return math.lgamma(n) + log_sphere_volume(theta) - n * to_unit(theta).sum(-1).log()
