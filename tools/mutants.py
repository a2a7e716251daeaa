"""Change one thing in an exported cell, see whether anything notices: `python tools/mutants.py`

Each mutant gets a fresh copy of the tree: the cell is changed there and exported, then the
chapter's notebook runs. If that passes, the other notebooks and tests run that call the changed
function, cheapest first, until one fails. Who calls what is recorded while the unchanged tree runs
once; a check that fails there is left out. A mutant that nothing notices is a hole in the checks:
write a check that kills it, or say in tests/mutants.json why there is none
({"id": "equivalent: ..."}).

Never changed are words (docstrings, messages, annotations), how a figure looks, and code that only
a GPU reaches. Finished runs are remembered in runs/mutants/ as long as no file changes, so a run
that was cut off goes on. The same seed takes the same mutants of statements that did not change.
"""
import argparse
import ast
import functools
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
EXPLAINED = 'tests/mutants.json'
DEFS = (ast.FunctionDef, ast.AsyncFunctionDef)

# Mutants that once survived everything: name, module, function, what is there, what is put there.
NAMED = [
    ('rho', 'ordinal', 'first_terms', 'math.lgamma(i + 1)).exp()', 'math.lgamma(i)).exp()'),
    ('percent', 'metrics', 'fsd', '100 * ', ''),
    ('levels', 'nets', 'class_levels', 'k < ordered_classes', 'k <= ordered_classes'),
    ('attend', 'nets', 'Attend.forward', 'self.kv(seen', 'self.kv(x'),
]


# ---- operators: what to put in the place of a node, as (start, end, text) within the cell

def text_of(cell, node):
    "The source of a node."
    return cell.cut(*cell.span(node))

def between(cell, left, right, table):
    "Another operator between two operands."
    start, end = cell.span(left)[1], cell.span(right)[0]
    for old, new in table.items():
        gap = cell.cut(start, end)
        if re.fullmatch(rf'[\s()]*{re.escape(old)}[\s()]*', gap):
            yield start, end, gap.replace(old, new)

def arithmetic(cell, node):
    words = (ast.JoinedStr, ast.List, ast.Tuple)
    for side in node.left, node.right:
        if isinstance(side, words) or isinstance(getattr(side, 'value', 0), str): return
    table = {'+': '-', '-': '+', '*': '/', '/': '*', '//': '/', '&': '|', '|': '&'}
    yield from between(cell, node.left, node.right, table)

def comparison(cell, node):
    table = {'<': '<=', '<=': '<', '>': '>=', '>=': '>', '==': '!=', '!=': '==',
             'in': 'not in', 'not in': 'in', 'is': 'is not', 'is not': 'is'}
    yield from between(cell, node.left, node.comparators[0], table)

def logic(cell, node):
    for left, right in zip(node.values, node.values[1:]):
        yield from between(cell, left, right, {'and': 'or', 'or': 'and'})

def no_step(cell, node):
    "t - 1 becomes t."
    if isinstance(node.op, (ast.Add, ast.Sub)) and isinstance(node.right, ast.Constant):
        start, end = cell.span(node)
        yield start, end, text_of(cell, node.left)

def sign(cell, node):
    start, end = cell.span(node)
    if isinstance(node.op, ast.Not): yield start, start + 3, ''
    if not isinstance(node.op, ast.USub): return
    if not isinstance(node.operand, ast.Constant): yield start, start + 1, ''
    if getattr(node.operand, 'value', 0) == 1: yield start, end, '0'

def constant(cell, node):
    start, end = cell.span(node)
    if isinstance(node.value, bool): yield start, end, repr(not node.value)
    elif isinstance(node.value, (int, float)) and not isinstance(node.parent, ast.UnaryOp):
        yield start, end, repr(node.value + 1)

PAIRS = [('log', 'exp'), ('min', 'max'), ('amin', 'amax'), ('argmin', 'argmax'),
         ('minimum', 'maximum'), ('sum', 'mean'), ('any', 'all'), ('zeros', 'ones'),
         ('zeros_like', 'ones_like'), ('softmax', 'log_softmax'), ('cos', 'sin'), ('floor', 'ceil'),
         ('cumsum', 'cumprod')]
OTHER = dict(PAIRS) | {b: a for a, b in PAIRS}

