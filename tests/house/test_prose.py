"""The code in prose runs: README and guides, in fenced blocks and inline, as it is written there."""
import ast
import re
import warnings
from functools import lru_cache

import pytest
import torch
from sidebar import ROOT, cells

PAGES = ['nbs/index.ipynb', *sorted(str(p.relative_to(ROOT)) for p in (ROOT/'nbs/guides').glob('*.ipynb'))]
FENCED = re.compile(r'^```(\w*)\n(.*?)^```', re.M | re.S)
# Code of other libraries stands there to be compared with ours; what it became is a cell of the guide, and runs with it.
FOREIGN = {'nbs/guides/from_dictionary_learning.ipynb', 'nbs/guides/from_sparsify.ipynb', 'nbs/guides/from_sae_lens_6.ipynb'}
OLD_CODE = {'nbs/guides/migration.ipynb'}   # code for versions 3 to 5: goes through `migrate`
NOT_OURS = {   # inline code that is named, not recommended
    'nbs/guides/migration.ipynb': {'HookedTransformer.from_pretrained(...)', 'TransformerBridge.boot_transformers(...)'},
    'nbs/guides/load_and_share.ipynb': {"sae_lens.SAE.from_pretrained('me/my-saes', 'layer_8')"}}


def prose(page: str) -> list[str]:
    return [''.join(c['source']) for c in cells(ROOT/page) if c['cell_type'] == 'markdown']


def blocks(page: str) -> list[str]:
    "The fenced Python of a page"
    return [code for text in prose(page) for language, code in FENCED.findall(text) if language == 'python']


def parsed(code: str) -> ast.Module | None:
    try:
        return ast.parse(code.replace('…', '...'))
    except SyntaxError:
        return None


def inline(page: str) -> list[str]:
    "What stands between backticks and does something: a call, an import or a block"
    spans = [s.replace('\\|', '|') for text in prose(page) for s in re.findall(r'(?<!`)`([^`\n]+)`(?!`)', FENCED.sub('', text))]
    does = (ast.Call, ast.With, ast.Import, ast.ImportFrom)
    found = [s for s in spans if (tree := parsed(s)) and any(isinstance(n, does) for n in ast.walk(tree))]
    return [s for s in dict.fromkeys(found) if s not in NOT_OURS.get(page, ()) and 'from …' not in s and 'from ...' not in s]


INLINE = [(page, code) for page in PAGES for code in inline(page)]
OUR_BLOCKS = [(page, code) for page in PAGES if page not in FOREIGN | OLD_CODE for code in blocks(page)]


@lru_cache(maxsize=None)
def language_model():
    from sae_workbench.activations.example_data import toy_model
    return toy_model(n_layers=2, d_model=32)


class Published(dict):
    "Stands for the hub: every published SAE that a page names has the same weights"
    def __call__(self, release, sae_id=None, *args, **options):
        from sae_workbench.formats.layouts import ReadSAE
        from sae_workbench.formats.lens import read_sae_folder
        from sae_workbench.formats.published import locate
        self['asked'] = locate(release, sae_id)   # the release and the id are known
        return ReadSAE(*read_sae_folder(self['folder']), None, 'cfg.json', 'sae_weights.safetensors')


@pytest.fixture
def names(tmp_path, monkeypatch) -> dict:
    "What a reader of the page has at hand"
    import sae_workbench
    monkeypatch.chdir(tmp_path)
    found = {n: getattr(sae_workbench, n) for n in sae_workbench.__all__}
    sae = found['TopKSAE'](found['TopKSAEConfig'](
        d_in=32, d_sae=64, k=4, metadata=found['SAEMetadata'](hook_name='blocks.1.hook_resid_post')))
    sae.save_model(tmp_path/'saved')
    published = Published(folder=tmp_path/'saved')
    monkeypatch.setattr('sae_workbench.saes.files.read_published', published)
    monkeypatch.setattr('sae_workbench.saes.files.upload_folders', lambda root, cfgs, repo_id, *more: (repo_id, *cfgs))
    monkeypatch.setattr('sae_workbench.saes.files.write_token', str)
    for name, maker in (('HookedSAETransformer', 'from_pretrained'), ('SAETransformerBridge', 'boot_transformers')):
        found[name] = type(name, (), {maker: staticmethod(lambda name: language_model())})   # what is loaded is not the point
    (tmp_path/'output').mkdir()
    (tmp_path/'output'/'log.jsonl').write_text('', encoding='utf-8')
    return found | dict(
        sae=sae, model=language_model(), tokens=torch.randint(1, 256, (6, 24)), latent=3, path=tmp_path/'saved',
        texts=[f'A text about the number {i}. '*30 for i in range(12)], release='gpt2-small-res-jb', sae_id='blocks.8.hook_resid_pre',
        runner=type('Runner', (), dict(run=lambda self: sae, resume=lambda self: sae))(), run=lambda: sae,
        fold_W_dec_norm=found['StandardSAE'](found['StandardSAEConfig'](d_in=4, d_sae=8)).fold_W_dec_norm)


def test_every_kind_of_code_is_found():
    assert len(INLINE) > 12 and len(OUR_BLOCKS) >= 1
    assert ('nbs/index.ipynb', 'run_evals(sae, tokens, model)') in INLINE


@pytest.mark.parametrize('page, code', INLINE + OUR_BLOCKS, ids=lambda s: s.strip()[:60])
def test_code_in_prose_runs(page, code, names):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        exec(compile(parsed(code), page, 'exec'), names)


@pytest.mark.parametrize('page', sorted(FOREIGN))
def test_code_of_others_is_python(page):
    assert blocks(page) and all(parsed(code) for code in blocks(page))


@pytest.mark.parametrize('page', sorted(OLD_CODE))
def test_old_code_can_be_migrated(page):
    "Every old script of the guide goes through the command that the guide is about, and what comes out is Python"
    from sae_workbench import migrate_config
    configs = [code for code in blocks(page) if 'RunnerConfig(' in code]
    assert len(configs) > 10
    for code in configs:
        done = migrate_config(code)
        assert done.code.strip() and ast.parse(done.code), code


def test_commands_exist():
    "`sae-workbench …` in prose and in shell blocks names a command that there is"
    from sae_workbench.apps.cli import COMMANDS
    for page in PAGES:
        for text in prose(page):
            for command in re.findall(r'sae-workbench ([a-z][a-z-]+)', text):
                assert command in COMMANDS, (page, command)
