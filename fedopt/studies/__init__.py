"""Published experiments, and questions of this package's own, each reproduced by one command.

`study.py` says what a study is, `tasks.py` which runs it needs and in which order, `runner.py` runs
them, `results.py` measures them, `page.py` writes down what came of it. The studies themselves are
in `catalogue/`, a module each.
"""
