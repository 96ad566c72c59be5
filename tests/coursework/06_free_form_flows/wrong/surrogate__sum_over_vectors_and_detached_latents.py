# loses: 3
def surrogate(f, g, x, v):
    from refimpl.autodiff import jvp

    x = x.detach().requires_grad_()
    z = f(x)
    x1 = g(z.detach())
    s = 0
    for one in v:
        pushed = jvp(g, z.detach(), one)[1].detach()
        (pulled,) = torch.autograd.grad(z, x, one, create_graph=True)
        s = s + (pulled * pushed).sum(1)
    return z, x1, s
