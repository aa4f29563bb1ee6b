"""Section `storage` of params.yaml: where the large files of raw, corpus and shards lie. It makes nothing stale."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from pydantic import Field, field_validator

from llm_core.contract import Config


def in_store(url: str) -> SplitResult:
    """The parts of a URL (or path) that carries no credentials. Raises ValueError, which does not repeat them."""
    parts = urlsplit(url.replace("?", "%3F") if "://" not in url else url)
    if "://" in url and ("@" in parts.netloc or "=" in parts.query):
        raise ValueError("credentials and options do not belong into the URL; they are taken from the environment")
    return parts


class StorageSettings(Config):
    """Folders of the workspace, or an object store; a product has the same bytes and the same manifest in either."""

    url: Annotated[str, Field(pattern=r"^[a-z][a-z0-9+.-]*://.*[^/]$")] | None = None
    """Prefix in a store, for example s3://bucket/groundup; any scheme that fsspec has a package for (s3: the extra
    [scale]). Blank keeps files in the workspace. Credentials come from the environment alone."""

    @field_validator("url")
    @classmethod
    def _holds_no_credentials(cls, url: str | None) -> str | None:
        if url is not None and in_store(url).scheme in ("http", "https"):
            raise ValueError("http cannot be written to; for an S3 server of your own set AWS_ENDPOINT_URL")
        return url
