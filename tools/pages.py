#!/usr/bin/env python3
"""The `kept` networks of chapters 20 to 28 on one GPU, many at a time. Each training is a process
of its own, and so is what a page asks of its networks; it waits until each of them is there.

  python tools/pages.py list                          the tasks, in the order in which they begin
  python tools/pages.py run OUT --minutes 9           as many at a time as --workers says
  python tools/pages.py one NAME OUT                  one task, in this process

What a page keeps is left in OUT/assets, the rest in OUT/runs, what was printed in OUT/logs. The
definitions of a page are read from its notebook, and its cells are not run. Whatever is whole stays
when the minutes are over, and the next run goes on from it and from the checkpoints.

Seen on an H200 with 14 processes: 330 steps a second in all, of networks that alone make 80 to 100.
That is with NVIDIA's MPS (`nvidia-cuda-mps-control -d` before), which lets kernels of several
processes run side by side."""
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
    page: str # number of a notebook, whose definitions the code sees
    code: str # what it runs; A and R are OUT/assets and OUT/runs
    needs: tuple = () # names of tasks that must be done before
    makes: tuple = () # files that other tasks wait for
    asks: bool = False # it waits for the others, and takes no worker's place


def tensors(*names): return tuple(f'{name}.safetensors' for name in names)
def plan_of(size): return dict(kept='KEPT', tiny='TINY')[size]


# what there is to do, a function for each page

def garments(size):
    "Chapter 20: 256 levels."
    job = dict(tiny='tiny_job(noise, 9)', kept='kept_job(noise, 256)')[size]
    log = f"A / f'garments_{size}_{{noise}}.json'"
    code = f"study_networks({{noise: {job}}}, {plan_of(size)}, {log}, A)"
    return [Task(f'levels 256, {noise}', '20', f"noise = {noise!r}\n{code}")
            for noise in ('absorbing', 'uniform', 'gaussian_levels')]


def texts(size):
    "Chapter 21: four networks, each trained and asked by one process."
    names = ('absorbing', 'autoregressive', 'uniform', 'neighbour')
    return [Task(f'text, {name}', '21', f"study({plan_of(size)}, {name!r}, A)") for name in names]


def codes(size):
    "Chapter 23: codes, their cures, priors over them, a discriminator; the same in colour."
    begin = (f"plan = {plan_of(size)}\nimages = PICTURES[plan.coder.data]()\n"
             "def model(): return run_codes(plan.coder, A, device(), R).model\n"
             "def learn(name, few, job, folder, process=None):\n"
             "    DATASETS[name] = lambda K: coded(model(), images, few)\n"
             "    run_job(job, folder, process, device(), R)\n")
    stem, small = f'unleashing_{size}', "plan.few, crossover_jobs(plan)"
    every = "None, prior_jobs(plan)"
    tasks = [Task('codes', '23', begin + "model()", makes=tensors(f'{stem}_codes'))]
    for i in range(8):
        cure = f"run_codes([*cures(plan).values()][{i}], R, device(), R)"
        tasks.append(Task(f'codes, cure {i}', '23', begin + cure,
                          makes=tensors(f'{stem}_codes_cure_{i}')))
    other = ", Reweighted(plan.prior.K + 1, reciprocal_schedule(plan.prior.T))"
    priors = dict(labelled=('A', ''), absorbing=('A', ''), autoregressive=('R', ''),
                  reweighted=('R', other))
    for name, (folder, process) in priors.items():
        code = f"learn(plan.prior.data, {every}[{name!r}], {folder}{process})"
        tasks.append(Task(f'codes, {name}', '23', begin + code, ('codes',),
                          tensors(f'{stem}_{name}')))
    for name in ('absorbing', 'autoregressive'):
        code = f"learn(plan.prior.data + '_few', {small}[{name!r}], R)"
        tasks.append(Task(f'codes, {name}, few', '23', begin + code, ('codes',),
                          tensors(f'{stem}_{name}_few')))
    for row in ('without', 'default', 'clamp', 'DiffAug', 'both'):
        code = ("net, _ = judge_of(images, plan.judge)\n"
                "coder = run_codes(plan.coder, A, device(), R)\n"
                f"gan_run(plan, coder, images, net, {row!r}, R)")
        tasks.append(Task(f'codes, discriminator {row}', '23', begin + code, ('codes',),
                          tensors(f'{stem}_codes_gan_{row}')))
    study = f"study({plan_of(size)}, A, R, A / '{stem}.json')"
    tasks.append(Task('codes asked', '23', study, asks=True))
    return tasks + (colours(begin) if size == 'kept' else [])


