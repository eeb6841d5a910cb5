"""Keeps everybody from reading a database until standard input closes.

exclusive: a connection with locking_mode=EXCLUSIVE, as an application's last close has for a moment.
commit: a writer that is stopped in the middle of its commit, between the two copies of the index's header.
"""

import fcntl
import mmap
import os
import sqlite3
import sys

WRITE_LOCK = 120  # the byte of -shm by which SQLite locks out other writers
HEADER = 48  # bytes of one copy of the index's header

path, mode = sys.argv[1:]
if mode == "exclusive":
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA locking_mode=EXCLUSIVE")
    db.execute("BEGIN IMMEDIATE")
    db.execute("COMMIT")
    print("stopped", flush=True)
    sys.stdin.read()
    db.close()
else:
    index = os.open(path + "-shm", os.O_RDWR)
    fcntl.lockf(index, fcntl.LOCK_EX, 1, WRITE_LOCK)
    with mmap.mmap(index, 2 * HEADER) as header:
        before = header[HEADER + 8]
        header[HEADER + 8] = before ^ 1
        print("stopped", flush=True)
        sys.stdin.read()
        header[HEADER + 8] = before
    fcntl.lockf(index, fcntl.LOCK_UN, 1, WRITE_LOCK)
