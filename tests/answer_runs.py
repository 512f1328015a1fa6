"""Hand-made runs of a task with written answers."""

from run_files import Task, write_run

from lm_eval_exl2.cli import main

GENERATIVE = {"output_type": "generate_until"}


def row(question, answer, reference, **more):
    return {
        "metrics": {"m": 1.0},
        "question": question,
        "target": reference,
        "resps": [[answer]],
        **more,
    }


def write_answers(folder, answers, references, *, name="notes", **more):
    """One task; document i asks "question i"."""
    rows = [
        row(f"question {at}", answer, reference)
        for at, (answer, reference) in enumerate(zip(answers, references, strict=True))
    ]
    return write_rows(folder, rows, name=name, **more)


def write_rows(folder, rows, *, name="notes", original=None, **more):
    task = Task(name, rows, config=GENERATIVE, original=original)
    return write_run(folder, [task], model=folder.name, **more)


def bench(capsys, *words):
    code = main(["bench-accuracy", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err
