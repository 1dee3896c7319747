"""Where raw objects are restored to: a directory, a tar file, an S3 prefix, or a stream of bytes.

An object appears under its own name only after all of its bytes were compared. Each target is a context manager,
which removes what is unfinished if an error ends it.
"""

import errno
import os
import secrets
import shutil
import stat
import tarfile
import tempfile
import threading
from collections.abc import Collection, Sequence
from contextlib import suppress
from datetime import datetime
from enum import Enum
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple, Protocol, Self

from include.log_rollup import crc
from include.log_rollup.errors import ConfigurationError, PermanentError, TargetConflictError
from include.log_rollup.units import MIB

TEMPORARY = ".log-rollup-restore-"
"""Beginning of the names of temporary files and folders. One that a killed process left behind may be deleted."""

FILE_READ_BYTES = MIB
# The name itself cannot be a file's, because of its length, its characters, or other names that exist.
_NAME_ERRORS = frozenset(
    {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EILSEQ, errno.EINVAL, errno.ELOOP}
)


class RestoredObject(NamedTuple):
    """A raw object that is restored; a tuple, because an hour may have a million of them.

    :param name: the target's name for it: the key below the literal beginning of the stream's raw template
    :param etag: of the raw object when it was packed; empty if it was recompressed
    :param crc64nvme: of its bytes; None if the manifest has none
    :param etag_is_md5: whether the ETag was seen to be the MD5 of its bytes
    :param is_content: whether it was recompressed, so that its bytes are those of its content
    """

    key: str
    name: str
    hour: datetime
    size: int
    etag: str
    crc64nvme: int | None
    etag_is_md5: bool
    is_content: bool = False


class Presence(Enum):
    """Whether a target has an object already."""

    ABSENT = "absent"
    SAME = "same"
    DIFFERENT = "different"


class UnusableNameError(PermanentError):
    """A target cannot have an object of this name."""


class Writer(Protocol):
    """Writes an object in pieces."""

    def write(self, piece: memoryview) -> None:
        """Add bytes."""

    def commit(self) -> None:
        """Make the object appear: all its bytes were written, and they are right."""

    def discard(self) -> None:
        """Remove what was written."""


class Target(Protocol):
    """Where raw objects are restored to. All but :meth:`compare` may be called from several threads.

    :param is_ordered: whether objects have to be written in key order, from one thread
    """

    is_ordered: bool

    def name_problem(self, item: RestoredObject) -> str | None:
        """Why the target cannot have an object under its name; None if it can."""

    def compare(self, objects: Sequence[RestoredObject]) -> Sequence[Presence]:
        """Whether the target has each of these objects already. Changes nothing.

        :raises RollupError: as the store raises
        """

    def write(self, item: RestoredObject, body: bytes | memoryview) -> None:
        """Write an object whose bytes were compared.

        :raises UnusableNameError: if the target cannot have an object of this name
        :raises ConfigurationError: if the target cannot be written to
        """

    def begin(self, item: RestoredObject) -> Writer:
        """Begin an object that is too large to be held in memory; errors are those of :meth:`write`."""

    def __enter__(self) -> Self:
        """Begin to write."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish, or after an error remove what is unfinished."""


def path_problem(name: str) -> str | None:
    """Why a name cannot be a path below a directory; None if it can."""
    steps = name.split("/")
    if name.startswith("/"):
        return "its name begins with a slash"
    if name.endswith("/"):
        return "its name ends with a slash, as that of a folder does"
    if any(step in ("", ".", "..") for step in steps):
        return "its name has an empty step, or a step '.' or '..'"
    if "\0" in name:
        return "its name has a null character"
    return None


def _names_of_folders(objects: Sequence[RestoredObject]) -> set[str]:
    """The names of objects that cannot be files, because others are in a folder of this name.

    Names that exclude each other are in one hour.
    """
    folders = set[str]()
    for item in objects:
        folder = item.name
        while (slash := folder.rfind("/")) > 0:
            folder = folder[:slash]
            if folder in folders:
                break
            folders.add(folder)
    return {item.name for item in objects if item.name in folders}


def _check_no_folder(name: str, folders: Collection[str]) -> None:
    if name in folders:
        raise UnusableNameError(f"{name} cannot be a file: others are in a folder of this name")


