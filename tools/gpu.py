#!/usr/bin/env python3
"""The queue of `full` jobs: one GPU, one network at a time, at most three minutes each, and safe
to kill at any moment.

  python tools/gpu.py list --out OUT                what is done, what is missing, planned minutes
  python tools/gpu.py pack PACKED                   write what the jobs read, a file a data set
  python tools/gpu.py run --minutes 12 --data PACKED --out OUT
                                                    the next jobs, as many as fit into 12 minutes

A job leaves OUT/NAME.json (settings, losses, bound or scores, where it ran) and
OUT/NAME.safetensors (weights in half precision and samples). A job that was cut off, by hand or by
its own minutes, goes on from its last checkpoint the next time: every job takes all its steps.
Needs torch, numpy, einops, safetensors, scikit-learn, tqdm, accelerate, kmedoids for drawings, and
this repository; no network. `pack` leaves faces out: put CelebA's folder celeba/ beside the packed files."""
import argparse
import gzip
import io
import json
import math
import os
import shutil
import signal
import sys
import tarfile
import threading
import time
import traceback
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
from discdiff_nb import colour, drawings, nets
from discdiff_nb.checkpoints import halved, load_tensors, restore, save_tensors, weights
from discdiff_nb.core import DataError, Schedule, elbo, generate, linear_schedule
from discdiff_nb.core import step_times, trajectory
from discdiff_nb.data import decode
from discdiff_nb.diffusevae import Plan
from discdiff_nb.gaussian import Gaussian, to_classes
from discdiff_nb.runs import (Job, begin, bound_bits, curve_of, draw_labelled, examples,
                              job_process, measured, network, noise_of, origin, read_results,
                              watched_bits)
from discdiff_nb.sampling import ddim, generate_few_calls, inpaint
from discdiff_nb.train import fit

# the jobs: equal steps for every noise

UNET = dict(kind='unet', channels=64, multipliers=[1, 2, 2], blocks=1, attention=[7], dropout=0.)
WORDS = dict(kind='transformer', width=256, depth=5, heads=4, dropout=0., local=9, rope=True)
IMAGES = ('absorbing', 'uniform', 'ordinal', 'gaussian_simple', 'gaussian', 'neighbour')
TEXTS = ('absorbing', 'autoregressive', 'uniform')
MINUTES = 3.  # planned for a job on an H100, all in
RESULTS = 60  # seconds of them that are left for what follows the training


def image_job(noise, K=16):
    "Fashion-MNIST: 1,500 steps of 256 are 6.4 epochs; 20 to 25 a second were seen on an H200."
    name = f'fashion_mnist_full_{noise}_{K}'
    return Job(name, 'fashion_mnist', noise, K, UNET, steps=1500, batch_size=256, lr=1.5e-3,
               drop=0.1, labelled=True, mixed_precision='bf16')


def text_job(noise):
    "88 novels: 2,000 steps of 128 windows of 256 letters, 46 a second seen."
    name = f'text_full_novels27_{noise}'
    return Job(name, 'novels27', noise, 27, WORDS, steps=2000, batch_size=128, lr=1.5e-3,
               mixed_precision='bf16', tested=2000, length=256)


@dataclass(frozen=True)
class Drafts:
    "A VAE, a refiner of its drafts, what they draw and how it is judged (chapter 29)."
    name: str
    plan: Plan
    seed: int = 0


def draft_job(plan):
    "Planned, not measured: a minute or two of training; faces are read for half a minute."
    return Drafts(f'diffusevae_{plan.size}', plan)


@dataclass(frozen=True)
class Parts:
    "A bank of patches, encoder and decoder, all priors, what they draw and their scores (chapter 30)."
    name: str
    setup: drawings.Setup
    seed: int = 0


def parts_job(setup):
    "Planned, not measured: sixteen networks, a quarter of a minute to a minute each, in several parts."
    return Parts(f'diffusedraw_{setup.size}_{setup.data}', setup)


JOBS = [*map(image_job, IMAGES), *map(text_job, TEXTS),
        image_job('absorbing', 256), image_job('uniform', 256),
        *map(draft_job, colour.FULL.values()), *map(parts_job, drawings.FULL.values())]


