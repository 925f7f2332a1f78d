"""Runs a command with a limit on its data: `python limited.py BYTES COMMAND...`.

The limit is RLIMIT_DATA, which counts private writable memory. RLIMIT_AS would also count address
space that Go, Java and JavaScript runtimes set aside and never touch.
"""

import os
import resource
import sys

if __name__ == "__main__":
    limit = int(sys.argv[1])
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    os.execvp(sys.argv[2], sys.argv[2:])
