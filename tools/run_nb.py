"""Run notebooks from top to bottom and keep their outputs: `python tools/run_nb.py nbs/06_d3pm.ipynb ...`

Cells that nbdev would not test (`#| eval: false`, `#| notest`, `#| slow`, `#| cuda`) keep the outputs they have;
`--flags slow cuda` runs those too. A cell that fails stops the run, and the file on disk stays as it was.
"""
import argparse
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def skipped(cell, flags):
    "Does nbdev leave this cell out of its tests?"
    directives = getattr(cell, 'directives_', None) or {}
    return directives.get('eval:', [''])[0].lower() == 'false' or bool(flags & directives.keys())


def progress_bar(output):
    "Is this output the trace of a progress bar? It has no place in a stored page."
    return output.get('name') == 'stderr' and '\r' in ''.join(output['text'])


def run_notebook(path, force=()):
    "Execute `path` in its own folder and write it back with outputs; returns the seconds taken."
    from execnb.nbio import read_nb, write_nb
    from execnb.shell import CaptureShell
    from nbdev.clean import clean_nb
    from nbdev.config import get_config
    from nbdev.process import NBProcessor
    path = Path(path).resolve()
    flags = set(get_config().tst_flags.split()) - set(force)
    skip = {cell.idx_ for cell in NBProcessor(path, process=True).nb.cells if cell.cell_type == 'code' and skipped(cell, flags)}
    nb, shell, start = read_nb(path), CaptureShell(path, mpl_format='png'), time.time()
    os.chdir(path.parent)
    shell.run_all(nb, exc_stop=True, preproc=lambda cell: cell.cell_type != 'code' or cell.idx_ in skip)
    for cell in nb.cells:
        if cell.cell_type == 'code': cell.outputs = [o for o in cell.get('outputs', []) if not progress_bar(o)]
    clean_nb(nb)
    temporary = path.with_suffix('.running')
    write_nb(nb, temporary)
    os.replace(temporary, path)
    return time.time() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('notebooks', nargs='+', type=Path)
    parser.add_argument('--flags', nargs='*', default=[], metavar='FLAG', help='also run cells with these flags (slow, cuda)')
    args = parser.parse_args()
    absent = [str(p) for p in args.notebooks if not p.is_file()]
    if absent: parser.error(f'no such notebook: {", ".join(absent)}')
    sys.path.insert(0, str(ROOT))
    for path in [p.resolve() for p in args.notebooks]:
        print(f'{path.name}: {run_notebook(path, args.flags):.1f} s', flush=True)


if __name__ == '__main__': main()