def other_name(cell, node):
    name, end = getattr(node, 'attr', getattr(node, 'id', '')), cell.span(node)[1]
    called = isinstance(node.parent, ast.Call) and node.parent.func is node
    if called and name in OTHER: yield end - len(name), end, OTHER[name]

def other_time(cell, node):
    "s and t for each other where the function knows both."
    other = {'s': 't', 't': 's'}.get(node.id)
    if other in node.known and isinstance(node.ctx, ast.Load): yield *cell.span(node), other

def from_the_end(cell, node):
    "A cumulative sum that starts at the other end."
    name = getattr(node.func, 'attr', '')
    args = node.args + [k.value for k in node.keywords if k.arg in ('dim', 'axis')]
    if name in ('cumsum', 'logcumsumexp', 'cumprod') and len(args) == 1:
        start, end = cell.span(node.func)[1] - len(name), cell.span(node)[1]
        flip = f'flip({text_of(cell, args[0])})'
        yield start, end, f'{flip}.{cell.cut(start, end)}.{flip}'

DROPPED = {'clamp', 'clip', 'detach', 'abs', 'double', 'float', 'long', 'nan_to_num', 'sqrt',
           'contiguous', 'squeeze', 'flip', 'clone'}
MODULES = {'torch', 'F', 'np', 'math'}

def without_method(cell, node):
    "x.clamp(0, 1) becomes x."
    name = getattr(node.func, 'attr', '')
    if name in DROPPED and text_of(cell, node.func.value) not in MODULES:
        yield cell.span(node.func)[1] - len(name) - 1, cell.span(node)[1], ''

def without_keyword(cell, node):
    places = sorted([cell.span(n) for n in node.args + node.keywords])
    for keyword in node.keywords:
        start, end = cell.span(keyword)
        i = places.index((start, end))
        if keyword.arg is None or keyword.arg in LOOKS: continue
        if i:
            last = places[i - 1][1]
            yield last + cell.cut(last, start).index(','), end, ''
        elif len(places) > 1: yield start, places[1][0], ''

def swapped(cell, one, two):
    (a, b), (c, d) = sorted([cell.span(one), cell.span(two)])
    first, second = cell.cut(a, b), cell.cut(c, d)
    if first != second: yield a, d, second + cell.cut(b, c) + first

ALIKE = {'isinstance', 'getattr', 'hasattr', 'equal', 'min', 'max', 'minimum', 'maximum', 'zip',
         'super', 'partial', 'einsum'}  # the order is nothing to them, or any call finds it

def other_arguments(cell, node):
    "Two neighbours of one kind, such as two names, for each other; for where, its two arms."
    name, args = getattr(node.func, 'attr', getattr(node.func, 'id', '')), node.args
    if name in ALIKE or any(isinstance(a, ast.Starred) for a in args): return
    if name == 'where' and len(args) == 3: yield from swapped(cell, *args[1:])
    else:
        for one, two in zip(args, args[1:]):
            if type(one) is type(two): yield from swapped(cell, one, two)

def other_arm(cell, node): yield from swapped(cell, node.body, node.orelse)

def without_statement(cell, node):
    "A call, a raise, a change in place, or a new value for a name that has one."
    if isinstance(node, ast.Assign):
        names = [n for n in ast.walk(node) if isinstance(n, ast.Name)]
        names = [n.id for n in names if isinstance(n.ctx, ast.Store)]
        if any(node.known.get(name, node.lineno) >= node.lineno for name in names): return
    if isinstance(node, ast.Expr):
        if not isinstance(node.value, ast.Call) or root(node.value) == 'super': return
    yield *cell.span(node), 'pass'

OPERATORS = [  # what is changed, in which nodes, how
    ('+ ↔ -, * ↔ /', ast.BinOp, arithmetic),
    ('t - 1 → t', ast.BinOp, no_step),
    ('< ↔ <=, == ↔ !=', ast.Compare, comparison),
    ('and ↔ or', ast.BoolOp, logic),
    ('no not, no minus', ast.UnaryOp, sign),
    ('k → k + 1', ast.Constant, constant),
    ('log ↔ exp, min ↔ max', (ast.Attribute, ast.Name), other_name),
    ('s ↔ t', ast.Name, other_time),
    ('cumsum flipped', ast.Call, from_the_end),
    ('no clamp, no detach', ast.Call, without_method),
    ('no keyword', ast.Call, without_keyword),
    ('arguments swapped', ast.Call, other_arguments),
    ('arms swapped', ast.IfExp, other_arm),
    ('no statement', (ast.Assign, ast.AugAssign, ast.Expr, ast.Raise), without_statement),
]

