"Chapter 23: wrong inputs end in named errors; quantizers beside vector-quantize-pytorch; folders; jobs that go on."
import math
from dataclasses import replace
import pytest
import torch
from PIL import Image
from discdiff_nb import vq
from discdiff_nb.cli import read_folder
from discdiff_nb.core import (ClassError, DataError, DiscdiffError, ShapeError, TimeError,
                              reciprocal_schedule)
from discdiff_nb.d3pm import Absorbing

G = torch.Generator().manual_seed(0)
BOOK = dict(kind='codebook', K=5, d=3)
MODEL = vq.VQModel((1, 8, 8), 17, BOOK, 8, (1, 1)).eval()
X = torch.randint(17, (6, 1, 8, 8), generator=G)
MASK = Absorbing(6, reciprocal_schedule(40))
KEEP = torch.ones(6, 8, 8, dtype=torch.bool)


def flat(x_t, t): return torch.zeros(*x_t.shape, 6)
def canvas(shape, **options): return vq.over_windows(MASK, flat, (4, 4), **options)(torch.full(shape, 5), torch.tensor([40]))
def in_order(order, calls): return vq.generate_in_order(MASK, flat, (2, 4, 4), order, calls, G)


@pytest.mark.parametrize('error, call', [
    (ShapeError, lambda: vq.nearest_code(torch.zeros(4, 3), torch.zeros(5, 2))),
    (ShapeError, lambda: vq.nearest_code(torch.zeros(4, 3), torch.zeros(0, 3))),
    (ShapeError, lambda: vq.vq_loss(torch.zeros(2, 3), torch.zeros(3, 2))),
    (ShapeError, lambda: vq.Codebook(0, 3)),
    (ShapeError, lambda: vq.Gumbel(4, 0)),
    (ShapeError, lambda: vq.FSQ(())),
    (ShapeError, lambda: vq.FSQ((5, 2))),
    (ShapeError, lambda: vq.VQModel((1, 7, 7), 17, BOOK, 8, (1, 1))),
    (ShapeError, lambda: vq.VQModel((1, 8, 8), 17, BOOK, 9, (1, 1))),
    (ShapeError, lambda: vq.encode(MODEL, X[:, 0])),
    (ShapeError, lambda: vq.encode(MODEL, X.expand(6, 3, 8, 8))),
    (ClassError, lambda: vq.encode(MODEL, X + 17)),
    (ClassError, lambda: vq.decode(MODEL, torch.full((1, 4, 4), 5))),
    (ShapeError, lambda: vq.decode(MODEL, torch.zeros(4, 4).long())),
    (ClassError, lambda: vq.code_use(torch.tensor([0, 7]), 5)),
    (DiscdiffError, lambda: vq.begin_codebook(MODEL, X, 'luck')),
    (DataError, lambda: vq.begin_codebook(vq.VQModel((1, 8, 8), 17, BOOK | dict(K=99), 8, (1, 1)), X, 'data')),
    (TimeError, lambda: in_order(torch.arange(16), 0)),
    (TimeError, lambda: in_order(torch.arange(16), 17)),
    (ShapeError, lambda: in_order(torch.arange(15), 3)),
    (ShapeError, lambda: in_order(torch.zeros(16).long(), 3)),
    (ShapeError, lambda: canvas((1, 8, 8), stride=0)),
    (ShapeError, lambda: canvas((1, 8, 8), stride=5)),
    (ShapeError, lambda: canvas((1, 3, 8), stride=2)),
    (ShapeError, lambda: canvas((1, 8), stride=2)),
    (ShapeError, lambda: vq.seam(X, [900])),
    (ShapeError, lambda: vq.repair(MODEL, MASK, flat, X, KEEP[:3], G)),
    (ShapeError, lambda: vq.Critic(1, 0)),
])
def test_wrong_inputs_are_named(error, call):
    with pytest.raises(error): call()


def test_cifar_that_is_absent_says_where_it_belongs(tmp_path):
    with pytest.raises(DataError, match='cifar10-jpeg'): vq.cifar10_jpeg(tmp_path)


