"""Bad calls of train and checkpoints: `bad_train(generator)` yields (function, args, kwargs), each of which must raise a DiscdiffError."""
import math
import tempfile
from pathlib import Path
import torch
from torch import nn
from discdiff_nb.core import cosine_schedule, linear_schedule, reciprocal_schedule
from discdiff_nb.gaussian import Gaussian
from discdiff_nb.joint import Joint
from discdiff_nb.multinomial import Multinomial
from discdiff_nb.nets import UNet
from discdiff_nb.checkpoints import load_average, load_tensors, read_run, save_run, save_tensors
from discdiff_nb.train import check_options, draw_t, fit, held_out_bits, pieces


def bad_train(generator):
    "About 60 bad calls of random sizes."
    pick = lambda *choices: choices[int(torch.randint(len(choices), (), generator=generator))]
    size = lambda low, high: int(torch.randint(low, high + 1, (), generator=generator))
    K, T, N, side = size(3, 9), size(3, 20), size(6, 12), 4
    process, folder = Multinomial(K, cosine_schedule(T)), Path(tempfile.mkdtemp())
    x0 = torch.randint(K, (N, side, side), generator=generator)
    net = lambda **options: UNet(K, T, (side, side), channels=8, multipliers=(1,), **options)
    go = lambda x=x0, p=process, n=None, **more: (fit, (p, n or net(), x, 2), dict(batch_size=4, **more))
    spoiled = x0.clone(); spoiled[size(0, N - 1), 0, 0] = pick(-1, K, K + size(1, 99))
    for wrong in (dict(steps=pick(0, -3, 2.5, None)), dict(batch_size=pick(0, -1, 3.5)), dict(save_every=pick(0, 0.5)), dict(seed=pick(1.5, None, 'a')),
                  dict(lr=pick(0, -1e-3, math.nan, math.inf)), dict(lr='fast')):
        yield fit, (process, net(), x0), {**dict(steps=2, batch_size=4), **wrong}
    for wrong in (dict(accumulate=pick(0, -1, 1.5)), dict(accumulate=size(5, 9)), dict(clip=pick(0, -1, math.nan, None)),
                  dict(memory=pick(0, 0.5)), dict(keep=pick(0, -1)), dict(drop=pick(-0.1, 1.5, math.nan)),
                  dict(times=pick('late', 'Even', None)), dict(mixed_precision=pick('fp8', 'fp32', True)), dict(held_out=pick(3, 'test')),
                  dict(drop=0.5), dict(ema=0.99), dict(resume=True), dict(tensorboard=True), dict(run=pick(3, [1])), dict(cond=pick([1], 3, x0))):
        yield go(**wrong)
    yield go(spoiled)
    yield go(x0.float())
    yield go(x0[:0])
    yield go(x0[:, :0])
    yield go(x0.tolist())
    yield go(None)
    yield go((x0,))
    yield go((x0, x0))
    yield go(x0[:, :-1])
    yield go(p=pick(None, 3, 'absorbing', cosine_schedule(T)))
    yield go(n=lambda x_t, t: x_t)
    yield go(n=nn.Identity())
    yield go(n=UNet(K + 1, T, (side, side), channels=8, multipliers=(1,)))
    yield go(n=UNet(K, T - 1, (side, side), channels=8, multipliers=(1,)), seed=size(0, 9), times='iid', p=Multinomial(K, cosine_schedule(100 * T)))
    pair = Joint(Gaussian(K, linear_schedule(T)), Multinomial(K, reciprocal_schedule(T)))
    yield go(x0, pair)
    yield go((x0, x0, x0), pair)
    yield go((x0, x0[1:]), pair)
    yield go((x0, spoiled), pair)
    yield go((x0.float(), x0), pair)
    y, z = torch.randint(3, (N,), generator=generator), torch.randn(N, 2, generator=generator)
    read = lambda: net(cond=dict(y=3, z=2))
    yield go(cond=dict(y=y, z=z))
    yield go(n=read(), cond=dict(y=y))
    yield go(n=read(), cond=dict(y=y[1:], z=z))
    yield go(n=read(), cond=dict(y=y + pick(4, -3, 99), z=z))
    yield go(n=read(), cond=dict(y=y.float(), z=z))
    yield go(n=read(), cond=dict(y=y, z=z * math.nan))
    yield go(n=read(), cond=dict(y=y, z=z[:, :1]))
    yield go(n=read(), cond=dict(y=y.tolist(), z=z))
    broken = net(); next(broken.parameters()).data[:] = pick(math.nan, math.inf)
    yield go(n=broken)
    yield draw_t, (pick('late', '', None), 4, T, generator), {}
    yield pieces, (size(1, 3), 2, 2), {}
    yield check_options, (dict(lr=1),), {}
    yield held_out_bits(process, x0[:0]), (net(),), {}
    yield held_out_bits(process, x0, n_t=pick(0, -1)), (net(),), {}
    junk = folder / 'junk.safetensors'; junk.write_bytes(bytes(torch.randint(256, (size(0, 99),), generator=generator).tolist()))
    yield load_tensors, (junk,), {}
    yield load_tensors, (folder,), {}
    yield load_tensors, (folder / 'no',), {}
    save_tensors(folder / 'other.safetensors', dict(x=z), {})
    yield read_run, (folder / 'other.safetensors',), {}
    yield load_average, (folder / 'other.safetensors', net()), {}
    yield save_tensors, (folder / 'no' / 'x.safetensors', dict(x=z), {}), {}
    yield save_run, (folder / 'no', dict(x=z), {}, 3), {}
    (folder / 'checkpoint.safetensors').write_bytes(junk.read_bytes())
    yield go(run=folder)
    yield go(run=folder, resume=True)
    yield go(run=folder / 'junk.safetensors')
    yield go(run=folder / 'empty', resume=True)