def tiny(job):
    "The same path in seconds."
    if isinstance(job, Drafts): return draft_job(tiny_plan(job.plan))
    if isinstance(job, Parts): return replace(parts_job(tiny_setup(job.setup)),
                                              name=job.name.replace('full', 'tiny'))
    job = replace(job, name=job.name.replace('full', 'tiny'), T=50, steps=6, batch_size=8)
    if job.length:
        net = dict(kind='transformer', width=16, depth=1, heads=2, dropout=0., local=4, rope=True)
        return replace(job, data='help', net=net, length=32, tested=40)
    net = dict(kind='unet', channels=8, multipliers=[1, 2], blocks=1, attention=[4], dropout=0.)
    return replace(job, data='digits', K={16: 5, 256: 9}[job.K], net=net, tested=40)


def tiny_plan(plan):
    "Digits for garments, coloured scenes for what has colours."
    grey = plan.data == 'fashion_mnist'
    return replace(plan, size=plan.size.replace('full', 'tiny'), data='digits' if grey else 'scenes',
                   K=9 if grey else 16, T=64, latent=4, vae=8, components=4, channels=8,
                   multipliers=(1, 2), precision='no', drawn=85 if grey else 245,
                   steps=dict(plan.steps, vae=6, refiner=6), calls=(2, 4), judge=5, batch=8)


def tiny_setup(setup):
    "Digits for everything."
    return replace(setup, size='tiny', data='digits', K=9, patch=2, stride=1, patches=16, among=200,
                   parts=6, channels=8, multipliers=(1, 2), first=4, steps=4, brief=2, batch=8, T=22,
                   tested=20, drawn=20, calls=4, judge=5)


def small(job): return 'tiny' in job.name


def noise(job, train):
    "The process of a job."
    if job.process == 'gaussian_simple':
        return Gaussian(job.K, linear_schedule(job.T, 0.1 / job.T, 20 / job.T))
    return job_process(job, train)


# data: one file that holds what the jobs read

PACKED = {'fashion-mnist': ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte',
                            't10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte'),
          'novels27': ('novels27_to1930.txt.xz', 'novels_to1930_lengths.json'),
          'cifar10-jpeg': ('cifar10_jpegs_original_order.npz',)}


def pack(folder, root):
    "Write NAME.tar.xz for each data set; images unpacked first, since xz beats gzip on them."
    folder.mkdir(parents=True, exist_ok=True)
    for data, names in PACKED.items():
        path = folder / f'{data}.tar.xz'
        contents = {name: content_of(root / data / name) for name in names}
        with tarfile.open(path, 'w:xz', preset=9) as tar:
            for name, content in contents.items():
                entry = tarfile.TarInfo(f'{data}/{name}')
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        print(f'{path}: {path.stat().st_size / 1e6:.1f} MB')


def content_of(path):
    "The bytes of a file, or of the same with .gz."
    zipped = path.parent / f'{path.name}.gz'
    if path.is_file(): return path.read_bytes()
    if zipped.is_file(): return gzip.decompress(zipped.read_bytes())
    raise SystemExit(f'gpu.py pack: {path} is absent; remedy: set DISCDIFF_DATA to a folder that '
                     f'holds {path.parent.name}/')


def unpacked(data, folder):
    "The folder for DISCDIFF_DATA: of one packed file, of a folder of them, or that folder itself."
    files = [data] if data.is_file() else sorted(data.glob('*.tar.xz'))
    for path in files:
        with tarfile.open(path, 'r:xz') as tar: tar.extractall(folder, filter='data')
    for path in data.iterdir() if files and data.is_dir() else ():
        if path.is_dir() and not (folder / path.name).exists():
            (folder / path.name).symlink_to(path.resolve()) # such as faces
    return folder if files else data


# what follows the training

def device(): return 'cuda' if torch.cuda.is_available() else 'cpu'
def seeded(seed): return torch.Generator(device()).manual_seed(seed)


def classes(x, process):
    "Drawn examples as small integers on the CPU."
    return (to_classes(x, process.K) if x.is_floating_point() else x).to(torch.uint8).cpu()


def bounds(job, process, model, data):
    "Upper bounds on test and training examples."
    n_t = 5 if small(job) else 32
    n = 20 if small(job) else 3000
    test = bound_bits(process, model, data.test, data.test_cond, n_t, job.seed)
    first = {name: c[:n] for name, c in data.cond.items()}
    train = bound_bits(process, model, data.train[:n], first, n_t, job.seed)
    return dict(test=test, train=train | dict(each=None))


