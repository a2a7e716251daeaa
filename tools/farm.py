#!/usr/bin/env python3
"""The networks of chapters 20 to 28 on one GPU, many at a time: each training is a process of its
own, and so is what a page asks of its networks, which waits for each of them.

  python tools/farm.py list                           the tasks, in the order in which they begin
  python tools/farm.py run OUT --minutes 9            begin in that order, as many as --workers say
  python tools/farm.py one NAME OUT                   one task, in this process

What a page keeps is in OUT/assets, the rest in OUT/runs, what was printed in OUT/logs. A page's own
functions do the work: its definitions are read from the notebook, without running its cells.
Killed at any moment, whatever is whole stays, and the next run goes on."""
import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


class Task(NamedTuple):
    "One process."
    name: str
    page: str # number of a notebook, whose definitions it sees
    code: str # what it runs
    needs: tuple = () # names of tasks that must be done before
    makes: tuple = () # files that others wait for
    reads: tuple = ('fashion-mnist',) # data sets
    measures: bool = False # it waits for the others, and takes no worker's place


def named(name): return f'{name}.safetensors'

FIRST = ('vae', 'codes', 'form 1, z', 'students', 'codes labelled', 'codes absorbing')
KINDS = dict(kept=dict(plan='KEPT', colour='COLOUR'), tiny=dict(plan='TINY', colour='TINY'))


def texts(size):
    "Chapter 21: four networks, each asked by its own process."
    plan = KINDS[size]['plan']
    return [Task(f'text {p}', '21', f"study({plan}, {p!r}, A)", reads=('novels27',))
            for p in ('absorbing', 'autoregressive', 'uniform', 'neighbour')]


def garments(size):
    "Chapter 20: 256 levels, masks that learn longer in some other way, and brief runs."
    if size == 'tiny':
        return [Task('levels 256 uniform', '20', "study_networks({'uniform': tiny_job('uniform', 9)},"
                     " TINY, A / 'garments256.json', A)")]
    longer = dict(dropout="net=UNET | dict(dropout=.1)",
                  attention="net=UNET | dict(attention=[7])",
                  wide="net=UNET | dict(channels=64, attention=[7], dropout=.1)")
    tasks = [Task(f'longer {how}', '20', f"run(replace(LONGER, name='garments_longer_{how}',"
                  f" {what}), A)") for how, what in longer.items()]
    tasks += [Task(f'levels 256 {noise}', '20', f"study_networks({{{noise!r}: kept_job({noise!r},"
                   f" 256)}}, KEPT, A / 'garments256_{noise}.json', A)")
              for noise in ('absorbing', 'uniform', 'gaussian_levels')]
    choices = "try_choices(kept_job('absorbing'), KEPT, A / 'garments_choices.json', R)"
    return [*tasks, Task('choices', '20', choices)]


def layouts(size):
    "Chapters 22 and 28."
    tiny = size == 'tiny'
    if tiny: return [] # chapter 28's own cells run it, on data that they write
    code = "DATASETS['layouts'] = layouts_alone\njobs = kept_jobs()\n"
    reads = dict(camvid=('camvid',), read_camvid=('camvid',))
    names = ('first', 'pair', 'image', 'layout', 'painter', 'camvid', 'read', 'read_first',
             'read_camvid')
    kept = {'first', 'pair', 'camvid'}
    tasks = [Task(f'layouts {n}', '28', code + f"run_task(jobs[{n!r}], PAIRS[jobs[{n!r}].data](16),"
                  f" {'A' if n in kept else 'R'}, device(), R)", reads=reads.get(n, ()),
                  makes=(named(f'layouts_kept_{n}'),)) for n in names]
    for i in range(4):
        job = (f"noise, K = [*NUMBERS.values()][{i}]\njob = Job('layouts_kept_alone_{i}', 'layouts',"
               " noise, K, dict(kind='unet', **PLAIN), 3000, 64, 2e-3, T=1000,"
               " mixed_precision='bf16')\nrun_job(job, R, device=device(), running=R)")
        tasks.append(Task(f'layouts alone {i}', '28', code + job, reads=(),
                          makes=(named(f'layouts_kept_alone_{i}'),)))
    asked = code + "study_all(jobs, KEPT, A / 'layouts_kept.json', partial(alone, 3000))"
    return [*tasks, Task('layouts asked', '28', asked, reads=('camvid',), measures=True)]


