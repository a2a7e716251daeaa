"Checks of the repository's files: the wheel, what an import pulls in, banned names, notebooks as files, generated files."
import ast
import configparser
import email
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / 'nbs'
sys.path.insert(0, str(ROOT / 'tools'))
from address import Address # noqa: E402

ADDRESS = Address()
NOTEBOOKS = sorted(p for p in NBS.rglob('*.ipynb') if not any(part[0] in '._' for part in p.relative_to(NBS).parts))
CHAPTERS = [p for p in NOTEBOOKS if p.parent == NBS and p.stem != 'index']
MODULES = sorted(p for p in (ROOT / 'discdiff_nb').glob('*.py') if p.stem[0] != '_')

def name(path): return path.relative_to(ROOT).as_posix()
def text(cell): return ''.join(cell['source'])
def cells(path, kind): return [c for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == kind]
def number(path): return int(re.match(r'(\d+)', path.stem)[1])
def directive(source, key): return (re.findall(rf'^#\|\s*{key}\b:?[ \t]*(.*?)[ \t]*$', source, re.M) or [None])[0]

def python(cell):
    "The Python in a code cell: without IPython's lines."
    return re.sub(r'^(\s*)[!%?].*$', r'\1pass', text(cell), flags=re.M)

def default_exp(path):
    return next(filter(None, (directive(text(c), 'default_exp') for c in cells(path, 'code'))), None)

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "The wheel, built from a copy of the working tree so that no stale build/ is in it."
    tree, out = (tmp_path_factory.mktemp(n) for n in ('tree', 'wheel'))
    left_out = shutil.ignore_patterns('.*', '_proc', '_docs', 'build', 'dist', 'runs', 'data', '*.egg-info', 'katex')
    shutil.copytree(ROOT, tree, dirs_exist_ok=True, ignore=left_out)
    run = subprocess.run([sys.executable, '-m', 'build', '--wheel', '--no-isolation', '--outdir', out, tree], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return zipfile.ZipFile(next(out.glob('*.whl')))

def test_wheel_holds_only_the_package(wheel):
    tops = {n.split('/')[0] for n in wheel.namelist()}
    assert {t for t in tops if not t.endswith('.dist-info')} == {'discdiff_nb'}, tops
    assert all(n.endswith('.py') for n in wheel.namelist() if n.startswith('discdiff_nb/')), wheel.namelist()
    assert {f'discdiff_nb/{m.name}' for m in MODULES} <= set(wheel.namelist())

def test_wheel_entry_points(wheel):
    points = configparser.ConfigParser()
    points.read_string(wheel.read(next(n for n in wheel.namelist() if n.endswith('entry_points.txt'))).decode())
    assert points['console_scripts']['discdiff'] == 'discdiff_nb.cli:main'
    assert points['nbdev']['discdiff_nb'] == 'discdiff_nb._modidx:d'  # nbdev finds what a name in backticks links to

def metadata(wheel):
    "The wheel's METADATA, as a message: its fields and, as its text, the long description."
    return email.message_from_string(wheel.read(next(n for n in wheel.namelist() if n.endswith('/METADATA'))).decode())

def test_wheel_description_has_no_relative_link(wheel):
    words = re.sub(r'```.*?```|`[^`\n]*`', '', metadata(wheel).get_payload(), flags=re.S)
    links = re.findall(r'\]\(([^)\s]+)', words) + re.findall(r'\b(?:src|href)="([^"]+)', words)
    assert len(links) > 40 and not [link for link in links if not re.match('https?://', link)]
    assert f'![64 digits appearing pixel by pixel out of masked sheets]({ADDRESS.raw("nbs/assets/digits.gif")})' in words
    assert f'[01_core]({ADDRESS.blob("nbs/01_core.ipynb")})' in words

def test_wheel_says_where_the_project_is(wheel):
    fields = metadata(wheel)
    urls = dict(line.split(', ', 1) for line in fields.get_all('Project-URL'))
    assert urls['Source'] == ADDRESS.url and urls['Documentation'] == ADDRESS.site and {'Issues', 'Changelog'} <= set(urls)
    oldest = int(ADDRESS.settings['min_python'].split('.')[1])
    assert f'Programming Language :: Python :: 3.{oldest}' in fields.get_all('Classifier')
    assert any(line.startswith('Development Status') for line in fields.get_all('Classifier'))

def test_imports_are_light():
    "Importing a module pulls in neither torchvision nor matplotlib nor scikit-learn; viz alone may have matplotlib."
    modules = [m.stem for m in MODULES if m.stem != 'viz']
    code = ('import importlib, sys\n'
            'for m in sys.argv[1:]:\n'
            '    importlib.import_module("discdiff_nb." + m)\n'
            '    heavy = {"torchvision", "matplotlib", "sklearn"} & set(sys.modules)\n'
            '    if heavy: sys.exit(f"discdiff_nb.{m} imports {sorted(heavy)}: import them inside the function that uses them")')
    run = subprocess.run([sys.executable, '-c', code, *modules], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr

NAMES = {'x_start': 'clean data are x0', 'x_0': 'clean data are x0', 'num_timesteps': 'the number of steps is T'}
PURPOSE = '# banned on purpose:'  # with a reason, in a notebook cell that shows what the banned thing does; never in a module

def small(node):
    "A number like 1e-6, or the name eps."
    if isinstance(node, ast.Constant): return isinstance(node.value, float) and 0 < node.value <= 1e-3
    return isinstance(node, ast.Name) and node.id.lower() == 'eps'

def smooths(node):
    "Is this `something + 1e-6`, `something + eps` or `.clamp(1e-6)`, with a something that is not a number itself?"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (small(node.left) or small(node.right)) and not (isinstance(node.left, ast.Constant) and isinstance(node.right, ast.Constant))
    if isinstance(node, ast.Call) and called(node) in {'clamp', 'clamp_min', 'clamp_', 'clip', 'maximum', 'max'}:
        return any(small(n) for n in node.args + [k.value for k in node.keywords])
    return False

def called(node):
    "The last name of what a call calls: log for torch.log(p) and for p.log()."
    return getattr(node.func, 'attr', getattr(node.func, 'id', ''))

def bans(source, library):
    "Why the source is against the conventions, one reason for each place."
    tree, found = ast.parse(source), []
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node): child.parent = node
    for node in ast.walk(tree):
        def ban(reason): found.append(f'line {node.lineno}: {reason}')
        for field in ('id', 'arg', 'attr', 'name'):
            if getattr(node, field, None) in NAMES: ban(f'{getattr(node, field)}: {NAMES[getattr(node, field)]}')
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            if 'pickle' in {a.name for a in node.names} | {getattr(node, 'module', '')}:
                ban('pickle: reading one runs whatever code it holds; use safetensors or json')
        if isinstance(node, ast.Call):
            if ast.unparse(node.func) == 'torch.load': ban('torch.load unpickles, which runs code from the file; use safetensors.torch.load_file')
            if re.fullmatch(r'log(2|10|1p)?_?', called(node)):
                inside = [n for part in [node.func, *node.args] for n in ast.walk(part)]
                if any(smooths(n) for n in inside):
                    ban('a smoothing constant inside a log: it biases the bound (+1100 % of a KL at K = 256); stay in log space')
            if library and called(node) == 'cuda': ban('.cuda(): the device comes from the data')
        if library and isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r'cuda(:\d+)?', node.value):
            if not isinstance(node.parent, (ast.IfExp, ast.Compare)): ban(f'{node.value!r} as a device: the device comes from the data')
    return found

