"Wrong inputs of chapter 03: each ends in a named error."
import math
import pytest
import torch
from discdiff_nb.core import ClassError, DataError, DtypeError, NotFiniteError, ShapeError
from discdiff_nb.data import digits
from discdiff_nb.vae import (VAE, elbo_and_gap, hvae_tables, importance_bound, reparametrize,
                             train_vae)

J, Q = torch.randn(2, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LOG_Q = Q.log_softmax(-1)
P_TABLES = [torch.randn(n).log_softmax(-1) for n in ((2,), (2, 5), (5, 3), (3, 4))]
Q_TABLES = [torch.randn(n).log_softmax(-1) for n in ((4, 3), (3, 5), (5, 2))]
TINY = VAE(5, (2, 3), latent=1, hidden=16).eval()
X = torch.randint(5, (4, 2, 3), generator=torch.Generator().manual_seed(0))
MU = torch.zeros(4, 1)


@pytest.mark.parametrize('error, call', [
    (ShapeError, lambda: elbo_and_gap(J, LOG_Q[:3])),
    (DataError, lambda: elbo_and_gap(J, Q.softmax(-1))),
    (NotFiniteError, lambda: elbo_and_gap(J, LOG_Q * math.nan)),
    (ShapeError, lambda: hvae_tables(P_TABLES, Q_TABLES[:2] + [Q_TABLES[2].repeat(1, 2)], 0)),
    (ShapeError, lambda: TINY.encode(X[:, :1])),
    (ClassError, lambda: TINY.encode(X + 5)),
    (DtypeError, lambda: TINY.encode(X / 2)),
    (DataError, lambda: TINY.elbo(X[:0])),
    (ShapeError, lambda: TINY.decode(torch.zeros(2, 3))),
    (ShapeError, lambda: TINY.elbo(X, L=0)),
    (ShapeError, lambda: importance_bound(TINY, X, 0)),
    (ShapeError, lambda: reparametrize(MU, MU[:2], 1)),
    (ClassError, lambda: train_vae(digits().train, 16)),
    (DataError, lambda: train_vae(digits().train[:0], 17)),
])
def test_wrong_inputs_are_named(error, call):
    with pytest.raises(error): call()


def test_a_hierarchy_needs_one_table_more_below_than_above():
    with pytest.raises(ShapeError, match='T \\+ 1'): hvae_tables(P_TABLES, Q_TABLES[:2], 0)