# ---- beside vector-quantize-pytorch ----------------------------------------------------------------------------------

@pytest.mark.parametrize('ema', [True, False])
def test_a_codebook_is_that_of_vector_quantize_pytorch(ema):
    peers = pytest.importorskip('vector_quantize_pytorch')
    ours = vq.Codebook(8, 3, ema=ema).train()
    theirs = peers.VectorQuantize(3, 8, decay=vq.FADE, eps=0., commitment_weight=0.25, accept_image_fmap=True, rotation_trick=False,
                                  ema_update=ema, learnable_codebook=not ema).train()
    book = theirs._codebook
    with torch.no_grad():
        ours.e.copy_(torch.randn(8, 3, generator=G))
        ours.total.copy_(ours.e)
        book.embed.copy_(ours.e[None])
        if ema:
            book.embed_avg.copy_(ours.e[None])
            book.cluster_size.fill_(1.)
    z = torch.randn(4, 3, 5, 5, generator=G)
    a, b = z.clone().requires_grad_(), z.clone().requires_grad_()
    q, codes, loss = ours(a)
    other_q, other_codes, other_loss = theirs(b)
    assert torch.equal(codes, other_codes)
    torch.testing.assert_close(q, other_q)
    weight = torch.randn(q.shape, generator=G)
    ((q * weight).sum() + loss.mean()).backward()
    ((other_q * weight).sum() + other_loss.sum()).backward()
    if ema:
        torch.testing.assert_close(a.grad, b.grad)
        torch.testing.assert_close(ours.e, book.embed[0])
        torch.testing.assert_close(ours.uses, book.cluster_size[0])


@pytest.mark.parametrize('levels', [(3, 5), (4, 4), (8, 6, 5)])
def test_fsq_is_that_of_vector_quantize_pytorch(levels):
    peers = pytest.importorskip('vector_quantize_pytorch')
    ours, theirs = vq.FSQ(levels), peers.FSQ(list(levels))
    z = 2 * torch.randn(6, len(levels), 9, 9, generator=G)
    u = ours.bounded(z)
    clear = ((u - u.floor() - 0.5).abs() > 0.01).all(1) # theirs widens the interval by a thousandth
    q, codes, _ = ours(z)
    other_q, other_codes = theirs(z)
    assert clear.float().mean() > 0.8
    assert torch.equal(codes[clear], other_codes.long()[clear])
    torch.testing.assert_close(q.movedim(1, -1)[clear], other_q.movedim(1, -1)[clear])


# ---- what the page does not show -------------------------------------------------------------------------------------

@pytest.mark.parametrize('how', ['data', 'kmeans'])
def test_a_codebook_begins_where_the_encoder_is(how):
    model = vq.VQModel((1, 8, 8), 17, BOOK, 8, (1, 1)).eval()
    vq.begin_codebook(model, X, how)
    rows = model.latents(X).detach().movedim(1, -1).flatten(0, -2)
    apart = torch.cdist(model.quantizer.e.detach(), rows, compute_mode='donot_use_mm_for_euclid_dist').min(1).values
    spread = rows.std(0).norm()
    assert apart.max() < (1e-6 if how == 'data' else 1) * spread and vq.code_use(vq.encode(model, X), 5)['used'] == 5
    assert torch.equal(model.quantizer.total, model.quantizer.e.detach())


def test_ema_survives_ten_thousand_steps_without_use():
    book = vq.Codebook(4, 2, ema=True).train()
    with torch.no_grad():
        book.e[3] = 50.
        book.total[3] = 50.
        for _ in range(10_000): vq.update_codebook(book, torch.zeros(2, 2), torch.tensor([0, 1]))
    assert book.e.isfinite().all() and (book.e[3] - 50).abs().max() < 1e-2


