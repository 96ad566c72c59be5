# loses: all
def steps_needed(kernel, lr, frequencies, share):
    factor = 1 - lr * circulant_energy(kernel, frequencies) / len(kernel)
    return torch.ceil(math.log(share) / factor.abs().log()).long()
