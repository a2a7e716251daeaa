"""What once went wrong in training: randomness that was shared, surroundings that changed the gradient, side files, wrappers, precisions."""
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from elsewhere import pretended
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from discdiff_nb import checkpoints, data, train, vae
from discdiff_nb.core import INTEGERS, CheckpointError, DiscdiffError, NotFiniteError, cosine_schedule, reciprocal_schedule
from discdiff_nb.d3pm import Absorbing
from discdiff_nb.multinomial import Multinomial
from discdiff_nb.checkpoints import (cut_log, likely_cause, load_average, load_tensors, read_log,
                                     save_tensors)
from discdiff_nb.train import Team, draw_batch, fit, gradients, held_out_bits

ROOT = Path(__file__).resolve().parent.parent

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


class Alone(Team):
    "One of several processes that hear nothing of each other."
    def sum(self, x): return x


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
    fit(process, probe, torch.randint(4, (16, N)), 40, batch_size=4, times='iid')
    # masked entries of one example share their time: compare within each, where both are exchangeable
    for step, (masked, gone) in enumerate(zip(probe.masked, probe.gone)): independent(masked, gone, f'step {step}')
    independent(torch.cat(probe.masked), torch.cat(probe.gone), 'all steps')


def test_pieces_processes_and_steps_are_independent():
    probe, gone = Probe().train(), []
    batch = draw_batch(process, torch.randint(4, (16, N)), 0, dict(batch_size=16, seed=0, times='even', drop=0.), CPU)
    for rank in (0, 1):
        gradients(process, probe, batch, 0, Alone(2, rank), 2)
    for step in (1, 2): gradients(process, probe, batch, step, Team())
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


def test_the_vae_draws_noise_and_order_from_seeds_apart(monkeypatch):
    given, manual_seed = [], torch.manual_seed
    monkeypatch.setattr(torch, 'manual_seed', lambda seed: (given.append(seed), manual_seed(seed))[1])
    vae.train_vae(torch.randint(4, (40, 3)), 4, steps=20, batch_size=8, latent=2, hidden=8)
    orders = {train.mix_seed(0, epoch) for epoch in range(20)}
    assert len(given) == 21, 'the weights, and each step'
    assert not orders & set(given), 'the noise of a step shares a seed with the order of an epoch'


class Small(nn.Module):
    "A network for tests of files and surroundings: an embedding, a dropout, a line."
    def __init__(self, K=5, cond=0):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.dropout, self.line = nn.Embedding(K, 8), nn.Dropout(0.2), nn.Linear(8, K)
        if cond: self.y = nn.Embedding(cond, 8)

    def forward(self, x_t, t, y=None):
        h = self.embed(x_t)
        if y is not None: h = h + self.y(y.long()).reshape(len(y), *[1] * (h.ndim - 2), 8)
        return self.line(self.dropout(h))


x0 = torch.randint(4, (12, 6), generator=torch.Generator().manual_seed(0))


def go(run=None, net=None, steps=6, **options):
    return fit(process, Small() if net is None else net, x0, steps, run, batch_size=4, save_every=2, **options)


whole = go()[1]


# Surroundings

@pytest.mark.parametrize('name, value', [
    ('ACCELERATE_GRADIENT_ACCUMULATION_STEPS', '4'), ('ACCELERATE_GRADIENT_ACCUMULATION_STEPS', 'auto'),
    ('ACCELERATE_USE_FSDP', 'true'), ('ACCELERATE_USE_DEEPSPEED', 'true'), ('ACCELERATE_USE_MEGATRON_LM', 'True'),
    ('ACCELERATE_USE_PARALLELISM_CONFIG', 'true'), ('ACCELERATE_DYNAMO_BACKEND', 'INDUCTOR'), ('ACCELERATE_MIXED_PRECISION', 'fp8')])
