"""Checkpoints on the Hugging Face hub, fetched file by file into its own cache.

huggingface_hub itself honours HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is the HTTP library's
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ddimctl.checkpoints.source import Source, folder_source
from ddimctl.errors import CheckpointError, StorageError, brief

# What git allows in a name, but for letters that no address can hold.
_REVISION: Final = re.compile(r"(?!/)(?!.*(?:\.\.|//))[\w./+@=-]{1,250}", re.ASCII)
_TIMEOUT: Final = 15.0
_OFFLINE: Final = "HF_HUB_OFFLINE is set"
_NO_ANSWER: Final = "the hub does not answer"
NOT_ASKED: Final = "downloading is not allowed without --yes"
_REMEDIES: Final = {
    _OFFLINE: "Unset HF_HUB_OFFLINE, or pass a folder.",
    _NO_ANSWER: "Check the network, the proxy settings and HF_ENDPOINT, or pass a folder.",
    NOT_ASKED: "Pass --yes to download it, or --ckpt to use another checkpoint.",
}
# One of these is in every diffusers folder; fetching it by branch records the branch's commit.
_ENTRIES: Final = ("model_index.json", "config.json")
# (huggingface_hub's error, cause, remedy), the most specific first.
_EXPLANATIONS: Final = (
    (
        HFValidationError,
        "'{id}' is neither an existing path nor a valid hub id (owner/name).",
        "Check the spelling.",
    ),
    (
        GatedRepoError,
        "{id} is gated, and this account has no access.",
        "Request access on its hub page, then set HF_TOKEN (or run `hf auth login`).",
    ),
    (
        RepositoryNotFoundError,
        "'{id}' is neither an existing path nor a model on the hub.",
        "Check the spelling; for a private model set HF_TOKEN (or run `hf auth login`).",
    ),
    (
        RevisionNotFoundError,
        "{id} has no revision '{revision}'.",
        "Pass a branch, a tag or a full commit hash, or leave out --revision.",
    ),
    (
        EntryNotFoundError,
        "a file of {id} cannot be downloaded: {why}",
        "Check the network and try again.",
    ),
    (
        HfHubHTTPError,
        "the hub refused {id} (HTTP {status}).",
        "Check HF_TOKEN (or run `hf auth login`), or try again later.",
    ),
    (
        HTTPError,
        "the download of {id} failed: {why}",
        "Run the same command again; complete files are kept.",
    ),
)


def hub_source(hub_id: str, revision: str | None = None) -> Source:
    """The files of a model on the hub at a branch, tag or commit (None: main).

    Asks the hub which commit that is now. Offline, or where the hub does not answer, the cached
    files of the last known commit are used; a note says so in the second case.

    Raises CheckpointError when there is no such model or revision, it may not be read, or it can
    neither be reached nor found in the cache; StorageError when the cache cannot be written.
    """
    with _explained(hub_id, revision):
        try:
            info = HfApi().model_info(hub_id, revision=revision, timeout=_TIMEOUT)
        except OfflineModeIsEnabled:
            return cached_source(hub_id, revision, _OFFLINE)
        except (HTTPError, ConnectionError) as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
                raise
            cached = cached_source(hub_id, revision, _NO_ANSWER)
            note = f"{hub_id}: {_NO_ANSWER}, so the cached copy of {cached.revision} was used."
            return replace(cached, notes=(note,))
    files = {sibling.rfilename for sibling in info.siblings or ()}
    commit = str(info.sha)

    def get(relative: str) -> Path | None:
        if relative not in files:
            return None
        with _explained(hub_id, revision):
            at = revision if relative in _ENTRIES else commit
            return Path(hf_hub_download(hub_id, relative, revision=at))

    return Source(hub_id, get, commit)


def cached_source(hub_id: str, revision: str | None, why: str) -> Source:
    """The files of the last known commit. why: the hub is not asked, for the error's sentence."""
    with _explained(hub_id, revision):
        found = (try_to_load_from_cache(hub_id, entry, revision=revision) for entry in _ENTRIES)
        entry = next((path for path in found if isinstance(path, str)), None)
    if entry is None:
        at = f" at '{revision}'" if revision else ""
        raise CheckpointError(
            f"{hub_id}{at} is not in the cache, and {why}.", _REMEDIES.get(why, "Pass a folder.")
        )
    snapshot = Path(entry).parent
    return replace(folder_source(snapshot), name=hub_id, revision=snapshot.name)


@contextmanager
def _explained(hub_id: str, revision: str | None) -> Iterator[None]:
    """huggingface_hub's errors as ours."""
    if revision is not None and not _REVISION.fullmatch(revision):
        raise CheckpointError(
            f"{brief(revision)} is not the name of a revision.",
            "Name a branch, a tag or a full commit hash, or leave --revision out.",
        )
    try:
        yield
    except (HFValidationError, EntryNotFoundError, HTTPError, OSError) as error:
        for kind, cause, remedy in _EXPLANATIONS:
            if isinstance(error, kind):
                status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
                words = {"id": hub_id, "revision": revision, "status": status}
                raise CheckpointError(
                    cause.format(why=_first_line(error), **words), remedy
                ) from error
        if isinstance(error, OSError) and error.errno is not None:
            raise StorageError(
                f"the hub's cache cannot be written: {error.strerror}.",
                "Set HF_HOME to a folder with space that you may write to.",
            ) from error
        _, cause, remedy = _EXPLANATIONS[-1]
        raise CheckpointError(cause.format(why=_first_line(error), id=hub_id), remedy) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
