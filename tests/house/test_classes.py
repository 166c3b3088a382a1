"""Classes are composed, not sliced: a class is something one can hold, and a module something one can read.

What does not keep a rule yet stands in fixtures/classes.json. That list may only shrink: an entry that is no longer needed fails.
"""
import ast
import importlib
import inspect
import json
import re
from collections import Counter

import pytest
from sidebar import ROOT, cells

PACKAGE = ROOT/'sae_workbench'
FILES = sorted(p for p in PACKAGE.rglob('*.py') if p.name != '_modidx.py')
LINES_OF_A_CLASS, LINES_OF_A_FUNCTION, LINES_OF_A_MODULE = 180, 40, 400
FRAMES = {'core.config.Config', 'core.hooks.HookedModule', 'saes.files.SAEFiles'}   # met once and known from then on, as nn.Module is
# Own classes in a class's MRO, itself among them and FRAMES not. An SAE in training has the two bases of all SAEs and, for each
# architecture, an inference and a training form; a variant (AbsTopK of TopK, Matryoshka of BatchTopK) stands on another architecture,
# for scripts ask `isinstance` for that, as in SAELens: 2 + 2*2. A transcoder in training is its SAE with three in front of it: itself,
# what makes a transcoder of a trainable SAE, and what every transcoder is; a crosscoder has two, and its config three.
ANCESTORS, ANCESTORS_OF_AN_SAE, ANCESTORS_OF_A_TRANSCODER = 3, 6, 9
IN_A_ROW = 2   # exported cells without an example between them


def module_name(path) -> str: return '.'.join(path.relative_to(PACKAGE).with_suffix('').parts)


def classes(tree: ast.Module) -> list[ast.ClassDef]: return [node for node in tree.body if isinstance(node, ast.ClassDef)]


def bases(cls: ast.ClassDef) -> list[str]:
    "The names that a class statement gives, without what stands in brackets"
    plain = (b.value if isinstance(b, ast.Subscript) else b for b in cls.bases)
    return [b.id for b in plain if isinstance(b, ast.Name)]


def pages(tree: ast.Module) -> set[str]:
    "Private classes that exist to be continued by one other class of their module"
    continued = Counter(b for cls in classes(tree) for b in bases(cls))
    return {cls.name for cls in classes(tree) if cls.name.startswith('_') and continued[cls.name] == 1}


def length(node: ast.AST) -> int: return node.end_lineno - node.lineno + 1


def too_long(tree: ast.Module) -> set[str]:
    "Classes and functions of more lines than a reader keeps in mind"
    functions = (n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)))
    return {c.name for c in classes(tree) if length(c) > LINES_OF_A_CLASS} | {f.name for f in functions if length(f) > LINES_OF_A_FUNCTION}


def borrowed(tree: ast.Module) -> set[str]:
    "Private names that are taken from another module of ours"
    imports = (n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and (n.level or (n.module or '').startswith('sae_workbench')))
    return {a.name for n in imports for a in n.names if a.name.startswith('_') and not a.name.startswith('__')}


def underscored(source: str) -> set[str]:
    "Private names that a reader of a page has to type: attributes and imports; what IPython asks for is no such name"
    try:
        nodes = list(ast.walk(ast.parse('\n'.join(line for line in source.split('\n') if not re.match(r'\s*[!%]', line)))))
    except SyntaxError:
        return set()
    names = {n.attr for n in nodes if isinstance(n, ast.Attribute)} | {a.name for n in nodes if isinstance(n, ast.ImportFrom) for a in n.names}
    return {name for name in names if re.match(r'_(?!_|repr_)', name)}


def is_export(cell: dict) -> bool: return bool(re.search(r'^#\|\s*exporti?s?\b', ''.join(cell['source']), re.M))


def needs_an_example(cell: dict) -> bool:
    "Whether an exported cell defines something: imports, registrations and constants speak for themselves"
    try:
        tree = ast.parse(''.join(cell['source']))
    except SyntaxError:   # a magic
        return False
    return any(isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) for node in tree.body)


def in_a_row(notebook: list[dict]) -> int:
    "The longest run of exported cells without an example between them"
    longest = run = 0
    for cell in (c for c in notebook if c['cell_type'] == 'code'):
        if is_export(cell):
            run += needs_an_example(cell)
        elif ''.join(cell['source']).strip():
            run = 0
        longest = max(longest, run)
    return longest


