# loses: 1
def surrogate(f, g, x, v):
    x = x.detach().requires_grad_()
    z = f(x)
    x1 = g(z)
    u = torch.zeros_like(x1, requires_grad=True)
    (back,) = torch.autograd.grad(x1, z, u, create_graph=True)
    s = 0
    for one in v:
        (pushed,) = torch.autograd.grad(back, u, one, create_graph=True)
        (pulled,) = torch.autograd.grad(z, x, one, create_graph=True)
        s = s + (pulled * pushed).sum(1)
    return z, x1, s / len(v)
