"What went wrong on the page and on Colab: one address, the install cell, requirements, links, scripts from elsewhere."
import ast
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / 'nbs'
sys.path.insert(0, str(ROOT / 'tools'))
from address import Address, differing, installs # noqa: E402

NOTEBOOKS = [p for p in sorted(NBS.rglob('*.ipynb'))
             if not any(part[0] in '._' for part in p.relative_to(NBS).parts)]


def name(path): return path.relative_to(ROOT).as_posix()
def cells(path): return json.loads(path.read_text(encoding='utf-8'))['cells']
def text(cell): return ''.join(cell['source'])


# one address

LEFT_OUT = ('.*', '_proc', '_docs', 'build', 'dist', 'runs', 'data', '*.egg-info', 'katex', '__pycache__')


@pytest.fixture
def tree(tmp_path):
    "A copy of the working tree, .github included."
    copy = tmp_path / 'tree'
    shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
    shutil.copytree(ROOT / '.github', copy / '.github')
    return copy


def run(tree, *command):
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_address_is_what_settings_say():
    assert not differing(ROOT), [name(path) for path in differing(ROOT)]


def test_an_address_that_moves_is_written_everywhere(tree):
    settings = tree / 'settings.ini'
    old = Address(tree)
    moved = settings.read_text().replace(old.url, 'https://github.com/elsewhere/moved')
    moved = moved.replace('branch = main', 'branch = trunk').replace(
        old.settings['doc_host'], 'https://pages.example.org')
    settings.write_text(moved)
    for tool in ('address', 'exercises', 'equations', 'readme'):
        run(tree, sys.executable, f'tools/{tool}.py')
    run(tree, Path(sys.executable).parent / 'nbdev_export')
    stale = re.compile(r'discdiff/discdiff_nb|discdiff\.github|/blob/main/|discdiff_nb@main')
    found = []
    for path in sorted(p for p in tree.rglob('*') if p.is_file()):
        try: words = path.read_text(encoding='utf-8')
        except UnicodeDecodeError: continue
        found += [f'{path.relative_to(tree)}: {m[0]}' for m in stale.finditer(words)]
    assert found and all(f.startswith('tests/test_faults_page.py') for f in found), found # this file's pattern
    assert 'elsewhere/moved/blob/trunk/nbs/00_core.ipynb' in (tree / 'README.md').read_text()


# the install cell

class Shell:
    "An IPython in which %pip is pretended; `works` says whether it installs."
    def __init__(self, folder, works):
        from IPython.core.interactiveshell import InteractiveShell
        self.shell, self.calls = InteractiveShell(), []
        def pip(line):
            self.calls.append(line)
            if works:
                (folder / 'discdiff_nb').mkdir()
                (folder / 'discdiff_nb' / '__init__.py').touch()
        self.shell.register_magic_function(pip, 'line', 'pip')


def without_the_package(monkeypatch, folder):
    "No discdiff_nb can be imported, but from `folder`."
    from importlib.machinery import PathFinder
    kept = [p for p in sys.path if not (Path(p or '.') / 'discdiff_nb' / '__init__.py').exists()]
    monkeypatch.setattr(sys, 'path', [str(folder), *kept])
    monkeypatch.setattr(sys, 'meta_path', [f for f in sys.meta_path if f is PathFinder or 'editable' not in repr(f)])
    for module in [m for m in sys.modules if m.split('.')[0] == 'discdiff_nb']: monkeypatch.delitem(sys.modules, module)


def test_every_notebook_has_the_install_cell():
    for path in NOTEBOOKS:
        sources = [text(c) for c in cells(path) if c['cell_type'] == 'code']
        needs = path.stem != 'index' and bool(sources)
        assert sources.count(Address().install()) == needs, f'{name(path)}: the install cell is not there, or not as it should be'
        assert sum(map(installs, sources)) == needs, name(path)


def test_a_package_that_is_there_is_left_alone(tmp_path):
    shell = Shell(tmp_path, works=True)
    assert shell.shell.run_cell(Address().install()).success and not shell.calls


@pytest.mark.parametrize('works', [True, False])
@pytest.mark.parametrize('clone', [True, False])
def test_an_absent_package_is_installed_or_the_remedy_said(monkeypatch, tmp_path, works, clone):
    installed, here = tmp_path / 'site', tmp_path / 'here'
    installed.mkdir(), here.mkdir()
    without_the_package(monkeypatch, installed)
    if clone: (here / 'discdiff_nb' / 'nbs').mkdir(parents=True) # as Colab's folder after git clone
    sys.path.insert(0, str(here))
    shell = Shell(installed, works)
    done = shell.shell.run_cell(Address().install(), silent=True)
    assert shell.calls == [f'install -q {Address().pip}']
    assert done.success == works
    if not works: assert 'remedy' in str(done.error_in_exec) and '%pip install FOLDER' in str(done.error_in_exec)


# requirements

DISTRIBUTION = {'sklearn': 'scikit-learn', 'PIL': 'pillow', 'torch_fidelity': 'torch-fidelity'}
KERNEL = {'IPython', 'ipykernel'} # what runs a notebook has them


def names(requirements):
    "The names of the requirements that hold here, in lower case with hyphens."
    wanted = [Requirement(r) for r in requirements]
    return {re.sub('[-_.]+', '-', r.name).lower() for r in wanted if not r.marker or r.marker.evaluate({'extra': ''})}


def closure(requirements):
    "What comes along when these are installed."
    seen, todo = set(), names(requirements)
    while todo:
        new = todo.pop()
        seen.add(new)
        try: todo |= names(importlib.metadata.requires(new) or []) - seen
        except importlib.metadata.PackageNotFoundError: pass
    return seen


def imported(source):
    "The outer names that a cell imports."
    for node in ast.walk(ast.parse(re.sub(r'^(\s*)[!%?].*$', r'\1pass', source, flags=re.M))):
        if isinstance(node, ast.Import): yield from (a.name.split('.')[0] for a in node.names)
        if isinstance(node, ast.ImportFrom) and not node.level: yield node.module.split('.')[0]


def test_every_import_of_a_notebook_is_a_requirement():
    settings = Address().settings
    here = closure(settings['requirements'].split())
    optional = here | names(settings['fid_requirements'].split())
    for path in NOTEBOOKS:
        for source in [text(c) for c in cells(path) if c['cell_type'] == 'code' and not text(c).startswith('%%')]:
            covered = optional if '#| export' in source or '#| slow' in source else here
            for module in set(imported(source)) - KERNEL - set(sys.stdlib_module_names) - {settings['lib_name']}:
                dist = DISTRIBUTION.get(module, module).lower().replace('_', '-')
                assert dist in covered, f'{name(path)} imports {module}, which settings.ini does not require'
