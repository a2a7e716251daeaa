"00_start: sixty lines, nothing of ours, a picture soon, and the number that it prints."
import ast
import json
import re
from pathlib import Path
import torch

NOTEBOOK = Path(__file__).resolve().parent.parent / 'nbs' / '00_start.ipynb'
CELLS = json.loads(NOTEBOOK.read_text(encoding='utf-8'))['cells']
CODE = [(i, cell) for i, cell in enumerate(CELLS) if cell['cell_type'] == 'code']


def text(cell): return ''.join(cell['source'])
def drawing(source): return 'matplotlib' in source or source.startswith('#| fig-alt')
def rivals(source): return 'lzma' in source
def python(source): return re.sub(r'^(#\||%%).*\n', '', source, flags=re.M)


def printed(cell):
    return ''.join(''.join(out['text']) for out in cell['outputs'] if out['output_type'] == 'stream')


def imported(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import): yield from (alias.name.split('.')[0] for alias in node.names)
        if isinstance(node, ast.ImportFrom): yield node.module.split('.')[0]


def test_it_has_at_most_sixty_lines():
    "Lines of code, imports included; not counted: empty ones, comments, drawing, the two rivals."
    sources = [python(text(cell)) for _, cell in CODE if not drawing(text(cell)) and not rivals(text(cell))]
    lines = [line for source in sources for line in source.splitlines() if line.strip() and not line.strip().startswith('#')]
    assert 40 < len(lines) <= 60, len(lines)


def test_it_needs_nothing_of_ours():
    names = {name for _, cell in CODE for name in imported(python(text(cell)))}
    assert names == {'lzma', 'math', 'matplotlib', 'os', 'sklearn', 'torch'}


def test_a_line_is_short_and_holds_one_thought():
    for _, cell in CODE:
        assert all(len(line) <= 100 for line in text(cell).splitlines()), text(cell)
        assert ';' not in python(text(cell)) and ':=' not in text(cell)
        for node in ast.walk(ast.parse(python(text(cell)))):
            assert not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Tuple)), text(cell)


def test_the_first_sample_comes_within_25_cells():
    first = next(i for i, cell in CODE if 'frames = generate(' in text(cell))
    assert first + 1 <= 25 and any('image/png' in out.get('data', {}) for out in CELLS[first]['outputs'])


def test_every_figure_has_a_caption_below():
    figures = [i for i, cell in CODE if text(cell).startswith('#| fig-alt')]
    for n, i in enumerate(figures, 1): assert text(CELLS[i + 1]).startswith(f'**Figure {n}.**')


def test_the_kept_number_is_that_of_the_whole_run():
    "At most 1.85 bits; the rivals as the README has them; the prose names the same number."
    table = next(printed(cell) for _, cell in CODE if rivals(text(cell)))
    values = [float(line.split(' +- ')[0].split()[-1]) for line in table.splitlines()[1:]]
    bits, histogram, xz, nothing = values
    assert 1.6 < bits <= 1.85 and (histogram, xz, nothing) == (2.434, 2.854, 4.087)
    assert f'{bits:.2f}' in '\n'.join(text(cell) for cell in CELLS if cell['cell_type'] == 'markdown')


def test_the_loss_is_the_bound_at_T_1000():
    "Its mean over all t is the sum of L_t of the chain with beta_t = 1/(T-t+1), here from the package's own process."
    from discdiff_nb.core import reciprocal_schedule
    from discdiff_nb.d3pm import Absorbing
    sources = [python(text(cell)) for _, cell in CODE]
    page = {}
    for begin in ('import math', 'torch.manual_seed', 'K = 17', 'class Residual', 'def loss'):
        exec(next(source for source in sources if source.startswith(begin)), page)
    process = Absorbing(K=18, schedule=reciprocal_schedule(1000))
    x0, t = page['train'][:64], torch.arange(1, 1001, 1000 // 63)[:64]
    torch.manual_seed(1)
    with torch.no_grad(): ours = page['loss'](x0, t) / 1000
    torch.manual_seed(1)
    x_t = page['q_sample'](x0, t)
    with torch.no_grad(): logits = page['predict'](x_t).movedim(1, -1)
    out = torch.cat([logits, torch.zeros(*logits.shape[:-1], 1)], -1)  # the mask's logit, which the process ignores
    torch.testing.assert_close(ours, process.L_t(out, x0, x_t, t).float(), rtol=1e-4, atol=1e-5)
    assert process.L_T(x0).abs().max() == 0
    assert sum(p.numel() for p in page['net'].parameters()) == 446_993
