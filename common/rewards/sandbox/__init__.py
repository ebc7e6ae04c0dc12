"""Where programs run that a model wrote.

`bubblewrap` builds the walls, `seccomp` the filter of system calls, `child` is what runs inside,
`run` starts it and ends it; `check` tries all of it on this machine.
"""
