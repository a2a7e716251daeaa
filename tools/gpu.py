#!/usr/bin/env python3
"""The queue of `full` jobs: one GPU, one network at a time, at most three minutes each, and safe
to kill at any moment.

  python tools/gpu.py list --out OUT                what is done, what is missing, planned minutes
  python tools/gpu.py pack data.tar.xz              write what the jobs read into one file
  python tools/gpu.py run --minutes 12 --data data.tar.xz --out OUT
                                                    the next jobs, as many as fit into 12 minutes

A job leaves OUT/NAME.json (settings, losses, bound, where it ran) and OUT/NAME.safetensors
(weights in half precision and samples). A job that was cut off goes on from its last checkpoint.
Needs torch, numpy, einops, safetensors, scikit-learn, tqdm, accelerate, and this repository;
no network."""
import argparse
import gzip
import io
import json
import math
import os
import shutil
import sys
import tarfile
import time
import traceback
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
import torch.nn.functional as F
from discdiff_nb import nets
from discdiff_nb.runs import on_the_bound, origin
from discdiff_nb.core import (Process, Schedule, cosine_schedule, elbo, generate, linear_schedule,
                              reciprocal_schedule, step_times, trajectory)
from discdiff_nb.d3pm import Absorbing
from discdiff_nb.ordinal import DiscretizedGaussian, NearestNeighbour, calibrate
from discdiff_nb.data import decode, digits, fashion_mnist, novels27, text_file, windows
from discdiff_nb.gaussian import Gaussian, clipped, to_classes
from discdiff_nb.multinomial import Multinomial
from discdiff_nb.checkpoints import halved, restore
from discdiff_nb.sampling import ddim, generate_few_calls, guided, inpaint
from discdiff_nb.checkpoints import save_tensors
from discdiff_nb.train import fit


@dataclass(frozen=True)
class Job:
    "One network: what it learns, under which noise, and for how long."
    name: str  # of its files
    data: str  # 'fashion_mnist', 'novels27'; at the tiny size 'digits', 'help'
    kernel: str  # of KERNELS
    K: int  # levels or letters, without the mask
    net: dict  # arguments of the network
    steps: int  # of training
    batch_size: int
    lr: float
    minutes: float  # planned, on an H100, all in; training stops short of it on a slower machine
    T: int = 1000
    seed: int = 0
    mixed_precision: str = 'bf16'


class Chain(Process):
    "The chain rule as a process of one step that destroys nothing; for a causal network (U1)."
    def __init__(self, K, schedule=None): self.K, self.classes, self.T = K, K, 1
    def q_sample(self, x0, t, generator=None): return x0
    def L_T(self, x0): return torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    def L_t(self, out, x0, x_t, t):
        nll = F.cross_entropy(out.movedim(-1, 1), x0.long(), reduction='none')
        return nll.double().flatten(1).sum(1)


def ordinal(K, T):
    "Discretized Gaussian noise of the strength that ends a total variation of .001 from the prior."
    family = lambda c: DiscretizedGaussian(K, linear_schedule(T, c / 100, c))
    return calibrate(family, 1e-3, *strengths(T), steps=12)


