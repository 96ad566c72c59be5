# loses: 1
def reached_dimensions(rotations, log_scales):
    """Rank of the derivative; rotations: shape (L, dim, dim), the first is applied first; log_scales: shape (L, dim)."""
    dim = rotations.shape[-1]

    def gram(s):
        product = torch.eye(dim).to(rotations)
        for q, log_scale in zip(rotations, s):
            product = log_scale.exp()[:, None] * (q @ product)
        return product.T @ product

    derivative = torch.func.jacrev(gram)(log_scales).reshape(dim**2, -1)
    return int(torch.linalg.matrix_rank(derivative, rtol=1e-9))


def fewest_layers(dim):
    """Smallest number of layers that counting allows."""
    count = 1
    while (
        count * (dim - 1) + 1 < dim * (dim + 1) // 2
    ):  # one factor can move from layer to layer: L - 1 scales do nothing
        count += 1
    return count


def one_layer(covariance):
    """Orthogonal matrix and positive scales of a layer that whitens the covariance."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.rsqrt()) @ vectors.T, torch.ones_like(values)
