"""The database of a ledger: SQLite by default, PostgreSQL by URL.

Everything that a method of the ledger writes is one transaction: after a crash it is there as a whole or not at all.
Writers take turns: SQLite's lock is taken when a transaction begins, so that what it has read stays true until it
writes; PostgreSQL has an advisory lock for that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.orm import Session as DatabaseSession

from instructedit.errors import LedgerError

#: Seconds that a writer waits for others.
WAIT = 60
#: PostgreSQL's advisory lock of all ledgers' writers; any number that nobody else uses.
_LOCK = 0x1ED17


class Database:
    """A database with the ledger's tables, which are created, or brought up to date, when it is opened.

    Args:
        where: a file of SQLite, or a URL of SQLAlchemy, such as ``postgresql+psycopg://host/name``.
        create: whether a file that does not exist is created.

    Raises:
        LedgerError: it does not exist, cannot be opened, is no ledger, or was written by a newer version.
    """

    def __init__(self, where: str | Path, *, create: bool = True) -> None:
        self.url = _url(where)
        is_file = self.url.get_backend_name() == "sqlite"
        self.name = str(self.url.database) if is_file else self.url.render_as_string(hide_password=True)
        if is_file and not create and Path(self.name).parent.is_dir() and not Path(self.name).exists():
            raise LedgerError(
                f"ledger {self.name}: no such file; `instructedit edits add` creates it, --ledger names another"
            )
        self._engine = _engine(self.url)
        with self._errors(), self._engine.connect() as connection:
            self._bring_up_to_date(connection)

    @contextmanager
    def reading(self) -> Iterator[DatabaseSession]:
        """Return a transaction that sees one state of the ledger and writes nothing."""
        with self._errors(), self._engine.connect() as connection, DatabaseSession(connection) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[DatabaseSession]:
        """Return a transaction that no other writer runs beside; it is rolled back where an exception leaves it."""
        with self._errors(), self._engine.connect() as connection:
            connection = connection.execution_options(writes=True)
            with DatabaseSession(connection) as session, session.begin():
                self._take_turn(session.connection())
                yield session

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def integrity(self) -> list[str]:
        """Return what the database itself finds wrong with its files."""
        if self._engine.dialect.name != "sqlite":
            return []
        with self._errors(), self._engine.connect() as connection:
            results = [str(row[0]) for row in connection.execute(text("PRAGMA integrity_check"))]
        return [] if results == ["ok"] else results

    def _take_turn(self, connection: Connection) -> None:
        if self._engine.dialect.name == "postgresql":
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))

    def _bring_up_to_date(self, connection: Connection) -> None:
        """Create missing tables, or change those of an older version.

        Raises:
            LedgerError: a newer version, or not a ledger.
        """
        config = Config()
        config.set_main_option("script_location", "instructedit.ledger:migrations")
        config.set_main_option("path_separator", "os")
        scripts = ScriptDirectory(str(Path(__file__).parent / "migrations"))
        newest = scripts.get_current_head()
        with connection.begin():
            current = MigrationContext.configure(connection).get_current_revision()
        if current == newest:
            return
        connection = connection.execution_options(writes=True)
        with connection.begin():
            self._take_turn(connection)
            # Another process may have been faster.
            current = MigrationContext.configure(connection).get_current_revision()
            if current not in {None, *(script.revision for script in scripts.walk_revisions())}:
                raise LedgerError(
                    f"ledger {self.name}: was written by a newer version of InstructEdit (its tables are of version "
                    f"{current}, known is {newest}). Upgrade InstructEdit; nothing was changed"
                )
            if current != newest:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn the database's errors into words.

        Raises:
            LedgerError: in place of any error of the database.
        """
        try:
            yield
        except DBAPIError as error:
            reason = str(error.orig).strip().splitlines()[0] if error.orig is not None else str(error)
            raise LedgerError(f"ledger {self.name}: {_advice(reason)}") from None


def _advice(reason: str) -> str:
    """Return a database's message with what to do."""
    for message, advice in (
        ("unable to open database file", "the folder does not exist, or may not be written to"),
        ("readonly database", "the file or its folder may not be written to; nothing was changed"),
        ("attempt to write a readonly", "the file or its folder may not be written to; nothing was changed"),
        ("disk is full", "the disk is full; nothing was changed. Make room, and try again"),
        ("not a database", "this file is not a ledger, or it is damaged"),
        ("malformed", "the file is damaged; restore a copy, and see `instructedit edits verify`"),
        ("already exists", "this database has other tables of these names; give the ledger one of its own"),
        ("database is locked", f"another program has been writing for {WAIT} seconds; try again"),
    ):
        if message in reason:
            return f"{reason}: {advice}"
    return reason


def _url(where: str | Path) -> URL:
    """Return the URL of a file or of a database.

    Raises:
        LedgerError: no such kind of database.
    """
    if "://" not in str(where):
        return URL.create("sqlite", database=str(where))
    try:
        return make_url(str(where))
    except ArgumentError as error:
        raise LedgerError(f"ledger {where}: {error}") from None


def _engine(url: URL) -> Engine:
    """Return SQLAlchemy's engine.

    Raises:
        LedgerError: no driver for such a database.
    """
    sqlite = url.get_backend_name() == "sqlite"
    try:
        engine = create_engine(url, connect_args={"timeout": WAIT} if sqlite else {})
    except (NoSuchModuleError, ImportError) as error:
        raise LedgerError(
            f"ledger {url.render_as_string()}: {error}. Give a file, or postgresql+psycopg://host/name with "
            "`pip install 'instructedit[postgresql]'`"
        ) from None
    if not sqlite:
        return engine

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: object) -> None:
        # SQLAlchemy begins transactions by itself, see below: the driver would begin them only when it writes.
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys = ON")
        # Readers and a writer do not wait for each other. A file that may only be read stays as it is, and so does one
        # whose mode another process is changing right now.
        with suppress(connection.OperationalError):
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
