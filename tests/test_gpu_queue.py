"The queue of full jobs at its tiny size: whole, killed and begun again, stopped by its own clock, on the pretended GPU."
import contextlib
import gzip
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from elsewhere import pretended
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
TOOL = ROOT / 'tools' / 'gpu.py'


@pytest.fixture(scope='module')
def gpu():
    "tools/gpu.py as a module."
    spec = importlib.util.spec_from_file_location('gpu_queue', TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules['gpu_queue'] = module # a dataclass asks for its module by name
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def as_found(monkeypatch, tmp_path):
    "No data set, no network; what the tool switches is switched back."
    monkeypatch.setenv('DISCDIFF_DATA', str(tmp_path / 'nothing'))
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def queue(out, *names): return ['run', *names, '--size', 'tiny', '--no-compile', '--minutes', '60', '--out', str(out)]
def tiny(gpu): return [gpu.tiny(job) for job in gpu.JOBS]


def check_whole(job, out):
    "A log with a bound and a curve, weights and samples; nothing half done beside them."
    log = json.loads((out / f'{job.name}.json').read_text())
    tensors = load_file(out / f'{job.name}.safetensors')
    assert log['job'] == json.loads(json.dumps(asdict(job))) and {'training', 'results'} <= set(log['seconds'])
    if 'plan' in log['job']:
        assert {'real', 'draft | prior', 'form 1, z | mixture | 4'} <= set(log) and log['machine']
        assert {name.split('.')[0] for name in tensors} > {'vae', 'net', 'held out', 'mixture, draft', 'mixture, refined'}
        shape = (10, 8, 8) if log['job']['plan']['data'] == 'digits' else (10, 3, 16, 16)
        assert len(log['losses']) == 2
        assert tensors['mixture, refined'].shape == shape and not (out / 'running' / job.name).exists()
        return
    if 'setup' in log['job']:
        assert {'digits: grid, mask', 'digits: DDPM', 'digits: all of z in order, joint'} <= set(log) and log['machine']
        assert tensors['grid, mask: x'].shape == (40, 8, 8) and tensors['grid, mask: x'].max() < 9
        assert {name.split('.')[0] for name in tensors if '.' in name} == {'w50', 'grid_mask'}
        assert len(log['losses']) == 15 and not (out / 'running' / job.name).exists()
        return
    assert log['parameters'] > 0 and 'ready' in log['seconds']
    assert log['test']['bits'] > 0 and len(log['test']['each']) == log['test']['n'] == 40 and log['train']['each'] is None
    assert len(log['losses']) == 1 and any(name.startswith('net.') for name in tensors)
    assert not (out / 'running' / job.name).exists()
    if job.length: assert all(len(row) == job.length for row in log['rows'])
    else: assert tensors['drawn 250'].shape == (40, 8, 8) and tensors['drawn 250'].max() < job.K


def test_killed_and_begun_again(gpu, tmp_path, capsys):
    "The whole queue; the first process is killed while its second job runs."
    jobs = tiny(gpu)
    first = tmp_path / f'{jobs[0].name}.json'
    with open(tmp_path / 'said', 'w') as said:
        process = subprocess.Popen([sys.executable, str(TOOL), *queue(tmp_path)], stdout=said, stderr=said)
    while not (first.is_file() and (tmp_path / 'running' / jobs[1].name).exists()):
        assert process.poll() is None, (tmp_path / 'said').read_text()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / f'{jobs[-1].name}.json').exists()
    written = first.stat().st_mtime_ns
    (tmp_path / 'running' / jobs[0].name).mkdir(exist_ok=True) # as if killed right after its log
    gpu.main(queue(tmp_path))
    assert first.stat().st_mtime_ns == written
    for job in jobs: check_whole(job, tmp_path)
    capsys.readouterr()
    gpu.main(['list', '--size', 'tiny', '--out', str(tmp_path)])
    assert capsys.readouterr().out.count('done') == len(jobs)


def test_its_clock(gpu):
    "The clock rings within, and not after."
    with pytest.raises(KeyboardInterrupt):
        with gpu.ends_after(0.2) as rung: time.sleep(20)
    assert rung
    with gpu.ends_after(0.3) as rung: pass
    time.sleep(0.5)
    assert not rung


