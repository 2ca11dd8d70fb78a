"""Child processes: every one ends with this process, however this one ends. Bottom layer.

    start    a program, heard while it runs
    run      a program, heard when it has ended
    end      ends a program with its children
    apart    a function of edgekit for many values, in several processes

Behind each stands `supervisor.py`, which watches a pipe that this process holds open.
"""

from edgekit.processes.children import close, end, run, start
from edgekit.processes.pool import apart

__all__ = ["apart", "close", "end", "run", "start"]
