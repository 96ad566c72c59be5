# loses: 1
def ellipsoid_radius(u, A):
    return ((u @ A) * u).sum(-1) ** -0.5


def log_area(radius, theta):
    u = to_unit(theta)
    r, pull = torch.func.vjp(radius, u)
    slope = pull(torch.ones_like(r))[0]
    along = slope - (slope * u).sum(-1, keepdim=True) * u
    return log_sphere_volume(theta) + (u.shape[-1] - 2) * r.log() + 0.5 * (r**2 + along.square().sum(-1)).log()


def uniform_simplex_log_prob(theta):
    n = theta.shape[-1] + 1
    sphere = math.log(2) + n / 2 * math.log(math.pi) - math.lgamma(n / 2)
    return n * math.log(2) - sphere + log_sphere_volume(theta)
