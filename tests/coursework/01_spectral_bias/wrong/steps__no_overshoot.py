# loses: 1
def steps_needed(kernel, lr, frequencies, share):
    factor = (1 - 2 * lr * circulant_energy(kernel, frequencies) / len(kernel)).clamp_min(1e-9)
    return torch.ceil(math.log(share) / factor.log()).long()