def codes(size):
    "Chapter 23."
    plan, colour = KINDS[size]['plan'], KINDS[size]['colour']
    stem = f'unleashing_{size}'
    begin = (f"plan = {plan}\nimages = PICTURES[plan.coder.data]()\n"
             "def coder(): return run_codes(plan.coder, A, device(), R)\n")
    tasks = [Task('codes', '23', begin + "coder()", makes=(named(f'{stem}_codes'),))]
    for part in (0, 1):
        made = tuple(named(f'{stem}_codes_cure_{i}') for i in range(part, 8, 2))
        code = begin + (f"for way, job in [*cures(plan).items()][{part}::2]:\n"
                        f"    once(A / 'cures_{part}.json', f'cure: {{way}}',"
                        " lambda: run_codes(job, R, device(), R).log['results'])")
        tasks.append(Task(f'cures {part}', '23', code, (), made))
    for what in ('labelled', 'absorbing', 'autoregressive', 'reweighted'):
        code = begin + (
            "c = coded(coder().model, images)\nDATASETS[plan.prior.data] = lambda K: c\n"
            f"job = prior_jobs(plan)[{what!r}]\n"
            "other = Reweighted(job.K + 1, reciprocal_schedule(job.T))\n"
            f"run_job(job, {'A' if what in ('absorbing', 'labelled') else 'R'}, "
            f"{'other' if what == 'reweighted' else None}, device(), R)")
        tasks.append(Task(f'codes {what}', '23', code, ('codes',), (named(f'{stem}_{what}'),)))
    for what in ('absorbing', 'autoregressive'):
        code = begin + (
            "c = coded(coder().model, images, plan.few)\n"
            "DATASETS[f'{plan.prior.data}_few'] = lambda K: c\n"
            f"run_job(crossover_jobs(plan)[{what!r}], R, None, device(), R)")
        tasks.append(Task(f'codes few {what}', '23', code, ('codes',),
                          (named(f'{stem}_{what}_few'),)))
    for row in ('without', 'default', 'clamp', 'DiffAug', 'both'):
        code = begin + ("net, _ = judge_of(images, plan.judge)\n"
                        f"gan_run(plan, coder(), images, net, {row!r}, R)")
        tasks.append(Task(f'gan {row}', '23', code, ('codes',),
                          (named(f'{stem}_codes_gan_{row}'),)))
    tasks.append(Task('codes asked', '23', f"study({plan}, A, R, A / '{stem}.json')",
                      measures=True))
    if size == 'tiny': return tasks
    tasks.insert(3, Task('colour codes', '23', "run_codes(COLOUR.coder, A, device(), R)",
                         reads=('cifar10-jpeg',), makes=(named('unleashing_kept_colour_codes'),)))
    prior = ("c = coded(run_codes(COLOUR.coder, A, device(), R).model, PICTURES['cifar10_jpeg']())\n"
             "DATASETS[COLOUR.prior.data] = lambda K: c\nrun_job(COLOUR.prior, A, None, device(), R)")
    tasks.append(Task('prior of colours', '23', prior, ('colour codes',),
                      (named('unleashing_kept_colour_absorbing'),), ('cifar10-jpeg',)))
    return [*tasks, Task('colour asked', '23',
                         "study(COLOUR, A, R, A / 'unleashing_kept_colour.json')",
                         reads=('cifar10-jpeg',), measures=True)]


