"""Build the documentation site into _docs/.

nbdev turns the notebooks into pages in _proc/; Quarto renders them where it is installed, smalldocs elsewhere.
Both read the same `_quarto.yml`, and neither runs a notebook: a page shows the outputs that are stored.

    python tools/docs.py [--renderer auto|quarto|smalldocs]
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from html import unescape
from pathlib import Path
from urllib.parse import unquote

from anchors import anchors
from sidebar import ROOT, heading, sections, website

PROC = ROOT/'_proc'
SITE = ROOT/'_docs'
PLOTLY = 'application/vnd.plotly.v1+json'
BADGE = 'https://colab.research.google.com/assets/colab-badge.svg'
KATEX = 'katex@0.16.11'
KATEX_CDN = f'https://cdn.jsdelivr.net/npm/{KATEX}/dist'

FIGURE = '''<div id="{id}" class="plotly-graph-div" style="width:100%;height:{height}px"></div>
<script type="text/javascript">drawFigure("{id}",{figure});</script>'''

REDIRECT = ('<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url=nbs/index.html">'
            '<a href="nbs/index.html">Home</a>\n')


def figure_html(figure: dict, name: str) -> str:
    "A stored plotly figure as HTML that uses the page's plotly.js"
    kept = {k: figure[k] for k in ('data', 'layout', 'config') if k in figure}
    kept.setdefault('layout', {}).setdefault('margin', dict(l=60, r=20, t=60, b=50))   # the usual 80 leave a phone little
    text = json.dumps(kept).replace('</', '<\\/')
    return FIGURE.format(id=name, height=figure.get('layout', {}).get('height', 450), figure=text)


def draw_figures(notebook: dict, name: str, up: str) -> None:
    "Turn the plotly outputs of a page into HTML; the first of them loads what draws them"
    script = ''.join(f'<script src="{up}site_plotly/{name}"></script>\n' for name in ('plotly.min.js', 'figures.js'))
    outputs = (out for cell in notebook['cells'] for out in cell.get('outputs', []) if PLOTLY in out.get('data', {}))
    for i, out in enumerate(outputs):
        html = figure_html(out['data'].pop(PLOTLY), f'plotly-{name}-{i}')
        out['data'] = {'text/html': [script + html if i == 0 else html]}


def fence_tabs(notebook: dict) -> None:
    "Tabs are HTML in the notebooks, which GitHub and Jupyter show as plain headings; both renderers want fences"
    opening, closing = {'<div class="panel-tabset">': '::: {.panel-tabset}'}, {'</div>': ':::'}
    now = opening
    for cell in notebook['cells']:
        if cell['cell_type'] == 'markdown':
            lines = ''.join(cell['source']).split('\n')
            for i, line in enumerate(lines):
                if line in now:
                    lines[i], now = now[line], closing if now is opening else opening
            cell['source'] = '\n'.join(lines).splitlines(keepends=True)


def without_dead_links(text: str, doc_url: str) -> str:
    "nbdev links every name in backticks that it knows; private ones, and those told under another name, have no entry to link to"
    def there(found):
        notebook = ROOT/'nbs'/Path(found[2]).with_suffix('.ipynb')
        return found[0] if notebook.exists() and found[3] in anchors(notebook) else found[1]
    return re.sub(rf'\[(`[^`\]]+`)\]\({re.escape(doc_url)}([^)\s#]*)#([^)\s]*)\)', there, text)


def without_namesakes(text: str, doc_url: str) -> str:
    "nbdev also links the name of a parameter, which opens the row of a table, to a function that is called the same"
    return re.sub(rf'(?<="\| )\[(`\w+`)\]\({re.escape(doc_url)}[^)\s]*\)(?= \|)', r'\1', text)


def finish_page(path: Path, doc_url: str) -> None:
    "Figures and tabs, and links between our own pages that stay inside the site"
    notebook = json.loads(path.read_text(encoding='utf-8'))
    front = notebook['cells'][0]['source']
    front[:] = [line for line in front if not line.startswith('output-file:')]   # a page is called as its notebook anyway
    up = '../'*(len(path.relative_to(PROC/'nbs').parts) - 1) or './'
    draw_figures(notebook, path.stem, up)
    fence_tabs(notebook)
    notebook['metadata'].pop('widgets', None)
    text = without_namesakes(without_dead_links(json.dumps(notebook, indent=1, ensure_ascii=False), doc_url), doc_url)
    text = text.replace(doc_url, up).replace(BADGE, f'{up}images/open-in-colab.svg')
    path.write_text(re.sub(r'\[(\[`[^`\]]+`\]\([^)\s]*\))\]\([^)\s]*\)', r'\1', text), encoding='utf-8')   # nbdev links inside links too


def stage() -> None:
    "Let nbdev process nbs/ into _proc/"
    from nbdev.config import get_config
    from nbdev.serve import proc_nbs
    others = [re.escape(p.name) for p in ROOT.iterdir() if p.is_dir() and p.name != 'nbs' and not (ROOT/'nbs'/p.name).exists()]
    for folder in (PROC, SITE):
        shutil.rmtree(folder, ignore_errors=True)
    proc_nbs('.', n_workers=0, skip_folder_re=f"^([_.].*|{'|'.join(others)})$")
    config = get_config()
    for page in (PROC/'nbs').rglob('*.ipynb'):
        finish_page(page, f'{config.doc_host}{config.doc_baseurl}/')


def copy_plotly() -> None:
    "One plotly.min.js for the whole site, so that figures show without a network, and our few lines that draw them"
    import plotly
    folder = PROC/'nbs'/'site_plotly'
    folder.mkdir(exist_ok=True)
    for source in (Path(plotly.__file__).parent/'package_data'/'plotly.min.js', ROOT/'tools'/'figures.js'):
        shutil.copy2(source, folder)


def fetch_katex(folder: Path) -> None:
    "KaTeX from npm, once"
    if folder.exists() or not shutil.which('npm'):
        return
    with tempfile.TemporaryDirectory() as tmp:
        done = subprocess.run(['npm', 'pack', '--silent', KATEX], cwd=tmp, capture_output=True)
        if done.returncode == 0:
            with tarfile.open(next(Path(tmp).glob('*.tgz'))) as packed:
                packed.extractall(tmp, filter='data')
            shutil.copytree(Path(tmp)/'package'/'dist', folder)


def use_local_katex() -> None:
    "Serve KaTeX from the site, so that maths shows offline; without npm or a network the pages ask a CDN for it"
    source, target = ROOT/'.assets'/'katex', SITE/'site_libs'/'katex'
    fetch_katex(source)
    if not source.exists():
        return
    for name in ('katex.min.css', 'katex.min.js', 'contrib/auto-render.min.js'):
        (target/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source/name, target/name)
    shutil.copytree(source/'fonts', target/'fonts', ignore=shutil.ignore_patterns('*.ttf', '*.woff'), dirs_exist_ok=True)
    for page in SITE.rglob('*.html'):
        text = page.read_text(encoding='utf-8')
        if KATEX_CDN in text:
            up = '../'*(len(page.relative_to(SITE).parts) - 1)
            page.write_text(text.replace(KATEX_CDN, f'{up}site_libs/katex'), encoding='utf-8')


def search_by_words() -> None:
    "smalldocs's search asks Fuse, which loads before it: put our order of the hits in between"
    fuse = SITE/'site_libs'/'fuse'/'fuse.min.js'
    ours = (ROOT/'tools'/'search.js').read_text(encoding='utf-8')
    fuse.write_text(fuse.read_text(encoding='utf-8').rstrip() + '\n' + ours, encoding='utf-8')


def break_long_names(page: str) -> str:
    "Let code in tables break after an underscore, a dot or an equals sign, and names in the table of contents between their words too"
    def cell(found): return re.sub(r'(?<=[_=])(?=\w)|(?<=\.)(?=[a-zA-Z])', '<wbr>', found[0])
    def entry(found): return re.sub(r'(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])', '<wbr>', cell(found))
    page = re.sub(r'<nav\b[^>]*\bid="TOC".*?</nav>', lambda toc: re.sub(r'(?<=>)[^<>&]+(?=<)', entry, toc[0]), page, flags=re.S)
    return re.sub(r'<td\b.*?</td>', lambda td: re.sub(r'(?<=<code>)[^<]+(?=</code>)', cell, td[0]), page, flags=re.S)


def render(renderer: str) -> None:
    "Render _proc/ and move the site to _docs/"
    command = ['quarto', 'render', '.', '--no-execute'] if renderer == 'quarto' else [sys.executable, '-m', 'smalldocs.cli', 'render', '.']
    subprocess.run(command, cwd=PROC, check=True)
    shutil.move(PROC/'_docs', SITE)
    if renderer == 'smalldocs':
        use_local_katex()
        search_by_words()
    for page in SITE.rglob('*.html'):
        page.write_text(break_long_names(page.read_text(encoding='utf-8')), encoding='utf-8')
    for style in SITE.rglob('*.css'):   # the themes ask for fonts from elsewhere, and have others to fall back on
        style.write_text(re.sub(r'@import\s*url\([^)]*fonts\.googleapis[^)]*\)\s*;?', '', style.read_text(encoding='utf-8')), encoding='utf-8')
    write_llms_txt()
    if not (SITE/'index.html').exists():
        (SITE/'index.html').write_text(REDIRECT, encoding='utf-8')


def write_llms_txt(site: Path = SITE) -> None:
    "The index of the site for language models, in reading order and with what each page is about"
    about = website()
    lines = [f"# {about['title']}", '', f"> {about['description']}", '']
    for section, names in sections():
        lines += [f'## {section}', '']
        for name in names:
            title, what = heading(ROOT/name)
            lines.append(f"- [{title}]({about['site-url']}/{Path(name).with_suffix('.llms.md')}): {what}")
        lines.append('')
    (site/'llms.txt').write_text('\n'.join(lines), encoding='utf-8')


def targets(page: str) -> set[str]:
    "The anchors of a page"
    return {unescape(t) for t in re.findall(r'\s(?:id|name)="([^"]+)"', page)}


def broken_links(site: Path = SITE) -> list[str]:
    "Links from one page of the site to a page, file or anchor that is not there"
    pages = {page.resolve(): page.read_text(encoding='utf-8') for page in site.rglob('*.html')}
    anchors = {page: targets(text) for page, text in pages.items()}
    broken = set()
    for page, text in pages.items():
        for link in map(unescape, re.findall(r'<(?:a|img|script|link)\b[^>]*?\s(?:href|src)="([^"]+)', text)):
            if re.match(r'[a-z][a-z+.-]*:|//', link):
                continue
            path, _, anchor = link.partition('#')
            there = (page.parent/unquote(path.split('?')[0])).resolve() if path else page
            if not there.exists() or (anchor and there in anchors and unquote(anchor) not in anchors[there]):
                broken.add(f'{page.relative_to(site.resolve())}: {link}')
    return sorted(broken)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--renderer', default='auto', choices=['auto', 'quarto', 'smalldocs'])
    renderer = parser.parse_args().renderer
    if renderer == 'auto':
        renderer = 'quarto' if shutil.which('quarto') else 'smalldocs'
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault('HF_HUB_OFFLINE', '1')
    stage()
    copy_plotly()
    render(renderer)
    broken = broken_links()
    print(f"{renderer}: {sum(1 for _ in SITE.rglob('*.html'))} pages in {SITE.name}/", *(f'broken link in {b}' for b in broken), sep='\n')
    return 1 if broken else 0


if __name__ == '__main__':
    sys.exit(main())
