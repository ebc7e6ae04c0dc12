"""The sandbox, in which programs run that a model wrote.

`bubblewrap` builds it, `seccomp` filters its system calls, `child` is what runs inside, `run`
starts a program and ends it, and `check` tries all of it on this machine.
"""