def colours(begin):
    "Codes of CIFAR-10, a prior, and larger canvases."
    begin = begin.replace('plan = KEPT', 'plan = COLOUR')
    study = "study(COLOUR, A, R, A / 'unleashing_kept_colour.json')"
    return [Task('colours', '23', begin + "model()", makes=tensors('unleashing_kept_colour_codes')),
            Task('colours, absorbing', '23', begin + "learn(plan.prior.data, None, plan.prior, A)",
                 ('colours',), tensors('unleashing_kept_colour_absorbing')),
            Task('colours asked', '23', study, asks=True)]


def drawings(size):
    "Chapter 30: encoder and decoder, ten priors and a DDPM, for each data set."
    setups = dict(digits='TINY') if size == 'tiny' else dict(fashion32="KEPT['fashion32']",
                                                             mnist32="KEPT['mnist32']")
    from discdiff_nb.drawings import PRIORS
    tasks = []
    for data, setup in setups.items():
        begin = f"bench = prepare({setup}, (A, R, R), device())\n"
        def task(name, code, needs, data=data, begin=begin):
            file = re.sub(r'\W+', '_', name)
            return Task(f'{data}, {name}', '30', begin + code, needs,
                        tensors(f'diffusedraw_{size}_{data}_{file}'))
        first = f'{data}, w50'
        tasks.append(task('w50', '', ()))
        tasks += [task(name, f"trained_prior(bench, {name!r})", (first,)) for name in PRIORS]
        tasks.append(task('ddpm', "ddpm_row(bench, judge_of(bench))", (first,)))
        tasks.append(Task(f'{data} asked', '30', f"study({setup}, (A, R, R), device())", asks=True))
    return tasks


def refiners(size):
    "Chapter 25: the VAE, four forms, three other chains, a smaller network, students."
    begin = f"bench = prepare({plan_of(size)}, (A, R), A / 'diffusevae_{size}.json', device())\n"
    forms = {'form 1, z': 'form1_z', 'form 1': 'form1', 'form 2': 'form2', 'form 2, z': 'form2_z'}
    def task(name, code, files, needs=('vae',)):
        return Task(name, '25', begin + code, needs,
                    tensors(*(f'diffusevae_{size}_{file}' for file in files)))
    students = "trained_students(bench, *trained_form(bench, 'form 1, z'))"
    half = "trained_form(bench, 'form 1, z', max(8, bench.plan.channels // 2))"
    study = f"study({plan_of(size)}, (A, R), A / 'diffusevae_{size}.json', R, seconds, device())"
    return [task('vae', "", ['vae'], ()),
            *(task(f'refiner, {name}', f"trained_form(bench, {name!r})", [file])
              for name, file in forms.items()),
            task('refiner, students', students, [f'student{n}' for n in (32, 16, 8, 4)],
                 ('refiner, form 1, z',)),
            *(task(f'refiner, {name}', f"trained_other(bench, {name!r})", [name])
              for name in ('moving', 'absorbing')),
            task('refiner, half', half, [f'form1_z_{dict(kept=16, tiny=8)[size]}']),
            Task('refiners asked', '25', study, asks=True)]


def layouts(size):
    "Chapters 22 and 28; their tiny size runs in 28's own cells, on data that they write."
    if size == 'tiny': return []
    begin = "DATASETS['layouts'] = layouts_alone\njobs = kept_jobs()\n"
    names = ('first', 'pair', 'image', 'layout', 'painter', 'read', 'read_first', 'camvid',
             'read_camvid')
    tasks = []
    for name in names:
        folder = 'A' if name in ('first', 'pair', 'camvid') else 'R'
        code = f"job = jobs[{name!r}]\nrun_task(job, PAIRS[job.data](16), {folder}, device(), R)"
        tasks.append(Task(f'layouts, {name}', '28', begin + code,
                          makes=tensors(f'layouts_kept_{name}')))
    for i in range(4):
        code = f"run_job(alone_jobs(1500)[{i}], R, device=device(), running=R)"
        tasks.append(Task(f'layouts, alone {i}', '28', begin + code,
                          makes=tensors(f'layouts_kept_alone_{i}')))
    study = "study_all(jobs, KEPT, A / 'layouts_kept.json', partial(alone, 1500))"
    return [*tasks, Task('layouts asked', '28', begin + study, asks=True)]


def tasks_of(size):
    "All of them; what others need first, and then what takes long."
    pages = (refiners, codes, layouts, drawings, texts, garments)
    every = [task for page in pages for task in page(size)]
    needed = {name for task in every for name in task.needs}
    return sorted(every, key=lambda task: task.name not in needed)


# one task