# ---- where: the nodes of exported cells that may be changed

FIELDS = {'annotation', 'returns', 'decorator_list', 'msg', 'type', 'type_params', 'bases'}
SAID = {'print', 'warn', 'tqdm', 'add_argument', 'add_parser', 'set_postfix', 'ArgumentParser'}
LOOKS = {'color', 'c', 'lw', 'ms', 'ls', 'mfc', 'label', 'title', 'fontsize', 'figsize', 'cmap',
         'facecolor', 'ha', 'va', 'sharey', 'interpolation', 'desc', 'leave', 'delay', 'help',
         'metavar', 'wspace', 'hspace', 'bottom', 'left', 'right', 'top'}
DRAWING = {'ax', 'axes', 'fig', 'plt', 'draw', 'bar'}

def root(node):
    "The name that a chain of calls, attributes and entries starts with."
    while isinstance(node, (ast.Call, ast.Attribute, ast.Subscript)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return getattr(node, 'id', '')

def left_out(node):
    "Is this node, with all that is in it, words, looks, or code for a GPU?"
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.JoinedStr)): return True
    if isinstance(node, ast.Call):
        if getattr(node.func, 'attr', getattr(node.func, 'id', '')) in SAID: return True
    if isinstance(node, ast.keyword) and node.arg in LOOKS: return True
    if isinstance(node, ast.Expr):
        if isinstance(node.value, ast.Constant) or root(node.value) in DRAWING | SAID: return True
    if not isinstance(node, (ast.If, ast.IfExp, ast.Expr)): return False
    return 'cuda' in ast.unparse(getattr(node, 'test', node))

def visible(node):
    "The node and the nodes in it that may be changed, parents first; of a `raise` only the whole."
    if left_out(node): return
    yield node
    for name, value in ast.iter_fields(node):
        if name in FIELDS or isinstance(node, ast.Raise): continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                child.parent = node
                yield from visible(child)

@dataclass
class Cell:
    "An exported cell: places in it are bytes, as the syntax tree counts them."
    path: str
    index: int
    source: str
    def __post_init__(self):
        self.bytes, self.starts = self.source.encode(), [0]
        for line in self.bytes.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
    def span(self, node):
        start, end = self.starts[node.lineno - 1], self.starts[node.end_lineno - 1]
        return start + node.col_offset, end + node.end_col_offset
    def cut(self, start, end): return self.bytes[start:end].decode()
    def changed(self, start, end, text):
        return (self.bytes[:start] + text.encode() + self.bytes[end:]).decode()

@dataclass
class Mutant:
    "One change of one cell."
    id: str
    module: str
    path: str  # of the notebook
    index: int  # of the cell in it
    function: str  # or Class.method, or '' outside of any
    statement: str  # which statement of the tree, a key
    operator: str
    before: str  # the line or lines that it changes
    after: str
    source: str  # the cell, changed

def short(*words): return hashlib.sha1('\n'.join(map(str, words)).encode()).hexdigest()[:8]

def lines_around(source, start, end):
    "The whole lines that hold a place, on one line."
    raw = source.encode()
    first, last = raw.rfind(b'\n', 0, start) + 1, raw.find(b'\n', end)
    return ' '.join(raw[first:last if last >= 0 else None].decode().split())

def make_mutant(cell, module, function, statement, operator, change):
    start, end, text = change
    source = cell.changed(*change)
    before = lines_around(cell.source, start, end)
    after = lines_around(source, start, start + len(text.encode()))
    name = f'{module}-{short(function, before, after)}'
    return Mutant(name, module, cell.path, cell.index, function, statement, operator, before, after,
                  source)

def outermost(tree):
    "Each node with the function around it: (name, node of it)."
    def walk(node, name, function):
        for child in ast.iter_child_nodes(node):
            inside = name, function
            if function is None and isinstance(child, ast.ClassDef): inside = f'{child.name}.', None
            if function is None and isinstance(child, DEFS): inside = name + child.name, child
            child.inside = inside
            walk(child, *inside)
    walk(tree, '', None)

