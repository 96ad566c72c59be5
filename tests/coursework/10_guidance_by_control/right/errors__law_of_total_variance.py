def expected_errors(posterior):
    centre = torch.einsum("...k,...ki->...i", posterior.weights, posterior.means)
    between = (posterior.means - centre.unsqueeze(-2)).square().sum(-1)
    within = torch.stack([c.trace() for c in posterior.covariances])
    error = (posterior.weights * (between + within)).sum(-1) / posterior.dim
    return error + error, error


def psnr_gain(share, bias=0.0):
    return 10 * (math.log10(1 + 1) - math.log10(1 + bias + share))
