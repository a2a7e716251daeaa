"""A run that is killed with SIGKILL at random moments always leaves a checkpoint that loads, and ends as if it had not been killed.

DISCDIFF_KILLS sets the number of moments (2 in CI; 20 before a release)."""
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from discdiff_nb.core import reciprocal_schedule
from discdiff_nb.d3pm import Absorbing
from discdiff_nb.data import digits
from discdiff_nb.nets import UNet
from discdiff_nb.train import fit, load_tensors

KILLS, STEPS = int(os.environ.get('DISCDIFF_KILLS', 2)), 60


def run(folder, resume):
    "A run of 60 small steps that saves at every second one; returns its losses."
    import torch
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = UNet(18, 1000, (8, 8), channels=8)
    return fit(Absorbing(18, reciprocal_schedule(1000)), net, digits().train, STEPS, folder, batch_size=8, save_every=2, resume=resume)[1]


@pytest.mark.skipif(os.name == 'nt', reason='SIGKILL')
def test_kill(tmp_path):
    (tmp_path / 'whole').mkdir()
    whole = run(tmp_path / 'whole', resume=False)
    moments = random.Random(0)
    for i in range(KILLS):
        folder = tmp_path / str(i)
        folder.mkdir()
        child = subprocess.Popen([sys.executable, __file__, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert child.stdout.readline() == b'ready\n'
        checkpoint, deadline = folder / 'checkpoint.safetensors', time.time() + 60
        while not checkpoint.exists() and time.time() < deadline: time.sleep(0.001)
        time.sleep(moments.uniform(0, 1.0))
        child.send_signal(signal.SIGKILL)
        child.wait()
        tensors, _ = load_tensors(checkpoint)  # whole, or CheckpointError
        done = len(tensors['losses'])
        assert done % 2 == 0 and tensors['losses'].tolist() == whole[:done]
        assert run(folder, resume=True) == whole, f'kill {i}: resumed from step {done}, but the losses differ'
        print(f'kill {i}: at step {done} or {done + 1} of {STEPS}')


if __name__ == '__main__':
    print('ready', flush=True)
    run(Path(sys.argv[1]), resume=False)
