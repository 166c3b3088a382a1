"""Imported once by the server process of `nbrun`: what takes seconds to import, as far as it is installed."""
from importlib import import_module

for name in ('torch', 'torch._dynamo', 'pandas', 'nbformat', 'anywidget', 'datasets', 'transformer_lens', 'transformer_lens.model_bridge',
             'plotly.graph_objects', 'ipywidgets', 'nbdev.test', 'nbdev.showdoc', 'nbrun'):
    try:
        import_module(name)
    except Exception:   # a broken or missing optional package: the notebook that wants it says so
        pass
