"""Bad calls of discdiff_nb.nets: `bad_nets(generator)` yields (function, args, kwargs), each of which must raise a DiscdiffError."""
import math
import torch
from discdiff_nb.nets import (UNet, Transformer, chain_nll, chain_sample, check_rows, check_times, check_sizes, d_net, mixture_logits, rope_table)


def bad_nets(generator):
    "About 60 bad calls of random sizes."
    pick = lambda *choices: choices[int(torch.randint(len(choices), (), generator=generator))]
    size = lambda low, high: int(torch.randint(low, high + 1, (), generator=generator))
    K, T, B, D = size(3, 9), size(2, 20), size(2, 4), 2 * size(2, 5)
    for shape in ((D,), (D, 4)):
        x, t = torch.randint(K, (B, *shape), generator=generator), torch.randint(1, T + 1, (B,), generator=generator)
        for net_class, sizes in ((UNet, dict(channels=8)), (Transformer, dict(width=16, depth=1, heads=2))):
            make = lambda **options: net_class(K, T, shape, **sizes, **options)
            net, real, told = make(), make(real=True), make(cond=dict(y=3, z=size(1, 5), image=2))
            spoiled = x.clone(); spoiled[(size(0, B - 1), *[size(0, s - 1) for s in shape])] = pick(-1, K, K + size(1, 99))
            late = t.clone(); late[size(0, B - 1)] = pick(0, -1, T + 1, T + size(1, 99))
            yield net, (spoiled, t), {}
            yield net, (x, late), {}
            yield net, (x.float(), t), {}
            yield net, (x, t.float()), {}
            yield net, (x, t[:1]), {}
            yield net, (x[:, 1:], t), {}
            yield net, (x[..., None], t), {}
            yield net, (x[:0], t[:0]), {}
            yield net, (x,), {}
            yield net, (x, t[:, None]), {}
            yield net, (x, t), dict(y=t)
            yield real, (x, t), {}
            yield real, (x[:, 1:].float(), t), {}
            good = dict(y=torch.randint(4, (B,), generator=generator), z=torch.randn(B, *told.shapes['z'], generator=generator),
                        image=torch.randn(B, *shape, 2, generator=generator))
            for name in good: yield told, (x, t), {k: v for k, v in good.items() if k != name}
            yield told, (x, t), {**good, 'label': good['y']}
            yield told, (x, t), {**good, 'y': good['y'] + pick(4, -4, 99)}
            yield told, (x, t), {**good, 'y': good['y'].float()}
            yield told, (x, t), {**good, 'y': good['y'][:1]}
            yield told, (x, t), {**good, 'z': torch.full_like(good['z'], math.nan)}
            yield told, (x, t), {**good, 'z': good['z'][:, :-1]}
            yield told, (x, t), {**good, 'image': good['image'][..., :1]}
            yield told, (x, t), {**good, 'image': good['image'].long()}
            yield net_class, (pick(0, 1, -3, 2.5), T, shape), sizes
            yield net_class, (K, pick(0, -1, 2.5), shape), sizes
            yield net_class, (K, T, pick((0,), (4, 4, 0))), sizes
            yield net_class, (K, T, shape), {**sizes, 'dropout': pick(1., -0.1, 3, math.nan)}
            yield net_class, (K, T, shape), {**sizes, 'heads': pick(0, -1, 1.5)}
            yield net_class, (K, T, shape), {**sizes, 'ordered_classes': pick(1, -2, K + 1, 2.5)}
            yield net_class, (K, T, shape), {**sizes, 'logistic': 1}
            yield net_class, (K, T, shape), {**sizes, 'ordered_classes': K, 'logistic': pick(-1, 1.5)}
            yield net_class, (K, T, shape), {
                **sizes, 'real': True, **pick(dict(ordered_classes=2), dict(input_residual=True), dict(ordered_classes=2, logistic=1))}
            yield net_class, (K, T, shape), {**sizes, 'cond': pick(dict(label=3), dict(y=0), dict(z=-1), dict(image=1.5),
                                                                      dict(text=5), dict(text=(5,)), dict(text=(0, 4)))}
        yield UNet, (K, T, shape), dict(channels=pick(12, 4, -8, 0, 8.5))
        yield UNet, (K, T, shape), dict(channels=8, multipliers=pick((), (1, 0), (1, 1.5), (1, 2, 2, 2, 2)))
        yield UNet, (K, T, shape), dict(channels=8, attention=(D + 1,))
        yield UNet, (K, T, shape), dict(channels=8, attention=(D,), heads=3)
        yield UNet, (K, T, shape), dict(channels=8, blocks=pick(0, -1, 1.5))
        yield UNet, (K, T, shape), dict(channels=8, cond=dict(text=(5, 3)))
        yield Transformer, (K, T, shape), dict(width=pick(15, 0, -4, 16.), heads=3)
        yield Transformer, (K, T, shape), pick(dict(depth=0), dict(depth=-1), dict(local=0), dict(local=2.5))
        yield Transformer, (K, T, shape), dict(width=12, heads=4, rope=True)
        yield Transformer, (K, T, shape), dict(causal=True, input_residual=True)
        yield Transformer, (K, T, shape), dict(causal=True, real=True)
        chain, free = (Transformer(K, T, shape, 16, 1, 2, causal=causal) for causal in (True, False))
        yield chain_nll, (free, x), {}
        yield chain_nll, (chain, x + K), {}
        yield chain_nll, (chain, x[:, 1:]), {}
        yield chain_sample, (free, 2, torch.Generator()), {}
        yield chain_sample, (chain, pick(0, -1, 1.5), torch.Generator()), {}
    yield d_net, (K, T, 8 * size(1, 4) + size(1, 7)), {}
    yield d_net, (K, T, 8), dict(channels=size(1, 7))
    yield mixture_logits, (torch.zeros(B, 2 * size(0, 3) + 1), K), {}
    yield mixture_logits, (torch.zeros(B, 2), pick(0, 1, -5)), {}
    yield rope_table, ((D,), 2 * size(0, 5) + 1), {}
    yield rope_table, ((D, 4), 4 * size(0, 5) + 2), {}
    yield check_rows, (torch.full((B,), pick(-1, K)), K, 'x'), {}
    yield check_times, (torch.full((B,), pick(0, T + 1)), T), {}
    yield check_sizes, (), dict(depth=pick(0, -1, 1.5, '3'))


