"""`python -m lm_eval_exl2 ...`: the harness's own command, with this package registered first.

Needs no start-up hook, so it also works under `python -S`, `pip install --target` and frozen
environments. Arguments are the harness's own.
"""

from lm_eval_exl2.plugin import register


def main() -> None:
    """Register model and tasks, then hand over to the harness."""
    register()
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
