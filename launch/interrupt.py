"""An interrupt while a launcher still imports its modules is one line: imported first, it asks for nothing itself."""

import sys


def shown(kind, error, trace):
    if issubclass(kind, KeyboardInterrupt):
        sys.stderr.write(f'{sys.argv[0].rpartition("/")[2]}: interrupted\n')
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = shown