class DirectoryTarget:
    """A directory, with a file for each object.

    Files are written in a temporary folder of the directory and then renamed.

    :param folder: created if it does not exist
    """

    is_ordered = False

    def __init__(self, folder: Path) -> None:
        if folder.exists() and not folder.is_dir():
            raise ConfigurationError(
                f"cannot restore to {folder}: it is a file; name a directory or a .tar file"
            )
        self._folder = folder
        self._work = folder
        self._numbers = count()
        self._made: set[str] = set()
        self._folders: set[str] = set()
        self._replaced: set[str] = set()
        self._turn = threading.Lock()

    def name_problem(self, item: RestoredObject) -> str | None:
        """See :class:`Target`."""
        return path_problem(item.name)

    def compare(self, objects: Sequence[RestoredObject]) -> Sequence[Presence]:
        """See :class:`Target`. A file of the same size is read, and its CRC compared.

        A folder in the place of a file counts as absent, because it is not replaced: writing the object fails.
        """
        # Whichever is written first: without the file, all others can be restored.
        self._folders.update(_names_of_folders(objects))
        found = [self._presence(item) for item in objects]
        self._replaced.update(
            item.name for item, presence in zip(objects, found, strict=True) if presence is Presence.DIFFERENT
        )
        return found

    def _presence(self, item: RestoredObject) -> Presence:
        path = self._folder / item.name
        try:
            found = path.lstat()
            if stat.S_ISDIR(found.st_mode):
                return Presence.ABSENT
            if not stat.S_ISREG(found.st_mode) or found.st_size != item.size or item.crc64nvme is None:
                return Presence.DIFFERENT
            value = 0
            with path.open("rb", buffering=0) as file:
                while block := file.read(FILE_READ_BYTES):
                    value = crc.crc64(block, value)
        except (FileNotFoundError, NotADirectoryError):
            return Presence.ABSENT
        except OSError as error:
            if error.errno in _NAME_ERRORS:
                return Presence.ABSENT
            raise _cannot("read", path, error) from error
        return Presence.SAME if value == item.crc64nvme else Presence.DIFFERENT

    def write(self, item: RestoredObject, body: bytes | memoryview) -> None:
        """See :class:`Target`."""
        writer = self.begin(item)
        try:
            writer.write(memoryview(body))
            writer.commit()
        except BaseException:
            writer.discard()
            raise

    def begin(self, item: RestoredObject) -> "FileWriter":
        """See :class:`Target`."""
        _check_no_folder(item.name, self._folders)
        path = self._folder / item.name
        try:
            self._make_folder(path.parent)
        except OSError as error:
            raise _cannot("write", path, error) from error
        work = self._work / f"{next(self._numbers)}"
        return FileWriter(work, path, self._turn, replaces=item.name in self._replaced)

    def _make_folder(self, folder: Path) -> None:
        name = f"{folder}"
        if name in self._made:
            return
        # Before anything is made: a folder below a link would be made outside.
        existing = folder
        while not existing.exists():
            existing = existing.parent
        self._check_inside(existing)
        folder.mkdir(parents=True, exist_ok=True)
        self._check_inside(folder)
        self._made.add(name)

    def _check_inside(self, folder: Path) -> None:
        if not folder.resolve().is_relative_to(self._folder.resolve()):
            raise UnusableNameError(f"{folder} is a link that leads out of {self._folder}")

    def __enter__(self) -> Self:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._work = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=self._folder))
        except OSError as error:
            raise ConfigurationError(f"cannot write {self._folder}: {error.strerror}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._work, ignore_errors=True)


class FileWriter:
    """Writes a file under a temporary name, and renames it.

    :param work: the temporary name, on the same file system
    :param turn: held while a file is renamed
    :param replaces: whether there may be a file of this name. If there is one nevertheless, the file system takes
        the names of two objects for one, as macOS does if they differ in case.
    """

    def __init__(self, work: Path, path: Path, turn: threading.Lock, *, replaces: bool) -> None:
        self._work, self._path, self._turn, self._replaces = work, path, turn, replaces
        try:
            self._file = os.open(work, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except OSError as error:
            raise _cannot("write", path, error) from error
        self._is_open = True

    def write(self, piece: memoryview) -> None:
        """See :class:`Writer`."""
        try:
            while piece:
                piece = piece[os.write(self._file, piece) :]
        except OSError as error:
            raise _cannot("write", self._path, error) from error

    def commit(self) -> None:
        """See :class:`Writer`."""
        try:
            self._close()
            with self._turn:
                # A folder is reported by rename itself.
                if not self._replaces and os.path.lexists(self._path) and not self._path.is_dir():
                    raise UnusableNameError(
                        f"{self._path} cannot be a file: another object has been restored to it, or another "
                        f"program has made it"
                    )
                self._work.replace(self._path)
        except OSError as error:
            raise _cannot("write", self._path, error) from error

    def discard(self) -> None:
        """See :class:`Writer`."""
        with suppress(OSError):
            self._close()
            self._work.unlink()

    def _close(self) -> None:
        if self._is_open:
            self._is_open = False
            os.close(self._file)


class TarTarget:
    """A tar file in the PAX format, with a member for each object.

    It is written under a temporary name and then renamed. The time of a member is the beginning of the object's
    hour, because manifests don't have the times of raw objects.

    :param path: of the tar file, which must not exist
    :param overwrite: whether it may exist
    :raises TargetConflictError: if it exists
    """

    is_ordered = False

    def __init__(self, path: Path, overwrite: bool) -> None:
        if path.exists() and not path.is_file():
            raise ConfigurationError(f"cannot restore to {path}: it is not a file")
        if path.exists() and not overwrite:
            raise TargetConflictError(f"{path} exists; use another name, or --overwrite to replace it")
        self._path = path.resolve()
        self._turn = threading.Lock()
        self._folders: set[str] = set()

    def name_problem(self, item: RestoredObject) -> str | None:
        """See :class:`Target`."""
        return path_problem(item.name)

    def compare(self, objects: Sequence[RestoredObject]) -> Sequence[Presence]:
        """See :class:`Target`. A tar file is always written as a whole."""
        self._folders.update(_names_of_folders(objects))
        return [Presence.ABSENT] * len(objects)

    def write(self, item: RestoredObject, body: bytes | memoryview) -> None:
        """See :class:`Target`."""
        writer = self.begin(item)
        writer.write(memoryview(body))
        writer.commit()

    def begin(self, item: RestoredObject) -> "MemberWriter":
        """See :class:`Target`. Until the member is finished, other threads wait."""
        _check_no_folder(item.name, self._folders)
        info = tarfile.TarInfo(item.name)
        info.size = item.size
        info.mtime = int(item.hour.timestamp())
        return MemberWriter(self._file, self._path, self._turn, info)

    def __enter__(self) -> Self:
        self._work = self._path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}.tar")
        try:
            self._file = self._work.open("xb", buffering=MIB)
        except OSError as error:
            raise ConfigurationError(f"cannot write {self._path}: {error.strerror}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                # Two empty blocks end the file, which has a multiple of the record size.
                end = self._file.tell() + 2 * tarfile.BLOCKSIZE
                self._file.write(bytes(2 * tarfile.BLOCKSIZE + -end % tarfile.RECORDSIZE))
                self._file.close()
                self._work.replace(self._path)
        except OSError as problem:
            raise _cannot("write", self._path, problem) from problem
        finally:
            with suppress(OSError):
                self._file.close()
            self._work.unlink(missing_ok=True)


class MemberWriter:
    """Writes a member of a tar file; no other thread writes meanwhile.

    :param file: the tar file; its position is its end
    """

    def __init__(self, file: IO[bytes], path: Path, turn: threading.Lock, info: tarfile.TarInfo) -> None:
        self._file, self._path, self._turn, self._info = file, path, turn, info
        turn.acquire()
        self._has_turn = True
        self._start = file.tell()
        try:
            self._put(info.tobuf(tarfile.PAX_FORMAT))
        except BaseException:
            self._release()
            raise

    def write(self, piece: memoryview) -> None:
        """See :class:`Writer`."""
        try:
            self._put(piece)
        except BaseException:
            self._release()
            raise

    def commit(self) -> None:
        """See :class:`Writer`."""
        try:
            self._put(bytes(-self._info.size % tarfile.BLOCKSIZE))
        finally:
            self._release()

    def discard(self) -> None:
        """See :class:`Writer`."""
        if not self._has_turn:
            return
        try:
            self._file.seek(self._start)
            self._file.truncate()
        except OSError as error:
            raise _cannot("write", self._path, error) from error
        finally:
            self._release()

    def _put(self, data: bytes | memoryview) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise _cannot("write", self._path, error) from error

    def _release(self) -> None:
        if self._has_turn:
            self._has_turn = False
            self._turn.release()


class StreamTarget:
    """A stream such as standard output: the objects' bytes end to end, in key order."""

    is_ordered = True

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def name_problem(self, item: RestoredObject) -> str | None:
        """See :class:`Target`."""
        return None

    def compare(self, objects: Sequence[RestoredObject]) -> Sequence[Presence]:
        """See :class:`Target`."""
        return [Presence.ABSENT] * len(objects)

    def write(self, item: RestoredObject, body: bytes | memoryview) -> None:
        """See :class:`Target`."""
        self._stream.write(body)

    def begin(self, item: RestoredObject) -> "StreamWriter":
        """See :class:`Target`. Its bytes are written at once, so they cannot be discarded."""
        return StreamWriter(self._stream)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class StreamWriter:
    """Writes to a stream at once."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def write(self, piece: memoryview) -> None:
        """See :class:`Writer`."""
        self._stream.write(piece)

    def commit(self) -> None:
        """See :class:`Writer`."""

    def discard(self) -> None:
        """See :class:`Writer`. What was written stays."""


def _cannot(action: str, path: Path, error: OSError) -> PermanentError:
    """The error for a path: about its name alone, or about all of the target."""
    if error.errno in _NAME_ERRORS:
        return UnusableNameError(f"{path} cannot be a file: {error.strerror}")
    return ConfigurationError(f"cannot {action} {path}: {error.strerror}")
