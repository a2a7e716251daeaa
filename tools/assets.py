"""Write the checksums of nbs/assets into chapter 15: `python tools/assets.py`, then nbdev_export; `--check` only says whether they are current.

A notebook that is opened alone, as in Colab, fetches what it needs from the repository, and these sums say whether
what came is what was kept. Pictures (.gif) are shown by a page, not read by a cell, and have no sum.
"""
import hashlib
import json
import sys
from pathlib import Path

NBS = Path(__file__).resolve().parent.parent / 'nbs'
NOTEBOOK = NBS / '15_checkpoints.ipynb'
IDS = ('a55e7501', 'a55e7502', 'a55e7503', 'a55e7511', 'a55e7512', 'a55e7513')  # of the cells; one holds 24 sums, so that it has at most 25 lines
DIGITS = 32  # of each sum, in hexadecimal: 128 bits


def cells():
    "id -> source of each cell, from the files as they are."
    kept = sorted(p for p in (NBS / 'assets').iterdir() if p.suffix in ('.json', '.safetensors'))
    lines = [f"    '{p.name}': '{hashlib.sha256(p.read_bytes()).hexdigest()[:DIGITS]}'," for p in kept]
    parts = [lines[i:i + 24] for i in range(0, len(lines), 24)]
    if len(parts) > len(IDS): sys.exit('tools/assets.py: more files than its cells hold; add an id to IDS')
    start = {0: 'ASSETS = {'}
    return {IDS[i]: '#| export\n' + start.get(i, 'ASSETS |= {') + '\n'.join(part).strip(' ,') + '}' for i, part in enumerate(parts)}


def main():
    nb, new = json.loads(NOTEBOOK.read_text(encoding='utf-8')), cells()
    old = {c['id']: ''.join(c['source']) for c in nb['cells'] if c['id'] in IDS}
    if old == new: return print(f'{NOTEBOOK.name}: the sums are current')
    if '--check' in sys.argv: sys.exit(f'{NOTEBOOK.name}: the sums of nbs/assets are out of date; run python tools/assets.py && nbdev_export')
    place = next(i for i, c in enumerate(nb['cells']) if c['id'] in IDS)
    rest = [c for c in nb['cells'] if c['id'] not in IDS]
    made = [dict(cell_type='code', execution_count=None, id=id, metadata={}, outputs=[], source=source.splitlines(keepends=True))
            for id, source in new.items()]
    nb['cells'] = rest[:place] + made + rest[place:]
    NOTEBOOK.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
    print(f'{NOTEBOOK.name}: written; now nbdev_export')


if __name__ == '__main__': main()