def heirs(module: str) -> dict[str, int]:
    "The module's classes that have too many own ancestors"
    found = {}
    family = tuple(getattr(importlib.import_module('sae_workbench.saes.base'), name) for name in ('SAE', 'SAEConfig'))
    transcoders = tuple(getattr(importlib.import_module('sae_workbench.saes.transcoder'), f'TrainingTranscoder{end}') for end in ('', 'Config'))
    transcoders += tuple(getattr(importlib.import_module('sae_workbench.saes.crosscoder'), name) for name in ('WithViews', 'CrosscoderConfig'))
    for name, cls in vars(importlib.import_module(f'sae_workbench.{module}')).items():
        if inspect.isclass(cls) and cls.__module__ == f'sae_workbench.{module}' and cls.__name__ == name:
            own = len({f'{c.__module__}.{c.__qualname__}' for c in cls.__mro__ if c.__module__.startswith('sae_workbench')}
                      - {f'sae_workbench.{frame}' for frame in FRAMES})
            most = ANCESTORS_OF_A_TRANSCODER if issubclass(cls, transcoders) else ANCESTORS_OF_AN_SAE if issubclass(cls, family) else ANCESTORS
            if own > most:
                found[name] = own
    return found


def everywhere(look) -> dict[str, set[str]]:
    "What a look at each module finds"
    found = {module_name(p): look(ast.parse(p.read_text(encoding='utf-8'))) for p in FILES}
    return {module: names for module, names in found.items() if names}


def notebooks() -> dict[str, int]:
    "Notebooks with too many exported cells in a row"
    runs = {p.relative_to(ROOT/'nbs').as_posix(): in_a_row(cells(p)) for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts}
    return {name: run for name, run in runs.items() if run > IN_A_ROW}


LOOKS = dict(
    slices=lambda: everywhere(pages),
    lengths=lambda: everywhere(too_long),
    borrowed=lambda: everywhere(borrowed),
    modules=lambda: {module_name(p): n for p in FILES if (n := p.read_text(encoding='utf-8').count('\n')) > LINES_OF_A_MODULE},
    ancestors=lambda: {m: found for m in map(module_name, FILES) if not m.endswith('__init__') and (found := set(heirs(m)))},
    notebooks=notebooks,
)
STILL = json.loads((ROOT/'tests/fixtures/classes.json').read_text(encoding='utf-8'))   # what does not keep its rule yet


@pytest.mark.parametrize('rule', LOOKS)
def test_the_house_keeps_its_rules(rule):
    for name, found in LOOKS[rule]().items():
        known = STILL[rule].get(name, 0 if isinstance(found, int) else [])
        assert found <= (known if isinstance(known, int) else set(known)), f'{name} breaks a rule ({rule}): {found}'


@pytest.mark.parametrize('rule', LOOKS)
def test_the_list_of_what_does_not_keep_them_only_shrinks(rule):
    found = LOOKS[rule]()
    gone = {name: known for name, known in STILL[rule].items() if name not in found or not isinstance(known, int) and set(known) - set(found[name])}
    assert not gone, 'these keep the rule now: take them off tests/fixtures/classes.json'


@pytest.mark.parametrize('name, most', [('SAE', 3), ('TopKTrainingSAE', 6), ('SAETrainer', 1), ('ActivationsStore', 1), ('LanguageModelSAETrainingRunner', 1)])
def test_the_classes_that_people_know_are_low(name, most):
    "Counted whole, with the frames"
    import sae_workbench
    assert sum(c.__module__.startswith('sae_workbench') for c in getattr(sae_workbench, name).__mro__) <= most


@pytest.mark.parametrize('folder', ['tutorials', 'guides'])
def test_readers_type_public_names(folder):
    pages = {p.name: underscored('\n'.join(''.join(c['source']) for c in cells(p) if c['cell_type'] == 'code')) for p in (ROOT/'nbs'/folder).glob('*.ipynb')}
    assert len(pages) > 5 and not {name: found for name, found in pages.items() if found}
    assert underscored('%time x\nfrom a import _b, c\nsae._activate(x); x._repr_html_(); x.__len__()') == {'_b', '_activate'}


SLICED = """
class _Half(Base):
    pass

class Whole(_Half):
    pass
"""


def test_a_slice_is_found():
    assert pages(ast.parse(SLICED)) == {'_Half'}
    assert not pages(ast.parse(SLICED + 'class Other(_Half): pass'))
    assert too_long(ast.parse('def f():\n' + '    x = 1\n'*41)) == {'f'}
    assert borrowed(ast.parse('from .base import SAE, _private\nfrom os import _exit')) == {'_private'}


def test_exported_cells_in_a_row_are_counted():
    def code(source): return dict(cell_type='code', source=[source])
    define, imports, example = code('#| export\ndef f(): pass'), code('#| export\nimport os'), code('f()')
    assert in_a_row([define, imports, define, example, define]) == 2
    assert in_a_row([define, dict(cell_type='markdown', source=['text']), define]) == 2
