"""A chain of stages pays the imports once: a parent that has imported forks each of them.

    python -m workflows.chain make -f workflows/iteration.mk iteration N=60

Importing torch and transformers takes longer than a small stage's work. Here make runs as the child
of a parent, which imports at the first request and forks every stage, and every rank of one: a
process of its own, with its own memory, exit code and end, as if started by hand. The parent makes
no tensor, runs no query and calls no tokenizer, and it forks no stage once it has a thread, whose
locks would stay locked in the child, or has touched a GPU. The project's own modules are imported
in the stage, so that an edit takes effect.

Make's shell in a chain is `client.py` (see iteration.mk): it passes a stage's command line,
directory, environment and standard streams to the parent and ends with its exit code. Both talk
over a socket that make inherits: it has no name, so nobody else can open it and no kill leaves it
behind. What the parent cannot do as `python -m` would, `python -m` does.
"""
