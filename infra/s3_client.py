"""How the platform talks to S3, or to a store that speaks its protocol."""

from typing import Any


def s3_client(endpoint: str | None) -> Any:
    """A client; credentials and region come from where boto3 finds them.

    `endpoint` is for other stores. Raises ImportError where there is no boto3.
    """
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        config=Config(
            connect_timeout=5,
            read_timeout=30,
            retries={"mode": "standard", "max_attempts": 3},
            signature_version="s3v4",
            user_agent_extra="firstlight",
        ),
    )
