"Chapters 05 and 06 with wrong inputs, extreme logits and half precision."
import math
import pytest
import torch
from discdiff_nb.core import (ClassError, DataError, DiscdiffError, DtypeError, NotFiniteError, Schedule,
                              ScheduleError, ShapeError, TimeError, linear_schedule,
                              reciprocal_schedule)
from discdiff_nb.d3pm import Absorbing, hybrid
from discdiff_nb.multinomial import Multinomial

X0, T, OUT = torch.zeros(2, 3).long(), torch.tensor([1, 10]), torch.zeros(2, 3, 5)
UNIFORM, MASK = Multinomial(5, linear_schedule(10)), Absorbing(5, reciprocal_schedule(10))
MASKED = X0 + 4


@pytest.mark.parametrize('error, call', [
    (TimeError, lambda: UNIFORM.q_sample(X0, torch.tensor([0, 3]))),
    (TimeError, lambda: UNIFORM.L_t(OUT, X0, X0, torch.tensor([3, 11]))),
    (TimeError, lambda: UNIFORM.p_posterior(OUT, X0, T, s=T)),
    (ClassError, lambda: UNIFORM.q_sample(X0 + 5, T)),
    (ClassError, lambda: UNIFORM.q_posterior(X0, X0 - 1, T)),
    (ClassError, lambda: Multinomial(1, linear_schedule(10))),
    (DtypeError, lambda: UNIFORM.q_sample(X0.float(), T)),
    (DtypeError, lambda: UNIFORM.L_t(OUT.long(), X0, X0, T)),
    (ShapeError, lambda: UNIFORM.L_t(OUT[..., :4], X0, X0, T)),
    (ShapeError, lambda: UNIFORM.L_t(OUT, X0, X0[:, :2], T)),
    (ShapeError, lambda: UNIFORM.q_sample(X0, T[:1])),
    (DataError, lambda: UNIFORM.q_sample(X0[:0], T[:0])),
    (NotFiniteError, lambda: UNIFORM.L_t(OUT * math.nan, X0, X0, T)),
    (NotFiniteError, lambda: UNIFORM.p_posterior(OUT * math.nan, X0, T)),
    (ScheduleError, lambda: Multinomial(5, Schedule([0, 0, 0.5]))),
])
def test_uniform_noise_names_wrong_inputs(error, call):
    with pytest.raises(error): call()


@pytest.mark.parametrize('error, call', [
    (TimeError, lambda: MASK.q_sample(X0, torch.tensor([0, 3]))),
    (TimeError, lambda: MASK.L_t(OUT, X0, X0, torch.tensor([3, 11]))),
    (TimeError, lambda: MASK.step(OUT, X0, T, s=T)),
    (ClassError, lambda: MASK.q_sample(X0 + 5, T)),
    (ClassError, lambda: MASK.L_t(OUT, X0 + 5, MASKED, T)),
    (ClassError, lambda: MASK.L_t(OUT, X0, X0 + 5, T)),
    (ClassError, lambda: MASK.L_T(X0 + 5)),
    (DtypeError, lambda: MASK.q_sample(X0.float(), T)),
    (DtypeError, lambda: MASK.L_t(OUT.long(), X0, X0, T)),
    (ShapeError, lambda: MASK.L_t(OUT[..., :4], X0, X0, T)),
    (ShapeError, lambda: MASK.q_sample(X0, T[:1])),
    (NotFiniteError, lambda: MASK.L_t(OUT * math.nan, X0, MASKED, T)),
    (NotFiniteError, lambda: MASK.p_posterior(OUT * math.nan, MASKED, T)),
    (ClassError, lambda: MASK.q_sample(MASKED, T)),
    (ClassError, lambda: MASK.q_posterior(X0, X0 + 1, T)),
    (ClassError, lambda: MASK.L_T(MASKED)),
    (DiscdiffError, lambda: hybrid(MASK, -1.)),
])
def test_the_mask_names_wrong_inputs(error, call):
    with pytest.raises(error): call()


def test_a_hybrid_of_weight_0_is_the_bound():
    loss = hybrid(MASK, 0.).loss(OUT, X0, MASKED, T)
    assert torch.equal(loss, MASK.L_t(OUT, X0, MASKED, T))


def extreme(g):
    "Every t of 1000 with its x_0 and x_t."
    process, t = Multinomial(256, linear_schedule(1000)), torch.arange(1, 1001)
    x0 = torch.randint(256, (1000, 1), generator=g)
    return process, t, x0, process.q_sample(x0, t, g)


def test_logits_of_size_10000():
    "K18: finite values and gradients."
    g = torch.Generator().manual_seed(0)
    process, t, x0, x_t = extreme(g)
    logits = (1e4 * torch.randn(1000, 1, 256, generator=g)).requires_grad_()
    L = process.L_t(logits, x0, x_t, t)
    L.sum().backward()
    assert L.isfinite().all() and logits.grad.isfinite().all() and (L >= -1e-6).all()
    assert (process.p_posterior(logits, x0, t).exp().sum(-1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_logits_of_size_10000_in_half_precision(dtype):
    "K18: under autocast, logits are raised to float32 first."
    g = torch.Generator().manual_seed(0)
    process, t, x0, x_t = extreme(g)
    layer, half = torch.nn.Linear(8, 256), torch.randn(1000, 1, 8, generator=g)
    with torch.autocast('cpu', dtype=dtype):
        out = 1e4 * layer(half)
        L = process.L_t(out, x0, x_t, t)
    L.sum().backward()
    assert out.dtype == dtype and L.dtype == torch.float32
    assert L.isfinite().all() and layer.weight.grad.isfinite().all()