def test_its_minutes_are_over(gpu, tmp_path, monkeypatch, capsys):
    "The clock rings in every step: each part ends with a checkpoint, and the next goes on; the weights are those of one go."
    name, noise = 'fashion_mnist_full_uniform_16', gpu.noise
    gpu.main(queue(tmp_path / 'once', name))

    def rings(job, train):
        process = noise(job, train)
        loss = process.loss

        def ringing(*args):
            os.kill(os.getpid(), signal.SIGINT)
            return loss(*args)
        process.loss = ringing
        return process
    monkeypatch.setattr(gpu, 'noise', rings)
    monkeypatch.setattr(gpu, 'ends_after', lambda seconds: contextlib.nullcontext(['rung']))
    gpu.main(queue(tmp_path / 'parts', name))
    said = capsys.readouterr().out
    assert said.count('goes on from its checkpoint') == 6 and said.count('done') == 2
    once, parts = (load_file(tmp_path / way / 'fashion_mnist_tiny_uniform_16.safetensors') for way in ('once', 'parts'))
    for key in once: assert torch.equal(once[key], parts[key]), key


def test_minutes_of_drafts_are_over(gpu, tmp_path, monkeypatch, capsys):
    "The clock rings while the refiner learns: the VAE stays, the refiner goes on, and the weights are those of one go."
    name, loss, calls = 'diffusevae_full_cifar10_jpeg', gpu.Gaussian.loss, []
    gpu.main(queue(tmp_path / 'once', name))

    def ringing(*args):
        calls.append(args)
        if len(calls) == 3: os.kill(os.getpid(), signal.SIGINT) # the step is ended, and kept
        return loss(*args)
    monkeypatch.setattr(gpu.Gaussian, 'loss', ringing)
    monkeypatch.setattr(gpu, 'ends_after', lambda seconds: contextlib.nullcontext(['rung']))
    capsys.readouterr()
    gpu.main(queue(tmp_path / 'parts', name))
    said = capsys.readouterr().out
    assert said.count('goes on from its checkpoint') == 1 and said.count('done') == 1 and said.count('vae.safetensors: no such file') == 1
    assert len(calls) == 6
    job = gpu.tiny({job.name: job for job in gpu.JOBS}[name])
    check_whole(job, tmp_path / 'parts')
    once, parts = (load_file(tmp_path / way / f'{job.name}.safetensors') for way in ('once', 'parts'))
    for key in once: assert torch.equal(once[key], parts[key]), key


def test_minutes_of_parts_are_over(gpu, tmp_path, monkeypatch, capsys):
    "The clock rings within a prior and between two answers: networks and answers that are there stay."
    name, floor, fit, rung = 'diffusedraw_full_cifar32', gpu.drawings.floor_row, gpu.drawings.run_on, []

    def ringing(job, *args):
        if 'transformer' in job.name and 'in a network' not in rung:
            rung.append('in a network')
            os.kill(os.getpid(), signal.SIGINT)
        return fit(job, *args)

    def between(bench, judge):
        if 'between' not in rung:
            rung.append('between')
            os.kill(os.getpid(), signal.SIGINT)
        return floor(bench, judge)
    monkeypatch.setattr(gpu.drawings, 'run_on', ringing)
    monkeypatch.setattr(gpu.drawings, 'floor_row', between)
    monkeypatch.setattr(gpu, 'ends_after', lambda seconds: contextlib.nullcontext(['rung']))
    gpu.main(queue(tmp_path, name))
    said = capsys.readouterr().out
    assert rung == ['in a network', 'between'] and said.count('goes on from its checkpoint') == 2 and said.count('done') == 1
    assert said.count('row_cosine.safetensors: no such file') == 1
    check_whole(gpu.tiny({job.name: job for job in gpu.JOBS}[name]), tmp_path)


