"""Becomes the program it is given, and is killed by the kernel when its parent ends, however that ends.

Usage: python die_with_parent.py PARENT_PID PROGRAM [ARGUMENT...]

A program of its own instead of a `preexec_fn`, which isn't safe in a process with threads. Only
Linux has the call (prctl(2), PR_SET_PDEATHSIG); elsewhere the program runs on when its parent is
killed. Beware: to the kernel the parent is the *thread* that started the program.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h

if sys.platform == "linux":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent ended before its child began")
os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - no shell is the point
