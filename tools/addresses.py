"""Write the addresses of the repository and of the site wherever they stand: settings.ini decides them.

    python tools/addresses.py [--check]

Change `user` in settings.ini (or `git_url` and `doc_host`, where they are not on GitHub), then run it. What was written
last is read from _quarto.yml, so that the old addresses are found.
"""
import argparse
import configparser
import re
import sys
from pathlib import Path

from sidebar import ROOT, website

PLACES = ('_quarto.yml', 'pyproject.toml', 'README.md', 'nbs/**/*.ipynb')


def decided(root: Path = ROOT) -> tuple[str, str]:
    "The repository's and the site's address as settings.ini gives them"
    settings = configparser.ConfigParser()
    settings.read(root/'settings.ini')
    here = settings['DEFAULT']
    return here['git_url'].rstrip('/'), here['doc_host'] + here['doc_baseurl'].removesuffix('/nbs')


def written(root: Path = ROOT) -> tuple[str, str]:
    "The two addresses as they were written last"
    site = website(root)
    return site['repo-url'], site['site-url']


def spellings(repository: str, site: str) -> list[str]:
    "The ways in which the two addresses occur: Colab opens notebooks by the part behind the host"
    return [repository, repository.replace('https://github.com/', 'https://colab.research.google.com/github/'), site]


def rewritten(text: str, old: tuple[str, str], new: tuple[str, str]) -> str:
    "A text with the new addresses"
    pairs = dict(zip(spellings(*old), spellings(*new)))
    found = '|'.join(map(re.escape, sorted(pairs, key=len, reverse=True)))
    return re.sub(rf'(?:{found})(?![\w-])', lambda m: pairs[m[0]], text)


def files(root: Path = ROOT) -> list[Path]:
    "The files that name an address"
    return sorted(p for place in PLACES for p in root.glob(place) if '.ipynb_checkpoints' not in p.parts)


def follow(root: Path = ROOT, check: bool = False) -> list[str]:
    "Bring every file to the addresses of settings.ini; the names of those that differed"
    old, new, changed = written(root), decided(root), []
    for path in files(root):
        before = path.read_text(encoding='utf-8')
        if (after := rewritten(before, old, new)) != before:
            changed.append(path.relative_to(root).as_posix())
            if not check:
                path.write_text(after, encoding='utf-8')
    return changed


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='change nothing, and fail if a file would be changed')
    check = parser.parse_args().check
    changed = follow(check=check)
    print(*changed, sep='\n')
    sys.exit(bool(check and changed))
