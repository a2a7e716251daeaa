"Networks of chapter 13: kept weights still load, wrong inputs, symmetries, reach, half precision, compiled graphs, layouts."
import json
import logging
import math
import os
from pathlib import Path
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from discdiff_nb.core import ClassError, DataError, DtypeError, ScheduleError, ShapeError, TimeError
from discdiff_nb.nets import (Attend, Ordered, Surroundings, Transformer, UNet, attention_by_hand, chain_nll,
                              class_levels, d_net, mixture_logits)

ASSETS = Path(__file__).resolve().parent.parent / 'nbs' / 'assets'
COND = dict(y=3, z=4, image=2, text=(7, 6))
NETWORKS = {
    'unet': lambda: UNet(5, 10, (8, 8)),
    'unet 28': lambda: UNet(5, 10, (28, 28), 16, (1, 2, 2)),
    'unet, 1-D, attention': lambda: UNet(5, 10, (16,), 16, (1, 2), attention=(8,), blocks=2),
    'unet, all conditions': lambda: UNet(5, 10, (8, 8), 16, attention=(4,), cond=COND),
    'unet, ordered, 3 logistics': lambda: UNet(5, 10, (8, 8), 16, ordered_classes=4, logistic=3),
    'unet without time': lambda: UNet(5, None, (8, 8), 16),
    'transformer': lambda: Transformer(5, 10, (8, 8)),
    'transformer, a row, rope': lambda: Transformer(5, 10, (20,), 32, 2, rope=True, local=4),
    'transformer, all conditions': lambda: Transformer(5, 10, (6,), 16, 2, 2, cond=COND),
    'transformer, causal': lambda: Transformer(5, 10, (20,), 32, 2, causal=True, cond=dict(y=3))}


def awake(net):
    "Fill the zero layers, so that something flows."
    for p in net.parameters(): p.data.add_(0.05 * torch.randn_like(p))
    return net.eval()


def some_cond(net, B):
    "Random conditions of the shapes that a network reads."
    return {name: torch.randint(3, (B, *shape)) if name in ('y', 'text') else torch.randn(B, *shape)
            for name, shape in net.shapes.items()}


def example(net, classes, t=(1, 10)):
    return torch.randint(classes, (2, *net.shape)), torch.tensor(t), some_cond(net, 2)


# Names of the weights

UNET_BLOCK = {'norm1.weight', 'norm1.bias', 'conv1.weight', 'conv1.bias', 'norm2.weight', 'norm2.bias', 'conv2.weight',
              'conv2.bias', 'time.weight', 'time.bias'}


def test_the_names_of_the_weights_of_a_unet():
    names = set(UNet(5, 10, (8, 8), 16, (1, 2), blocks=2, attention=(4,)).state_dict())
    for block in ('down.0.block', 'down.0.more.0', 'down.1.block', 'down.1.more.0', 'middle', 'up.0.block1', 'up.0.more.0',
                  'up.0.block2', 'up.1.block1', 'up.1.more.0', 'up.1.block2'):
        assert {f'{block}.{name}' for name in UNET_BLOCK} <= names, block
    for look in ('down.1.block', 'down.1.more.0', 'middle', 'up.0.block1', 'up.0.more.0', 'up.0.block2'):
        assert f'{look}.looks.0.kv.weight' in names and 'down.0.block.looks.0.kv.weight' not in names
    assert {'down.0.enter.weight', 'down.1.enter.weight', 'norm.weight', 'last.weight', 'place', 'embed.weight'} <= names


KEPT = sorted(p.stem for size in ('small', 'kept') for kind in (f'fashion_mnist_{size}_*_*', f'text_{size}_novels27_*')
              for p in ASSETS.glob(f'{kind}.safetensors') if 'gaussian' not in p.stem.lower() and not p.stem.endswith('drawn'))


