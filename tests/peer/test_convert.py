"""`sae-workbench convert` on every published format: the same SAE before and after."""
import json

import pytest
import torch
from fakehub import FakeHub
from producers import PRODUCERS
from safetensors.torch import load_file, save_file
from sae_workbench import SAE, get_pretrained_saes_directory
from sae_workbench.apps.cli import main
from sae_workbench.formats.weights import PICKLES

PICKLED = ('dictionary_learning_1', 'qwen_scope', 'goodfire', 'deepseek_r1', 'connor_rob_hook_z', 'openai', 'crosscoder_kissane')
pytestmark = pytest.mark.filterwarnings('ignore:.*one layer of a cross-layer transcoder')


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def run(capsys, *args) -> tuple[int, str]:
    "How the program ends, and what it says"
    code = 0
    try:
        main(['convert', *map(str, args)])
    except SystemExit as e:
        code = e.code
    said = capsys.readouterr()
    return code, said.out + said.err


def same(a: SAE, b: SAE) -> None:
    x = torch.randn(3, 5, a.d_in).to(a.dtype)
    assert type(a) is type(b) and a.dtype == b.dtype and torch.equal(a.encode(x), b.encode(x)) and torch.equal(a(x), b(x))
    facts = a.cfg.to_dict() | dict(device=None)
    assert facts == b.cfg.to_dict() | dict(device=None)


@pytest.mark.parametrize('name', PRODUCERS)
def test_folder(name, tmp_path, capsys):
    torch.manual_seed(0)
    source, out = tmp_path/'source', tmp_path/'out'
    path = PRODUCERS[name](source)
    args = (source, out, '--sae-id', path)
    if name in PICKLED:
        code, said = run(capsys, *args)
        assert code == 2 and '--allow-pickle' in said and not out.exists()
        args += ('--allow-pickle',)
    code, said = run(capsys, *args)
    assert code == 0 and 'SAE.load_from_disk' in said, said
    before, _, sparsity = SAE.from_pretrained_with_cfg_and_sparsity(source, path, dtype=None, allow_pickle=True)
    after, _, carried = SAE.from_pretrained_with_cfg_and_sparsity(out)
    same(before, SAE.load_from_disk(out))
    same(before, after)
    assert (sparsity is None) == (carried is None) and (sparsity is None or torch.equal(sparsity, carried))
    assert json.loads((out/'cfg.json').read_text(encoding='utf-8'))['metadata']['sae_lens_version'] and 'SAE.load_from_disk' in (out/'README.md').read_text(encoding='utf-8')
    written = {p: p.read_bytes() for p in out.iterdir()}
    code, said = run(capsys, *args)
    assert code == 2 and 'exists already' in said and written == {p: p.read_bytes() for p in out.iterdir()}


def test_every_pickled_format_is_known_to_this_test():
    "Of the formats that are tried, those whose files are pickles"
    from sae_workbench.formats.layouts import get_format
    formats = {name.split()[0] for name in PRODUCERS}
    assert {f for f in formats if any(w.endswith(PICKLES) for w in get_format(f).weights)} <= set(PICKLED)


@pytest.mark.parametrize('name', PICKLED + ('gemma_2', 'gemma_2_transcoder'))
def test_file(name, tmp_path, capsys):
    "A file becomes safetensors where it lies, and the folder loads without leave for pickles"
    torch.manual_seed(0)
    path = PRODUCERS[name](tmp_path)
    before = SAE.from_pretrained(tmp_path, path, dtype=None, allow_pickle=True)
    file = next(p for p in tmp_path.rglob('*') if p.suffix in (*PICKLES, '.npz'))
    out = file.with_suffix('.safetensors')
    if name in PICKLED:
        code, said = run(capsys, file, out)
        assert code == 2 and '--allow-pickle' in said and not out.exists()
    assert run(capsys, file, out, '--allow-pickle')[0] == 0 and load_file(out)
    assert run(capsys, file, out, '--allow-pickle')[0] == 2
    file.unlink()
    same(before, SAE.from_pretrained(tmp_path, path, dtype=None, converter=name))


def test_release_and_repository(tmp_path, capsys):
    torch.manual_seed(0)
    folder = tmp_path/'source'
    path = PRODUCERS['sae_lens'](folder)
    release = get_pretrained_saes_directory()['gpt2-small-res-jb']
    files = {p.relative_to(folder/path).as_posix(): p.read_bytes() for p in (folder/path).iterdir()}
    sae_id, at = 'blocks.8.hook_resid_pre', release.saes_map['blocks.8.hook_resid_pre']
    hub = FakeHub({release.repo_id: {f'{at}/{k}': v for k, v in files.items()}, 'me/mine': {f'{path}/{k}': v for k, v in files.items()}})
    with hub, hub.used_here(tmp_path/'cache'):
        assert run(capsys, 'gpt2-small-res-jb', tmp_path/'out', '--sae-id', sae_id)[0] == 0
        assert run(capsys, 'me/mine', tmp_path/'mine')[0] == 2
        assert run(capsys, 'me/mine', tmp_path/'mine', '--sae-id', path)[0] == 0
        code, said = run(capsys, 'gpt2-small-res-jb', tmp_path/'new', '--sae-id', 'blocks.88.hook_resid_pre')
        assert code == 2 and 'did you mean' in said
    out = SAE.load_from_disk(tmp_path/'out')
    assert torch.equal(out.W_dec, SAE.load_from_disk(tmp_path/'mine').W_dec) and torch.equal(out.W_dec, SAE.from_pretrained(folder, path).W_dec)
    assert out.cfg.metadata.neuronpedia_id == 'gpt2-small/8-res-jb' and (tmp_path/'out'/'sparsity.safetensors').exists()


def test_nothing_is_left_of_what_cannot_be_converted(tmp_path, capsys):
    path = PRODUCERS['gemma_3'](tmp_path/'source')
    file = tmp_path/'source'/path/'params.safetensors'
    tensors = load_file(file)
    tensors['b_enc'][0] = float('nan')
    save_file(tensors, file)
    code, said = run(capsys, tmp_path/'source', tmp_path/'out', '--sae-id', path)
    assert code == 2 and 'NaN or infinity' in said and not (tmp_path/'out').exists()
