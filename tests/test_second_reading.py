"What a second reading of core, the kernels and train found wrong: each test failed before it was mended."
import math

import numpy as np
import pytest
import torch
from torch import nn

from discdiff_nb import core, train
from discdiff_nb.absorbing import masked_nll, order_nll
from discdiff_nb.checkpoints import read_run
from discdiff_nb.core import (ClassError, DataError, DiscdiffError, DtypeError, Process, ScheduleError,
                              ShapeError, kl_categorical, linear_schedule, reciprocal_schedule, stratified_times)
from discdiff_nb.d3pm import Absorbing, MaskJumps, hybrid, hybrid_loss
from discdiff_nb.multinomial import Multinomial, remove_self_likelihood, weighted_cross_entropy
from discdiff_nb.train import check_label, check_settings, fit, held_out_bits, no_label

T, K = 4, 5
UNIFORM, MASK = Multinomial(K, linear_schedule(T, 0.1, 0.5)), Absorbing(K, reciprocal_schedule(T))
X0, TIME = torch.tensor([[0, 1, 2], [3, 2, 1]]), torch.tensor([2, 3])


class Small(nn.Module):
    def __init__(self, K=K):
        super().__init__()
        self.table = nn.Embedding(K, K)
    def forward(self, x_t, t): return self.table(x_t)


# The mask

def test_generic_posteriors_of_the_mask_are_the_closed_ones():
    "Before: .97 stayed on the mask where the network gave a logit to it."
    g = torch.Generator().manual_seed(0)
    x_t, out = torch.tensor([[0, K - 1, 2], [K - 1, K - 1, 1]]), torch.randn(2, 3, K, generator=g)
    out[..., K - 1] = 5.
    generic = MaskJumps(K, reciprocal_schedule(T))
    for s in (None, torch.tensor([1, 0])):
        torch.testing.assert_close(generic.p_posterior(out, x_t, TIME, s).exp(), MASK.p_posterior(out, x_t, TIME, s).exp())
        torch.testing.assert_close(generic.q_posterior(X0, x_t, TIME, s).exp(), MASK.q_posterior(X0, x_t, TIME, s).exp())


def test_a_pair_that_cannot_occur_has_no_posterior():
    with pytest.raises(ClassError, match='4 positions'):
        MaskJumps(K, reciprocal_schedule(T)).q_posterior(X0, X0.flip(1), TIME)
    assert UNIFORM.q_posterior(X0, X0.flip(1), TIME).isfinite().all()


def test_the_mask_has_no_likelihood_to_remove():
    with pytest.raises(ClassError, match='cannot come of every x_0'): remove_self_likelihood(MASK, torch.zeros(2, 3, K), X0, TIME)
    assert remove_self_likelihood(UNIFORM, torch.zeros(2, 3, K), X0, TIME).isfinite().all()


def test_masked_nll_of_half_precision_is_that_of_its_float32():
    logits = torch.randn(2, 3, K, generator=torch.Generator().manual_seed(0)).bfloat16()
    x_t = torch.full_like(X0, K - 1)
    nll = masked_nll(logits, X0, x_t)
    assert nll.dtype == torch.float32 and torch.equal(nll, masked_nll(logits.float(), X0, x_t))


def test_one_number_has_no_reading_order():
    with pytest.raises(ShapeError, match='one example'): order_nll(Small(), torch.tensor(1), K - 1)


# Numbers and shapes

@pytest.mark.parametrize('dtype, low', [(torch.float64, -800.), (torch.float32, -200.)])
def test_what_underflows_is_impossible(dtype, low):
    log_q = torch.tensor([0., low], dtype=dtype)
    assert kl_categorical(log_q, torch.tensor([0., -math.inf], dtype=dtype)) == 0
    assert kl_categorical(torch.tensor([-.7, -.7], dtype=dtype), torch.tensor([0., -math.inf], dtype=dtype)) == math.inf


@pytest.mark.parametrize('T, n_t', [(4, 2), (4, 4), (10, 4), (1000, 7), (3, 3)])
def test_a_strip_ends_where_the_next_begins(T, n_t):
    "j + u rounds up to j + 1 at the largest u below 1."
    u = torch.tensor([0., 0.5, 1 - 2**-53], dtype=torch.float64)
    for j in range(n_t):
        times = stratified_times(u, j, n_t, T)
        assert times.min() == 1 + T * j // n_t and times.max() <= math.ceil(T * (j + 1) / n_t)


def test_parts_and_times_that_do_not_fit():
    pair, keep = (X0, X0), (X0 > 0, X0 > 0)
    for x_t, known in ((pair, (pair[:1], keep)), (pair, (pair, keep[:1])), (X0, (pair, keep))):
        with pytest.raises(ShapeError, match='parts of x_t'): core.overwrite_known(UNIFORM, x_t, known, 2)
    with pytest.raises(ShapeError, match='one s for each t'): core.earlier_time(TIME, torch.tensor([0]), T)