@functools.lru_cache(maxsize=None)
def stored(function):
    "Names that a function binds, each with its first line; 0 for its parameters."
    lines = {}
    for node in ast.walk(function) if function else ():
        if isinstance(node, ast.arg): lines[node.arg] = 0
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            lines[node.id] = min(node.lineno, lines.get(node.id, node.lineno))
    return lines

def mutants_of(cell, module):
    "Every mutant of a cell."
    tree, found = ast.parse(cell.source), []
    outermost(tree)
    for node in visible(tree):
        if node is tree or isinstance(node, ast.expr_context): continue
        function, definition = getattr(node, 'inside', ('', None))
        node.known = stored(definition)
        if isinstance(node, ast.stmt):
            lines = lines_around(cell.source, *cell.span(node))
            statement = short(module, function, lines, type(node).__name__)
        for operator, kinds, changes in OPERATORS:
            if not isinstance(node, kinds): continue
            for change in changes(cell, node):
                try: ast.parse(cell.changed(*change))
                except SyntaxError: continue
                found.append(make_mutant(cell, module, function, statement, operator, change))
    return found

def chapters(tree):
    "Notebook: module that it exports, and its exported cells."
    for path in sorted((tree / 'nbs').glob('*.ipynb')):
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        sources = [''.join(c['source']) if c['cell_type'] == 'code' else '' for c in cells]
        module = re.search(r'^#\|\s*default_exp\s+(\w+)', '\n'.join(sources), re.M)
        name = path.relative_to(tree).as_posix()
        exported = [i for i, s in enumerate(sources) if re.search(r'^#\|\s*exports?\b', s, re.M)]
        if module: yield name, module[1], [Cell(name, i, sources[i]) for i in exported]

def all_mutants(tree):
    "Every mutant of every module; an id that would stand for two changes gets a number."
    found, seen = [], {}
    for _, module, cells in chapters(tree):
        for mutant in (m for cell in cells for m in mutants_of(cell, module)):
            seen[mutant.id] = seen.get(mutant.id, 0) + 1
            if seen[mutant.id] > 1: mutant.id += f'.{seen[mutant.id]}'
            found.append(mutant)
    return found

def named_mutants(tree):
    "Those of NAMED."
    for name, module, function, old, new in NAMED:
        spots = []
        for cell in (c for _, m, cells in chapters(tree) if m == module for c in cells):
            parsed = ast.parse(cell.source)
            outermost(parsed)
            for node in ast.walk(parsed):
                if not isinstance(node, DEFS) or node.inside[0] != function: continue
                start, end = cell.span(node)
                for m in re.finditer(re.escape(old.encode()), cell.bytes[start:end]):
                    spots.append((cell, (start + m.start(), start + m.end(), new)))
        if len(spots) != 1:
            sys.exit(f'NAMED: {old!r} is in {module}.{function} {len(spots)} times, not once')
        mutant = make_mutant(spots[0][0], module, function, name, 'named', spots[0][1])
        mutant.id = name
        yield mutant

def choose(mutants, n, seed):
    "n mutants: of each module in proportion to its statements (at least one), one per statement."
    statements = {}
    for m in mutants: statements.setdefault(m.module, {}).setdefault(m.statement, []).append(m)
    total, share = sum(map(len, statements.values())), {}
    for module, group in statements.items(): share[module] = max(1, int(n * len(group) / total))
    rest = sorted(statements, key=lambda m: share[m] - n * len(statements[m]) / total)
    for module in rest[:max(0, n - sum(share.values()))]: share[module] += 1
    chosen = []
    for module, group in statements.items():
        for key in sorted(group, key=lambda k: short(seed, k))[:share[module]]:
            order = {m.id: (short(seed, key, m.operator), short(seed, m.id)) for m in group[key]}
            chosen.append(min(group[key], key=lambda m: order[m.id]))
    return chosen


# ---- running

RECORD = '''
import os, sys, threading
PACKAGE, OUT, seen = os.environ['MUTANTS_PACKAGE'], os.environ['MUTANTS_OUT'], set()
def record(frame, event, arg):
    code = frame.f_code
    if code.co_filename.startswith(PACKAGE):
        name = f'{os.path.basename(code.co_filename)[:-3]}.{code.co_name}'
        if name not in seen:
            seen.add(name)
            with open(OUT, 'a') as out: out.write(name + '\\n')
threading.settrace(record)
sys.settrace(record)
'''  # as sitecustomize.py: every Python process writes down which functions of the package it calls

