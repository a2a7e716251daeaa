"Checks that a mutation run asked for: each kills a mutant that nothing noticed."
import math
from pathlib import Path
import pytest
import torch
from discdiff_nb import cli
from discdiff_nb.checkpoints import processor
from discdiff_nb.core import DataError, ShapeError, cosine_schedule
from discdiff_nb.d3pm import uniform_Q
from discdiff_nb.joint import kept_sum
from discdiff_nb.metrics import inception_score, perfect_coverage
from discdiff_nb.multinomial import Multinomial
from discdiff_nb.nets import UNet
from discdiff_nb.oracle import judge_samples
from discdiff_nb.vae import VAE, importance_bound


@pytest.mark.parametrize('wrong', [1, 2, 3, 4])
def test_the_judge_draws_at_every_time(wrong):
    "A process that forgets to noise at one time is condemned, whichever time it is."
    class Forgets(Multinomial):
        def q_sample(self, x0, t, generator=None):
            x_t = super().q_sample(x0, t, generator)
            return torch.where((t == wrong)[:, None], x0, x_t)
    schedule, generator = cosine_schedule(4), torch.Generator().manual_seed(0)
    with pytest.raises(AssertionError, match=rf'x_{wrong} '):
        judge_samples(Forgets(3, schedule), uniform_Q(schedule, 3), generator, n=2000)


@pytest.mark.parametrize('n, chunk', [(5, 3), (6, 3), (2, 50)])
def test_importance_takes_as_many_draws_as_it_divides_by(n, chunk):
    torch.manual_seed(0)
    vae, drawn = VAE(4, (3,), latent=2, hidden=8).eval(), []
    decode = vae.decode
    vae.decode = lambda z: (drawn.append(len(z)), decode(z))[1]
    importance_bound(vae, torch.zeros(2, 3).long(), n, torch.Generator().manual_seed(0), chunk)
    assert sum(drawn) == n


def test_one_row_that_is_no_distribution_is_enough():
    with pytest.raises(DataError): inception_score(torch.tensor([[.5, .5], [.5, .9]]))


@pytest.mark.parametrize('N', [7.5, 1, -3, None])
def test_examples_are_counted_in_whole_numbers(N):
    with pytest.raises(ShapeError, match='N'): perfect_coverage(N, 5)


def test_kept_entries_are_summed_in_float64():
    log_p = torch.full((1, 100_000, 2), -1.1)
    total = kept_sum(log_p, torch.zeros(1, 100_000).long(), torch.ones(1, 100_000).bool())
    assert total.dtype == torch.float64
    assert math.isclose(total.item(), 100_000 * log_p[0, 0, 0].item(), rel_tol=1e-12)


def test_ordered_classes_start_close_together():
    "The free rows start at a standard deviation of .05, within 4 standard errors."
    torch.manual_seed(0)
    rows = UNet(257, 10, (8, 8), 64, ordered_classes=256).embed.weight.detach()
    assert abs(rows.std().item() / 0.05 - 1) < 4 / (2 * rows.numel()) ** 0.5


@pytest.mark.skipif(not Path('/proc/cpuinfo').is_file(), reason='a system that tells no name')
def test_the_processor_has_the_name_that_the_system_tells():
    told = [line.split(':')[1].strip() for line in Path('/proc/cpuinfo').read_text().splitlines()
            if line.startswith('model name')]
    assert processor() in told if told else processor().endswith(' CPU')


ENDS = [(MemoryError('8 GB'), 2), (OSError('disk'), 2), (DataError('data'), 2), (KeyboardInterrupt(), 130)]


@pytest.mark.parametrize('error, status', ENDS)
def test_each_end_has_its_status(monkeypatch, capsys, error, status):
    def fails(args): raise error
    monkeypatch.setattr(cli, 'sample', fails)
    monkeypatch.setattr(cli, 'evaluate', fails)
    assert cli.main(['eval', 'no-such-run']) == status
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
