#!/usr/bin/env python3
"""One command from a fresh clone: the first call makes .venv and installs the project into it, later calls go straight on.

  python3 go.py train digits ...    any command of `discdiff` (train, sample, eval); add --help to see its options
  python3 go.py test [NOTEBOOK ...] execute the notebooks as tests, then pytest; with notebooks named, only those
  python3 go.py setup               make .venv with everything for development, run nothing
  python3 go.py --version           the version; like --help and a wrong argument it needs no installation

Installing takes about 2 minutes and 6 GB, most of it torch with CUDA. For torch without CUDA (about 1 GB) set
PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu before the first call."""
import sys

if sys.version_info < (3, 10):  # this file has no newer syntax, so that an old Python gets this far
    sys.stderr.write('go.py needs Python 3.10 or newer, and this is %s: run it as python3.12 go.py ...\n' % sys.version.split()[0])
    sys.exit(2)

import hashlib
import importlib.util
import os
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / '.venv'
BIN = VENV / ('Scripts' if os.name == 'nt' else 'bin')
SUFFIX = '.exe' if os.name == 'nt' else ''
PYTHON = BIN / ('python' + SUFFIX)
STAMP = VENV / 'discdiff_nb.stamp'
COMMANDS = ('train', 'sample', 'eval')  # of discdiff
NO_VENV = ('go.py cannot make a virtual environment: this Python has neither ensurepip nor a pip of 22.3 or newer. '
           'Remedy: apt install python3-venv (Debian, Ubuntu), or use a Python from python.org.')


class Stop(Exception):
    "A reason to end with one line on stderr and a status."
    def __init__(self, message, status):
        super().__init__(message)
        self.status = status


def call(*command, **kwargs):
    "Run a command to its end and return its status. Ctrl-C reaches the command too: it has ten seconds to tidy up."
    with subprocess.Popen([str(c) for c in command], **kwargs) as child:
        try: status = child.wait()
        except KeyboardInterrupt:
            try: child.wait(10)
            except subprocess.TimeoutExpired: child.terminate()
            raise
    return status if status >= 0 else 128 - status


def stamp(extra):
    "What STAMP holds after a finished installation: it changes with the requirements, the extra and the place."
    files = b''.join((ROOT / name).read_bytes() for name in ('settings.ini', 'setup.py'))
    return '\n'.join([extra or 'run', hashlib.sha256(files).hexdigest(), str(ROOT)])


def installed(extra):
    "Is .venv complete for this extra? One for development also does for running."
    return PYTHON.exists() and STAMP.exists() and STAMP.read_text() in {stamp(extra), stamp('dev')}


def usable():
    "Can the .venv that is there be installed into? One copied from another folder cannot: its scripts name the old one."
    if not PYTHON.exists() or (STAMP.exists() and STAMP.read_text().split('\n')[-1] != str(ROOT)): return False
    return call(PYTHON, '-c', 'import pip, sys; sys.exit(sys.version_info < (3, 10))', stderr=subprocess.DEVNULL) == 0


def make_venv():
    "A new .venv with pip in it; without ensurepip, this Python's own pip puts it there."
    pip = importlib.util.find_spec('ensurepip') is not None
    if not importlib.util.find_spec('venv'): raise Stop(NO_VENV, 1)
    import venv
    try: venv.create(VENV, clear=True, symlinks=os.name != 'nt', with_pip=pip)
    except (OSError, subprocess.CalledProcessError) as error: raise Stop('go.py could not make %s: %s' % (VENV, error), 1) from None
    if not pip and call(sys.executable, '-m', 'pip', '--python', PYTHON, 'install', '-q', 'pip'): raise Stop(NO_VENV, 1)


def ensure(extra):
    "Make .venv and install the project into it, editable, unless that is done already."
    if installed(extra): return
    target, start = '.[%s]' % extra if extra else '.', time.time()
    print('go.py: making %s and installing discdiff_nb there (pip install -e %s): about 2 minutes and 6 GB, only this first time'
          % (VENV, target), flush=True)
    if not usable(): make_venv()
    STAMP.unlink(missing_ok=True)
    quiet = [] if sys.stdout.isatty() else ['-q']
    if call(PYTHON, '-m', 'pip', 'install', '--disable-pip-version-check', *quiet, '-e', target, cwd=ROOT):
        raise Stop('go.py: the installation failed (pip says why above); the same command tries again', 1)
    STAMP.write_text(stamp(extra))
    print('go.py: installed in %.0f s' % (time.time() - start), flush=True)


def test(notebooks):
    "The notebooks as tests, two at a time, and pytest whatever came of them; named notebooks alone when there are any."
    env = {'OMP_NUM_THREADS': str(max(1, (os.cpu_count() or 2) // 2)), **os.environ}
    nbdev_test = [BIN / ('nbdev_test' + SUFFIX), '--do_print', '--n_workers', 2]
    statuses = [call(*nbdev_test, '--path', path, cwd=ROOT, env=env) for path in notebooks]
    if notebooks: return max(statuses)
    parts = {'notebooks': call(*nbdev_test, cwd=ROOT, env=env),
             'pytest': call(PYTHON, '-m', 'pytest', '-q', cwd=ROOT, env=env)}
    print('go.py test: ' + ', '.join('%s %s' % (name, 'FAILED' if status else 'passed')
                                     for name, status in parts.items()), flush=True)
    return max(parts.values())


def checked(args):
    "Let the parser of `discdiff` look at the arguments: it needs the standard library only, so no typing error installs anything."
    if not args[0].startswith('-') and args[0] not in COMMANDS:
        raise Stop('go.py has no command %r; it has %s, test and setup' % (args[0], ', '.join(COMMANDS)), 2)
    sys.path.insert(0, str(ROOT))
    from discdiff_nb.cli import parser
    parser().parse_args(args)  # prints help or version, or says what is wrong, and ends


def main(args):
    if not args or args[0] in ('-h', '--help', 'help'):
        print(__doc__)
        return 0
    command, rest = args[0], args[1:]
    if command == 'test':
        notebooks = [Path(a).resolve() for a in rest]
        absent = [str(p) for p in notebooks if p.suffix != '.ipynb' or not p.is_file()]
        if absent: raise Stop('go.py test: no such notebook: ' + ', '.join(absent), 2)
    elif command == 'setup':
        if rest: raise Stop('go.py setup takes no arguments: ' + ' '.join(rest), 2)
    else: checked(args)
    ensure('dev' if command in ('test', 'setup') else '')
    if command == 'setup': return 0
    if command == 'test': return test(notebooks)
    discdiff = [str(BIN / ('discdiff' + SUFFIX)), *args]
    if os.name == 'nt': return call(*discdiff)
    os.execv(discdiff[0], discdiff)  # signals then go to discdiff itself


if __name__ == '__main__':
    try: sys.exit(main(sys.argv[1:]))
    except Stop as stop:
        print(stop, file=sys.stderr)
        sys.exit(stop.status)
    except KeyboardInterrupt:
        sys.exit(130)
