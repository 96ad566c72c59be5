# loses: 1
def steps_needed(kernel, lr, frequencies, share):
    rate = 2 * lr * circulant_energy(kernel, frequencies) / len(kernel)
    return torch.ceil(-math.log(share) / rate).long()
