"""A comparison in, reports out: terminal, Markdown, HTML, CSV, JUnit and a model card's block.

`report.py` says everything once, as the plain blocks of `blocks.py`; each form writes those blocks.
Nothing here computes a statistic, and nothing needs the harness or a model. Texts of documents, of
models and of folders are never trusted: each form escapes every text by itself.
"""
