"Chapter 19 beside its pages: noise of every size, which windows of a text a job reads, drawing by label."
import pytest
import torch
from torch import nn
from discdiff_nb import runs
from discdiff_nb.core import DataError, ScheduleError, generate
from discdiff_nb.ordinal import terminal_tv
from discdiff_nb.runs import (Job, draw_labelled, evenly, examples, gaussian, neighbour, ordinal,
                              run_job, source_bytes, uniform)


def job(**changes):
    return Job(**dict(name='read', data='source', process='absorbing', K=256, net={}, steps=1,
                      batch_size=8, lr=1e-3) | changes)


def test_windows():
    "One after the other to train on; the first, the middle and the last of what is held out."
    data, text = examples(job(length=40, tested=3)), source_bytes()
    assert torch.equal(data.train[7], text.train[280:320].long())
    last = len(text.test) // 40 - 1
    starts = [40 * i for i in (0, round(last / 2), last)]
    assert torch.equal(data.test, torch.stack([text.test[i:i + 40] for i in starts]).long())


def test_evenly():
    assert torch.equal(evenly(30_011, None), torch.arange(30_011))
    assert torch.equal(evenly(3, 9), torch.arange(3))
    assert evenly(9, 3).tolist() == [0, 4, 8]


def test_no_length():
    with pytest.raises(DataError, match='read reads a text: give length'): examples(job())


def test_source():
    "Nothing of the source is lost or read twice."
    text = source_bytes()
    whole = bytes(torch.cat([text.train, text.valid, text.test]).tolist())
    assert whole.startswith(b'"""') or whole.startswith(b'__version__')
    assert len(text.valid) == len(text.test) == len(whole) // 20


SIZES = (2, 1000), (3, 1000), (4, 1000), (7, 1000), (16, 1000), (48, 300), (9, 1500)


@pytest.mark.parametrize('K, T', SIZES)
@pytest.mark.parametrize('make', [ordinal, neighbour])
def test_noise_ends_at_its_prior(make, K, T):
    "The worst class, of whole tables, for few classes and many, few steps and many (D8)."
    assert 9.7e-4 < terminal_tv(make(K, T)) <= 1e-3


def test_many_levels(monkeypatch):
    "Up to 256 levels the ordinal schedule is found without a table, and is no weaker than allowed."
    monkeypatch.setattr(runs, 'DiscretizedGaussian', lambda K, schedule: schedule)
    for K in (2, 3, 5, 130, 256):
        assert ordinal(K, 1000).beta[1] > 4 / 700 / (K - 1) ** 2
    for K in (5, 64, 255): assert terminal_tv(neighbour(K, 1000)) <= 1e-3


def test_too_few_steps():
    "Where even the strongest schedule does not end at the prior, the error says how many it takes."
    assert terminal_tv(neighbour(16, 30)) == 0 # only beta_T = 1 is enough
    for make, K, T, enough in ((ordinal, 16, 10, 40), (ordinal, 2, 100, 1600), (neighbour, 5, 1, 2)):
        with pytest.raises(ScheduleError, match=f'take T = {enough}'): make(K, T)
        assert terminal_tv(make(K, enough)) <= 1e-3
    with pytest.raises(ScheduleError, match='take T = 21'): gaussian(16, 20)
    gaussian(16, 21)


class Named(nn.Module):
    "Sure of the class that is the label, and of none where there is none."
    def forward(self, x_t, t, y):
        sure = 20 * nn.functional.one_hot(y, 11)[:, None, None, :10]
        return sure.expand(*x_t.shape, 10).float()


def test_drawing_by_label():
    "Ten labels in turn, across the pieces of 500; guidance makes them surer; numbers become classes."
    process, model = uniform(10, 20), Named()
    x = draw_labelled(process, model, 503, (2, 3), 20)
    assert x.shape == (503, 2, 3) and x.dtype == torch.int64
    assert (x == (torch.arange(503) % 10)[:, None, None]).double().mean() > 0.98
    def numbers(*args): return generate(*args) / 4.5 - 1
    y = torch.arange(12) % 10
    want = generate(process, lambda x_t, t: model(x_t, t, y), (12, 2, 3), 20, torch.Generator().manual_seed(1))
    assert torch.equal(draw_labelled(process, model, 12, (2, 3), 20), want)
    assert torch.equal(draw_labelled(process, model, 12, (2, 3), 20, sampler=numbers), want)
    assert (draw_labelled(process, model, 12, (2, 3), 20, weight=2.) == y[:, None, None]).all()


def test_a_kept_network_touches_no_checkpoint(tmp_path):
    "Loading makes no folder and takes none away; training takes away its own."
    few = job(name='few', data='digits', process='uniform', K=17, tested=8,
              net=dict(kind='unet', channels=8, multipliers=[1]))
    run_job(few, tmp_path, running=tmp_path / 'runs')
    assert (tmp_path / 'few.safetensors').is_file() and not (tmp_path / 'runs' / 'few').exists()
    other = tmp_path / 'runs' / 'few' / 'checkpoint.safetensors'
    other.parent.mkdir(parents=True)
    other.write_bytes(b'of somebody else')
    run_job(few, tmp_path, running=tmp_path / 'runs')
    assert other.read_bytes() == b'of somebody else'
    run_job(few, tmp_path, running=tmp_path / 'absent')
    assert not (tmp_path / 'absent').exists()


def test_the_commit_of_a_run_is_the_one_that_it_began_with(tmp_path, monkeypatch):
    "Whoever commits while a network trains does not change what it was trained with."
    found = iter(['before', 'after'])
    monkeypatch.setattr(runs, 'commit', lambda: next(found))
    _, kept = runs.load_or_train(tmp_path / 'net.safetensors', nn.Linear(2, 2), dict(seed=0), lambda net: (net, {}))
    assert kept['commit'] == 'before'


def test_in_bf16():
    "The layers compute in bfloat16, the answer is float32, of a pair both halves; the network stays as it was."
    seen, layer = [], nn.Linear(4, 2)

    def net(x_t, t, y):
        h = layer(x_t) + y
        seen.append(h.dtype)
        return h if t[0] == 1 else (h, 2 * h)
    x_t, t, y = torch.randn(3, 4), torch.ones(3).long(), torch.zeros(3, 1, dtype=torch.bfloat16)
    with torch.no_grad(): out, pair = runs.in_bf16(net)(x_t, t, y=y), runs.in_bf16(net)(x_t, t + 1, y)
    assert seen == [torch.bfloat16] * 2 and out.dtype == torch.float32
    assert type(pair) is tuple and torch.equal(pair[0], out) and torch.equal(pair[1], 2 * out)
    assert (out - layer(x_t)).abs().max() < 0.05 and layer.weight.dtype == torch.float32
