"""The stages of a run one after another, each a process of its own, with the imports paid once.

python -m workflows.chain iteration --run demo --to 3
"""
