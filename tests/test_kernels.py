"Properties of every categorical kernel on random sizes, schedules, times, classes and logits (hypothesis looks for the case that fails)."
import pytest
import torch
from hypothesis import given, settings, strategies as st
from discdiff_nb.core import Schedule, kl_categorical
from discdiff_nb.d3pm import Absorbing, absorbing_Q, uniform_Q
from discdiff_nb.ordinal import (DiscretizedGaussian, NearestNeighbour, gaussian_Q, knn_graph,
                                 nearest_Q)
from discdiff_nb.multinomial import Multinomial
from discdiff_nb.oracle import Dense

def line(K): return torch.arange(K).float()[:, None]


KERNELS = {'uniform': (Multinomial, uniform_Q), 'absorbing': (Absorbing, absorbing_Q), 'gaussian': (DiscretizedGaussian, gaussian_Q),
           'neighbour': (lambda K, schedule: NearestNeighbour(line(K), schedule, min(2, K - 1)),
                         lambda schedule, K: nearest_Q(schedule, knn_graph(line(K), min(2, K - 1))))}


@st.composite
def cases(draw, kernel):
    "A process, its dense twin, x0, x_t, t, s and logits; everything else follows from the seed."
    make, dense = KERNELS[kernel]
    K, T, D, B = (draw(st.integers(low, high)) for low, high in ((2, 9), (1, 7), (1, 4), (1, 5)))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    least = 0.01 if kernel == 'gaussian' else 1e-4 # a variance for the Gaussian, which refuses a step that cannot move
    beta = torch.cat([torch.zeros(1), torch.rand(T, generator=g) * draw(st.sampled_from([1e-3, 0.1, 0.98])) + least]).double()
    if kernel == 'absorbing': beta[T] = 1
    process, Q = make(K, Schedule(beta)), dense(Schedule(beta), K)
    x0 = torch.randint(process.classes, (B, D), generator=g)
    t = torch.randint(1, T + 1, (B,), generator=g)
    s = (torch.rand(B, generator=g) * t).long()
    scale = draw(st.sampled_from([0., 1., 30., 1e4]))
    logits = scale * torch.randn(B, D, K, generator=g, dtype=draw(st.sampled_from([torch.float32, torch.float64])))
    return process, Dense(Q, process.log_prior().exp()), x0, process.q_sample(x0, t, g), t, s, logits, g


def both(kernel):
    "Run a test of this kernel on what `cases` draws."
    return lambda test: settings(max_examples=60, deadline=None, derandomize=True)(given(cases(kernel))(test))


@pytest.mark.parametrize('kernel', KERNELS)
def test_posterior_is_bayes_rule(kernel):
    @both(kernel)
    def check(case):
        process, dense, x0, x_t, t, s, _, _ = case
        got, want = process.q_posterior(x0, x_t, t, s).exp().double(), dense.q_posterior(x0, x_t, t, s).exp()
        torch.testing.assert_close(got, want, rtol=0, atol=1e-9)
    check()


@pytest.mark.parametrize('kernel', KERNELS)
def test_reverse_step_is_a_distribution_and_the_dense_one(kernel):
    @both(kernel)
    def check(case):
        process, dense, _, x_t, t, s, logits, g = case
        p = process.p_posterior(logits, x_t, t, s).exp().double()
        assert (p >= 0).all() and ((p.sum(-1) - 1).abs() < 1e-5).all()
        if kernel == 'absorbing': logits = logits.clone().index_fill_(-1, torch.tensor(process.mask_id), -torch.inf)
        if logits.abs()[logits.isfinite()].max() < 300:
            torch.testing.assert_close(p, dense.p_posterior(logits, x_t, t, s).exp(), rtol=0, atol=2e-5)
        x_s = process.step(logits, x_t, t, s, g)
        assert (x_s >= 0).all() and (x_s < torch.where(s == 0, process.classes, process.K)[:, None]).all()
    check()


@pytest.mark.parametrize('kernel', KERNELS)
def test_loss_is_the_kl_with_finite_gradients(kernel):
    @both(kernel)
    def check(case):
        process, _, x0, x_t, t, _, logits, _ = case
        logits.requires_grad_()
        L = process.L_t(logits, x0, x_t, t)
        L.sum().backward()
        assert L.isfinite().all() and (L >= -1e-6).all() and logits.grad.isfinite().all()
        want = kl_categorical(process.q_posterior(x0, x_t, t), process.p_posterior(logits.detach().double(), x_t, t)).sum(-1)
        torch.testing.assert_close(L.detach().double(), want, rtol=1e-3, atol=1e-6)
    check()


@pytest.mark.parametrize('kernel', KERNELS)
def test_a_network_that_knows_costs_nothing(kernel):
    @both(kernel)
    def check(case):
        process, _, x0, x_t, t, _, logits, _ = case
        knows = torch.zeros_like(logits).scatter_(-1, x0[..., None], 1e4)
        assert process.L_t(knows, x0, x_t, t).abs().max() < 1e-5
    check()