def wanted(node):
    "Is it an import, a function, a class, `Class.method = f`, a CONSTANT, a dict of arguments?"
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)): return True
    if not isinstance(node, (ast.Assign, ast.AugAssign)): return False
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    names = [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
    constant = names and all(name.isupper() for name in names)
    method = isinstance(targets[0], ast.Attribute) and names[0][0].isupper()
    return bool(constant or method or ast.unparse(node.value).startswith('dict('))


def definitions(path):
    "What the cells of a notebook define, without what cannot be made alone."
    space = dict(__name__='page')
    for cell in json.loads(path.read_text())['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] != 'code' or '%pip' in source: continue
        for node in filter(wanted, ast.parse(source).body):
            try: exec(compile(ast.Module([node], []), path.name, 'exec'), space)
            except Exception as e: print(f'line {node.lineno} of a cell is left out: {e}'[:100])
    return space


def patient(load_or_train, makers, mine, out):
    "`load_or_train` that waits for a file which another task makes."
    def load(path, *rest):
        maker = makers.get(path.name)
        while maker and path.name not in mine and not path.is_file():
            if (out / 'logs' / f'{maker}.failed').is_file(): raise SystemExit(f'{maker} failed')
            time.sleep(1)
        return load_or_train(path, *rest)
    return load


def one(task, tasks, out):
    "Run it here."
    os.chdir(ROOT / 'nbs')
    import torch
    from discdiff_nb import cli, runs
    torch.set_num_threads(1)
    if os.environ.get('COMMIT'): runs.commit = lambda: os.environ['COMMIT'] # where git is not
    makers = {file: other.name for other in tasks for file in other.makes}
    runs.load_or_train = patient(runs.load_or_train, makers, task.makes, out) # before the imports
    page, = (ROOT / 'nbs').glob(f'{task.page}_*.ipynb')
    A, R = out / 'assets', out / 'runs'
    space = definitions(page) | dict(A=A, R=R, device=lambda: cli.devices()[-1])
    if task.page == '28': space |= dict(FOLDER=dict(assets=A, runs=R))
    print(f'{task.name}: begins on {cli.devices()[-1]}', flush=True)
    exec(task.code, space)


# all tasks

def furnish(out):
    "The folders, and in them what nbs/assets keeps: that is loaded, not made again."
    for part in ('assets', 'runs', 'logs'): (out / part).mkdir(parents=True, exist_ok=True)
    for kept in (ROOT / 'nbs' / 'assets').iterdir():
        if not (out / 'assets' / kept.name).exists(): shutil.copy(kept, out / 'assets')


def begin(task, args, out):
    "Start its process."
    command = [sys.executable, __file__, 'one', task.name, str(out), '--size', args.size]
    settings = dict(OMP_NUM_THREADS='1', TQDM_MININTERVAL='10', TORCHINDUCTOR_COMPILE_THREADS='4')
    with open(out / 'logs' / f'{task.name}.log', 'w') as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | settings)


def run(args, tasks, out):
    "Begin each task as soon as it may, and end all when the minutes are over."
    started, running = time.time(), {}
    def say(words): print(f'{time.time() - started:5.0f} s  {words}', flush=True)
    for old in (out / 'logs').glob('*.failed'): old.unlink()
    done = {task.name for task in tasks if (out / 'logs' / f'{task.name}.done').is_file()}
    left = [task for task in tasks if task.name not in done]
    asks = {task.name for task in tasks if task.asks}
    while (left or running) and time.time() - started < 60 * args.minutes:
        for name, process in [*running.items()]:
            if process.poll() is None: continue
            how = 'failed' if process.returncode else 'done'
            (out / 'logs' / f'{name}.{how}').touch()
            del running[name]
            if not process.returncode: done.add(name)
            say(f'{name}: {how}')
        for task in left[:]:
            free = args.workers - len(running.keys() - asks)
            if not set(task.needs) <= done or not (task.asks or free > 0): continue
            left.remove(task)
            running[task.name] = begin(task, args, out)
            say(f'{task.name}: begins')
        if not running: break # what is left needs what failed
        time.sleep(0.5)
    for name, process in running.items():
        process.kill()
        say(f'{name}: cut off')
    for task in left: say(f'{task.name}: not begun')


def main(argv=None):
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    commands = parser.add_subparsers(dest='command', required=True)
    for name in ('list', 'run', 'one'):
        command = commands.add_parser(name)
        if name == 'one': command.add_argument('name')
        if name != 'list': command.add_argument('out', type=Path)
        if name != 'one': command.add_argument('--match', default='', help='pattern of names')
        command.add_argument('--size', choices=('tiny', 'kept'), default='kept')
        if name == 'run':
            command.add_argument('--minutes', type=float, default=9.)
            command.add_argument('--workers', type=int, default=12)
    args = parser.parse_args(argv)
    every = tasks_of(args.size)
    if args.command == 'one':
        found = [task for task in every if task.name == args.name]
        if not found: raise SystemExit(f'pages.py: no task {args.name!r}; see pages.py list')
        furnish(args.out.resolve())
        return one(found[0], every, args.out.resolve())
    tasks = [task for task in every if re.search(args.match, task.name)]
    if args.command == 'run':
        furnish(args.out.resolve())
        return run(args, tasks, args.out.resolve())
    for task in tasks: print(task.page, ', after '.join([task.name, *task.needs]))


if __name__ == '__main__': main()