def test_surroundings_that_fit_does_not_follow_are_refused(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(DiscdiffError, match=f'{name}={value}'): go()


@pytest.mark.parametrize('name, value', [
    ('ACCELERATE_GRADIENT_ACCUMULATION_STEPS', '1'), ('ACCELERATE_USE_FSDP', 'false'), ('ACCELERATE_DYNAMO_BACKEND', 'NO'),
    ('ACCELERATE_MIXED_PRECISION', 'no')])
def test_surroundings_that_say_nothing_change_nothing(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert go()[1] == whole


def test_precision_of_the_surroundings(monkeypatch, tmp_path):
    "ACCELERATE_MIXED_PRECISION=fp16 trained in float32 in silence; an argument comes first."
    monkeypatch.setenv('ACCELERATE_MIXED_PRECISION', 'fp16')
    assert go()[1] == go(mixed_precision='fp16')[1] != whole
    assert go(mixed_precision='no')[1] == whole


@pytest.mark.parametrize('settings', ['mixed_precision="bf16", cpu=True', 'gradient_accumulation_steps=4'])
def test_an_accelerator_that_exists(settings):
    "Whatever its settings, fit computes the same as without it."
    code = f'''import sys; sys.path.insert(0, {str(ROOT / "tests")!r})
from accelerate import Accelerator
accelerator = Accelerator({settings})
from test_faults_train import go, whole
assert go()[1] == whole == {whole!r}'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('name', ['WORLD_SIZE', 'OMPI_COMM_WORLD_SIZE'])
def test_processes_that_do_not_know_each_other_are_refused(monkeypatch, name):
    "Each would train alone and write over the others' checkpoints."
    from accelerate import PartialState
    PartialState()
    monkeypatch.setenv(name, '2')
    with pytest.raises(DiscdiffError, match='2 processes'): go()


def test_a_launcher_that_is_gone(monkeypatch):
    from accelerate import PartialState
    monkeypatch.setattr(PartialState, '_shared_state', {})
    for name in ('MASTER_ADDR', 'MASTER_PORT', 'RANK', 'WORLD_SIZE'): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('ACCELERATE_USE_CPU', 'true'), monkeypatch.setenv('LOCAL_RANK', '0')
    with pytest.raises(DiscdiffError, match='LOCAL_RANK'): go()


def test_autograd_and_autocast_around_the_call():
    with torch.no_grad(): assert go()[1] == whole
    with torch.autocast('cpu', torch.bfloat16): assert go()[1] == whole
    half = go(mixed_precision='bf16', steps=30)[1]
    with torch.autocast('cpu', torch.float16): assert go(mixed_precision='bf16', steps=30)[1] == half # its cache held the first weights
    with torch.inference_mode(), pytest.raises(DiscdiffError, match='inference_mode'): go()


# Side files

DAMAGE = {
    'NUL at the end': lambda b: b + bytes(512),
    'NUL within': lambda b: b[:len(b) // 2] + bytes(64) + b[len(b) // 2:],
    'no utf-8': lambda b: b + b'\xff\xfe\x80\n',
    'words': lambda b: b + b'six,seven,,,,\n',
    'no header': lambda b: b.split(b'\n', 1)[1],
    'other header': lambda b: b'a,b\n1,2\n',
}


@pytest.mark.parametrize('damage', DAMAGE)
def test_a_damaged_log_is_set_aside(tmp_path, capsys, damage):
    run = tmp_path / 'run'
    go(run)
    log = run / 'log.csv'
    before, rows = log.read_bytes(), read_log(log)
    log.write_bytes(DAMAGE[damage](before))
    capsys.readouterr()
    assert go(run, resume=True)[1] == whole
    said = capsys.readouterr().out
    assert said.count('\n') == 1 and 'damaged' in said and str(run / 'log.csv.damaged') in said
    assert (run / 'log.csv.damaged').read_bytes() == DAMAGE[damage](before)
    kept = read_log(log)
    assert all(row in rows for row in kept)
    if damage in ('NUL at the end', 'no utf-8', 'words'): assert kept == rows


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=200), st.integers(0, 400), st.integers(0, 30))
def test_any_bytes_in_a_log(tmp_path_factory, junk, place, n):
    "Reading never fails, and every row that is read was written, or is numbers."
    path = tmp_path_factory.mktemp('log') / 'log.csv'
    for step in range(1, 6): checkpoints.log_row(path, dict(step=step, loss=1., grad_norm=None, lr=1e-3, held_out=None, seconds=1.))
    content = path.read_bytes()
    path.write_bytes(content[:place] + junk + content[place + n:])
    for row in read_log(path): assert set(row) == set(checkpoints.COLUMNS) and isinstance(row['step'], float)
    cut_log(path, 3)
    assert all(row['step'] <= 3 for row in read_log(path))


def test_a_folder_in_place_of_the_log(tmp_path, capsys):
    run = tmp_path / 'run'
    (run / 'log.csv').mkdir(parents=True)
    assert go(run)[1] == whole
    assert (run / 'log.csv.damaged').is_dir() and len(read_log(run / 'log.csv')) == 3


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path, capsys):
    def refuse(*args): raise CheckpointError('log.csv could not be written (Permission denied)')
    with mock.patch.object(train, 'log_row', refuse): assert go(tmp_path / 'run')[1] == whole
    assert capsys.readouterr().out.count('log.csv') == 1, 'said once'
    with mock.patch('os.rename', side_effect=PermissionError(13, 'Permission denied')):
        (tmp_path / 'run' / 'log.csv').write_bytes(bytes(9))
        assert go(tmp_path / 'run', resume=True)[1] == whole


def test_tensorboard_that_fails_stops_nothing(tmp_path, capsys):
    with mock.patch('torch.utils.tensorboard.SummaryWriter', side_effect=OSError(28, 'No space left on device')):
        assert go(tmp_path / 'a', tensorboard=True)[1] == whole
    with mock.patch('torch.utils.tensorboard.SummaryWriter.add_scalar', side_effect=OSError(28, 'No space left on device')):
        assert go(tmp_path / 'b', tensorboard=True)[1] == whole
    assert capsys.readouterr().out.count('No space') == 2


def test_leftovers_of_a_kill_are_taken_away(tmp_path):
    run = tmp_path / 'run'
    go(run, keep=2)
    for name in ('checkpoint', 'checkpoint-000000002', 'best'): (run / f'{name}.safetensors.tmp').write_bytes(b'half')
    (run / 'log.csv.tmp').write_bytes(b'half')
    mine = run / 'notes.tmp'
    mine.write_text('mine')
    assert go(run, keep=2, resume=True)[1] == whole
    assert list(run.glob('*.tmp')) == [mine]


def test_only_own_checkpoints_are_dropped(tmp_path, capsys):
    run = tmp_path / 'run'
    run.mkdir()
    (run / 'checkpoint-before-the-change.safetensors').write_bytes(b'mine')
    (run / 'checkpoint-000000000.safetensors').mkdir()
    assert go(run)[1] == whole
    assert (run / 'checkpoint-before-the-change.safetensors').exists()


# Remedies

def test_a_damaged_checkpoint_names_the_whole_one(tmp_path):
    run = tmp_path / 'run'
    go(run, keep=3)
    path = run / 'checkpoint.safetensors'
    content = path.read_bytes()
    path.unlink() # what stands here has other names
    path.write_bytes(content[:1000])
    (run / 'checkpoint-000000006.safetensors').unlink()
    (run / 'checkpoint-000000006.safetensors').write_bytes(content[:-1])
    with pytest.raises(CheckpointError) as e: go(run, keep=3, resume=True)
    assert 'checkpoint-000000004.safetensors' in str(e.value) and 'delete' not in str(e.value)
    path.write_bytes((run / 'checkpoint-000000004.safetensors').read_bytes())
    assert go(run, keep=3, resume=True)[1] == whole


@pytest.mark.parametrize('number, words, never', [(28, 'make room', 'right'), (13, 'right to write', 'make room'), (2, 'folder', 'make room'),
                                                  (30, 'right to write', 'make room'), (5, 'another disk', 'make room')])
def test_the_remedy_fits_the_error(tmp_path, number, words, never):
    path = tmp_path / 'x.safetensors'
    save_tensors(path, dict(x=torch.zeros(1)), {})
    for name in ('os.fsync', 'os.replace'):
        with mock.patch(name, side_effect=OSError(number, os.strerror(number))), pytest.raises(CheckpointError) as e:
            save_tensors(path, dict(x=torch.ones(1)), {})
        assert words in str(e.value) and never not in str(e.value), str(e.value)
    assert load_tensors(path)[0]['x'] == 0
    with pytest.raises(CheckpointError) as e: save_tensors(tmp_path / 'no' / 'x.safetensors', dict(x=torch.ones(1)), {})
    assert 'make room' not in str(e.value) and 'whole' not in str(e.value)


def test_a_failure_after_a_damaged_checkpoint(tmp_path):
    "The message of a failure does not depend on whether the last checkpoint can be read."
    run, calls = tmp_path / 'run', []
    class Failing(Absorbing):
        def loss(self, out, x0, x_t, t):
            calls.append(1)
            if len(calls) == 4:
                (run / 'checkpoint.safetensors').write_bytes(b'')
                return self.L_t(out, x0, x_t, t) * float('nan')
            return self.L_t(out, x0, x_t, t)
    with pytest.raises(NotFiniteError, match='loss nan'):
        fit(Failing(5, reciprocal_schedule(20)), Small(), x0, 6, run, batch_size=4, save_every=2)


# Wrappers

def compiled(net): return torch.compile(net, backend='eager')


def compiled_inside(net):
    net.line = compiled(net.line)
    return net


def compiled_in_place(net):
    net.compile(backend='eager')
    return net


def parallel_inside(net):
    net.line = nn.DataParallel(net.line)
    return net


WRAPPERS = {'plain': lambda net: net, 'compiled': compiled, 'compiled inside': compiled_inside, 'compiled in place': compiled_in_place,
            'DataParallel': nn.DataParallel, 'DataParallel inside': parallel_inside, 'both': lambda net: nn.DataParallel(compiled(net))}


@pytest.mark.parametrize('first', WRAPPERS)
def test_a_run_goes_on_in_another_wrapper(tmp_path, first):
    "The names in a checkpoint are those of the plain network, and every wrapped network reads them."
    names = set(Small().state_dict())
    def stop(model, calls=[]):
        calls.append(1)
        if len(calls) % 2 == 0: raise KeyboardInterrupt
        return 0.
    net = WRAPPERS[first](Small())
    with pytest.raises(KeyboardInterrupt): go(tmp_path / 'run', net, held_out=stop)
    path = tmp_path / 'run' / 'checkpoint.safetensors'
    for prefix in ('model.', 'ema.'):
        assert {k.removeprefix(prefix) for k in load_tensors(path)[0] if k.startswith(prefix)} == names
    content = path.read_bytes()
    for second in WRAPPERS:
        path.write_bytes(content)
        average, losses = go(tmp_path / 'run', WRAPPERS[second](Small()), held_out=lambda model: 0., resume=True)
        torch.testing.assert_close(torch.tensor(losses), torch.tensor(whole), rtol=1e-6, atol=0)
        loaded = load_average(path, WRAPPERS[second](Small()))
        assert not loaded.training
        for a, b in zip(loaded.parameters(), average.parameters()): assert torch.equal(a, b)


# Precision

@pytest.mark.parametrize('where, precision', [('cpu', 'fp16'), ('cpu', 'bf16'), ('cuda', 'fp16')])
def test_half_precision_resumes_to_the_bit(tmp_path, where, precision):
    "The scale moves in these steps: it begins too large; what a checkpoint lacked, a resumed run would repeat."
    def train_to(steps=8, **more):
        net = Small()
        net.line.weight.data *= 30
        if where == 'cuda': net = net.to('cuda')
        return fit(Absorbing(5, reciprocal_schedule(20)), net, x0, 8, batch_size=4, save_every=4, mixed_precision=precision, **more)
    def stop(model): raise KeyboardInterrupt
    with pretended() if where == 'cuda' else mock.patch('os.getcwd'):
        net, losses = train_to()
        seen = []
        with pytest.raises(KeyboardInterrupt): train_to(run=tmp_path / 'run', held_out=lambda m: stop(m) if seen else seen.append(1) or 0.)
        assert ('scaler' in load_tensors(tmp_path / 'run' / 'checkpoint.safetensors')[0]) == (precision == 'fp16')
        again, resumed = train_to(run=tmp_path / 'run', held_out=lambda m: 0., resume=True)
        assert resumed == losses
        for a, b in zip(net.parameters(), again.parameters()): assert bool((a == b).all())


def test_a_scale_that_is_too_large_costs_steps_and_no_more(tmp_path):
    "Gradients that overflow float16 move nothing; the scale falls until they fit."
    net, start = Small(), Small().state_dict()
    class Steep(Absorbing):
        def loss(self, out, x0, x_t, t): return 3000 * self.L_t(out, x0, x_t, t)
    steep = Steep(5, reciprocal_schedule(20))
    _, losses = fit(steep, net, x0, 30, tmp_path / 'run', batch_size=4, save_every=30, mixed_precision='fp16')
    scale = load_tensors(tmp_path / 'run' / 'checkpoint.safetensors')[0]['scaler'][0].item()
    assert 1 < scale < 65536 and len(losses) == 30
    assert all(row['grad_norm'] < 1e9 for row in read_log(tmp_path / 'run' / 'log.csv'))
    assert any(not torch.equal(a, b) for a, b in zip(net.state_dict().values(), start.values()))


def test_float16_and_bfloat16_are_near_float32():
    for precision in ('fp16', 'bf16'):
        losses = torch.tensor(go(mixed_precision=precision)[1])
        torch.testing.assert_close(losses, torch.tensor(whole), rtol=2e-2, atol=0)
        assert losses.tolist() != whole


def test_what_a_failure_in_float16_is_told():
    assert "mixed_precision='no'" in likely_cause([1.] * 9, [1.] * 9, precision='fp16') and '65504' in likely_cause([1.] * 9, [1.] * 9, precision='fp16')


@pytest.mark.parametrize('capability, used', [((7, 5), 'fp16'), ((6, 1), 'fp16'), ((8, 0), 'bf16'), ((9, 0), 'bf16')])
@pytest.mark.parametrize('by', ['argument', 'launcher'])
def test_bfloat16_where_it_is_emulated(monkeypatch, capsys, capability, used, by):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda *args: capability)
    asked = train.choose_precision('bf16' if by == 'argument' else None, {'ACCELERATE_MIXED_PRECISION': 'bf16'}, torch.device('cuda'))
    said = capsys.readouterr().out
    assert asked == used and said.count('\n') == (used != 'bf16') and ('float16' in said) == (used != 'bf16')


def test_bfloat16_on_an_old_pretended_gpu(capsys):
    with pretended(), mock.patch('torch.cuda.get_device_capability', lambda *args: (7, 5)):
        there = Absorbing(5, reciprocal_schedule(20))
        old = fit(there, Small().to('cuda'), x0, 4, batch_size=4, mixed_precision='bf16')[1]
        assert 'float16' in capsys.readouterr().out
        assert old == fit(there, Small().to('cuda'), x0, 4, batch_size=4, mixed_precision='fp16')[1]


# Dtypes and shapes

@settings(deadline=None, max_examples=12)
@given(st.sampled_from(INTEGERS), st.sampled_from(INTEGERS), st.integers(2, 255), st.sampled_from(['even', 'iid']), st.data())
def test_every_integer_dtype_gives_the_losses_of_int64(dtype, y_dtype, K, times, data):
    K = min(K, torch.iinfo(dtype).max + 1)
    labels = min(256, torch.iinfo(y_dtype).max + 1)
    x = torch.randint(K, (10, 3), generator=torch.Generator().manual_seed(K))
    y = torch.arange(10) * (labels - 1) // 9 # the last label that the dtype holds is among them
    uniform = Multinomial(K, cosine_schedule(9))
    held = lambda x, y: held_out_bits(uniform, x, 2, cond=dict(y=y))
    def train_on(x, y): return fit(uniform, Small(K, labels + 1), x, 3, batch_size=4, times=times, cond=dict(y=y), drop=0.5, held_out=held(x, y))
    (a, right), (b, got) = train_on(x, y), train_on(x.to(dtype), y.to(y_dtype))
    assert got == right and held(x, y)(a) == held(x.to(dtype), y.to(y_dtype))(b)


def test_examples_of_one_number():
    "x0 of shape (B,)"
    x = torch.arange(12) % 4
    net, losses = fit(process, Small(), x, 4, batch_size=4, held_out=held_out_bits(process, x, 2), cond={}, times='iid')
    assert len(losses) == 4 and all(0 < loss < 100 for loss in losses)
    assert losses == fit(process, Small(), x[:, None], 4, batch_size=4, times='iid')[1]


def test_modes_are_left_as_found():
    bits, net = held_out_bits(process, x0, 2), Small()
    net.train(), net.line.eval()
    first = bits(net)
    assert net.training and net.dropout.training and not net.line.training
    assert first == bits(net.eval())


def test_the_average_has_no_dropout_when_it_is_measured():
    seen = []
    net, _ = go(held_out=lambda model: seen.append([m.training for m in model.modules()]) or model.train() and 0.)
    assert not any(map(any, seen)) and not net.training