@pytest.mark.parametrize('name', KEPT)
def test_kept_weights_load(name):
    "Each key and each shape of what is in nbs/assets is that of a network built today."
    path = ASSETS / f'{name}.safetensors'
    weights = load_file(path)
    with safe_open(path, 'pt') as file: settings = json.loads(file.metadata()['discdiff'])['settings']
    K, width = weights['embed.weight'].shape
    sizes = {k: v for k, v in settings['net'].items() if k not in ('kind', 'rope')}
    if name.startswith('text'):
        causal, D = settings['name'].endswith('autoregressive'), settings.get('length', settings.get('D'))
        net = Transformer(K - causal, settings['T'], (D,), causal=causal, rope='place' not in weights, **sizes)
    else:
        ordered = settings['K'] if 'embed.number.weight' in weights else 0
        out = len(weights['last.weight'])
        cond = {'y': len(weights['readers.y.weight']) - 1} if 'readers.y.weight' in weights else None
        net = UNet(K, settings['T'], weights['place'].shape[1:], ordered_classes=ordered, cond=cond,
                   logistic=0 if out == K else out // 2, **sizes)
    net.load_state_dict({k: v.float() for k, v in weights.items()}, strict=True)


# What the parts do

def test_levels():
    "Even steps from -1 to 1, and 0 for a class beyond them; a mask keeps its row alone."
    torch.testing.assert_close(class_levels(5, 4), torch.tensor([-1, -1 / 3, 1 / 3, 1, 0]))
    torch.testing.assert_close(class_levels(3, 3), torch.tensor([-1., 0., 1.]))
    torch.manual_seed(0)
    read = Ordered(257, 32, ordered_classes=256)
    rows = read.number(read.waves)
    assert rows[256].abs().max() == 0
    want = torch.stack([read.weight[7] + rows[7], read.weight[256]])
    torch.testing.assert_close(read(torch.tensor([7, 256])), want)


def test_mixtures_of_logistics():
    for m in (1, 3):
        log_p = mixture_logits(torch.zeros(2, 2 * m), 256)
        torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(2), rtol=0, atol=1e-5)
        assert (log_p.exp() * (log_p + math.log(256))).sum(-1).max() < 0.003 # nats from uniform, at the start
    sharp = mixture_logits(torch.tensor([2 * 77 / 255 - 1, -99.]), 256)
    assert sharp.argmax() == 77 and sharp.isfinite().all() and sharp.max() > -1e-6


