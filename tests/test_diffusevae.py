"Chapter 25 beside its page: drafts, latents and files that do not fit, onnxruntime absent, what a student keeps."
import builtins
import sys
from functools import partial
import pytest
import torch
from discdiff_nb import diffusevae
from discdiff_nb.core import (CheckpointError, DataError, DiscdiffError, NotFiniteError,
                              ShapeError, TimeError, cosine_schedule)
from discdiff_nb.diffusevae import (ConvVAE, Halving, Lesson, Moving, OnnxNet, Shifted, Strided,
                                    condition, direction, distilled_target, draft_of, fit_mixture,
                                    fit_pca, from_draft, inversion_error, need_onnx,
                                    quantize_onnx, quantize_weight, refine, refiner,
                                    silhouette_overlap, thinned)
from discdiff_nb.gaussian import Gaussian
from discdiff_nb.train import fit

torch.manual_seed(0)
VAE = ConvVAE(5, (8, 8), latent=3, channels=8).eval()
V = Gaussian(5, cosine_schedule(16), 'v')
EPS = Gaussian(5, cosine_schedule(16), 'x0')
NET = refiner(V, (8, 8), 3, 8, (1, 2)).eval()
Z = torch.randn(20, 3)
COND = condition(VAE, Z[:2], True)
DRAFT = COND['image'][..., 0]


def other(**parts): return COND | parts
def model(x_t, t): return NET(x_t, t, **COND)


BAD = {
    'a draft of another size': (
        lambda: refine(V, NET, other(image=torch.zeros(2, 8, 12, 1)), 2), ShapeError, '8, 8'),
    'a draft without its channel': (
        lambda: NET(DRAFT, torch.ones(2).long(), image=DRAFT, z=Z[:2]), ShapeError, 'image'),
    'a latent of another width': (
        lambda: refine(V, NET, other(z=torch.zeros(2, 4)), 2), ShapeError, 'z has shape'),
    'no latent': (
        lambda: refine(V, NET, dict(image=COND['image']), 2), DataError, 'conditions'),
    'a latent of another VAE': (lambda: draft_of(VAE, torch.zeros(2, 4)), ShapeError, '4 numbers'),
    'a latent that is NaN': (lambda: draft_of(VAE, Z * float('nan')), NotFiniteError, 'NaN'),
    'a draft that is NaN': (
        lambda: refine(V, NET, other(image=COND['image'] / 0 * 0), 2), NotFiniteError, 'NaN'),
    'images of another size': (
        lambda: VAE.encode(torch.zeros(2, 8, 12).long()), ShapeError, 'is not'),
    'a VAE of odd sides': (lambda: ConvVAE(5, (6, 8)), ShapeError, 'halved'),
    'too many components of a mixture': (lambda: fit_mixture(Z[:2], 3), DataError, '3 components'),
    'too many components': (lambda: fit_pca(Z, 4), ShapeError, '4 components'),
    'coordinates of another latent': (
        lambda: fit_pca(Z, 2).coordinates(torch.zeros(1, 4)), ShapeError, '4 numbers'),
    'a value for each of other images': (
        lambda: direction(Z, torch.zeros(3)), ShapeError, '20 latents'),
    'a value that never changes': (
        lambda: direction(Z, torch.ones(20)), DataError, 'no direction'),
    'a start after T': (lambda: from_draft(V, model, DRAFT, 17, 2), TimeError, '17'),
    'more steps than times': (lambda: from_draft(V, model, DRAFT, 4, 5), TimeError, '5'),
    'inversion in no steps': (lambda: inversion_error(V, model, DRAFT, 0), TimeError, '0'),
    'steps that do not divide T': (lambda: thinned(V, 5), DiscdiffError, 'divide'),
    'a teacher that predicts x0': (lambda: thinned(EPS, 8), DiscdiffError, 'predicting x0'),
    'a chain without its draft': (
        lambda: Moving(5, 4).prior((2, 8, 8)), ShapeError, 'use around'),
    'a chain around other drafts': (
        lambda: Moving(5, 4).around(DRAFT).prior((3, 8, 8)), ShapeError, 'use around'),
    'silhouettes of other sizes': (
        lambda: silhouette_overlap(DRAFT, DRAFT[:, :4]), ShapeError, 'one shape'),
    'one bit': (lambda: quantize_weight(torch.ones(2, 2), 1), DiscdiffError, 'bits = 1'),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_input_ends_in_a_named_error(name):
    call, error, said = BAD[name]
    with pytest.raises(error) as caught: call()
    assert said in str(caught.value), str(caught.value)


def without(monkeypatch, absent):
    "Python, as if a package were not installed."
    whole = builtins.__import__
    def importing(name, *args, **kwargs):
        if name.split('.')[0] == absent: raise ModuleNotFoundError(f'No module named {name}', name=name)
        return whole(name, *args, **kwargs)
    for name in [n for n in sys.modules if n.split('.')[0] == absent]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, '__import__', importing)


