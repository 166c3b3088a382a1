"""The anchors that the page of a notebook will have, told from the notebook, so that no site has to be built to check a link."""
import ast
import re
from functools import lru_cache
from html import unescape
from pathlib import Path

from sidebar import cells

HEADING = re.compile(r'^#{1,6} +(.+?)(?: *\{#([\w.-]+)[^}]*\})? *#*$', re.M)
FENCED = re.compile(r'^(```|~~~).*?^\1', re.M | re.S)


def slug(heading: str) -> str:
    "The anchor of a heading, by Pandoc's rules: lower case, no punctuation, hyphens for spaces, from the first letter on"
    text = re.sub(r'!?\[([^\]]*)\]\([^)]*\)|<[^>]+>', r'\1', unescape(heading))
    kept = ''.join(c for c in text.lower() if c.isalnum() or c.isspace() or c in '_-.')
    return re.sub(r'^[^a-z]+', '', '-'.join(kept.split())) or 'section'


def given(text: str) -> set[str]:
    "Anchors that HTML or Markdown names itself"
    return {unescape(m) for m in re.findall(r'\s(?:id|name)="([^"]+)"', text)} | set(re.findall(r'\{#([\w.-]+)[^}]*\}', text))


def of_markdown(text: str) -> set[str]:
    found = {named or slug(title) for title, named in HEADING.findall(FENCED.sub('', text))}
    return found | given(text)


def exported(source: str) -> list[ast.AST]:
    "What an exported cell defines, if the site documents it"
    if not re.search(r'^#\|\s*(export|exports|exec_doc)\b', source, re.M) or re.search(r'^#\|\s*hide\s*$', source, re.M):
        return []
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return [node for node in ast.parse(re.sub(r'^[%!].*$', 'pass', source, flags=re.M)).body if isinstance(node, kinds)]


def entry(node: ast.AST) -> str:
    "The name under which a definition stands: that of a patched method has its class before it"
    for decorator in map(ast.unparse, node.decorator_list):
        if to := re.match(r'patch_to\((\w+)', decorator):
            return f'{to[1]}.{node.name}'
        if decorator.startswith('patch'):
            return f'{ast.unparse(node.args.args[0].annotation)}.{node.name}'
    return node.name


def of_definitions(nodes: list[ast.AST]) -> set[str]:
    "Functions, classes, and the methods in the tables of the classes, those of private bases too"
    classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}

    def methods(cls):
        for base in map(ast.unparse, cls.bases):
            if base.startswith('_') and base in classes:
                yield from methods(classes[base])
        yield from (m.name for m in cls.body if isinstance(m, ast.FunctionDef) and ast.get_docstring(m))

    names = {entry(node) for node in nodes} | {f'{name}.{m}' for name, cls in classes.items() for m in methods(cls)}
    return {name.lower() for name in names if not re.search(r'(^|\.)_', name)}


def of_outputs(cell: dict) -> set[str]:
    "Anchors in what a cell shows"
    found = set()
    for out in cell.get('outputs', []):
        data = out.get('data', {})
        found |= given(''.join(data.get('text/html', '')))
        if 'text/markdown' in data:
            found |= of_markdown(''.join(data['text/markdown']))
    return found


@lru_cache(maxsize=None)
def anchors(notebook: Path) -> frozenset[str]:
    "All anchors of a notebook's page"
    found, nodes = set(), []
    title, *rest = cells(notebook)   # the title stands above the page and has none
    for cell in rest:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown':
            found |= of_markdown(source)
        elif cell['cell_type'] == 'code':
            nodes += exported(source)
            found |= of_outputs(cell) | {name.lower() for name in re.findall(r'^show_doc\(([\w.]+)', source, re.M)}
    return frozenset(found | of_definitions(nodes))