def test_weight_and_shapes_of_the_cross_entropy():
    out = torch.zeros(2, 3, K)
    for weight in (-1., math.inf, math.nan):
        for f in (lambda: hybrid_loss(UNIFORM, out, X0, X0, TIME, weight), lambda: weighted_cross_entropy(UNIFORM, out, X0, X0, weight),
                  lambda: hybrid(UNIFORM, weight)):
            with pytest.raises(DiscdiffError, match='0 or above') as e: f()
            assert e.type is DiscdiffError
    with pytest.raises(ShapeError, match='one shape'): weighted_cross_entropy(UNIFORM, out, X0.T, X0, 1.)


def test_width_of_the_sigmoid():
    for width in (-3, 0, math.inf, math.nan):
        with pytest.raises(ScheduleError, match='width'): core.sigmoid_schedule(5, width)


# The protocol

class OnlyT(Process): T = T


def test_a_process_that_lacks_something_is_told_what():
    with pytest.raises(NotImplementedError, match='prior'): core.generate(OnlyT(), Small(), (2, 3))
    with pytest.raises(NotImplementedError, match='q_sample'): OnlyT().q_sample(X0, TIME)
    with pytest.raises(DiscdiffError, match='attribute classes'): fit(OnlyT(), Small(), X0, 2)


# Training

def test_held_out_bound_of_a_short_process():
    "Before: TimeError after the last step, and an empty folder."
    assert T < 8
    net = Small()
    assert held_out_bits(UNIFORM, X0)(net) == held_out_bits(UNIFORM, X0, T)(net)


def test_what_was_trained_outlives_a_failed_measurement(tmp_path):
    def fails(net): raise RuntimeError('no such file')
    with pytest.raises(RuntimeError, match='no such file'):
        fit(UNIFORM, Small(), X0, 3, run=tmp_path, batch_size=2, save_every=2, held_out=fails)
    assert len(read_run(tmp_path / 'checkpoint.safetensors')[0]['losses']) == 2
    torch.manual_seed(0)
    one = fit(UNIFORM, Small(), X0, 3, run=tmp_path, batch_size=2, save_every=2, resume=True)[1]
    assert len(one) == 3


def test_labels_that_are_none():
    net = Small()
    for check in (no_label, check_label):
        with pytest.raises(DtypeError, match='NaN'): check(net, torch.tensor([0., math.nan]))
        with pytest.raises(DtypeError, match='no shades of gray'): check(net, torch.tensor([0.5, 0.25]))
        with pytest.raises(DataError, match='empty'): check(net, torch.zeros(0).long())


def test_counts_are_integers_of_any_make_and_not_true():
    def refused(**changes):
        plain = dict(steps=1, batch_size=1, save_every=1, seed=0, lr=1e-3, drop=0.)
        settings = {**train.OPTIONS, **plain, **changes}
        try: check_settings(settings)
        except DiscdiffError: return True
        return False
    assert not refused() and not refused(steps=np.int64(3), seed=np.int32(1), lr=np.float32(1e-3))
    for changes in (dict(steps=True), dict(seed=False), dict(lr=True), dict(steps=np.float64(3)), dict(steps=np.bool_(True))): assert refused(**changes), changes  # noqa: E501
    with pytest.raises(ScheduleError): linear_schedule(True)
    assert linear_schedule(np.int64(3)).T == 3


def test_numbers_of_numpy_are_saved_as_plain_ones(tmp_path):
    settings = dict(batch_size=np.int64(2), lr=np.float32(0.002), seed=np.int64(0), save_every=np.int64(1))
    losses = fit(UNIFORM, Small(), X0, np.int64(2), run=tmp_path, **settings)[1]
    assert len(losses) == 2
    about = read_run(tmp_path / 'checkpoint.safetensors')[1]
    assert about['steps'] == 2 and about['lr'] == float(np.float32(0.002))


def test_a_row_of_the_log_averages_its_own_steps():
    "A step that fp16 skipped has no norm; those of the row before must not stand in."
    assert train._mean(train._finite([1., math.inf, 3.])) == 2 and train._mean(train._finite([math.inf])) is None


def test_matrices_end_where_time_does():
    from discdiff_nb.core import TimeError, reciprocal_schedule
    from discdiff_nb.d3pm import matrix_posterior, matrix_step, uniform_Q
    Q, k = uniform_Q(reciprocal_schedule(4), 3), torch.arange(3)
    for t in (-1, 0, 5):
        with pytest.raises(TimeError, match='1..4'): matrix_posterior(k, k, t, Q)
        with pytest.raises(TimeError, match='1..4'): matrix_step(torch.full((3, 3), 1 / 3).double(), t, Q)


def test_what_a_second_reader_was_refused():
    import numpy as np
    from discdiff_nb.core import ClassError, reciprocal_schedule
    from discdiff_nb.d3pm import check_reachable
    from discdiff_nb.multinomial import Multinomial
    assert Multinomial(np.int64(5), reciprocal_schedule(4)).K == 5
    with pytest.raises(ClassError, match='x0 holds the mask'):
        check_reachable(torch.tensor([[3, 1]]), torch.tensor([[3, 2]]), 3)
    three = torch.tensor([[3]])
    with pytest.raises(ClassError, match='x0 holds the mask'): check_reachable(three, three, 3)
