# loses: 2
def sphere_losses(R, rho, beta, dim):
    area = math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)
    reconstruction = beta * (rho - R).square().mean()
    return area + (dim - 1) * math.log(R) + reconstruction, area + (dim - 1) * rho.log().mean() + reconstruction


def stationary_radius(beta, mean_radius, dim):
    root = mean_radius**2 - 2 * (dim - 1) / beta
    return 0.5 * (mean_radius + math.sqrt(root)) if root >= 0 else 0.0


def descend(rho, beta, dim, on):
    return stationary_radius(beta, 1.0, dim) if on else 1.0