@pytest.mark.parametrize('path', MODULES, ids=name)
def test_modules_follow_the_conventions(path):
    found = bans(path.read_text(encoding='utf-8'), library=True)
    assert not found, '\n'.join(found)

@pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
def test_notebooks_follow_the_conventions(path):
    for cell in cells(path, 'code'):
        if PURPOSE in text(cell) or text(cell).startswith('%%'): continue
        found = bans(python(cell), library=False)
        assert not found, '\n'.join([*found, f'(a cell that shows what this does says so with a comment `{PURPOSE} why`)', text(cell)])

@pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
def test_notebook_is_sound(path):
    "Valid, under 1 MB, no long cell, no stored error, a title, a badge that opens this very notebook."
    nbformat.validate(nbformat.read(path, as_version=4))
    assert path.stat().st_size < 2**20, f'{path.stat().st_size} bytes; smaller or fewer figures'
    code, markdown = cells(path, 'code'), [text(c) for c in cells(path, 'markdown')]
    for cell in code:
        assert text(cell).count('\n') < 25, f'a cell of {text(cell).count(chr(10)) + 1} lines; 25 at most:\n{text(cell)}'
        assert not any(o['output_type'] == 'error' for o in cell['outputs']), f'a stored error under:\n{text(cell)}'
    title = re.match(r'# \S.*\n+> (\S.*)', markdown[0])
    assert title, 'the first cell must be `# Title` and `> one line`'
    assert '\\' not in title[1], 'the line under the title becomes the docstring of the module: no TeX in it'
    if path.stem != 'index':
        assert ADDRESS.badge(name(path)) in markdown, 'no cell with the Colab badge of this notebook; remedy: make pages'
        assert '](' not in markdown[0], 'nbdev turns the cell of the title into front matter: put the badge into a cell of its own'
        assert default_exp(path) or number(path) >= 20 or path not in CHAPTERS or path.stem == '00_start', 'no `#| default_exp module`'

@pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
def test_every_figure_has_alt_text(path):
    "Quarto's cell option `#| fig-alt: \"...\"` on each cell that shows an image; ![words](file) in markdown."
    for cell in cells(path, 'code'):
        shown = ' '.join(kind for o in cell['outputs'] for kind in o.get('data', {}))
        page = ' '.join(''.join(o['data'].get('text/html', '')) for o in cell['outputs'] if 'data' in o)
        if 'image/' in shown or re.search(r'<(img|svg|video|canvas)\b', page):
            assert (directive(text(cell), 'fig-alt') or '').strip('"\' '), f'no `#| fig-alt: "..."` in the cell of a figure:\n{text(cell)}'
    for cell in cells(path, 'markdown'):
        assert not re.search(r'!\[\s*\]\(', text(cell)), f'an image without words:\n{text(cell)}'

def imported(tree):
    "The modules of discdiff_nb that a syntax tree imports."
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): yield from (a.name.split('.')[1] for a in node.names if a.name.startswith('discdiff_nb.'))
        if isinstance(node, ast.ImportFrom) and node.module == 'discdiff_nb': yield from (a.name for a in node.names)
        if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('discdiff_nb.'): yield node.module.split('.')[1]

def exported(cell): return directive(text(cell), 'export') is not None

def test_exported_cells_import_only_from_lower_numbers():
    "Parts: I 00-02, II 03-10, III 11-19, IV 20-27. What is not exported may use any module."
    numbers = [number(p) for p in CHAPTERS]
    assert len(set(numbers)) == len(numbers), f'a number used twice: {sorted(numbers)}'
    home = {default_exp(p): p for p in CHAPTERS if default_exp(p)}
    for path in CHAPTERS:
        for cell in cells(path, 'code'):
            if text(cell).startswith('%%'): continue
            for module in set(imported(ast.parse(python(cell)))):
                assert module in home, f'{path.name} imports discdiff_nb.{module}, which no chapter exports'
                late = number(home[module]) >= number(path)
                said = f'{path.name} exports a cell that imports discdiff_nb.{module}, which stands later'
                where = f'in {home[module].name}; remedy: move what it needs to a lower number'
                assert not (late and exported(cell)), f'{said}, {where}'

def test_every_module_has_a_chapter():
    assert {m.stem for m in MODULES} == {default_exp(p) for p in CHAPTERS} - {None}

def test_sidebar_lists_every_page_once():
    contents = yaml.safe_load((NBS / 'sidebar.yml').read_text())['website']['sidebar']['contents']
    listed = [page for entry in contents for page in (entry['contents'] if isinstance(entry, dict) else [entry])]
    assert sorted(listed) == sorted(p.relative_to(NBS).as_posix() for p in NOTEBOOKS)

@pytest.mark.parametrize('tool', ['address.py', 'api.py', 'readme.py'])
def test_generated_files_are_in_step(tool):
    run = subprocess.run([sys.executable, ROOT / 'tools' / tool, '--check'], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr

def test_the_first_page_lists_every_chapter():
    table = '\n'.join(text(c) for c in cells(NBS / 'index.ipynb', 'markdown'))
    for path in CHAPTERS: assert f'| [{path.stem}]({path.name}) |' in table, f'index.ipynb lists no {path.name}'
