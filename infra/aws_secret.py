"""Prints a secret of AWS Secrets Manager, for programs that do without boto3.

`python -m infra.aws_secret ARN`; credentials are those that boto3 finds, the region is the ARN's.
"""

import re
import sys
from typing import Final

_ARN: Final = re.compile(r"arn:[a-z-]+:secretsmanager:([a-z0-9-]+):\d{12}:secret:\S+")


def is_arn(text: str) -> bool:
    """Whether it names a secret."""
    return _ARN.fullmatch(text) is not None


def region_of(arn: str) -> str:
    """Where the secret lives; raises ValueError where `arn` names none."""
    match = _ARN.fullmatch(arn)
    if match is None:
        raise ValueError(f"{arn!r} names no secret")
    return match.group(1)


def main(arn: str) -> int:
    """Writes the secret to standard output, or why it cannot be had to standard error."""
    try:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        print("boto3 is missing: pip install 'firstlight[aws]'", file=sys.stderr)  # noqa: T201
        return 1
    try:
        client = boto3.session.Session().client("secretsmanager", region_name=region_of(arn))
        value = client.get_secret_value(SecretId=arn)["SecretString"]
    except (BotoCoreError, ClientError, ValueError) as error:
        print(error, file=sys.stderr)  # noqa: T201 - a program's voice
        return 1
    sys.stdout.write(value)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
