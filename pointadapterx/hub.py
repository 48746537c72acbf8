"""The Hugging Face hub: addresses, downloads, uploads, and its errors in one line."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pointadapterx.errors import HubError, reason_of

HUB = "hf://"
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
ADDRESS = re.compile(rf"(?:{HUB})?({NAME}/{NAME})((?:/[^/@]+)*)(?:@(\S+))?")


class Address(NamedTuple):
    """A place on the hub.

    Attributes:
        repository: ``owner/repository``.
        revision: branch, tag or commit; None is the main branch.
        file: path of a file in it, or empty.
    """

    repository: str
    revision: str | None = None
    file: str = ""

    @classmethod
    def parse(cls, text: str, *, file: bool | None = None) -> Address:
        """From ``hf://owner/repository``, optionally with ``/file`` and ``@revision``; the prefix may be left out.

        Args:
            text: the address.
            file: whether it names a file; None is either.

        Raises:
            HubError: if it is something else.
        """
        found = ADDRESS.fullmatch(text)
        if found is not None and not (_is_path(found[2].removeprefix("/")) and _is_path(found[3] or "")):
            raise HubError(f"{text}: file and revision must be plain paths, without . and .., \\ and empty parts")
        if found is None or (file is not None and file != bool(found[2])):
            form = f"owner/repository{'/file' if file else ''}"
            raise HubError(f"{text}: is not of the form {form} or {HUB}{form}, optionally with @revision at the end")
        return cls(found[1], found[3], found[2].removeprefix("/"))

    @property
    def name(self) -> str:
        """Of the repository, without its owner."""
        return self.repository.partition("/")[2]

    def __str__(self) -> str:
        file = f"/{self.file}" if self.file else ""
        return f"{HUB}{self.repository}{file}{f'@{self.revision}' if self.revision else ''}"


def _is_path(text: str) -> bool:
    """Whether it leads down from where it starts; an empty one does."""
    return not text or ("\\" not in text and not {"", ".", ".."} & set(text.split("/")))


def is_cached(address: Address) -> bool:
    """Whether :func:`fetch` would find the file without the hub."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(address.repository, address.file, revision=address.revision), str)


def commit_of(path: Path) -> str | None:
    """The commit that a fetched file is of, as the hub's cache names its folders."""
    found = re.search(r"/snapshots/([0-9a-f]{40})/", path.as_posix())
    return found[1] if found else None


def fetch(address: Address) -> Path:
    """A file of a repository, downloaded once into the hub's own cache.

    Raises:
        NotFound: if the repository has no such file.
        Unreachable: if the hub does not answer, and the file is not in the cache.
        HubError: if it cannot be had for another reason.
    """
    from huggingface_hub import hf_hub_download  # slow to import, and rarely needed

    with _explained(address, "fetched"):
        return Path(hf_hub_download(address.repository, address.file, revision=address.revision))


def upload(folder: Path, address: Address, *, private: bool, message: str, without: Sequence[str] = ()) -> str:
    """A folder's files as one commit to a repository, or a branch of it, either made where it does not exist.

    Args:
        folder: its files replace those of the same names.
        address: repository and branch.
        private: whether a new repository is.
        message: of the commit.
        without: names of files that are removed where the repository has them.

    Returns:
        The commit's address on the web.

    Raises:
        HubError: without a token, or if the hub refuses it.
    """
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise HubError(f"{address}: pushing needs a token; run `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    with _explained(address, "pushed"):
        api.create_repo(address.repository, private=private, exist_ok=True)
        if address.revision is not None:
            api.create_branch(address.repository, branch=address.revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=address.repository,
            folder_path=folder,
            revision=address.revision,
            commit_message=message,
            delete_patterns=list(without) or None,
        )
    return commit.commit_url


class NotFound(HubError):
    """The repository is there, and the file is not."""


class Unreachable(HubError):
    """The hub does not answer, and the cache does not have the file."""


@contextmanager
def _explained(address: Address, done: str) -> Iterator[None]:
    """Turns the hub's errors, and those of the network below it, into one line."""
    from huggingface_hub import errors

    logger = logging.getLogger("huggingface_hub")  # tells of every attempt
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    except (errors.RepositoryNotFoundError, errors.GatedRepoError) as error:
        raise HubError(
            f"{address}: no such repository, or no access to it; check the name, and for a private one run "
            "`hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{address}: the repository has no revision {address.revision}; check its branches") from error
    except errors.LocalEntryNotFoundError as error:  # no answer, and nothing in the cache
        raise Unreachable(f"{address}: could not be {done}, and is not in the cache; check the network") from error
    except errors.EntryNotFoundError as error:
        raise NotFound(f"{address}: the repository has no such file; check the name") from error
    except Exception as error:
        raise HubError(
            f"{address}: could not be {done} ({reason_of(error)}); check the name and the network"
        ) from error
    finally:
        logger.setLevel(level)