@pytest.mark.parametrize('absent', ['onnx', 'onnxruntime'])
def test_what_is_absent_is_named(monkeypatch, tmp_path, absent):
    without(monkeypatch, absent)
    for call in (need_onnx, partial(OnnxNet, tmp_path / 'net.onnx', NET),
                 partial(quantize_onnx, tmp_path / 'a', tmp_path / 'b', [])):
        with pytest.raises(DiscdiffError, match=f'{absent} is not installed.*pip install'): call()


@pytest.fixture(scope='module')
def graph(tmp_path_factory):
    "A network as a graph."
    pytest.importorskip('onnxruntime')
    path = tmp_path_factory.mktemp('onnx') / 'net.onnx'
    diffusevae.export_onnx(NET, path, DRAFT, torch.ones(2).long(), COND)
    return path


@pytest.mark.filterwarnings('ignore')
def test_files_that_do_not_fit(graph, tmp_path):
    "Another network, a damaged file, no file, inputs of another shape, another number of bits."
    with pytest.raises(CheckpointError, match='another network'):
        OnnxNet(graph, refiner(V, (8, 8), 3, 8, (1, 2), seed=1))
    damaged = tmp_path / 'net.onnx'
    damaged.write_bytes(graph.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match='no whole'): OnnxNet(damaged, NET)
    with pytest.raises(CheckpointError, match='no such file'): OnnxNet(tmp_path / 'none', NET)
    net, t = OnnxNet(graph, NET), torch.ones(2).long()
    for bad in (other(z=torch.zeros(2, 4)), dict(image=COND['image']),
                other(image=torch.zeros(2, 8, 12, 1))):
        with pytest.raises(ShapeError, match='this file reads'): net(DRAFT, t, **bad)
    with pytest.raises(DiscdiffError, match='bits = 5'):
        quantize_onnx(graph, tmp_path / 'q', [{}], bits=5)
    with pytest.raises(DataError, match='no batches'): quantize_onnx(graph, tmp_path / 'q', [])
    assert not (tmp_path / 'q').exists()


@pytest.mark.filterwarnings('ignore')
def test_quantized_files_know_their_network(graph, tmp_path):
    "The sum of the weights survives quantization; at T only, every time is T."
    batches = diffusevae.calibration(V, NET, COND, 3)
    assert [int(b['t'][0]) for b in batches] == [16, 11, 5]
    alone = diffusevae.calibration(V, NET, COND, 3, only_T=True)
    assert all((b['t'] == 16).all() for b in alone) and len(alone) == 3
    quantize_onnx(graph, tmp_path / 'q.onnx', batches)
    assert OnnxNet(tmp_path / 'q.onnx', NET)(DRAFT, torch.ones(2).long(), **COND).isfinite().all()


def test_a_student_learns_and_its_teacher_stays():
    "Only the student changes; its loss falls; at T the target is finite, where alpha_bar is 0."
    g = torch.Generator().manual_seed(0)
    x0, cond = torch.randint(5, (32, 8, 8), generator=g), dict(image=torch.zeros(32, 8, 8, 1))
    teacher = Strided(refiner(V, (8, 8), 0, 8, (1, 2)), 1)
    torch.nn.init.normal_(teacher.net.last.weight, std=0.1)
    before = {name: x.clone() for name, x in teacher.state_dict().items()}
    short = Halving(5, thinned(V, 8).schedule, 'v')
    lesson = Lesson(Strided(refiner(V, (8, 8), 0, 8, (1, 2)), 2), teacher, V)
    _, losses = fit(short, lesson, x0, 60, None, 16, 4e-3, cond=cond)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    for name, x in teacher.state_dict().items(): assert torch.equal(x, before[name])
    x_t, T = torch.randn(2, 8, 8).double(), torch.tensor([8, 8])
    assert distilled_target(short.schedule, x_t, x_t, T, T - 1).isfinite().all()


def test_the_forms_train_on_the_same_examples():
    "Fed the draft 0, form 2 is form 1, loss by loss."
    x0 = torch.randint(5, (32, 8, 8), generator=torch.Generator().manual_seed(0))
    cond = dict(image=torch.zeros(32, 8, 8, 1))
    def losses(around): return fit(V, around(refiner(V, (8, 8), 0, 8, (1, 2))), x0, 4, None, 16,
                                   cond=cond)[1]
    assert losses(Shifted) == losses(lambda net: net)
