"""A run that is killed with SIGKILL at random moments, or whose disk is full, loses no more than the steps since its last checkpoint.

DISCDIFF_KILLS sets the number of moments (2 in CI; 20 before a release)."""
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from discdiff_nb.core import CheckpointError, reciprocal_schedule
from discdiff_nb.d3pm import Absorbing
from discdiff_nb.data import digits
from discdiff_nb.nets import UNet
from discdiff_nb.checkpoints import load_tensors, read_log
from discdiff_nb.train import fit

KILLS, STEPS, EVERY = int(os.environ.get('DISCDIFF_KILLS', 2)), 60, 2


def run(folder, resume, tell=False, limit=None):
    "A run of 60 small steps that saves at every second one; returns its losses. It can tell each step, and meet a full disk at one."
    import torch
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net, calls = UNet(18, 1000, (8, 8), channels=8), []
    def hook(*_):
        calls.append(1)
        if tell: print(len(calls) - 1, flush=True) # steps that are done
        if len(calls) == limit: full_disk()
    net.register_forward_hook(hook)
    options = dict(batch_size=8, save_every=EVERY, resume=resume, keep=2, held_out=lambda net: (len(calls) - 20) ** 2)
    return fit(Absorbing(18, reciprocal_schedule(1000)), net, digits().train, STEPS, folder, **options)[1]


def full_disk():
    "From now on no file of this process can grow beyond 100 kB: the kernel refuses the write in the middle of a checkpoint."
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))


def child(*words):
    process = subprocess.Popen([sys.executable, __file__, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == 'ready\n'
    return process


@pytest.fixture(scope='module')
def whole(tmp_path_factory): return run(tmp_path_factory.mktemp('whole') / 'run', resume=False)


@pytest.mark.skipif(os.name == 'nt', reason='SIGKILL')
def test_kill(tmp_path, whole):
    moments = random.Random(0)
    for i in range(KILLS):
        folder = tmp_path / str(i)
        victim = child(folder)
        checkpoint, deadline = folder / 'checkpoint.safetensors', time.time() + 600
        while not checkpoint.exists() and time.time() < deadline: time.sleep(0.001)
        time.sleep(moments.uniform(0, 1.0))
        victim.send_signal(signal.SIGKILL)
        told = victim.communicate()[0].split()
        for path in folder.glob('*.safetensors'): load_tensors(path)  # whole, or CheckpointError
        done = len(load_tensors(checkpoint)[0]['losses'])
        assert done % EVERY == 0 and load_tensors(checkpoint)[0]['losses'].tolist() == whole[:done]
        assert int(told[-1]) - done <= EVERY, f'kill {i}: {told[-1]} steps were done, {done} were saved'
        assert run(folder, resume=True) == whole, f'kill {i}: resumed from step {done}, but the losses differ'
        assert [row['step'] for row in read_log(folder / 'log.csv')] == list(range(EVERY, STEPS + 1, EVERY)), f'kill {i}: the log has gaps or doubles'
        print(f'kill {i}: after {told[-1]} steps, {done} were saved, of {STEPS}')


@pytest.mark.skipif(os.name == 'nt', reason='RLIMIT_FSIZE')
def test_full_disk(tmp_path, whole):
    folder = tmp_path / 'run'
    victim = child(folder, 21)
    told, errors = victim.communicate()
    assert victim.returncode == 3 and 'could not be written' in told and told.strip().endswith('step 20'), told + errors
    assert not list(folder.glob('*.tmp'))
    assert len(load_tensors(folder / 'checkpoint.safetensors')[0]['losses']) == 20
    assert run(folder, resume=True) == whole


if __name__ == '__main__':
    print('ready', flush=True)
    try: run(Path(sys.argv[1]), resume=False, tell=True, limit=int(sys.argv[2]) if sys.argv[2:] else None)
    except CheckpointError as e:
        print(e)
        sys.exit(3)