def test_a_person_stops_it(gpu, tmp_path, monkeypatch):
    "Ctrl-C is no end of a job's minutes: it ends the queue."
    fit = gpu.fit

    def pressed(*args, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return fit(*args, **options)
    monkeypatch.setattr(gpu, 'fit', pressed)
    with pytest.raises(KeyboardInterrupt): gpu.main(queue(tmp_path, 'fashion_mnist_full_uniform_16'))
    assert not list(tmp_path.glob('*.json'))


def test_on_a_gpu(gpu, tmp_path):
    "One job of each kind, on the device that says it is cuda."
    names = ['fashion_mnist_full_absorbing_16', 'fashion_mnist_full_gaussian_16', 'text_full_novels27_absorbing',
             'text_full_novels27_autoregressive', 'diffusevae_full_fashion_mnist', 'diffusedraw_full_cifar32']
    with pretended():
        gpu.main(queue(tmp_path, *names))
        assert gpu.device() == 'cuda'
    for job in tiny(gpu):
        if job.name.replace('tiny', 'full') in names: check_whole(job, tmp_path)


def test_equal_steps_and_minutes(gpu):
    "All noises on the same data take the same steps; three minutes at most, a minute of them for results."
    for data in ('fashion_mnist', 'novels27'):
        assert len({(job.steps, job.batch_size, job.lr, json.dumps(job.net)) for job in gpu.JOBS
                    if getattr(job, 'data', None) == data}) == 1
    assert gpu.MINUTES <= 3 and gpu.RESULTS >= 60
    assert gpu.seconds_to_train(gpu.JOBS[0], 40) == 60 * gpu.MINUTES - gpu.RESULTS - 40


def test_no_job_beyond_the_limit(gpu, tmp_path, capsys):
    "A job that does not fit is not begun; names and minutes that are none are refused."
    gpu.main(['run', '--size', 'tiny', '--no-compile', '--minutes', '0.05', '--out', str(tmp_path)])
    assert capsys.readouterr().out.count('not begun') == len(gpu.JOBS) and not list(tmp_path.glob('*.json'))
    with pytest.raises(SystemExit, match='no such job'): gpu.main(['list', 'nothing', '--out', str(tmp_path)])
    with pytest.raises(SystemExit, match='above 0'): gpu.main(['run', '--minutes', '0', '--out', str(tmp_path)])


def test_needs_little():
    "No nbdev, no IPython, no matplotlib, nothing of a site."
    banned = ('nbdev', 'IPython', 'matplotlib', 'torchvision', 'fastcore')
    code = f"import runpy, sys\nrunpy.run_path({str(TOOL)!r}, run_name='tool')\nprint([m for m in {banned} if m in sys.modules])"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.strip() == '[]', done.stdout + done.stderr


def test_packed_data_comes_out_as_it_went_in(gpu, tmp_path, capsys):
    "Zipped or not; a file for each data set, one of them alone, or a folder that holds the data as it is; what is absent is named."
    root, packed = tmp_path / 'root', tmp_path / 'packed'
    for data, names in gpu.PACKED.items():
        (root / data).mkdir(parents=True)
        for i, name in enumerate(names):
            content, path = name.encode() * (i + 1), root / data / name
            if i: path.write_bytes(content)
            else: path.with_name(f'{name}.gz').write_bytes(gzip.compress(content))
    gpu.pack(packed, root)
    assert [path.name for path in sorted(packed.iterdir())] == [f'{data}.tar.xz' for data in sorted(gpu.PACKED)]
    assert capsys.readouterr().out.count(' MB') == len(gpu.PACKED)
    for source, sets in ((packed, gpu.PACKED), (packed / 'novels27.tar.xz', ['novels27'])):
        folder = gpu.unpacked(source, tmp_path / f'from {source.name}')
        assert sorted(path.name for path in folder.iterdir()) == sorted(sets)
        for data in sets:
            for i, name in enumerate(gpu.PACKED[data]): assert (folder / data / name).read_bytes() == name.encode() * (i + 1)
    assert gpu.unpacked(root, tmp_path / 'unused') == root
    (packed / 'celeba').mkdir()
    (packed / 'celeba' / 'list').write_text('faces')
    assert (gpu.unpacked(packed, tmp_path / 'faces') / 'celeba' / 'list').read_text() == 'faces'
    (root / 'novels27' / gpu.PACKED['novels27'][1]).unlink()
    with pytest.raises(SystemExit, match=f'{gpu.PACKED["novels27"][1]} is absent; remedy: set DISCDIFF_DATA'): gpu.pack(packed, root)
    with pytest.raises(SystemExit, match='no such path'): gpu.main([*queue(tmp_path), '--data', str(tmp_path / 'nowhere')])
