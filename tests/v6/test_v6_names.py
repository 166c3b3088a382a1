"""Every name and attribute that the documentation, the README and the tutorials of sae-lens 6.54 use, and what it is here."""
import dataclasses
import json
from importlib import import_module
from importlib.metadata import version
from inspect import signature
from pathlib import Path

import pytest
from sae_workbench.core.v6_modules import v6_name

TABLE = json.loads((Path(__file__).parents[1]/'fixtures'/'v6_names.json').read_text(encoding='utf-8'))
IMPORTS = [(module, name) for module, names in TABLE['imports'].items() for name in names.split()]
GONE = [(module, name) for module, names in TABLE['answered'].items() for name in names.split()]
ATTRIBUTES = [(owner, name) for owner, names in TABLE['attributes'].items() for name in names.split()]


def fetch(module: str, name: str):
    "What `from module import name` gives"
    return getattr(__import__(module, fromlist=[name]), name)


@pytest.mark.parametrize('module, name', IMPORTS)
def test_can_be_imported_from_where_v6_has_it(module, name):
    if name == 'HookedSAETransformer' and int(version('transformer_lens').split('.')[0]) > 3:
        with pytest.raises(ImportError, match='SAETransformerBridge'):
            fetch(module.replace('sae_lens', 'sae_workbench'), name)
        return
    assert fetch(module.replace('sae_lens', 'sae_workbench'), name) is not None


@pytest.mark.parametrize('module, name', GONE)
def test_is_answered_with_what_to_write(module, name):
    ours = module.replace('sae_lens', 'sae_workbench')
    assert not hasattr(import_module(ours), name)
    with pytest.raises(ImportError, match=f'sae_workbench has no {name}: .{{8,}}'):
        fetch(ours, name)


@pytest.mark.parametrize('owner, name', ATTRIBUTES)
def test_is_an_attribute_of_what_has_it_in_v6(owner, name):
    cls = v6_name(owner)
    fields = {f.name for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    assert name in fields or hasattr(cls, name) or name in TABLE['made'].get(owner, '').split()


@pytest.mark.parametrize('name', TABLE['arguments'])
def test_a_function_takes_the_arguments_of_v6_by_name(name):
    signature(v6_name(name)).bind_partial(**dict.fromkeys(TABLE['arguments'][name].split()))


def test_attributes_that_are_made_with_the_object_are_there():
    from sae_workbench import StandardSAE, StandardSAEConfig
    sae = StandardSAE(StandardSAEConfig(d_in=4, d_sae=8))
    assert not [name for name in TABLE['made']['SAE'].split() if not hasattr(sae, name)]


def test_the_table_is_whole():
    assert len(IMPORTS) > 100 and len(ATTRIBUTES) > 100 and GONE
    assert not set(IMPORTS) & set(GONE)


def test_a_conversation_becomes_a_tensor():
    from sae_workbench.activations.tokens import word_tokenizer
    from sae_workbench.tokenization_and_batching import tokenize_with_chat_template
    tok = word_tokenizer('hi there')
    tok.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    ids = tokenize_with_chat_template([dict(role='user', content='hi there')], tok)
    assert ids.tolist() == tok.convert_tokens_to_ids(['hi', 'there'])


def test_a_deprecation_points_at_the_line_that_should_change(tmp_path):
    "Python hides a `DeprecationWarning` that points anywhere else"
    from sae_workbench import SAE, StandardSAE, StandardSAEConfig
    StandardSAE(StandardSAEConfig(d_in=4, d_sae=8)).save_model(tmp_path)
    with pytest.warns(DeprecationWarning, match='load_from_disk') as said: SAE.load_from_pretrained(tmp_path)
    assert said[0].filename == __file__
