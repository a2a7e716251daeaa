"Everything about the package stands in settings.ini; this file hands it to setuptools."
import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

root = Path(__file__).resolve().parent
config = ConfigParser(delimiters=['='], interpolation=None)
config.read(root / 'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
readme = root / 'README.md'
lib = cfg['lib_name']
STATUS = {'1': 'Planning', '2': 'Pre-Alpha', '3': 'Alpha', '4': 'Beta', '5': 'Production/Stable'}


def absolute(words):
    "The README as it must be where it does not lie beside the files that it names: links with the repository's address."
    def link(match):
        before, target = match[1], match[2]
        if re.match(r'[a-zA-Z][\w+.-]*:|#|/', target): return match[0]
        kind = 'raw' if before.startswith(('!', 'src')) else 'blob'
        return f'{before}{cfg["git_url"]}/{kind}/{cfg["branch"]}/{target}'
    parts = re.split(r'(```.*?```|`[^`\n]*`)', words, flags=re.S)
    inside = r'(!\[[^\]]*\]\(|\]\(|\bsrc="|\bhref=")([^)\s"]+)'
    return ''.join(part if i % 2 else re.sub(inside, link, part) for i, part in enumerate(parts))


setup(
    name=lib,
    version=cfg['version'],
    description=cfg['description'],
    long_description=absolute(readme.read_text(encoding='utf-8')) if readme.exists() else cfg['description'],
    long_description_content_type='text/markdown',
    keywords=cfg['keywords'],
    author=cfg['author'],
    author_email=cfg['author_email'],
    url=cfg['git_url'],
    license='Apache-2.0',
    project_urls={
        'Documentation': cfg['doc_host'] + cfg['doc_baseurl'],
        'Source': cfg['git_url'],
        'Issues': cfg['git_url'] + '/issues',
        'Changelog': f'{cfg["git_url"]}/blob/{cfg["branch"]}/CHANGELOG.md',
    },
    classifiers=[
        f'Development Status :: {cfg["status"]} - {STATUS[cfg["status"]]}',
        f'Intended Audience :: {cfg["audience"]}',
        'Intended Audience :: Education',
        'Intended Audience :: Science/Research',
        f'Natural Language :: {cfg["language"]}',
        'Operating System :: OS Independent',
        'Programming Language :: Python :: 3',
        *(f'Programming Language :: Python :: 3.{minor}' for minor in range(int(cfg['min_python'].split('.')[1]), 14)),
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Mathematics',
    ],
    packages=find_packages(include=[lib, lib + '.*']),
    python_requires='>=' + cfg['min_python'],
    install_requires=cfg['requirements'].split(),
    extras_require={name: cfg[f'{name}_requirements'].split() for name in ('dev', 'fid', 'onnx', 'draw', 'captions')},
    entry_points={
        'console_scripts': cfg['console_scripts'].split(),
        'nbdev': [f'{lib}={lib}._modidx:d'],
    },
    zip_safe=False,
)
