# loses: 2
def ellipsoid_radius(u, A):
    return ((u @ A) * u).sum(-1) ** -0.5


def log_area(radius, theta):
    u = to_unit(theta)
    r = radius(u)
    return log_sphere_volume(theta) + (u.shape[-1] - 2) * r.log() + r.log()


def uniform_simplex_log_prob(theta):
    n = theta.shape[-1] + 1
    return math.lgamma(n) + log_sphere_volume(theta) - n * to_unit(theta).sum(-1).log()
