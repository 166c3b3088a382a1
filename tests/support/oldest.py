"""What the oldest versions that pyproject.toml allows cannot do. The library says so there, and a test that needs it is skipped."""
from importlib.metadata import PackageNotFoundError, version

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
        if said not in problem:
            continue
        try:
            have = version(package)
        except PackageNotFoundError:   # its absence is another matter
            continue
        if tuple(int(n) for n in have.split('+')[0].split('.')[:2]) < since:
            return f'{package} {have}: {said}'
    return ''
