"""What the oldest versions that pyproject.toml allows cannot do. The library says so there, and a test that needs it is skipped."""
from importlib.metadata import version

SAID = {   # what is said: for which package, and the first version that can
    'TransformerBridge is in TransformerLens 3': ('transformer_lens', (3,)),
    'needs the TransformerBridge of TransformerLens': ('transformer_lens', (3,)),
    "No module named 'transformer_lens.model_bridge'": ('transformer_lens', (3,)),   # a test's own import
    'cannot read what a newer version may have written': ('datasets', (4,)),   # lists, which 4.0 writes in another way
    'cannot read pickles safely': ('torch', (2, 10)),
}


def lacks(problem: str) -> str:
    "Which of these a failure is about, where the installed version is too old; empty if none"
    for said, (package, since) in SAID.items():
        have = tuple(int(n) for n in version(package).split('+')[0].split('.')[:2])
        if said in problem and have < since:
            return f'{package} {version(package)}: {said}'
    return ''