def test_attend_by_hand():
    "From all positions and from a text; it reads what the norm leaves (U3)."
    torch.manual_seed(0)
    x, text = torch.randn(2, 5, 8), torch.randn(2, 3, 6)
    def by_head(a): return a.unflatten(-1, (2, 4)).transpose(1, 2)
    for attend, words in ((Attend(8, 2), None), (Attend(8, 2, 6), text)):
        for p in attend.parameters(): p.data.normal_()
        seen = attend.norm(x)
        k, v = attend.kv(seen if words is None else words).chunk(2, -1)
        heads = attention_by_hand(by_head(attend.q(seen)), by_head(k), by_head(v))
        want = x + attend.out(heads.transpose(1, 2).flatten(2))
        torch.testing.assert_close(attend(x, words), want, rtol=1e-4, atol=1e-4)
        louder = 3 * x + 1 # the norm takes this back
        added = attend(louder, words) - louder
        torch.testing.assert_close(added, attend(x, words) - x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('local, causal, heard', [(3, False, [3, 4, 5]), (4, False, [2, 3, 4, 5]), (3, True, [2, 3, 4])])
def test_who_is_heard_at_position_4_of_9(local, causal, heard):
    torch.manual_seed(0)
    x = torch.randn(1, 9, 2, requires_grad=True)
    Surroundings(2, local, causal)(x)[0, 4].sum().backward()
    assert x.grad[0].abs().sum(-1).nonzero().flatten().tolist() == heard


def corner(net):
    "Size of the gradient of the outputs in one corner for each input position, without the norms."
    for m in net.modules():
        for name, child in m.named_children():
            if isinstance(child, (nn.GroupNorm, nn.LayerNorm)): setattr(m, name, nn.Identity())
    x = torch.zeros(1, *net.shape, requires_grad=True)
    net(x, torch.tensor([5]))[0, 0, 0].sum().backward()
    return x.grad[0].abs()


def test_real_numbers_and_reach():
    torch.manual_seed(0)
    for net in (UNet(2, 10, (8, 8), real=True), Transformer(2, 10, (8, 8), real=True)):
        assert net(torch.randn(3, 8, 8), torch.tensor([1, 5, 10])).shape == (3, 8, 8, 2)
    for net in (UNet(1, 10, (28, 28), 16, (1, 2, 2), real=True), Transformer(1, 10, (8, 8), 16, 1, real=True)):
        assert (corner(awake(net)) > 0).all() # one corner reads every pixel, the opposite corner included


def test_without_places_a_transformer_commutes_with_permutations():
    torch.manual_seed(0)
    net, shuffle = awake(Transformer(5, 10, (12,), 16, 2, 2)), torch.randperm(12)
    x_t, t = torch.randint(5, (2, 12)), torch.tensor([2, 7])
    assert (net(x_t[:, shuffle], t) - net(x_t, t)[:, shuffle]).abs().max() > 1e-3
    net.place.data.zero_()
    torch.testing.assert_close(net(x_t[:, shuffle], t), net(x_t, t)[:, shuffle], rtol=1e-5, atol=1e-5)


# Faster

def compiled(net, backend):
    "Largest difference between a network and its compiled form, as one graph; and that form."
    torch.compiler.reset()
    x_t, t, cond = example(net, 4)
    quick = torch.compile(net, backend=backend, fullgraph=True)
    return (quick(x_t, t, **cond) - net(x_t, t, **cond)).abs().max().item(), quick


@pytest.mark.parametrize('name', ['unet, ordered, 3 logistics', 'transformer, all conditions'])
def test_one_graph(name):
    torch.manual_seed(0)
    assert compiled(awake(NETWORKS[name]()), 'eager')[0] < 1e-5


@pytest.mark.skipif(not os.environ.get('DISCDIFF_SLOW'), reason='compiles for a minute; DISCDIFF_SLOW=1 runs it')
def test_compiled_for_good_it_still_refuses_a_value_beyond_its_table():
    logging.getLogger('torch.utils.cpp_extension').setLevel(logging.ERROR) # it misses a GPU
    torch.manual_seed(0)
    gap, quick = compiled(awake(Transformer(5, 10, (20,), 32, 2, rope=True)), 'inductor')
    assert gap < 1e-5
    x_t, t = torch.zeros(2, 20).long(), torch.tensor([1, 10])
    for bad in ((x_t + 5, t), (x_t, t + 1), (x_t, t - 1)):
        with pytest.raises(RuntimeError, match='index out of bounds'): quick(*bad)


def test_places_of_logistics_survive_bfloat16():
    torch.manual_seed(0)
    net = UNet(256, 1000, (8, 8), 16, ordered_classes=256, logistic=1).eval()
    net.last.bias.data = torch.tensor([0.6037, -4.])
    x_t, t = torch.randint(256, (2, 8, 8), generator=torch.Generator().manual_seed(0)), torch.tensor([3, 700])
    def mean(out): return (out.float().softmax(-1) * torch.arange(256)).sum(-1)
    with torch.autocast('cpu', torch.bfloat16): half = net(x_t, t)
    assert half.isfinite().all() and (mean(half) - mean(net(x_t, t))).abs().max() < 0.01


@pytest.mark.parametrize('name', NETWORKS)
def test_autocast(name):
    torch.manual_seed(0)
    net = awake(NETWORKS[name]())
    x_t, t, cond = example(net, 4)
    with torch.autocast('cpu', torch.bfloat16): logits = net(x_t, t, **cond)
    torch.testing.assert_close(logits.float(), net(x_t, t, **cond), rtol=0.1, atol=0.1)


def test_channels_last_changes_the_layout_and_not_the_answer():
    torch.manual_seed(0)
    net = awake(UNet(256, 1000, (28, 28), 16, (1, 2, 2)))
    x_t, t = torch.randint(256, (8, 28, 28)), torch.randint(1, 1001, (8,))
    want = net(x_t, t)
    torch.testing.assert_close(net.to(memory_format=torch.channels_last)(x_t, t), want, rtol=1e-4, atol=1e-4)


# Wrong inputs

X, X_T, TIMES = torch.zeros(2, 8, 8), torch.zeros(2, 8, 8).long(), torch.tensor([1, 10])


def unet(**options): return UNet(5, 10, (8, 8), 8, **options)
def causal(): return Transformer(5, None, (8,), 16, 1, 2, causal=True)


WRONG = [
    (ShapeError, 'pad', lambda: UNet(5, 10, (9, 8))),
    (ShapeError, 'multiples of 8', lambda: UNet(5, 10, (8, 8), channels=12)),
    (ShapeError, 'has [8, 4]', lambda: unet(attention=(7,))),
    (ShapeError, '3 heads', lambda: unet(attention=(8,), heads=3)),
    (ShapeError, 'by attention', lambda: unet(cond=dict(text=(5, 4)))),
    (ShapeError, 'at least 1', lambda: unet(blocks=0)),
    (ShapeError, 'dropout', lambda: unet(dropout=1.5)),
    (ClassError, '2..5', lambda: unet(ordered_classes=9)),
    (ClassError, 'give ordered_classes', lambda: unet(logistic=1)),
    (DataError, 'no classes', lambda: unet(real=True, input_residual=True)),
    (DataError, 'allowed are', lambda: unet(cond=dict(label=3))),
    (ScheduleError, 'at least 1', lambda: UNet(5, 0, (8, 8))),
    (ClassError, 'at least 2', lambda: UNet(1, 10, (8, 8))),
    (ClassError, '0..4', lambda: unet()(X_T + 7, TIMES)),
    (DtypeError, 'long', lambda: unet()(X, TIMES)),
    (ShapeError, '(B, 8, 8)', lambda: unet()(X_T[:, :7], TIMES)),
    (ShapeError, '(B,)', lambda: unet()(X_T, TIMES[:1])),
    (TimeError, '1..10', lambda: unet()(X_T, TIMES - 1)),
    (TimeError, 'missing', lambda: unet()(X_T)),
    (DtypeError, 'real numbers', lambda: unet(real=True)(X_T, TIMES)),
    (DataError, 'got []', lambda: unet(cond=dict(y=3))(X_T, TIMES)),
    (DataError, "got ['y']", lambda: unet()(X_T, TIMES, y=TIMES)),
    (ClassError, '0..3', lambda: unet(cond=dict(y=3))(X_T, TIMES, y=TIMES)),
    (ShapeError, '(2, 4)', lambda: unet(cond=dict(z=4))(X_T, TIMES, z=torch.zeros(2, 3))),
    (DtypeError, 'z.float()', lambda: unet(cond=dict(z=4))(X_T, TIMES, z=X_T[:, 0, :4])),
    (ShapeError, 'heads', lambda: Transformer(5, 10, (8, 8), width=30)),
    (ShapeError, 'in pairs', lambda: Transformer(5, 10, (8, 8), width=24, rope=True)),
    (ShapeError, 'depth', lambda: Transformer(5, 10, (8,), depth=0)),
    (DataError, 'its own class', lambda: Transformer(5, 10, (8,), causal=True, input_residual=True)),
    (DataError, 'causal=True', lambda: chain_nll(Transformer(5, 10, (8,)), X_T[0])),
    (ClassError, '0..4', lambda: chain_nll(causal(), X_T[0] + 5)),
    (ShapeError, '(B, 8)', lambda: chain_nll(causal(), X_T)),
    (ShapeError, 'multiples of 8', lambda: d_net(5, 10, 16, channels=4))]


@pytest.mark.parametrize('error, says, call', WRONG, ids=[f'{i} {error.__name__}' for i, (error, _, _) in enumerate(WRONG)])
def test_wrong_input_is_named(error, says, call):
    with pytest.raises(error) as caught: call()
    assert says in str(caught.value)