def files_of(tree):
    "What git has or would add, without the list of explanations."
    command = ['git', 'ls-files', '-coz', '--exclude-standard']
    listed = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True).stdout
    return [f for f in sorted(set(listed.split('\0')) - {'', EXPLAINED}) if (tree / f).is_file()]

def checks_of(tree):
    "Notebooks and test files, as paths; exercises call what their solutions call."
    notebooks = [p.relative_to(tree) for p in (tree / 'nbs').rglob('*.ipynb')]
    notebooks = [p for p in notebooks if not any(part[0] in '._' for part in p.parts)]
    notebooks = [p.as_posix() for p in notebooks if 'exercises' not in p.parts]
    tests = [p.relative_to(tree).as_posix() for p in (tree / 'tests').glob('test_*.py')]
    return sorted(notebooks) + sorted(t for t in tests if 'mutants' not in t)

def reason(output):
    "The line that says why a notebook or pytest failed."
    output = re.sub(r'\x1b\[[0-9;]*m', '', output)
    failed = re.findall(r'^FAILED (.*)$', output, re.M)
    cell = re.findall(r'While Executing Cell (#\d+)', output)
    code = re.findall(r'<ipython-input.*in <module>\n    (.*)$', output, re.M)
    raised = re.findall(r'^(\w*(?:Error|Exception|Interrupt|Exit|Warning)\b.*)$', output, re.M)
    if failed: said = failed[:1]
    elif cell: said = [f'cell {cell[0]}', *code[:1], *raised[-1:]]
    else: said = output.strip().splitlines()[-1:]
    return ': '.join(said)[:200]

class Bench:
    "Runs checks in copies of a tree, each in a process group of its own that is ended with it."
    def __init__(self, tree):
        self.tree, self.files, self.running, self.stopped = tree, files_of(tree), set(), False
        settings = ConfigParser()
        settings.read(tree / 'settings.ini')
        self.package = settings['DEFAULT']['lib_path']

    def call(self, command, tree, limit, env=()):
        "Status (None: out of time), output, seconds."
        alone = {'PYTHONPATH': str(tree), 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
        env = {**os.environ, **alone, **dict(env)}
        for name in ('MPLBACKEND', 'PYTEST_ADDOPTS'): env.pop(name, None)
        start = time.time()
        with tempfile.TemporaryFile('w+', errors='replace') as out:
            streams = dict(stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
            child = subprocess.Popen(command, cwd=tree, env=env, start_new_session=True, **streams)
            self.running.add(child)
            try: status = child.wait(limit)
            except subprocess.TimeoutExpired: status = None
            finally: self.end(child)
            if self.stopped: raise KeyboardInterrupt
            out.seek(0)
            return status, out.read(), time.time() - start

    def end(self, child):
        "End a child and what it started."
        try: os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError: pass
        child.wait()
        self.running.discard(child)

    def stop(self):
        self.stopped = True
        for child in list(self.running): self.end(child)

    def copy(self, folder):
        "A new copy of the tree."
        for name in self.files:
            target = Path(folder) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.tree / name, target)
        return Path(folder)

    def check(self, name, tree, limit, env=()):
        "Run one notebook or test file."
        nbdev_test = [BIN / 'nbdev_test', '--n_workers', '0', '--path', name]
        pytest = [sys.executable, '-m', 'pytest', '-x', '-q', '-p', 'no:cacheprovider', name]
        return self.call(nbdev_test if name.endswith('.ipynb') else pytest, tree, limit, env)

    def measure(self, name):
        "A check in the unchanged tree: seconds, what it calls, why it fails if it does."
        folders = [tempfile.TemporaryDirectory(prefix='mutants_') for _ in range(2)]
        with folders[0] as folder, folders[1] as aside:
            tree, out = self.copy(folder), Path(aside) / 'called'
            (Path(aside) / 'sitecustomize.py').write_text(RECORD)
            env = {'PYTHONPATH': f'{tree}{os.pathsep}{aside}', 'MUTANTS_OUT': str(out),
                   'MUTANTS_PACKAGE': str(tree / self.package)}
            status, output, seconds = self.check(name, tree, 1200, env)
            called = sorted(set(out.read_text().split())) if out.exists() else []
        fails = '' if status == 0 else reason(output) or 'out of time'
        return dict(check=name, seconds=round(seconds, 1), called=called, fails=fails)

    def plant(self, mutant, tree):
        "Change the cell in a copy of the tree, and export it."
        path, module = tree / mutant.path, tree / self.package / f'{mutant.module}.py'
        nb, exported = json.loads(path.read_text(encoding='utf-8')), module.read_bytes()
        nb['cells'][mutant.index]['source'] = mutant.source
        path.write_text(json.dumps(nb, ensure_ascii=False), encoding='utf-8')
        _, output, _ = self.call([BIN / 'nbdev_export', '--path', mutant.path], tree, 300)
        if module.read_bytes() == exported:
            raise RuntimeError(f'{mutant.id} was not exported: {output}')

    def judge(self, mutant, checks):
        "Run checks ({name: seconds}) on a mutant until one fails: verdict, by what, why."
        with tempfile.TemporaryDirectory(prefix='mutants_') as folder:
            tree = self.copy(folder)
            self.plant(mutant, tree)
            for name, seconds in checks.items():
                status, output, _ = self.check(name, tree, 60 + 6 * seconds)
                if status is None: return dict(verdict='timed out', by=name, why='')
                if status: return dict(verdict='killed', by=name, why=reason(output))
        return dict(verdict='survived', by='', why='')

class Memory:
    "Lines of json that outlive the run: what was measured and judged, until a file changes."
    def __init__(self, folder, bench):
        contents = [(bench.tree / name).read_bytes() for name in bench.files]
        digests = [hashlib.sha1(content).hexdigest() for content in contents]
        self.path = folder / f'{short(*bench.files, *digests)}.jsonl'
        self.lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text().split('\n')[:-1] if self.path.exists() else []
        self.checks, self.mutants = {}, {}
        for line in lines: self.take(json.loads(line))
    def take(self, entry):
        if 'check' in entry: self.checks[entry['check']] = entry
        else: self.mutants.setdefault(entry['id'], {}).update(entry)
    def keep(self, entry):
        with self.lock, self.path.open('a') as f:
            f.write(json.dumps(entry) + '\n')
            self.take(entry)

def spread(bench, task, items, workers, desc):
    "Do a task for each item, some at a time, with a progress bar; Ctrl-C ends what runs."
    from tqdm import tqdm
    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(items), desc=desc) as bar:
        futures = [pool.submit(task, item) for item in items]
        try:
            for future in futures:
                future.result()
                bar.update()
        except BaseException:
            bench.stop()
            pool.shutdown(cancel_futures=True)
            raise

