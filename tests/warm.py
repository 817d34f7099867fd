"""The command line without the wait for its imports, which were half of what the suite took.

    python tests/warm.py SOCKET          imports everything once and then forks for each command
    python tests/warm.py SOCKET WORD …   asks for one: `oligovox WORD …`, with this process's folder, environment and pipes

Each command is a process of its own, as a user starts it; only its modules are there already. What is said of the start itself (help, errors,
what is imported) is asked of a fresh interpreter in test_cli.py and test_bad_input.py.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from contextlib import suppress


def ask(path: str, words: list[str]) -> int:
    """The exit code of `oligovox WORDS`."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        about = json.dumps({"words": words, "folder": os.getcwd(), "environment": dict(os.environ)}).encode()
        socket.send_fds(server, [len(about).to_bytes(8, "big")], [0, 1, 2])
        server.sendall(about)
        return int(server.recv(16) or b"1")


def import_all() -> None:
    """All that a command may need; called by who forks."""
    import lightning_fabric  # noqa: F401  what trains or predicts imports it
    import torch._dynamo  # noqa: F401  and this with its first optimiser

    from oligovox import experiment
    from oligovox.catalogue import entries, load

    for name in experiment.__all__:
        getattr(experiment, name)
    for kind in ("METHOD", "NETWORK"):
        for name in entries(kind):
            load(kind, name)


def serve(path: str) -> None:
    """Until killed, or until the process that started it ends."""
    from oligovox.simulate.anatomy.template import template

    import_all()
    template(4.0)  # what simulated people of the pages are drawn on
    parent = os.getppid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who answer
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path + ".new")
        server.listen()
        os.rename(path + ".new", path)  # who sees it is answered
        server.settimeout(5)
        while os.getppid() == parent:
            try:
                client, _ = server.accept()
            except TimeoutError:
                continue
            if os.fork() == 0:
                server.close()
                answer(client)
            client.close()


def answer(client: socket.socket) -> None:
    """One command, in a child of this process; does not return."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    client.setblocking(True)
    size, pipes, _, _ = socket.recv_fds(client, 8, 3)
    about = b""
    while len(about) < int.from_bytes(size, "big"):
        if not (more := client.recv(1 << 16)):
            os._exit(1)
        about += more
    asked = json.loads(about)
    command = os.fork()
    if command == 0:
        os.setpgid(0, 0)
        client.close()
        for number, pipe in enumerate(pipes):
            os.dup2(pipe, number)
            os.close(pipe)
        os.chdir(asked["folder"])
        os.environ.clear()
        os.environ.update(asked["environment"])
        sys.argv = ["oligovox", *asked["words"]]
        from oligovox.cli import main

        main()
        sys.exit(0)
    client.settimeout(0.01)
    while not (ended := os.waitpid(command, os.WNOHANG))[0]:
        with suppress(TimeoutError, ProcessLookupError):
            # Nothing comes: it returns when nobody waits any more, and then the command ends, its workers too.
            client.recv(1)
            os.killpg(command, signal.SIGKILL)
    client.sendall(str(os.waitstatus_to_exitcode(ended[1])).encode())
    os._exit(0)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    else:
        sys.exit(ask(sys.argv[1], sys.argv[2:]))