def image_results(job, process, model, data):
    "Bounds; samples at several numbers of calls; for the mask guided and repaired ones."
    n, shape = (20 if small(job) else 500), tuple(data.test.shape[1:])

    def drawn_by(n, calls, process=process, weight=None):
        return draw_labelled(process, model, n, shape, min(calls, process.T), weight,
                             device=device()).to(torch.uint8)
    drawn = {f'drawn {calls}': drawn_by(n, calls) for calls in (10, 25, 50)}
    drawn['drawn 250'] = drawn_by(2 * n, 250)
    if isinstance(process, Gaussian):
        straight = ddim(measured(process))
        drawn |= {f'ddim {calls}': drawn_by(n, calls, straight) for calls in (10, 25, 50)}
    if job.process == 'absorbing':
        drawn |= {f'weight {w:g}': drawn_by(n, 50, weight=w) for w in (1.5, 2., 3.)}
        drawn['repaired'] = repaired(process, model, data)
    labelled = partial(model, y=torch.arange(20, device=device()) % 10)
    calls = min(60, process.T)
    chain = trajectory(measured(process), labelled, (20, *shape), calls, seeded(2))
    drawn['chain'] = torch.stack([classes(x, process) for _, x in chain])
    return bounds(job, process, model, data), drawn


def repaired(process, model, data):
    "Held-out images, their lower halves drawn anew."
    x0, y = data.test[:40], data.test_cond['y'][:40]
    keep = torch.zeros_like(x0, dtype=torch.bool)
    keep[:, :x0.shape[1] // 2] = True
    return classes(inpaint(process, partial(model, y=y), x0, keep, seeded(3)), process)


def thinned(process, model, steps):
    "The process that a run of so many steps goes through, and the network that it asks."
    times = torch.tensor(step_times(process.T, steps)[::-1], device=device())
    schedule = Schedule.from_alpha_bar(process.schedule.alpha_bar[times.cpu()])
    return type(process)(process.K, schedule), lambda x_t, i: model(x_t, times[i])


def text_results(job, process, model, data):
    "The bound at several numbers of steps; drawn rows; filled gaps."
    log = bounds(job, process, model, data)
    D, n = job.length, 4 if small(job) else 128
    if job.process == 'autoregressive':
        log['rows'] = [decode(x) for x in nets.chain_sample(model, n, seeded(1)).cpu()]
        return log, {}
    for steps in (5, 20) if small(job) else (20, 64, 256):
        few, asked = thinned(process, model, steps)
        found = elbo(few, asked, data.test, min(32, steps), seeded(job.seed), 400_000 // D)
        each = found['each'] / (D * math.log(2))
        log[f'{steps} steps'] = dict(bits=each.mean().item(), se=found['bits_per_dim_se'])
    sampler = generate_few_calls if job.process == 'absorbing' else generate
    rows = sampler(process, model, (n, D), generator=seeded(1)).cpu()
    log['rows'] = [decode(x) for x in rows]
    if job.process == 'absorbing': log['filled'] = filled(process, model, data.test)
    return log, {}


def filled(process, model, test):
    "Eight held-out windows, and three ways to fill their middle third."
    D, gaps = test.shape[1], []
    keep = ((torch.arange(D) < D // 3) | (torch.arange(D) >= D - D // 3)).to(device())
    for i in range(0, len(test), max(1, len(test) // 8)):
        ways = inpaint(process, model, test[i].expand(3, D), keep.expand(3, D), seeded(i))
        gaps.append([decode(test[i].cpu()), *(decode(way) for way in ways.cpu())])
    return gaps


# a job: train, measure, draw

@contextmanager
def ends_after(seconds):
    "Within it Ctrl-C comes by itself after so many seconds; yields a list that then has an entry."
    rung = []

    def ring():
        rung.append(seconds)
        os.kill(os.getpid(), signal.SIGINT)
    timer = threading.Timer(max(seconds, 0), ring)
    timer.start()
    try: yield rung
    finally: timer.cancel()


def seconds_to_train(job, spent):
    "What the job's minutes leave for its training, at least so much that it gets on."
    return max(60 * MINUTES - RESULTS - spent, 30)


def train(job, process, net, data, running, started):
    "(network, losses), or None when the minutes were over first: the checkpoint is for next time."
    resume = (running / 'checkpoint.safetensors').is_file()
    with ends_after(seconds_to_train(job, time.time() - started)) as rung:
        try: return fit(process, net, data.train, job.steps, running, job.batch_size, job.lr,
                        job.seed, resume=resume, cond=data.cond, drop=job.drop,
                        mixed_precision=job.mixed_precision)
        except KeyboardInterrupt:
            if not rung: raise # it was a person


def run_drafts(job, out):
    "One part of a job of drafts, as `run_job`: what is trained stays, what is not goes on."
    began, running = begin(), out / 'running' / job.name
    folders, log = (running / 'whole', running), running / 'log.json'
    folders[0].mkdir(parents=True, exist_ok=True)
    images = colour.images_of(job.plan)
    ready = time.time()
    with ends_after(seconds_to_train(job, ready - began['time'])) as rung:
        try: bench, process, net = colour.trained(job.plan, images, folders, log, device())
        except KeyboardInterrupt:
            if not rung: raise # it was a person
            return False
    after = time.time()
    bench = colour.ask(bench, process, net)
    drawn = colour.ten_of_each(bench, process, net)
    found = read_results(log)
    training = 60 * sum(minutes for minutes, _ in found['minutes'].values()) # of all parts
    seconds = dict(ready=ready - began['time'], training=training, results=time.time() - after)
    about = dict(seconds=seconds, noise=noise_of(process), **origin(job.seed, began, device()))
    state = {f'{part}.{k}': v for part, of in dict(vae=bench.vae, net=net).items()
             for k, v in halved(weights(of)).items()}
    keep(out, job, state | drawn, about, found, curves(folders[0]))
    shutil.rmtree(running, ignore_errors=True)
    return about


def run_parts(job, out):
    "One part of a job of parts: each network and each answer that is there stays."
    began, running = begin(), out / 'running' / job.name
    folders = (running / 'pages', running / 'whole', running)
    with ends_after(seconds_to_train(job, 0)) as rung:
        try: found = drawings.study(job.setup, folders, device())
        except KeyboardInterrupt:
            if not rung: raise # it was a person
            return False
    name = f'diffusedraw_{job.setup.size}_{job.setup.data}'
    drawn, _ = load_tensors(folders[0] / f'{name}_drawn.safetensors')
    state = {f'{part}.{k}': v for part in ('w50', 'grid_mask') # encoder and decoder; the best prior
             for k, v in load_tensors(folders[1] / f'{name}_{part}.safetensors')[0].items()}
    curve = curves(folders[1])
    training = sum(load_tensors(path)[1]['results']['training_minutes']
                   for path in sorted(folders[1].iterdir()))
    seconds = dict(training=60 * training, results=time.time() - began['time'])
    keep(out, job, state | drawn, dict(seconds=seconds, **origin(job.seed, began, device())),
         found, curve)
    shutil.rmtree(running, ignore_errors=True)
    return dict(seconds=seconds)


def curves(folder):
    "Losses of each network, by the name of its file."
    return {path.stem: load_tensors(path)[1]['results']['curve'] for path in sorted(folder.iterdir())}


def run_job(job, out):
    "One part of a job; the log is written last, so that a job with a log is whole. False: goes on."
    if isinstance(job, Drafts): return run_drafts(job, out)
    if isinstance(job, Parts): return run_parts(job, out)
    began = begin()
    data = examples(job, device())
    process = noise(job, data.train)
    net = network(job, process, tuple(data.train.shape[1:])).to(device())
    running = out / 'running' / job.name
    ready = time.time()
    trained = train(job, process, net, data, running, began['time'])
    if not trained: return False
    model, losses = trained
    state = halved(weights(model))
    restore(model, state)
    after, training = time.time(), 60 * watched_bits(running / 'log.csv')[-1][1] # of all parts
    results = text_results if job.length else image_results
    with torch.compiler.set_stance('force_eager'):
        log, drawn = results(job, process, model, data)
    seconds = dict(ready=ready - began['time'], training=training, results=time.time() - after)
    about = dict(seconds=seconds, noise=noise_of(process),
                 parameters=sum(p.numel() for p in model.parameters()),
                 **origin(job.seed, began, device()))
    curve = curve_of(losses)
    keep(out, job, {f'net.{k}': v for k, v in state.items()} | drawn, about, log, curve)
    shutil.rmtree(running, ignore_errors=True)
    return about


def keep(out, job, tensors, about, log, curve):
    "Weights and samples first, the log last and at once."
    settings = dict(job=asdict(job), **about)
    save_tensors(out / f'{job.name}.safetensors', tensors, settings)
    temporary = out / f'{job.name}.json.tmp'
    temporary.write_text(json.dumps(settings | dict(losses=curve, **log)) + '\n')
    os.replace(temporary, out / f'{job.name}.json')


# the queue

def choose(args):
    "The jobs that were asked for, at the size that was asked for."
    known = {job.name: job for job in JOBS}
    unknown = sorted(set(args.names) - set(known))
    if unknown:
        raise SystemExit(f'gpu.py: no such job: {", ".join(unknown)}; there are {", ".join(known)}')
    chosen = [known[name] for name in args.names] if args.names else JOBS
    return [tiny(job) for job in chosen] if args.size == 'tiny' else chosen


def planned(job): return 0.1 if small(job) else MINUTES
def is_done(job, out): return (out / f'{job.name}.json').is_file()


def show(args):
    "What is done, what has begun, and what is missing."
    for job in choose(args):
        begun = any((args.out / 'running' / job.name).rglob('checkpoint.safetensors'))
        left = f'{planned(job):.1f} minutes planned' + (', begun' if begun else '')
        print(f'{job.name:<44}{"done" if is_done(job, args.out) else left}')


def prepare(args):
    "Folder, data and compiler."
    args.out.mkdir(parents=True, exist_ok=True)
    if args.data:
        if not args.data.exists(): raise SystemExit(f'gpu.py: --data {args.data}: no such path')
        os.environ['DISCDIFF_DATA'] = str(unpacked(args.data, args.out / 'running' / 'data'))
    if device() == 'cuda': torch.set_float32_matmul_precision('high')
    if args.compile:
        torch._dynamo.config.suppress_errors = True
        for kind in (nets.UNet, nets.Transformer):
            kind.trunk = torch.compile(kind.trunk, dynamic=False)


def run(args):
    "The next jobs, as long as one fits into the minutes that are left."
    if not 0 < args.minutes < math.inf:
        raise SystemExit(f'gpu.py: --minutes {args.minutes}: allowed is a number above 0')
    started, failed = time.time(), []
    prepare(args)
    for job in choose(args):
        if is_done(job, args.out): # perhaps killed right after its log was written
            shutil.rmtree(args.out / 'running' / job.name, ignore_errors=True)
        while not is_done(job, args.out) and job.name not in failed:
            left = args.minutes - (time.time() - started) / 60
            if planned(job) > left:
                print(f'{job.name}: not begun: {planned(job):.1f} minutes planned, {left:.1f} left')
                break
            print(f'{job.name}: begins, {left:.1f} minutes left', flush=True)
            try: about = run_job(job, args.out)
            except Exception as e:
                why = e if isinstance(e, DataError) else f'\n{traceback.format_exc()}'
                print(f'{job.name}: failed: {why}', flush=True)
                failed.append(job.name)
                continue
            print(f'{job.name}: {said(about)}', flush=True)
    if failed: raise SystemExit(f'gpu.py: failed: {", ".join(failed)}')


def said(about):
    "What a part of a job came to."
    if not about: return 'its minutes are over; it goes on from its checkpoint'
    spent = ', '.join(f'{what} {seconds:.0f} s' for what, seconds in about['seconds'].items())
    return f'done, {spent}'


def main(argv=None):
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    commands = parser.add_subparsers(dest='command', required=True)
    packing = commands.add_parser('pack', help='write the data, a file a data set')
    packing.add_argument('folder', type=Path)
    for name, call in (('list', show), ('run', run)):
        command = commands.add_parser(name)
        command.set_defaults(call=call)
        command.add_argument('names', nargs='*', help='of jobs; none takes all')
        command.add_argument('--out', type=Path, default=ROOT / 'runs' / 'full')
        command.add_argument('--size', choices=('tiny', 'full'), default='full')
        if name == 'run':
            command.add_argument('--minutes', type=float, default=12., help='begin no job beyond')
            command.add_argument('--data', type=Path, help='what pack wrote, or a folder')
            command.add_argument('--compile', action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args(argv)
    if args.command == 'pack':
        from discdiff_nb.data import data_root
        return pack(args.folder, data_root())
    args.call(args)


if __name__ == '__main__': main()
