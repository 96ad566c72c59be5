from refimpl.autodiff import jvp
from refimpl.flows import StandardNormal


def probes(z, generator):
    return probe_vectors(z, 1, "sphere", generator)[0]


def log_prior(z):
    return StandardNormal([z.shape[1]]).log_prob(z)


def volume(f, g, x, v):
    x = x.detach().clone().requires_grad_()
    z = f(x)
    right = jvp(g, z.detach(), v)[1].detach()
    left = torch.autograd.grad((z * v).sum(), x, create_graph=True)[0]
    return z, g(z), torch.einsum("bi,bi->b", left, right)


def objective(f, g, x, beta, v):
    z, x1, s = volume(f, g, x, v)
    return beta * (x - x1).norm(dim=1).square().mean() - (log_prior(z) + s).mean()


def decoder_nll(f, g, x):
    z = f(x)
    return -(log_prior(z) - torch.linalg.slogdet(jacobian(g, z)).logabsdet).mean()