def drawings(size):
    "Chapter 24."
    tasks, asked = [], []
    setups = {'TINY': 'digits'} if size == 'tiny' else {'KEPT[1]': 'fashion32', 'KEPT[0]': 'mnist32'}
    for setup, data in setups.items():
        stem, reads = f'diffusedraw_{size}_{data}_', ('mnist' if data == 'mnist32'
                                                      else 'fashion-mnist',)
        begin = (f"setup = {setup}\nregister(setup, A)\n"
                 "jobs = prior_jobs(setup, DATASETS[setup.data](setup.K).train.shape[1:])\n")
        of_z, on_parts = ['draws', 'row'], []
        tasks.append(Task(f'{data} parts', '24', begin + "parts_run(setup, setup.weight, A)",
                          makes=(named(f'{stem}w50'),), reads=reads))
        names = ('grid, mask', 'autoregressive', 'transformer, mask', 'row, cosine',
                 'row, source schedule', 'all of z, mask', 'all of z in order, mask',
                 'all of z in order, autoregressive', 'grid of parses, mask')
        for name in names:
            file = named(stem + re.sub(r'\W+', '_', name))
            needs = () if 'all of z' in name or 'parses' in name else (f'{data} parts',)
            tasks.append(Task(f'{data} {name}', '24', begin + f"prior_run({name!r}, jobs[{name!r}],"
                              " A)", needs, (file,), reads))
        tasks.append(Task(f'{data} ddpm', '24', begin + "ddpm_row(setup, A, lambda x: 0.)", (),
                          (named(f'{stem}ddpm'),), reads))
        asked.append(Task(f'{data} asked', '24', f"import shutil\nlog = A / 'diffusedraw_{data}.json'\n"
                          "old = A / 'diffusedraw_kept.json'\n"
                          "if old.is_file() and not log.is_file(): shutil.copy(old, log)\n"
                          f"study_all({setup}, log, A)", reads=reads, measures=True))
    return tasks + asked


def refiners(size):
    "Chapter 25."
    plan = f'diffusevae.{KINDS[size]["plan"]}'
    stem = f'diffusevae_{size}_'
    begin = f"bench = bench_of({plan}, A, R)\n"
    forms = {'form 1': 'form1', 'form 2': 'form2', 'form 2, z': 'form2_z'}
    tasks = [Task('vae', '25', begin, makes=(named(stem + 'vae'),)),
             Task('form 1, z', '25', begin + "diffusevae.trained_form(bench, 'form 1, z')",
                  ('vae',), (named(stem + 'form1_z'),))]
    tasks += [Task(name, '25', begin + f"diffusevae.trained_form(bench, {name!r})", ('vae',),
                   (named(stem + file),)) for name, file in forms.items()]
    half = "diffusevae.trained_form(bench, 'form 1, z', max(8, bench.plan.channels // 2))"
    tasks.append(Task('half the channels', '25', begin + half, ('vae',),
                      (named(f"{stem}form1_z_{dict(kept=16, tiny=8)[size]}"),)))
    students = "diffusevae.add_students(bench, *diffusevae.trained_form(bench, 'form 1, z'))"
    tasks.append(Task('students', '25', begin + students, ('form 1, z',),
                      tuple(named(f'{stem}student{n}') for n in (32, 16, 8, 4))))
    tasks += [Task(f'twin {name}', '25', begin + f"diffusevae.trained_other(bench, {name!r})",
                   ('vae',), (named(stem + name),)) for name in ('moving', 'absorbing', 'ordinal')]
    asked = (f"diffusevae.add_int8 = lambda *args: None\nlog = A / 'diffusevae_{size}.json'\n"
             f"diffusevae.study({plan}, (A, R), log, R, None, device())")
    return [*tasks, Task('refiners asked', '25', asked, measures=True)]


