"What went wrong on the page and on Colab: one address, the install cell, requirements, links, scripts from elsewhere."
import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / 'nbs'
sys.path.insert(0, str(ROOT / 'tools'))
import api # noqa: E402
import docs # noqa: E402
import local_site # noqa: E402
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
    for tool in ('address', 'exercises', 'equations', 'api', 'readme'):
        run(tree, sys.executable, f'tools/{tool}.py')
    run(tree, Path(sys.executable).parent / 'nbdev_export')
    stale = re.compile(r'discdiff/discdiff_nb|discdiff\.github|/blob/main/|discdiff_nb@main')
    found = []
    for path in sorted(p for p in tree.rglob('*') if p.is_file()):
        try: words = path.read_text(encoding='utf-8')
        except UnicodeDecodeError: continue
        found += [f'{path.relative_to(tree)}: {m[0]}' for m in stale.finditer(words)]
    assert found and all(f.startswith('tests/test_faults_page.py') for f in found), found # this file's pattern
    assert 'elsewhere/moved/blob/trunk/nbs/01_core.ipynb' in (tree / 'README.md').read_text()


# the install cell

class Shell:
    "An IPython in which %pip is pretended, and no command is run; `works` says whether %pip installs."
    def __init__(self, folder, works):
        from IPython.core.interactiveshell import InteractiveShell
        self.shell, self.calls = InteractiveShell(), []
        def pip(line):
            self.calls.append(line)
            if works:
                (folder / 'discdiff_nb').mkdir()
                (folder / 'discdiff_nb' / '__init__.py').touch()
        self.shell.register_magic_function(pip, 'line', 'pip')
        self.shell.system = self.calls.append


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
        needs = path.stem not in ('index', '00_start') and bool(sources)  # 00_start uses nothing of ours
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
    optional = here | names([word for extra in ('fid', 'captions', 'onnx', 'draw') for word in settings[f'{extra}_requirements'].split()])
    for path in NOTEBOOKS:
        for source in [text(c) for c in cells(path) if c['cell_type'] == 'code' and not text(c).startswith('%%')]:
            covered = optional if '#| export' in source or '#| slow' in source else here
            for module in set(imported(source)) - KERNEL - set(sys.stdlib_module_names) - {settings['lib_name']}:
                dist = DISTRIBUTION.get(module, module).lower().replace('_', '-')
                assert dist in covered, f'{name(path)} imports {module}, which settings.ini does not require'


# the rendered pages

QUARTO = (ROOT / 'tests' / 'quarto_html_output.html').read_text(encoding='utf-8') # head and body of a page as Quarto writes it
NEWER = QUARTO.replace('cdnjs.cloudflare.com/ajax/libs/require.js/2.3.6', 'cdn.jsdelivr.net/npm/requirejs@2.3.6').replace(
    'cdnjs.cloudflare.com/ajax/libs/jquery/3.5.1', 'cdn.jsdelivr.net/npm/jquery@3.5.1/dist')


def site(tmp_path, **pages):
    "A rendered site of these pages, finished by tools/local_site.py; its folder, and the finished process."
    out = tmp_path / '_docs'
    for folder in ('katex', 'site_libs/quarto-html'): (out / folder).mkdir(parents=True)
    for file in ('katex/katex.min.js', 'katex/katex.min.css', 'styles.css', 'site_libs/quarto-html/quarto.js',
                 'site_libs/quarto-html/popper.min.js'): (out / file).touch()
    for page, words in pages.items(): (out / page.replace('_html', '.html').replace('_css', '.css')).write_text(words)
    (tmp_path / 'nbdev.yml').write_text('website:\n  site-url: "https://pages.example.org/project"\n')
    return out


def finished(out):
    env = dict(os.environ, QUARTO_PROJECT_DIR=str(out.parent), QUARTO_PROJECT_OUTPUT_DIR='_docs')
    return subprocess.run([sys.executable, ROOT / 'tools' / 'local_site.py'], env=env, capture_output=True, text=True)


