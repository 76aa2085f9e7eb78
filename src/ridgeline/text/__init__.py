"""Text in and out: tokenizer, chat template, incremental detokenizer, stop strings.

Everything here is pure Python over `tokenizers` and `jinja2`. It knows nothing of models, engines or servers,
and keeps no global state.
"""
