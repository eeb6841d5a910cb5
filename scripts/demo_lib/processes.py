"""The processes of the demo: the server, the daemons and the writers, which know nothing of us."""

import json
import re
import shutil
import subprocess
import sys
import time

READY_WITHIN_S = 30
STOPPED_WITHIN_S = 15
WRITTEN_WITHIN_S = 60
LOG_LINES_SHOWN = 15


class Failure(Exception):
    """Something was not proven; the message says what."""


class Service:
    """A process that runs until the demo ends, with its log in a file."""

    def __init__(self, name, command, log):
        self.name = name
        self.log = log
        self.started = time.monotonic()
        with open(log, "wb") as out:
            # A session of its own: Ctrl-C reaches us alone, and we stop the others in order.
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)

    def wait_for(self, condition, what):
        """Waits until the condition gives something, and returns that with the seconds since the start."""
        while True:
            found = condition()
            if found:
                return found, time.monotonic() - self.started
            if self.process.poll() is not None:
                raise Failure(f"{self.name} ended with code {self.process.returncode} before it was {what}")
            if time.monotonic() - self.started > READY_WITHIN_S:
                raise Failure(f"{self.name} was not {what} within {READY_WITHIN_S} s")
            time.sleep(0.005)

    def last_lines(self):
        """The end of its log."""
        return self.log.read_text("utf-8", "replace").splitlines()[-LOG_LINES_SHOWN:]

    def stop(self):
        """Asks it to stop and returns its exit code; kills it if it does not."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOPPED_WITHIN_S)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.process.returncode

    def kill(self):
        """Ends it at once."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def start_server(binary, work):
    """Starts nats-server with JetStream on a free port; returns it and its URL."""
    ports = work / "ports"
    ports.mkdir()
    # Port -1 lets the server itself find a free one and tell it in a file, so nobody can take it in between.
    command = [binary, "-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", str(ports), "-js", "-sd", str(work / "jetstream")]
    server = Service("nats-server", command, work / "nats-server.log")

    def url():
        for file in ports.glob("*.ports"):
            try:
                return json.loads(file.read_text())["nats"][0]
            except (ValueError, KeyError, IndexError):
                return None  # Not written to its end yet.
        return None

    try:
        return server, server.wait_for(url, "listening")[0]
    except BaseException:
        server.kill()
        raise


def start_daemon(binary, path, node_id, url, log):
    """Starts `woodchuck run` for a database, without waiting for it."""
    command = [binary, "run", "--db-path", str(path), "--node-id", str(node_id), "--nats-url", url]
    return Service(f"woodchuck run ({path.name})", command, log)


def wait_until_ready(daemon):
    """Waits for the line that says that the daemon is attached; returns the seconds since its start."""
    return daemon.wait_for(lambda: re.search(r"\bready\b", daemon.log.read_text("utf-8", "replace")), "ready")[1]


# What the writing process runs where there is no sqlite3 shell: an ordinary connection, nothing else.
PYTHON_WRITER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)
statement = ""
for line in sys.stdin.read().splitlines(True):
    statement += line
    if sqlite3.complete_statement(statement):
        for row in db.execute(statement):
            print(*row, sep="|")
        statement = ""
db.close()
"""

# The clock that SQLite sees, in seconds since 1970: the writer's last statement tells when its last commit was done.
NOW = "SELECT printf('%.3f', (julianday('now') - 2440587.5) * 86400.0);"


class Writer:
    """A process of its own that writes with plain SQL, and the moment of its last commit."""

    def __init__(self, path, sql):
        shell = shutil.which("sqlite3")
        if shell:
            command = [shell, "-batch", "-bail", "-init", "/dev/null", "-cmd", ".timeout 10000", str(path)]
        else:
            command = [sys.executable, "-c", PYTHON_WRITER, str(path)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.script = f"PRAGMA foreign_keys = ON;\n{sql}\n{NOW}\n"

    def finish(self):
        """Feeds it the statements, waits for its end, and returns the moment of its last commit in seconds since 1970."""
        try:
            out, err = self.process.communicate(self.script.encode("utf-8", "surrogateescape"), WRITTEN_WITHIN_S)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        if self.process.returncode != 0:
            raise Failure(f"the writing process failed: {err.decode('utf-8', 'replace').strip()}")
        return float(out.split()[-1])


def writer_name():
    """The program that writes."""
    return "sqlite3" if shutil.which("sqlite3") else "python3"
