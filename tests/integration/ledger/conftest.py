"""Ledgers in SQLite and PostgreSQL."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from instructedit.ledger.ledger import Ledger


def as_postgres(*command: str) -> None:
    """Run a command of PostgreSQL, which refuses to run as root."""
    user = "postgres" if os.geteuid() == 0 else None
    subprocess.run(command, check=True, user=user, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[], str]]:
    """URLs of new databases of a PostgreSQL server, which is started for the tests."""
    found = shutil.which("pg_ctl")
    tools = Path(found).resolve().parent if found else None
    if tools is None or not (tools / "initdb").exists():
        packaged = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        if not packaged:
            pytest.skip("needs PostgreSQL")
        tools = packaged[-1].parent
    if os.geteuid() == 0 and "postgres" not in {entry.pw_name for entry in pwd.getpwall()}:
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a short path: it holds a socket
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
    data = folder / "data"
    as_postgres(str(tools / "initdb"), "-D", str(data), "-U", "tester", "-A", "trust", "--no-sync")
    settings = f"-k {folder} -c listen_addresses= -c fsync=off"
    as_postgres(str(tools / "pg_ctl"), "-D", str(data), "-w", "-l", str(folder / "log"), "-o", settings, "start")

    def create() -> str:
        name = f"ledger_{uuid.uuid4().hex[:8]}"
        as_postgres(str(tools / "createdb"), "-h", str(folder), "-U", "tester", name)
        return f"postgresql+psycopg://tester@/{name}?host={folder}"

    try:
        yield create
    finally:
        as_postgres(str(tools / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new place for a ledger, in each kind of database."""
    if request.param == "sqlite":
        return str(tmp_path / "edits.db")
    pytest.importorskip("psycopg")
    create: Callable[[], str] = request.getfixturevalue("postgres")
    return create()


@pytest.fixture
def ledger(where: str) -> Iterator[Ledger]:
    with Ledger(where, author="Ada") as opened:
        yield opened
