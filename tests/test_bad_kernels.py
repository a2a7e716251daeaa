"Wrong inputs to the kernels of chapters 06 and 07: an error of the right kind, for each."
import math
import pytest
import torch
from discdiff_nb.core import (ClassError, DtypeError, NotFiniteError, ShapeError, TimeError,
                              linear_schedule, reciprocal_schedule)
from discdiff_nb.d3pm import Absorbing
from discdiff_nb.ordinal import DiscretizedGaussian, NearestNeighbour

X0, T, OUT = torch.zeros(2, 3).long(), torch.tensor([1, 10]), torch.zeros(2, 3, 5)
PROCESSES = {
    'absorbing': lambda: Absorbing(5, reciprocal_schedule(10)),
    'Gaussian': lambda: DiscretizedGaussian(5, linear_schedule(10, 0.1, 0.5)),
    'neighbour': lambda: NearestNeighbour(torch.arange(5.)[:, None], linear_schedule(10), 2),
}
WRONG = {
    'q_sample, t = 0': (TimeError, lambda p: p.q_sample(X0, torch.tensor([0, 3]))),
    'L_t, t > T': (TimeError, lambda p: p.L_t(OUT, X0, X0, torch.tensor([3, 11]))),
    'step, s = t': (TimeError, lambda p: p.step(OUT, X0, T, s=T)),
    'q_sample, class': (ClassError, lambda p: p.q_sample(X0 + 5, T)),
    'L_t, class of x0': (ClassError, lambda p: p.L_t(OUT, X0 + 5, X0 + 4, T)),
    'L_t, class of x_t': (ClassError, lambda p: p.L_t(OUT, X0, X0 + 5, T)),
    'L_T, class': (ClassError, lambda p: p.L_T(X0 + 5)),
    'q_sample, floats': (DtypeError, lambda p: p.q_sample(X0.float(), T)),
    'L_t, integer logits': (DtypeError, lambda p: p.L_t(OUT.long(), X0, X0, T)),
    'L_t, few logits': (ShapeError, lambda p: p.L_t(OUT[..., :4], X0, X0, T)),
    'q_sample, one time': (ShapeError, lambda p: p.q_sample(X0, T[:1])),
    'L_t, NaN': (NotFiniteError, lambda p: p.L_t(OUT * math.nan, X0, X0 + 4, T)),
    'p_posterior, NaN': (NotFiniteError, lambda p: p.p_posterior(OUT * math.nan, X0 + 4, T)),
}


@pytest.mark.parametrize('name', PROCESSES)
@pytest.mark.parametrize('what', WRONG)
def test_wrong_input_is_refused(name, what):
    error, call = WRONG[what]
    with pytest.raises(error): call(PROCESSES[name]())
