"""What once went wrong in training: randomness that was shared, surroundings that changed the gradient, side files, wrappers, precisions."""
import torch
from accelerate import Accelerator
from torch import nn

from discdiff_nb import data, train
from discdiff_nb.core import reciprocal_schedule
from discdiff_nb.d3pm import Absorbing
from discdiff_nb.multinomial import Multinomial
from discdiff_nb.train import draw_batch, fit, gradients, held_out_bits

N = 512
process = Absorbing(5, reciprocal_schedule(20))
CPU = torch.device('cpu')


class Probe(nn.Module):
    "Two numbers to train, a dropout, and notes of what each call saw: which entries are masked, which features are dropped."
    def __init__(self):
        super().__init__()
        self.scale, self.dropout = nn.Parameter(torch.zeros(5)), nn.Dropout(0.5)
        self.masked, self.gone = [], []

    def forward(self, x_t, t):
        dropped = self.dropout(torch.ones(x_t.shape))
        self.masked.append((x_t == 4).flatten())
        self.gone.append((dropped == 0).flatten())
        return self.scale.expand(*x_t.shape, 5) * dropped[..., None]


def independent(a, b, what):
    "Two long lists of booleans are independent at every small offset, at 4 standard errors."
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    for lag in range(-3, 4):
        x, y = a[max(lag, 0):len(a) + min(lag, 0)], b[max(-lag, 0):len(b) + min(-lag, 0)]
        z = (x * y).sum() / ((x ** 2).sum() * (y ** 2).sum()).sqrt() * len(x) ** 0.5
        assert abs(z) < 4, f'{what}, offset {lag}: correlation {z / len(x) ** 0.5:.3f}, {z:.1f} standard errors'


def test_noise_and_dropout_are_independent():
    "P(position i masked | feature i + 1 dropped) was .974."
    probe = Probe()
    fit(process, probe, torch.randint(4, (16, N)), 40, batch_size=4, times='alone')
    # masked entries of one example share their time: compare within each, where both are exchangeable
    for step, (masked, gone) in enumerate(zip(probe.masked, probe.gone)): independent(masked, gone, f'step {step}')
    independent(torch.cat(probe.masked), torch.cat(probe.gone), 'all steps')


def test_pieces_processes_and_steps_are_independent():
    probe, gone = Probe().train(), []
    batch = draw_batch(process, torch.randint(4, (16, N)), 0, dict(batch_size=16, seed=0, times='even', drop=0.), CPU)
    for rank in (0, 1):
        pretended = dict(num_processes=2, process_index=rank, reduce=staticmethod(lambda L: L))
        accelerator = type('Pretended', (Accelerator,), pretended)(device_placement=False)
        gradients(process, probe, batch, 0, accelerator, 2)
    for step in (1, 2): gradients(process, probe, batch, step, Accelerator(device_placement=False))
    gone = [x[:4 * N] for x in probe.gone]
    for i, first in enumerate(gone):
        for second in gone[:i]: independent(first, second, f'call {i}')


def test_no_seed_is_used_for_two_purposes(monkeypatch):
    "Every stream of a run has a seed of its own: order of the examples, batches, dropout of each piece, held-out noise."
    seeds, mix_seed = {}, train.mix_seed
    def noted(*purpose):
        seed = mix_seed(*purpose)
        assert seeds.setdefault(seed, purpose) == purpose
        used.append(seed)
        return seed
    used, given, manual_seed = [], [], torch.manual_seed
    monkeypatch.setattr(train, 'mix_seed', noted), monkeypatch.setattr(data, 'mix_seed', noted)
    monkeypatch.setattr(torch, 'manual_seed', lambda seed: (given.append(seed), manual_seed(seed))[1])
    x0 = torch.randint(4, (40, 3))
    held_out = held_out_bits(process, x0[:2], 1, seed=0)
    fit(process, Probe(), x0, 20, batch_size=8, accumulate=2, seed=0, held_out=held_out, cond={})
    assert len(given) == len(set(given)) == 40, 'each piece of each step has a seed of its own'
    assert not set(given) & {mix_seed(0, n) for n in range(40)}, 'dropout shares a seed with the order of the examples'
    purposes = {purpose[0] for purpose in seeds.values() if isinstance(purpose[0], str)}
    assert purposes >= {'batch', 'dropout', 'held out'}


def test_a_run_of_older_streams_goes_on_and_says_so(tmp_path, capsys):
    x0 = torch.randint(4, (8, 6))
    go = lambda **more: fit(process, Probe(), x0, 4, tmp_path / 'run', batch_size=4, save_every=2, **more)
    go()
    tensors, about = train.load_tensors(tmp_path / 'run' / 'checkpoint.safetensors')
    del about['streams']
    train.save_tensors(tmp_path / 'run' / 'checkpoint.safetensors', tensors, about)
    capsys.readouterr()
    go(resume=True)
    assert 'shared a seed' in capsys.readouterr().out
