"""Servers that none of us wrote: PostgreSQL from the system's package, an S3 store from PyPI."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments import servers


def program(name: str) -> str:
    """Debian keeps PostgreSQL's programs outside the path."""
    found = shutil.which(name) or next(map(str, sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None)
    if found is None:
        pytest.skip(f"no {name} here; Debian's package `postgresql` has it")
    return found


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A PostgreSQL server with the databases prefect and mlflow; `user@host:port` of it."""
    initdb, server = program("initdb"), program("postgres")
    psycopg = pytest.importorskip("psycopg")
    folder = Path(tempfile.mkdtemp(prefix="groundup-postgres-"))
    as_user: dict[str, object] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "cwd": folder}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        names = {entry.pw_name for entry in pwd.getpwall()}
        user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
        os.chown(folder, user.pw_uid, user.pw_gid)
        as_user |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    data, port = folder / "data", servers.free_port(0)
    options = ["-A", "trust", "-U", "groundup", "--no-sync", "-E", "UTF8", "--locale", "C"]
    subprocess.run([initdb, "-D", str(data), *options], check=True, **as_user)  # type: ignore[call-overload]
    command = [server, "-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", str(folder), "-c", "fsync=off"]
    process = subprocess.Popen(command, **as_user)  # type: ignore[call-overload]
    try:
        where = f"groundup@127.0.0.1:{port}"
        deadline = time.monotonic() + 120
        while True:
            try:
                with psycopg.connect(f"postgresql://{where}/postgres", autocommit=True) as connection:
                    for name in ("prefect", "mlflow"):
                        connection.execute(f"CREATE DATABASE {name}")
                break
            except psycopg.OperationalError:
                assert process.poll() is None, "PostgreSQL ended at once"
                assert time.monotonic() < deadline, "PostgreSQL does not answer"
                time.sleep(0.2)
        yield where
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def s3() -> Iterator[dict[str, str]]:
    """An S3 server; the variables by which clients find it."""
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    yield {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": url,
        "MLFLOW_S3_ENDPOINT_URL": url,
    }
    server.stop()
