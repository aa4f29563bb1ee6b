"""`python -m deployments.buckets NAME...`: make buckets in the S3-compatible store of AWS_ENDPOINT_URL, if absent."""

from __future__ import annotations

import sys

import boto3


def ensure(names: list[str]) -> list[str]:
    """Make the buckets that are not there; their names."""
    client = boto3.client("s3")
    there = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    missing = [name for name in names if name not in there]
    for name in missing:
        client.create_bucket(Bucket=name)
    return missing


if __name__ == "__main__":
    print(f"made: {', '.join(ensure(sys.argv[1:])) or 'none, all were there'}")