def neighbour(K, T):
    "A walk over the nearest quarter of the levels, calibrated alike."
    levels = torch.linspace(-1, 1, K)[:, None]
    family = lambda c: NearestNeighbour(levels, linear_schedule(T, c / 100, c), max(2, K // 4))
    return calibrate(family, 1e-3, *strengths(T), steps=12)


def strengths(T): return (0.06, 0.99) if T <= 100 else (0.012, 0.7)
def ddpm(K, T): return Gaussian(K, linear_schedule(T, 0.1 / T, 20 / T))


KERNELS = {
    'absorbing': lambda K, T: Absorbing(K + 1, reciprocal_schedule(T)),
    'uniform': lambda K, T: Multinomial(K, cosine_schedule(T)),
    'ordinal': ordinal,
    'neighbour': neighbour,
    'Gaussian': lambda K, T: on_the_bound(ddpm(K, T)),
    'Gaussian-simple': ddpm,
    'autoregressive': lambda K, T: Chain(K),
}

IMAGES = ('absorbing', 'uniform', 'ordinal', 'Gaussian-simple', 'Gaussian', 'neighbour')
TEXTS = ('absorbing', 'autoregressive', 'uniform')
UNET = dict(channels=64, multipliers=[1, 2, 2], blocks=1, attention=[7], dropout=0.)
WORDS = dict(width=256, depth=5, heads=4, dropout=0., local=9)
TINY_UNET = dict(channels=8, multipliers=[1, 2], blocks=1, attention=[4], dropout=0.)
TINY_WORDS = dict(width=16, depth=1, heads=2, dropout=0., local=4)


def image_job(kernel, K=16):
    "Fashion-MNIST for 20 epochs, the setting of source A."
    name = f'fashion_mnist_full_{kernel}_{K}'
    return Job(name, 'fashion_mnist', kernel, K, UNET,
               steps=4700, batch_size=256, lr=1.5e-3, minutes=2.2)


def text_job(kernel):
    "Up to five passes over 88 novels."
    name = f'text_full_novels27_{kernel}'
    return Job(name, 'novels27', kernel, 27, WORDS,
               steps=12000, batch_size=128, lr=1.5e-3, minutes=2.5)


def tiny(job):
    "The same path in seconds."
    images = job.data == 'fashion_mnist'
    changes = dict(name=job.name.replace('full', 'tiny'), T=100, steps=6, batch_size=8, minutes=0.1)
    if images: changes |= dict(data='digits', K={16: 5, 256: 9}[job.K], net=TINY_UNET)
    else: changes |= dict(data='help', net=TINY_WORDS)
    return Job(**{**asdict(job), **changes})


JOBS = [*map(image_job, IMAGES), *map(text_job, TEXTS),
        image_job('absorbing', 256), image_job('uniform', 256)]


# data: one file that holds what the jobs read

PACKED = {'fashion-mnist': ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte',
                            't10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte'),
          'novels27': ('novels27_to1930.txt.xz', 'novels_to1930_lengths.json')}


def pack(path, root):
    "Write the data sets into one .tar.xz; images unpacked first, since xz beats gzip on them."
    with tarfile.open(path, 'w:xz', preset=9) as tar:
        for folder, names in PACKED.items():
            for name in names:
                plain, zipped = root / folder / name, root / folder / f'{name}.gz'
                if plain.is_file(): content = plain.read_bytes()
                elif zipped.is_file(): content = gzip.decompress(zipped.read_bytes())
                else: raise SystemExit(f'gpu.py pack: {plain} is absent; remedy: set DISCDIFF_DATA '
                                       f'to a folder that holds {folder}/')
                entry = tarfile.TarInfo(f'{folder}/{name}')
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    print(f'{path}: {Path(path).stat().st_size / 1e6:.1f} MB')


def unpack(path, folder):
    "The folder of a packed file, for DISCDIFF_DATA."
    with tarfile.open(path, 'r:xz') as tar: tar.extractall(folder, filter='data')
    return folder


def help_text():
    from pydoc_data.topics import topics
    import tempfile
    path = Path(tempfile.mkdtemp()) / 'help.txt'
    path.write_text(' '.join(topics.values()), encoding='utf-8')
    return text_file(path)


# a job: train, measure, draw

def device(): return 'cuda' if torch.cuda.is_available() else 'cpu'


def network(job, process, shape):
    "A fresh network, the one of the notebooks."
    torch.manual_seed(job.seed)
    if len(shape) == 1:
        causal = job.kernel == 'autoregressive'
        net = nets.Transformer(process.K, process.T, shape, rope=True, causal=causal, **job.net)
        return net.to(device())
    real = isinstance(process, Gaussian)
    inout = dict(K=process.channels, real=True) if real else dict(K=process.K, ordered_classes=job.K)
    return nets.UNet(T=process.T, shape=shape, cond=dict(y=10), **inout, **job.net).to(device())


def data_of(job):
    "(training set, its conditions, held-out set, its conditions), on the device."
    if job.data in ('fashion_mnist', 'digits'):
        images = (fashion_mnist if job.data == 'fashion_mnist' else digits)(job.K)
        train, test = images.train.to(device()), images.test.to(device())
        y_train, y_test = images.train_labels.to(device()), images.test_labels.to(device())
        return train, dict(y=y_train), test, dict(y=y_test)
    text = novels27() if job.data == 'novels27' else help_text()
    D = 256 if job.data == 'novels27' else 32
    held_out = windows(text.test, D)
    every = torch.linspace(0, len(held_out) - 1, min(2000, len(held_out))).long()
    return windows(text.train, D).to(device()), {}, held_out[every].to(device()), {}


def bits(process, model, x0, cond, n_t, label_bits, seed):
    "Upper bound in bits per dimension, that of each example, and where in time it is paid."
    generator = torch.Generator(x0.device).manual_seed(seed)
    D, n_t = x0[0].numel(), min(n_t, process.T)
    found = elbo(process, model, x0, n_t, generator, batch_size=max(1, 400_000 // D), cond=cond)
    each = found['each'] / (D * math.log(2)) + label_bits / D
    draws = found['count'].sum()
    paid = (found['L_t'] * found['count']).nan_to_num() * process.T / (draws * D * math.log(2))
    se = each.std().item() / len(each) ** 0.5
    return dict(bits=each.mean().item(), se=se, n=len(x0), n_t=n_t,
                each=[round(b, 4) for b in each.tolist()],
                paid=[round(b, 6) for b in paid.tolist()])


def classes(x, process):
    "Drawn examples as small integers on the CPU."
    return (to_classes(x, process.K) if x.is_floating_point() else x).to(torch.uint8).cpu()


def draw(process, model, shape, n, calls, seed, sampler=generate, weight=None):
    "n images, ten labels in turn."
    y = torch.arange(n, device=device()) % 10
    made = []
    for part in y.split(500):
        net = partial(model, y=part) if weight is None else guided(model, part, 10, weight)
        generator = torch.Generator(device()).manual_seed(seed + len(made))
        made.append(classes(sampler(process, net, (len(part), *shape), calls, generator), process))
    return torch.cat(made)


def image_results(job, process, model, data, small):
    "The bound on test and training images; samples at several numbers of calls."
    train, cond, test, test_cond = data
    measured = clipped(process) if isinstance(process, Gaussian) else process
    n_t = 36 if isinstance(process, Gaussian) else 12
    label = math.log2(10)
    def bound(x, y, n): return bits(measured, model, x[:n], dict(y=y[:n]), n_t, label, job.seed)
    log = dict(test=bound(test, test_cond['y'], 40 if small else 10_000),
               train=bound(train, cond['y'], 20 if small else 3000))
    log['train']['each'] = None
    n, shape = (20 if small else 500), test.shape[1:]
    def drawn_by(process, n, calls, weight=None):
        return draw(process, model, shape, n, min(calls, process.T), seed=1, weight=weight)
    drawn = {f'drawn {calls}': drawn_by(measured, n, calls) for calls in (10, 25, 50)}
    drawn['drawn 250'] = drawn_by(measured, 2 * n, 250)
    if isinstance(process, Gaussian):
        drawn |= {f'ddim {calls}': drawn_by(ddim(measured), n, calls) for calls in (10, 25, 50)}
    if job.kernel == 'absorbing':
        for weight in (1.5, 2., 3.):
            drawn[f'weight {weight:g}'] = drawn_by(process, n, 50, weight)
        x0, y = test[:40], test_cond['y'][:40]
        keep = torch.zeros_like(x0, dtype=torch.bool)
        keep[:, :shape[0] // 2] = True
        generator = torch.Generator(device()).manual_seed(3)
        repaired = inpaint(process, partial(model, y=y), x0, keep, generator)
        drawn['repaired'] = classes(repaired, process)
    generator = torch.Generator(device()).manual_seed(2)
    labelled = partial(model, y=torch.arange(20, device=device()) % 10)
    chain = trajectory(measured, labelled, (20, *shape), min(60, process.T), generator)
    drawn['chain'] = torch.stack([classes(x, process) for _, x in chain])
    return log, drawn


def thinned(kernel, schedule, model, steps):
    "The process that a run of so many steps goes through, and the network that it asks."
    times = torch.tensor(step_times(schedule.T, steps)[::-1], device=device())
    process = kernel(Schedule.from_alpha_bar(schedule.alpha_bar[times.cpu()]))
    return process, lambda x_t, i: model(x_t, times[i])


def text_results(job, process, model, data, small):
    "The bound at several numbers of steps; drawn rows; filled gaps."
    train, _, test, _ = data
    n_t = 5 if small else 32
    log = dict(test=bits(process, model, test, {}, n_t, 0, job.seed),
               train=bits(process, model, train[:len(test)], {}, n_t, 0, job.seed))
    log['train']['each'] = None
    D, rows = test.shape[1], 4 if small else 128
    generator = torch.Generator(device()).manual_seed(1)
    if job.kernel == 'autoregressive':
        log['rows'] = [decode(x) for x in nets.chain_sample(model, rows, generator).cpu()]
        return log, {}
    kernels = {'absorbing': lambda s: Absorbing(28, s), 'uniform': lambda s: Multinomial(27, s)}
    for steps in (5, 20) if small else (20, 64, 256):
        few, asked = thinned(kernels[job.kernel], process.schedule, model, steps)
        log[f'{steps} steps'] = bits(few, asked, test, {}, n_t, 0, job.seed)
    sampler = generate_few_calls if job.kernel == 'absorbing' else generate
    log['rows'] = [decode(x) for x in sampler(process, model, (rows, D), generator=generator).cpu()]
    if job.kernel == 'absorbing':
        keep = ((torch.arange(D) < D // 3) | (torch.arange(D) >= D - D // 3)).to(device())
        gaps = []
        for i in range(0, len(test), max(1, len(test) // 8)):
            x0 = test[i].expand(3, D)
            generator = torch.Generator(device()).manual_seed(i)
            ways = inpaint(process, model, x0, keep.expand(3, D), generator)
            gaps.append([decode(test[i].cpu()), *(decode(way) for way in ways.cpu())])
        log['filled'] = gaps
    return log, {}


RESULTS = 35  # seconds of a full job that are left for what follows the training


def affordable(job, process, shape, data):
    "The job with as many steps as its minutes allow on this machine, by the time of a few steps."
    settings = dict(batch_size=job.batch_size, lr=job.lr, cond=data[1],
                    mixed_precision=job.mixed_precision)
    def seconds(steps):
        net, started = network(job, process, shape), time.time()
        fit(process, net, data[0], steps, **settings)
        return time.time() - started
    seconds(5)  # compiles, and warms up
    each = (seconds(35) - seconds(5)) / 30  # what fit does once is in both
    steps = min(job.steps, max(1, int((60 * job.minutes - RESULTS) / each)))
    print(f'{job.name}: {1000 * each:.1f} ms a step, {steps} of {job.steps} steps', flush=True)
    return replace(job, steps=steps)


def run_job(job, out):
    "Train, measure, draw; the log is written last, so that a job with a log is whole."
    started, small = time.time(), job.steps < 100
    data = data_of(job)
    process = KERNELS[job.kernel](job.K, job.T)
    shape = tuple(data[0].shape[1:])
    folder = out / 'running' / job.name
    resume = (folder / 'checkpoint.safetensors').is_file()
    if resume: job = Job(**json.loads((folder / 'job.json').read_text()))
    elif not small: job = affordable(job, process, shape, data)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'job.json').write_text(json.dumps(asdict(job)))
    net = network(job, process, shape)
    ready = time.time()
    model, losses = fit(process, net, data[0], job.steps, folder, job.batch_size, job.lr, job.seed,
                        save_every=1000, resume=resume, cond=data[1], drop=0.1 if data[1] else 0.,
                        mixed_precision=job.mixed_precision)
    trained = time.time()
    state = halved(model.state_dict())
    restore(model, state)
    images = data[0].ndim == 3
    with torch.compiler.set_stance('force_eager'):
        log, drawn = (image_results if images else text_results)(job, process, model, data, small)
    seconds = dict(ready=ready - started, training=trained - ready, results=time.time() - trained)
    parameters = sum(p.numel() for p in model.parameters())
    about = dict(seconds=seconds, resumed=resume, parameters=parameters,
                 **origin(job.seed, started, device()))
    parts = [losses[i:i + 50] for i in range(0, len(losses), 50)]
    curve = [sum(part) / len(part) / math.log(2) for part in parts]
    tensors = {**{f'net.{k}': v for k, v in state.items()}, **drawn}
    save_tensors(out / f'{job.name}.safetensors', tensors, dict(job=asdict(job), **about))
    temporary = out / f'{job.name}.json.tmp'
    temporary.write_text(json.dumps(dict(job=asdict(job), losses=curve, **log, **about)) + '\n')
    os.replace(temporary, out / f'{job.name}.json')
    shutil.rmtree(folder, ignore_errors=True)
    return about


def choose(args):
    "The jobs that were asked for, at the size that was asked for."
    known = {job.name: job for job in JOBS}
    unknown = sorted(set(args.names) - set(known))
    if unknown:
        raise SystemExit(f'gpu.py: no such job: {", ".join(unknown)}; there are {", ".join(known)}')
    chosen = [known[name] for name in args.names] if args.names else JOBS
    return [tiny(job) for job in chosen] if args.size == 'tiny' else chosen


def show(args):
    "What is done, and what is missing."
    for job in choose(args):
        done = (args.out / f'{job.name}.json').is_file()
        print(f'{job.name:<44}{"done" if done else f"{job.minutes:.1f} minutes planned"}')


def run(args):
    "The next jobs, as long as one fits into the minutes that are left."
    if not 0 < args.minutes < math.inf:
        raise SystemExit(f'gpu.py: --minutes {args.minutes}: allowed is a number above 0')
    started = time.time()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.data:
        packed = args.data.is_file()
        folder = unpack(args.data, args.out / 'running' / 'data') if packed else args.data
        os.environ['DISCDIFF_DATA'] = str(folder)
    if device() == 'cuda': torch.set_float32_matmul_precision('high')
    if args.compile:
        torch._dynamo.config.suppress_errors = True
        for kind in (nets.UNet, nets.Transformer):
            kind.trunk = torch.compile(kind.trunk, dynamic=False)
    failed = []
    for job in choose(args):
        left = args.minutes - (time.time() - started) / 60
        if (args.out / f'{job.name}.json').is_file(): continue
        if job.minutes > left:
            print(f'{job.name}: not begun: {job.minutes:.1f} minutes planned, {left:.1f} left')
            continue
        print(f'{job.name}: begins, {left:.1f} minutes left', flush=True)
        try: about = run_job(job, args.out)
        except Exception:
            print(f'{job.name}: failed\n{traceback.format_exc()}', flush=True)
            failed.append(job.name)
            continue
        spent = ', '.join(f'{what} {seconds:.0f} s' for what, seconds in about['seconds'].items())
        print(f'{job.name}: done, {spent}', flush=True)
    if failed: raise SystemExit(f'gpu.py: failed: {", ".join(failed)}')


def main(argv=None):
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    commands = parser.add_subparsers(dest='command', required=True)
    packing = commands.add_parser('pack', help='write the data into one file')
    packing.add_argument('path', type=Path)
    for name, call in (('list', show), ('run', run)):
        command = commands.add_parser(name)
        command.set_defaults(call=call)
        command.add_argument('names', nargs='*', help='of jobs; none takes all')
        command.add_argument('--out', type=Path, default=ROOT / 'runs' / 'full')
        command.add_argument('--size', choices=('tiny', 'full'), default='full')
        if name == 'run':
            command.add_argument('--minutes', type=float, default=12., help='begin no job beyond')
            command.add_argument('--data', type=Path, help='packed file, folder; else DISCDIFF_DATA')
            command.add_argument('--compile', action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args(argv)
    if args.command == 'pack':
        from discdiff_nb.data import data_root
        return pack(args.path, data_root())
    args.call(args)


if __name__ == '__main__': main()