def test_restarts_do_not_touch_a_codebook_in_use():
    book = vq.Codebook(2, 1, restart=0.5)
    with torch.no_grad(): book.e.copy_(torch.tensor([[-1.], [1.]]))
    book.train()(torch.tensor([[[[-1., 1., -0.9, 0.9]]]]))
    assert torch.equal(book.e.detach(), torch.tensor([[-1.], [1.]]))


def test_half_precision_takes_the_nearest_code_in_full():
    model = vq.VQModel((1, 8, 8), 17, BOOK, 8, (1, 1)).train()
    with torch.autocast('cpu', torch.bfloat16): x_hat, loss = model(X)
    (x_hat.float().mean() + loss.float().mean()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_each_image_of_a_list_of_generators_has_its_own_draw():
    def alone(i): return torch.Generator().manual_seed(i)
    x = torch.rand(3, 3, 8, 8, generator=G)
    together = vq.diff_augment(x, [alone(i) for i in range(3)])
    for i in range(3): torch.testing.assert_close(together[i:i + 1], vq.diff_augment(x[i:i + 1], alone(i)))


def test_lambda_without_a_gradient_is_the_clamp():
    w = torch.ones(3, requires_grad=True)
    assert vq.adaptive_weight(w.sum(), 0 * w.sum(), w, most=7.) == 7
    assert math.isclose(vq.adaptive_weight(w.sum(), 2 * w.sum(), w, delta=0.).item(), 0.5, rel_tol=1e-6)


JOB = vq.CodeJob('codes', 'digits', BOOK, 4, 'data', 8, (1, 1), batch_size=16, tested=20)


@pytest.mark.parametrize('quantizer, begin', [(BOOK, ''), (BOOK, 'kmeans'), (BOOK | dict(ema=True, restart=0.1), 'data'),
                                              (dict(kind='gumbel', K=5, d=3), ''), (dict(kind='fsq', levels=(3, 3)), '')])
def test_a_job_is_loaded_as_it_was_kept(quantizer, begin, tmp_path):
    job = replace(JOB, quantizer=quantizer, begin=begin)
    made = vq.run_codes(job, tmp_path, running=tmp_path / 'running')
    again = vq.run_codes(job, tmp_path, running=tmp_path / 'running')
    assert torch.equal(vq.encode(made.model, X), vq.encode(again.model, X))
    assert made.log['results'] == again.log['results'] and not (tmp_path / 'running' / 'codes').exists()


def write(folder, name, image):
    folder.mkdir(exist_ok=True)
    image.save(folder / name)


def test_a_folder_of_any_pictures(tmp_path, capsys):
    folder = tmp_path / 'mine'
    for i in range(9): write(folder, f'{i}.png', Image.new('RGB', (20 + i, 17), (200, 10 * i, 0)))
    write(folder, 'grey.png', Image.new('L', (30, 30), 77))
    write(folder, 'clear.png', Image.new('RGBA', (18, 40), (0, 0, 0, 0)))
    write(folder, 'small.png', Image.new('RGB', (9, 40)))
    (folder / 'damaged.jpg').write_bytes(b'\xff\xd8\xff\xe0 no')
    images = read_folder(folder, 16, 256, colours=True)
    said = capsys.readouterr().err
    assert 'skipped 2 of 13' in said and 'damaged.jpg' in said and 'small.png is 9 x 40' in said
    x = torch.cat([images.train, images.test])
    assert x.shape == (11, 3, 16, 16)
    assert (x[-1 if images.test[0, 2, 0, 0] == 77 else 9] == 77).all() or (x == 77).all((1, 2, 3)).sum() == 1
    assert (x == 255).all((1, 2, 3)).sum() == 1 # the transparent one lies on white
    assert ((x[:, 0] == 200).all((1, 2)) & (x[:, 2] == 0).all((1, 2))).sum() == 9
    model = vq.VQModel((3, 16, 16), images.K, BOOK, 8, (1, 1))
    assert vq.encode(model, images.test).shape == (1, 8, 8)


def test_an_empty_folder_has_too_few(tmp_path):
    with pytest.raises(DataError, match='at least 10'): read_folder(tmp_path, 16, 256, colours=True)
