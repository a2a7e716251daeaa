"""Two processes on the CPU (gloo) share each batch and get the losses of one process; a pair that was interrupted goes on.

They are started by torchrun: `accelerate launch --cpu` starts several processes only through MPI."""
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from discdiff_nb.core import reciprocal_schedule
from discdiff_nb.d3pm import Absorbing
from discdiff_nb.data import digits
from discdiff_nb.nets import UNet
from discdiff_nb.checkpoints import load_tensors, read_log
from discdiff_nb.train import fit, held_out_bits

ROOT, STEPS = Path(__file__).resolve().parent.parent, 12
LAUNCH = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']


def run(folder, ctrl_c=None, **options):
    "Twelve small steps without dropout, whose masks would differ; batches of 15 do not fall into equal halves. Ctrl-C during one of them."
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net, images = UNet(18, 1000, (8, 8), channels=8, dropout=0.), digits()
    calls = []
    def hook(*_):
        calls.append(1)
        if len(calls) == ctrl_c: os.kill(os.getpid(), signal.SIGINT)
    if ctrl_c: net.register_forward_hook(hook)
    options = dict(held_out=held_out_bits(Absorbing(18, reciprocal_schedule(1000)), images.test[:20], n_t=2), times='iid', **options)
    return fit(Absorbing(18, reciprocal_schedule(1000)), net, images.train, STEPS, folder, batch_size=15, save_every=4, **options)


def two(*words):
    "The same in two processes; what each of them wrote."
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]), 'OMP_NUM_THREADS': '1'}
    for name in ('ACCELERATE_USE_CPU', 'ACCELERATE_MIXED_PRECISION'): env.pop(name, None)
    return subprocess.run([*LAUNCH, __file__, *map(str, words)], env=env, capture_output=True, text=True, timeout=1200)


@pytest.mark.skipif(os.name == 'nt', reason='gloo and signals')
def test_two_processes_are_one(tmp_path):
    average, whole = run(tmp_path / 'one')
    done = two(tmp_path / 'two')
    assert done.returncode == 0 and done.stdout.count('stopped after step 8') == 2, done.stdout + done.stderr
    losses = [json.loads((tmp_path / f'two-{rank}.json').read_text()) for rank in (0, 1)]
    assert losses[0] == losses[1], 'the processes report different losses'
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(whole), rtol=1e-4, atol=0)
    one, pair = (load_tensors(tmp_path / name / 'checkpoint.safetensors') for name in ('one', 'two'))
    assert one[1] == pair[1] and one[0].keys() == pair[0].keys()
    for name in one[0]:
        if name.startswith('ema.'): torch.testing.assert_close(pair[0][name], one[0][name], rtol=1e-2, atol=1e-3)
    one, pair = (read_log(tmp_path / name / 'log.csv') for name in ('one', 'two'))
    for name in ('step', 'loss', 'grad_norm', 'held_out'): # Adam would hide a gradient of the wrong length, its norm does not
        assert [row[name] for row in one] == pytest.approx([row[name] for row in pair], rel=1e-3), name


if __name__ == '__main__':
    folder = Path(sys.argv[1])
    try: run(folder, ctrl_c=6 if os.environ['RANK'] == '1' else None) # one process hears it; both stop at the next checkpoint
    except KeyboardInterrupt as e: print(e)
    _, losses = run(folder, resume=True)
    assert torch.distributed.get_world_size() == 2
    (folder.parent / f'{folder.name}-{torch.distributed.get_rank()}.json').write_text(json.dumps(losses))
    torch.distributed.barrier() # neither leaves while the other still talks
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0) # gloo's threads may abort an interpreter that tidies up: once in nine runs here