def run(bench, memory, chosen, workers):
    "Judge the mutants: all by their own notebook, then those that passed by what else calls them."
    def measure(name): memory.keep(bench.measure(name))
    def by_its_notebook(m):
        verdict = bench.judge(m, {m.path: memory.checks[m.path]['seconds']})
        memory.keep(dict(id=m.id, **verdict))
    def by_others(m):
        callers = [c for c in memory.checks.values() if calls(c, m) and c['check'] != m.path]
        callers = sorted((c for c in callers if not c['fails']), key=lambda c: c['seconds'])
        verdict = bench.judge(m, {c['check']: c['seconds'] for c in callers})
        memory.keep(dict(id=m.id, others=[c['check'] for c in callers], **verdict))
    def unmeasured(names): return [n for n in names if n not in memory.checks]
    own = sorted({m.path for m in chosen})
    spread(bench, measure, unmeasured(own), workers, 'their notebooks, unchanged')
    for c in (memory.checks[name] for name in own):
        if c['fails']: sys.exit(f'{c["check"]} fails in the unchanged tree: {c["fails"]}')
    new = [m for m in chosen if m.id not in memory.mutants]
    spread(bench, by_its_notebook, new, workers, 'mutants, by their notebook')
    left = [m for m in chosen if memory.mutants[m.id]['verdict'] == 'survived']
    left = [m for m in left if 'others' not in memory.mutants[m.id]]
    if not left: return
    spread(bench, measure, unmeasured(checks_of(bench.tree)), workers, 'other checks, unchanged')
    spread(bench, by_others, left, workers, 'mutants, by other checks')

def calls(check, mutant):
    "Does a check call the function of a mutant? Outside of functions: does it import the module?"
    return f'{mutant.module}.{mutant.function.split(".")[-1] or "<module>"}' in check['called']

