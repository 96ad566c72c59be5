import numpy as np
from refimpl.free_form import diagnose


def mass(f, low, high, steps):
    """Sum of what each cell's image holds of the normal: exact for a monotone f."""
    fine = 4 * steps
    ends = torch.linspace(low, high, fine + 1, dtype=torch.float64)
    share = torch.special.ndtr(f(ends[:, None])[:, 0])
    return (share[1:] - share[:-1]).abs().sum()


def preimages(f, z, low, high, steps):
    ends = torch.linspace(low, high, steps + 1, dtype=torch.float64)
    values = f(ends[:, None]).detach().numpy()[:, 0]
    counts = [np.count_nonzero(np.diff(np.sign(values - float(one))) != 0) for one in z]
    return torch.tensor(counts)


def examine(flow, x):
    found = diagnose(flow, x, integrate=False)
    with torch.no_grad():
        whole = mass(flow.encode, -4.0, 4.0, 2000)
    return {
        "encoder": found.nll_encoder,
        "decoder": found.nll_decoder,
        "reconstruction": found.reconstruction,
        "mass": whole.item(),
    }
