import numpy as np


def spread(pivots):
    p = pivots.detach().numpy()
    arc = np.r_[0, np.cumsum(np.sqrt(((p[1:] - p[:-1]) ** 2).sum(1)))]
    at = np.arange(len(p)) / (len(p) - 1) * arc[-1]
    distinct = np.r_[True, arc[1:] > arc[:-1]]
    columns = [np.interp(at, arc[distinct], column[distinct]) for column in p.T]
    return torch.tensor(np.array([p[0], *np.stack(columns, 1)[1:-1], p[-1]]))


def relax(pivots, loss, force, num_steps, lr):
    gradient_and_value = torch.func.grad_and_value(lambda q: (lambda v: (v.sum(), v))(loss(q)), has_aux=True)
    band = spread(pivots)
    for _ in range(num_steps):
        gradients, (_, values) = gradient_and_value(band)
        inner = band[1:-1] + lr * force(band, values, gradients)
        band = spread(torch.cat([band[:1], inner, band[-1:]]))
    return band