@pytest.mark.parametrize('page', [QUARTO, NEWER], ids=['cdnjs', 'jsdelivr'])
def test_quartos_libraries_are_taken_out(tmp_path, page):
    out = site(tmp_path, d3pm_html=page)
    before = docs.broken_links(out)
    assert sum('require' in line or 'jquery' in line for line in before) == 2
    assert finished(out).returncode == 0 and docs.broken_links(out) == []
    after = (out / 'd3pm.html').read_text()
    kept = re.findall(r'<script.*?</script>', after, re.S)
    assert 'jquery' not in after.lower() and 'require' not in after
    assert len(kept) == len(re.findall(r'<script.*?</script>', page, re.S)) - 3 and 'oninput' in kept[-1]


@pytest.mark.parametrize('script', [
    '<script type="application/vnd.jupyter.widget-state+json">{"state": {}}</script>',
    '<script>require(["plot"], p => p())</script>',
    '<script type="text/javascript">requirejs.config({})</script>',
    '<script>$(".x").hide()</script>',
    '<script>jQuery.ajax("x")</script>',
    "<script>define('mine', ['jquery'], function($) {})</script>"])
def test_a_page_that_needs_them_is_refused(tmp_path, script):
    done = finished(site(tmp_path, d3pm_html=QUARTO.replace('</main>', f'{script}</main>')))
    assert done.returncode == 1 and done.stderr.startswith('tools/local_site.py: d3pm.html holds a '), done.stderr
    assert 'remedy' in done.stderr and done.stderr.count('\n') == 1


def test_web_fonts_are_taken_out(tmp_path):
    font = ('@charset "utf-8";@import url(https://fonts.googleapis.com/css2?family=Lato:wght@300;400&display=swap);'
            "@import 'https://fonts.example.org/a.css';body{color:red}@import url(local.css);")
    out = site(tmp_path, theme_css=font)
    assert len(docs.broken_links(out)) == 2
    assert finished(out).returncode == 0 and docs.broken_links(out) == []
    assert (out / 'theme.css').read_text() == '@charset "utf-8";body{color:red}@import url(local.css);'


def test_the_page_for_lost_readers_is_shown_at_any_depth(tmp_path):
    assert finished(out := site(tmp_path, **{'404_html': '<html><head></head></html>'})).returncode == 0
    assert '<base href="/project/">' in (out / '404.html').read_text()


def notebook(path, *markdown):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({'cells': [dict(cell_type='markdown', source=m) for m in markdown]}))


def test_links_that_a_renderer_loses_are_counted(tmp_path):
    words = ('| a | b |\n|---|---|\n| x | [one](06_d3pm.ipynb#the-mask)<details><summary>2</summary>'
             '[two](06_d3pm.ipynb#the-mask)<br>[three](https://a.example/b)</details> |\n')
    notebook(tmp_path / 'nbs' / '91_equations.ipynb', '# T', words, '`[no](code.ipynb)` ![no](image.png)\n```\n[no](c.d)\n```')
    one, two = '<a href="./d3pm.html#the-mask">x</a>', '<a href="06_d3pm.html#the-mask">x</a>'
    other = '<a href="https://a.example/b">x</a>'
    for page, rest in ('equations.html', one), ('91_equations.html', two):
        out = tmp_path / page / '_docs'
        out.mkdir(parents=True)
        (out / page).write_text(f'<a href="06_d3pm.html#the-mask">menu</a><main>{rest}</main>{other}')
        assert docs.lost_links(out, tmp_path / 'nbs') == [
            '91_equations.ipynb: 1 of its 2 links to d3pm.html#the-mask are not on its page',
            '91_equations.ipynb: 1 of its 1 links to https://a.example/b are not on its page']
        (out / page).write_text(f'<main>{one}{two}{other}</main>')
        assert docs.lost_links(out, tmp_path / 'nbs') == []
        (out / page).unlink()
        assert docs.lost_links(out, tmp_path / 'nbs') == ['91_equations.ipynb: has no page']