def line_in_module(tree, package, mutant):
    "Where the changed line stands in the exported module."
    lines = (tree / package / f'{mutant.module}.py').read_text(encoding='utf-8').splitlines()
    lines = [' '.join(line.split()) for line in lines]
    name = mutant.function.split('.')[0]
    heads = [i for i, line in enumerate(lines) if name and re.match(rf'(def|class) {name}\b', line)]
    def match(i): return len(lines[i]) if mutant.before.startswith(lines[i]) else 0
    return 1 + max(range(*heads[:1], len(lines)), key=match)

def trimmed(before, after, around=24, most=60):
    "Two lines without most of what they share."
    start = len(os.path.commonprefix([before, after]))
    end = len(os.path.commonprefix([before[start:][::-1], after[start:][::-1]]))
    first, last = max(0, start - around), max(0, end - around)
    cut = [text[first:len(text) - last] for text in (before, after)]
    cut = [text if len(text) <= 2 * most else f'{text[:most]} … {text[-most:]}' for text in cut]
    return ' → '.join('…' * (first > 0) + text + '…' * (last > 0) for text in cut)

def report(bench, memory, chosen, explained):
    "Print the table; returns how many survived without an explanation."
    counts = {}
    print('\n| id | module:line | function | change | verdict |\n|---|---|---|---|---|')
    for m in chosen:
        entry = memory.mutants.get(m.id, {})
        verdict = entry.get('verdict', 'not run')
        why = ': '.join(filter(None, [entry.get('by'), entry.get('why')]))
        if verdict in ('survived', 'not run') and m.id in explained:
            verdict, why = 'explained', explained[m.id]
        elif verdict == 'survived':
            verdict, why = 'SURVIVED', ', '.join([m.path, *entry.get('others', ())])
        counts[verdict] = counts.get(verdict, 0) + 1
        where = f'{m.module}:{line_in_module(bench.tree, bench.package, m)}'
        change = f'`{trimmed(m.before, m.after)}`'
        row = [m.id, where, m.function, change, f'{verdict} ({why})' if why else verdict]
        print('| ' + ' | '.join(cell.replace('|', '\\|') for cell in row) + ' |')
    summary = ', '.join(f'{n} {verdict}' for verdict, n in sorted(counts.items()))
    print(f'\n{len(chosen)} mutants: {summary}')
    for c in memory.checks.values():
        if c['fails']: print(f'left out: {c["check"]} fails in the unchanged tree: {c["fails"]}')
    return counts.get('SURVIVED', 0)

def options(args):
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--n', type=int, default=60, help='how many (default %(default)s)')
    add('--seed', type=int, default=0, help='which ones (default %(default)s)')
    add('--module', action='append', default=[], help='only of this one; may be given again')
    add('--mutant', action='append', default=[], metavar='ID', help='only this one, run again')
    add('--named', action='store_true', help='those that once survived everything')
    add('--list', action='store_true', help='show what would be run, and what is known of it')
    add('--workers', type=int, default=2, help='how many at a time (default %(default)s)')
    return parser.parse_args(args)

def main(args=None):
    args = options(args)
    bench, every = Bench(ROOT), all_mutants(ROOT)
    memory = Memory(ROOT / 'runs' / 'mutants', bench)
    explained = json.loads((ROOT / EXPLAINED).read_text(encoding='utf-8'))
    stale = sorted(set(explained) - {m.id for m in every})
    if stale: print(f'{EXPLAINED} explains what is no longer there: {", ".join(stale)}')
    if args.named: chosen = list(named_mutants(ROOT))
    elif args.mutant:
        chosen = [m for m in [*every, *named_mutants(ROOT)] if m.id in args.mutant]
        for name in args.mutant: memory.mutants.pop(name, None)
    else:
        among = [m for m in every if not args.module or m.module in args.module]
        chosen = choose(among, args.n, args.seed)
    if len(chosen) < len(args.mutant) or not chosen: sys.exit('no such mutant or module')
    due = [m for m in chosen if args.mutant or m.id not in explained]
    if not args.list: run(bench, memory, due, args.workers)
    return report(bench, memory, chosen, explained) > 0

if __name__ == '__main__':
    try: sys.exit(main())
    except KeyboardInterrupt: sys.exit(130)
