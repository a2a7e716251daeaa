"Chapter 08 beside its pages: the posterior without x_0, what the perfect network does to both sums, wrong inputs."
import pytest
import torch
from fastcore.test import test_close as close
from discdiff_nb.absorbing import (Reweighted, blind_constant, blind_kl, masked_nll, nll_by_masks,
                                   order_nll, perfect_model)
from discdiff_nb.core import DataError, ShapeError, kl_categorical, reciprocal_schedule
from discdiff_nb.d3pm import absorbing_Q
from discdiff_nb.oracle import conditional, index_of, path_joint, states, table_model

START = torch.tensor([0.7, 0.3], dtype=torch.float64)
MOVE = torch.tensor([[0.9, 0.1], [0.25, 0.75]], dtype=torch.float64)

def chain_data(D):
    "Probabilities of all 2^D words of a sticky two-letter chain, in the order of states(2, D)."
    x = states(2, D)
    return START[x[:, 0]] * MOVE[x[:, :-1], x[:, 1:]].prod(1)


def noisy(x0, t, T, mask_id):
    "Every x_t that x0 can become at time t."
    masked = states(2, len(x0)).bool()
    x_t = torch.where(masked, mask_id, x0)
    return x_t if t < T else x_t[-1:]


def test_the_posterior_without_x0():
    "The network's part has weight 1/t without x_0, (T-t+1)/T without x_t (U10, U14)."
    p_x0, x0 = chain_data(2), states(2, 2)
    K, D, T, process = 3, 2, 5, Reweighted(3, reciprocal_schedule(5))
    Q, perfect = absorbing_Q(process.schedule, K), perfect_model(p_x0, K, D)
    x_t = torch.tensor([[2, 2]]) # all is masked: x_t says nothing about x_0
    p_k = perfect(x_t, None)[0, :, :2].exp()
    entropy = -(p_k * p_k.log()).sum()
    for t in range(1, T + 1):
        t_B = torch.tensor([t])
        out = table_model(K, D, T)(x_t, t_B)
        out_4, x_4 = out.expand(4, 2, 3), x_t.expand(4, 2) # one row for each x_0
        nll = p_x0 @ masked_nll(out_4, x0, x_4)
        log_p = process.p_posterior(out, x_t, t_B)
        log_pi = process.p_posterior(perfect(x_t, t_B), x_t, t_B)
        close(kl_categorical(log_pi, log_p).sum(), (nll - entropy) / t, eps=1e-9)
        blind = p_x0 @ blind_kl(process, out_4, x0, x_4, t_B.expand(4)).sum(1)
        constant = blind_constant(process.schedule, t_B, torch.tensor([2]))
        close(blind - constant, nll * (T - t + 1) / T, eps=1e-9)
        for d in range(D):
            joint = path_joint(Q, torch.cat([p_k[d], p_k.new_zeros(1)]))
            torch.testing.assert_close(log_pi[0, d].exp(), conditional(joint, t - 1, {t: 2}))


def test_the_perfect_network_minimizes_both_sums():
    "There the gradients of both vanish, elsewhere neither does (U7)."
    process = Reweighted(3, reciprocal_schedule(5))
    p_x0, x0 = chain_data(2), states(2, 2)
    perfect = perfect_model(p_x0, 3, 2)(states(3, 2), None).clamp(min=-50)
    g = torch.Generator().manual_seed(0)
    other = torch.randn(9, 2, 3, generator=g, dtype=torch.float64)

    def whole_sum(term, logits):
        "The sum over t of the term's mean over x_0 and x_t, everything listed."
        total = 0.
        for t in range(1, 6):
            for x, p in zip(x0, p_x0):
                x_t = noisy(x, t, 5, 2)
                n = (x_t == 2).sum(1)
                q = (t / 5) ** n * (1 - t / 5) ** (2 - n)
                out, times = logits[index_of(x_t, 3)], torch.full((len(x_t),), t)
                total = total + p * (q * term(out, x.expand_as(x_t), x_t, times)).sum()
        return total

    for logits, still in ((perfect, True), (other, False)):
        for term in (process.L_t, process.loss):
            logits = logits.detach().requires_grad_()
            grad, = torch.autograd.grad(whole_sum(term, logits), logits)
            assert (grad.abs().max() < 1e-12) == still


def flat(x_t, t): return torch.zeros(*x_t.shape, 3)


WRONG = {
    '2^20': (ShapeError, lambda: nll_by_masks(flat, torch.zeros(1, 20).long(), 3)),
    'many orders': (ShapeError, lambda: order_nll(flat, torch.zeros(9).long(), 3)),
    '8 examples': (ShapeError, lambda: perfect_model(torch.ones(7), 3, 3)),
    'above 0': (DataError, lambda: perfect_model(torch.zeros(8), 3, 3)),
}


@pytest.mark.parametrize('said', WRONG)
def test_what_cannot_be_listed_is_refused(said):
    error, call = WRONG[said]
    with pytest.raises(error) as found: call()
    assert said in str(found.value)