def tasks_of(size):
    "All of them: long chains first."
    first, order = [], [*refiners(size), *codes(size), *layouts(size), *drawings(size),
                        *texts(size), *garments(size)]
    urgent = ('vae', 'codes', 'form 1, z', 'students', 'colour codes', 'prior of', 'layouts first',
              'layouts pair', 'form', 'twin', 'half', 'gan', 'cures', 'layouts read',
              'layouts camvid', 'layouts image', 'layouts layout', 'layouts painter',
              'longer dropout', 'fashion32')
    def rank(task):
        return next((i for i, u in enumerate(urgent) if task.name.startswith(u)), len(urgent))
    return sorted(order, key=rank)


# one task

def definitions(path):
    "What a notebook's cells define: imports, functions, classes, and CONSTANTS."
    space = dict(__name__='page')
    for cell in json.loads(path.read_text())['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] != 'code' or '%pip' in source: continue
        for node in ast.parse(source).body:
            if not wanted(node): continue
            try: exec(compile(ast.Module([node], []), path.name, 'exec'), space)
            except Exception as e: print('left out:', str(e)[:80])
    return space


def wanted(node):
    "Is a statement a definition?"
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)): return True
    targets = node.targets if isinstance(node, ast.Assign) else []
    if isinstance(node, ast.AugAssign): targets = [node.target]
    names = [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
    if names and ast.unparse(node.value).startswith('dict('): return True
    return bool(names) and all(name.isupper() for name in names)


def patient(runs, tasks, mine, out):
    "Whoever needs what another task makes waits for it, instead of making it, too."
    made = {file: task.name for task in tasks for file in task.makes}
    train, once, chosen = runs.load_or_train, runs.once, []

    def wait(name, path):
        "For a file of another task."
        while not path.is_file():
            if (out / 'logs' / f'{made[name]}.failed').is_file():
                raise SystemExit(f'{made[name]} failed')
            time.sleep(1)

    def load_or_train(path, *args):
        if path.name in made and path.name not in mine: wait(path.name, runs.kept_file(path.name, path.parent))
        return train(path, *args)

    def once_in_parts(path, key, make):
        name = f'{path.name} {key}'
        part = out / 'parts' / f'{name}.json'
        if chosen: return once(part, key, make) if key in chosen else None
        if name not in made: return once(path, key, make)
        if key in runs.read_results(path): return once(path, key, make)
        wait(name, part)
        return once(path, key, lambda: json.loads(part.read_text())[key])
    runs.load_or_train, runs.once = load_or_train, once_in_parts
    return chosen.append


def one(task, tasks, out):
    "Run it here."
    os.chdir(ROOT / 'nbs')
    if task.name in ('longer wide', 'longer attention'): raise SystemExit('left out')
    if task.page == '25' and task.name not in ('vae', 'students'): os.environ.pop('TORCH_COMPILE_DISABLE', None)
    import torch
    import torch._dynamo
    torch._dynamo.config.suppress_errors = True
    from discdiff_nb import cli, runs
    torch.set_num_threads(1)
    if os.environ.get('FARM_COMMIT'): runs.commit = lambda: os.environ['FARM_COMMIT']
    only = patient(runs, tasks, task.makes, out)
    page, = (ROOT / 'nbs').glob(f'{task.page}_*.ipynb')
    space = definitions(page)
    space |= dict(A=out / 'assets', R=out / 'runs', only=only, bench_of=bench_of, replace=replaced,
                  device=lambda: cli.devices()[-1])
    if task.page in ('28', '24', '21', '20'): space |= dict(FOLDER=folders(task.page, out))
    if task.page == '24': space |= dict(weights_in=lambda folder: out / 'runs')
    print(f'{task.name}: begins on {cli.devices()[-1]}', flush=True)
    exec(task.code, space)
    print(f'{task.name}: done', flush=True)


def replaced(job, **changes):
    from dataclasses import replace
    return replace(job, **changes)


def folders(page, out):
    "Where a page keeps things."
    if page == '28': return dict(assets=out / 'assets', runs=out / 'runs')
    return out / 'assets'


def bench_of(plan, kept, running):
    "The part of chapter 25's bench that a training needs."
    import torch
    from discdiff_nb import cli, diffusevae
    was, device = diffusevae.judge_of, cli.devices()[-1]
    diffusevae.judge_of = lambda *args: lambda x: None
    mixture, diffusevae.fit_mixture = diffusevae.fit_mixture, lambda *args: None
    draw, diffusevae.draw_mixture = diffusevae.draw_mixture, lambda m, n, g: torch.randn(
        n, plan.latent, generator=g, device=device)
    log = running / f'no_{os.getpid()}.json'
    return diffusevae.prepare(plan, (kept, running), log, device)


# all tasks

def run(args, tasks):
    "Begin each when it may, end all when the minutes are over."
    out, started, running, failed = args.out.resolve(), time.time(), {}, {}
    for part in ('assets', 'runs', 'logs', 'parts'): (out / part).mkdir(parents=True, exist_ok=True)
    for old in (out / 'logs').glob('*.failed'): old.unlink()
    data = Path(os.environ['DISCDIFF_DATA'])
    left = [task for task in tasks if not (out / 'logs' / f'{task.name}.done').is_file()]
    done = {task.name for task in tasks} - {task.name for task in left}
    asked = {task.name for task in tasks if task.measures}
    by_name = {task.name: task for task in tasks}
    while time.time() - started < 60 * args.minutes and not (out / 'stop').is_file():
        for name in [*failed]: # taken up again where somebody removed the mark
            if not (out / 'logs' / f'{name}.failed').is_file(): left.insert(0, failed.pop(name))
        for name, process in [*running.items()]:
            if process.poll() is None: continue
            del running[name]
            ok = process.returncode == 0
            (out / 'logs' / f"{name}.{'done' if ok else 'failed'}").touch()
            if ok: done.add(name)
            else: failed[name] = by_name[name]
            print(f"{time.time() - started:5.0f} s  {name}: {'done' if ok else 'FAILED'}", flush=True)
        places = args.workers - len(running.keys() - asked)
        for task in left[:]:
            if not task.measures and places <= 0: continue
            if not all((data / d / '.ready').exists() for d in task.reads): continue
            if not set(task.needs) <= done: continue
            left.remove(task)
            places -= not task.measures
            log = open(out / 'logs' / f'{task.name}.log', 'w')
            running[task.name] = subprocess.Popen(
                [sys.executable, __file__, 'one', task.name, str(out), '--size', args.size],
                stdout=log, stderr=subprocess.STDOUT, env=os.environ | dict(
                    CUDA_MPS_CLIENT_PRIORITY=str(int(task.name not in FIRST)),
                    OMP_NUM_THREADS='1', TORCHINDUCTOR_COMPILE_THREADS='4', TQDM_MININTERVAL='10'))
            print(f'{time.time() - started:5.0f} s  {task.name}: begins', flush=True)
        time.sleep(0.5)
    for name, process in running.items():
        process.kill()
        print(f'{time.time() - started:5.0f} s  {name}: cut off', flush=True)
    for task in left: print(f'not begun: {task.name}')


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=('list', 'run', 'one'))
    parser.add_argument('words', nargs='*')
    parser.add_argument('--minutes', type=float, default=9.)
    parser.add_argument('--workers', type=int, default=14)
    parser.add_argument('--size', choices=('tiny', 'kept'), default='kept')
    parser.add_argument('--match', default='', help='only tasks whose name holds this pattern')
    parser.add_argument('--pretend', action='store_true')
    args = parser.parse_args()
    tasks = tasks_of(args.size)
    if args.what == 'list':
        for task in tasks: print(task.name, task.needs, task.makes)
    if args.what == 'run':
        args.out = Path(args.words[0])
        run(args, [t for t in tasks if re.search(args.match, t.name)])
    if args.what == 'one':
        task, = (t for t in tasks if t.name == args.words[0])
        if not args.pretend: return one(task, tasks, Path(args.words[1]))
        sys.path.insert(0, str(ROOT / 'tests'))
        from elsewhere import pretended
        with pretended(): one(task, tasks, Path(args.words[1]))


if __name__ == '__main__': main()