def test_no_link_stands_in_a_fold_in_a_table():
    "Pandoc keeps no block HTML in a cell of a pipe table: Quarto drops <details> with all that is in it."
    for path in NOTEBOOKS:
        for line in '\n'.join(text(c) for c in cells(path) if c['cell_type'] == 'markdown').splitlines():
            assert not (line.startswith('|') and re.search(r'<(details|div|p|ul|table|pre)\b', line)), f'{name(path)}: {line[:100]}'


def test_exercises_and_solutions_come_last_in_the_search():
    def entry(href, section, words): return dict(objectID=href, href=href, title='T', section=section, text=words)
    found = local_site.search_index([
        entry('exercises/06_d3pm.html', '', 'one'), entry('exercises/06_d3pm.html#a', 'Jumps', 'two'), entry('404.html', '', 'x'),
        entry('solutions/06_d3pm.html#b', 'Jumps', 'three'), entry('06_d3pm.html#jumps', 'Jumps', 'four')])
    assert [(e['href'], e['section'], e['text']) for e in found] == [
        ('06_d3pm.html#jumps', 'Jumps', 'four'), ('exercises/06_d3pm.html', '', 'one Jumps two'),
        ('solutions/06_d3pm.html', '', 'three')]


def test_every_heading_of_a_reference_page_is_found():
    "Quarto's own entries are the page and its headings of the second level."
    page = ('<main><section id="core" class="level2"><h2 class="anchored">core</h2><p>Words</p><section id="elbo" class="level3">'
            '<h3>elbo</h3><div><pre><code>def <a id="x"></a>elbo(x)</code></pre><button>Copy</button></div><p>A &lt; b.</p></section>'
            '<section id="jump" class="level3"><h3><code>jump</code></h3><script>no</script></section></section></main>')
    old = [dict(objectID=h, href=h, title='Index', section='', text='first') for h in ('api.html', 'api.html#core')]
    found = local_site.search_index(old, {'api.html': page})
    assert [(e['href'], e['section'], e['text']) for e in found] == [
        ('api.html#core', 'core', 'Words'), ('api.html#elbo', 'elbo', 'def elbo(x) A < b.'), ('api.html#jump', 'jump', ''),
        ('api.html', '', 'first')]


# the index of names

def test_signatures_keep_shapes_and_leave_out_bodies():
    source = '''class Cats(Base):
    "Some cats (K1)."
    n: int # how many
    def __init__(self,
        n: int, # how many
    ):
        self.n = n
    @property
    def K(self): return self.n
    def _hidden(self): pass
@torch.no_grad()
def meow(
    x: Tensor, # (B, K) loud
) -> Tensor: # (B,) louder
    # not this
    """First line `x`,
    and its end.

    More."""
    return x
'''
    found = list(api.definitions(ast.parse(source).body, source.splitlines()))
    assert found == [
        ('Cats', 'class Cats(Base):\n    n: int # how many\n    def __init__(self,\n        n: int, # how many\n    ):', 'Some cats (K1).'),
        ('Cats.K', '@property\ndef K(self):', ''),
        ('meow', 'def meow(\n    x: Tensor, # (B, K) loud\n) -> Tensor: # (B,) louder', 'First line `x`, and its end.')]


def test_the_index_has_every_exported_name():
    page = '\n'.join(text(c) for c in cells(NBS / '92_api.ipynb'))
    for path in (ROOT / 'discdiff_nb').glob('[!_]*.py'):
        for node in ast.parse(path.read_text(encoding='utf-8')).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith('_'):
                assert f'\n### {node.name}\n' in page, f'{path.name}: {node.name}'


def test_the_citation_is_yaml_with_what_its_format_asks_for():
    cited = yaml.safe_load((ROOT / 'CITATION.cff').read_text(encoding='utf-8'))
    assert {'cff-version', 'message', 'title', 'authors', 'version', 'license', 'repository-code'} <= set(cited)
    assert cited['version'] == Address().settings['version'] and isinstance(cited['version'], str)
